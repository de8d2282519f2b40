"""Rows to model: features, cross-fitted lexicon and habits, forest, calibration.

The lexicon's score and a model name's habits are learned from the same answers the forest is trained on. To keep the
forest from trusting them more than they deserve on new prompts, every training row gets scores from a fit that did not
see its prompt (five folds by group); the shipped lexicon and habits are fitted on all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from prelude_proxy.core.bins import EDGES, LN_MIDDLES, NUM_BINS
from prelude_proxy.core.classify import DEFAULT_CUTOFFS, rung_of
from prelude_proxy.core.features import FEATURES, FeatureExtractor
from prelude_proxy.core.lexicon import Lexicon, scale
from prelude_proxy.core.modelname import HABIT_FEATURES, UNKNOWN_HABIT, ModelHabit, normal_name
from prelude_proxy.errors import ClientError, ConfigError
from prelude_proxy.journal import read_journal
from prelude_proxy.modelfile import ModelParts, default_model_path, read_parts, write_parts
from prelude_proxy.training.dataset import Row, cap_sources, read_rows
from prelude_proxy.training.flatten import flatten
from prelude_proxy.training.habits import fit_habits
from prelude_proxy.training.lexicon import WordMatrix
from prelude_proxy.training.metrics import FAST_TOKENS, STANDARD_TOKENS, Scores, score

NUM_FOLDS = 5
Progress = Callable[[str, float], None]
"""Called with what is being done and the share of it done."""
_LEXICON = FEATURES.index("lexicon")
_HABITS = slice(FEATURES.index(HABIT_FEATURES[0]), FEATURES.index(HABIT_FEATURES[-1]) + 1)


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How a model is trained. Chosen on a group-split validation set; see the model card."""

    rounds: int = 80
    depth: int = 6
    learning_rate: float = 0.18
    min_child_weight: float = 5.0
    subsample: float = 0.8
    features_per_tree: float = 0.6
    hide_names: float = 0.1
    """Share of rows shown to the forest as of an unknown model, so that it copes with one."""
    threads: int = 1
    seed: int = 7


@dataclass(slots=True)
class TrainingSet:
    """Rows as arrays, lexicon and habit columns still to be filled."""

    values: NDArray[np.float32]
    prompts: list[tuple[bytes, ...]]
    """The lexicon's terms; rows of one prompt share one tuple."""
    tokens: NDArray[np.float64]
    sources: list[str]
    groups: list[str]
    models: list[str]

    @property
    def ln_tokens(self) -> NDArray[np.float64]:
        """Natural logarithm of the output tokens, at least one."""
        ln: NDArray[np.float64] = np.log(np.maximum(self.tokens, 1.0))
        return ln

    def select(self, keep: NDArray[np.bool_]) -> TrainingSet:
        """The chosen rows."""
        chosen = np.flatnonzero(keep)
        return TrainingSet(
            values=self.values[chosen],
            prompts=[self.prompts[i] for i in chosen] if self.prompts else [],
            tokens=self.tokens[chosen],
            sources=[self.sources[i] for i in chosen],
            groups=[self.groups[i] for i in chosen],
            models=[self.models[i] for i in chosen],
        )


def prepare(rows: Sequence[Row], progress: Progress) -> TrainingSet:
    """Features of every row that the proxy would accept."""
    extractor = FeatureExtractor(Lexicon.of({}), {})
    values: list[list[float]] = []
    prompts: list[tuple[bytes, ...]] = []
    used: list[Row] = []
    shared: dict[tuple[int, str], tuple[bytes, ...]] = {}
    for number, row in enumerate(rows):
        try:
            facts = row.facts()
        except ClientError:
            continue
        extract = extractor.extract(facts)
        values.append(extract.values)
        prompts.append(shared.setdefault((extract.digest, row.group), tuple(extractor.terms(facts))))
        used.append(row)
        if number % 1000 == 0:
            progress("reading features", number / len(rows))
    return TrainingSet(
        values=np.array(values, dtype=np.float32).reshape(-1, len(FEATURES)),
        prompts=prompts,
        tokens=np.array([row.output_tokens for row in used], dtype=np.float64),
        sources=[row.source for row in used],
        groups=[row.group for row in used],
        models=[row.model for row in used],
    )


def fold_of(group: str) -> int:
    """The fold a group belongs to, the same in every run."""
    return crc32(group.encode()) % NUM_FOLDS


def train(
    data: TrainingSet, settings: TrainSettings, progress: Progress, name: str = "model", base: ModelParts | None = None
) -> ModelParts:
    """A model from `data`; with a `base`, whose lexicon and habits made the values, only the forest is new.

    Raises:
        ValueError: there is nothing to learn from.
    """
    if len(data.tokens) < _MIN_ROWS:
        raise ValueError(f"only {len(data.tokens)} usable rows; at least {_MIN_ROWS} are needed")
    values = data.values.copy()
    if base is None:
        folds = np.array([fold_of(group) for group in data.groups])
        habits: Mapping[str, ModelHabit] = _add_habits(data, folds, values, settings)
        words: Mapping[bytes, float] = _add_lexicon(data, folds, values, progress)
    else:
        habits, words = base.habits, base.words
    booster = _boost(values, data.tokens, settings, progress)
    return ModelParts(
        manifest={
            "name": name,
            "trained_rows": len(data.tokens),
            "sources": sorted(set(data.sources)),
            "settings": asdict(settings),
        },
        words=words,
        habits=habits,
        **flatten(booster, NUM_BINS),
    )


_MIN_ROWS = 50


def _add_lexicon(
    data: TrainingSet, folds: NDArray[np.int_], values: NDArray[np.float32], progress: Progress
) -> dict[bytes, float]:
    matrix = WordMatrix(data.prompts, data.groups)
    weight = np.ones(len(data.tokens))
    target = _within_sources(data)
    for fold in range(NUM_FOLDS):
        progress("fitting the lexicon", fold / (NUM_FOLDS + 1))
        held = folds == fold
        if held.any() and not held.all():
            values[held, _LEXICON] = matrix.score(matrix.fit(target, weight, ~held))[held]
    progress("fitting the lexicon", NUM_FOLDS / (NUM_FOLDS + 1))
    return matrix.largest(matrix.fit(target, weight, np.ones(len(folds), dtype=bool)))


def _within_sources(data: TrainingSet) -> NDArray[np.float64]:
    """What words should explain: ln(tokens) less the source's mean and the model's excess over others.

    Words that only tell one data set from another teach nothing about the next one.
    """
    habits = _habits_of(data, np.arange(len(data.tokens)))
    excess = np.array([habits[normal_name(model)].excess for model in data.models])
    names = np.array(data.sources)
    rest: NDArray[np.float64] = data.ln_tokens - excess
    for source in set(data.sources):
        rest[names == source] -= rest[names == source].mean()
    return rest


def _add_habits(
    data: TrainingSet, folds: NDArray[np.int_], values: NDArray[np.float32], settings: TrainSettings
) -> dict[str, ModelHabit]:
    hidden = np.random.default_rng(settings.seed).random(len(folds)) < settings.hide_names
    complete = _habits_of(data, np.arange(len(folds)))
    for fold in range(NUM_FOLDS):
        known = _habits_of(data, np.flatnonzero(folds != fold))
        for index in np.flatnonzero(folds == fold):
            name = normal_name(data.models[index])
            habit = UNKNOWN_HABIT if hidden[index] else known.get(name, UNKNOWN_HABIT)
            if habit is not UNKNOWN_HABIT:
                habit = replace(habit, support=complete[name].support)
            values[index, _HABITS] = habit.values()
    return complete


def _habits_of(data: TrainingSet, chosen: NDArray[np.int_]) -> dict[str, ModelHabit]:
    ln_tokens = data.ln_tokens
    return fit_habits(
        [data.models[i] for i in chosen],
        [data.groups[i] for i in chosen],
        [data.sources[i] for i in chosen],
        [float(ln_tokens[i]) for i in chosen],
    )


class _Ticker(xgb.callback.TrainingCallback):
    """Reports each round."""

    def __init__(self, progress: Progress, rounds: int) -> None:
        super().__init__()
        self._progress = progress
        self._rounds = rounds

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        self._progress("growing trees", (epoch + 1) / self._rounds)
        return False


def label_of(tokens: NDArray[np.float64]) -> NDArray[np.int_]:
    """Bin index of each count, as `core.bins.bin_of`."""
    labels: NDArray[np.int_] = np.minimum(np.searchsorted(np.array(EDGES), tokens, side="left"), NUM_BINS - 1)
    return labels


def _boost(
    values: NDArray[np.float32], tokens: NDArray[np.float64], settings: TrainSettings, progress: Progress
) -> xgb.Booster:
    parameters = {
        "objective": "multi:softprob",
        "num_class": NUM_BINS,
        "multi_strategy": "multi_output_tree",
        "tree_method": "hist",
        "max_bin": 128,
        "max_depth": settings.depth,
        "eta": settings.learning_rate,
        "min_child_weight": settings.min_child_weight,
        "subsample": settings.subsample,
        "colsample_bytree": settings.features_per_tree,
        "nthread": settings.threads,
        "seed": settings.seed,
    }
    matrix = xgb.DMatrix(values, label=label_of(tokens))
    return xgb.train(parameters, matrix, settings.rounds, callbacks=[_Ticker(progress, settings.rounds)])


# --- from files, against the model in use -----------------------------------------------------------------------------

HELD_OUT_SHARE = 10
"""One in so many groups is never trained on, the same in every run: what a new and an old model are compared by."""
_MARGIN = 0.002
"""Log-loss by which a model must be better to replace another."""


def is_held_out(group: str) -> bool:
    """Whether rows of this group are kept for the report."""
    return crc32(b"held out " + group.encode()) % HELD_OUT_SHARE == 0


def held_out(rows: Sequence[Row]) -> list[Row]:
    """The rows that `train` would keep back of a file, in an order that mixes sources and is the same in every run."""
    kept = [row for row in cap_sources(list(rows)) if is_held_out(row.group)]
    return sorted(kept, key=lambda row: crc32(row.body))


@dataclass(frozen=True, slots=True)
class Comparison:
    """A new model and the one in use, on rows neither was trained on (if the old one came from here)."""

    parts: ModelParts
    num_trained: int
    num_held_out: int
    new: Scores
    new_loss: float
    """Mean log-loss over the bins, nats."""
    old: Scores | None
    old_loss: float | None
    old_name: str

    @property
    def is_better(self) -> bool:
        """Whether it should replace the model in use."""
        return self.old_loss is None or self.new_loss < self.old_loss - _MARGIN

    def write(self, path: Path) -> None:
        """Write the new model."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_parts(path, self.parts)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "trained_rows": self.num_trained,
            "held_out_rows": self.num_held_out,
            "new": self.new.as_dict() | {"log_loss": self.new_loss},
            "in_use": None if self.old is None else self.old.as_dict() | {"log_loss": self.old_loss},
            "in_use_name": self.old_name,
            "better": self.is_better,
        }


def train_and_compare(
    *,
    data: Path | None,
    journal: Path | None,
    in_use: Path | None,
    settings: TrainSettings,
    name: str,
    progress: Progress,
    exclude: frozenset[str] = frozenset(),
) -> Comparison:
    """Train on nine tenths of the prompts of a file or journal, and score on the last beside the model `in_use`.

    A journal holds features, not words: its model keeps the lexicon and habits of the model in use, which made them.

    Raises:
        ValueError: too few rows, or the file is no data.
        ConfigError: the shipped model is damaged.
    """
    progress("reading rows", 0.0)
    old = _model_in_use(in_use)
    if journal is not None:
        if old is None:
            old = read_parts(default_model_path())
        rows = _from_journal(journal)
        base: ModelParts | None = old
    elif data is not None:
        listed = [row for row in read_rows(data) if row.source not in exclude]
        rows = prepare(cap_sources(listed), progress)
        base = None
    else:
        raise ValueError("neither data nor journal given")
    held = np.array([is_held_out(group) for group in rows.groups], dtype=bool)
    if not held.any() or held.all():
        raise ValueError(f"{len(held)} rows of too few prompts to hold any out")
    train_rows, test_rows = rows.select(~held), rows.select(held)
    parts = train(train_rows, settings, progress, name, base)
    new, new_loss = _scores(parts, test_rows, complete=base is not None)
    scored = _scores(old, test_rows, complete=base is not None) if old is not None else (None, None)
    return Comparison(
        parts=parts,
        num_trained=len(train_rows.tokens),
        num_held_out=len(test_rows.tokens),
        new=new,
        new_loss=new_loss,
        old=scored[0],
        old_loss=scored[1],
        old_name=str(old.manifest.get("name")) if old is not None else "none",
    )


def _model_in_use(path: Path | None) -> ModelParts | None:
    """The model to beat; None when it was made for other features, and so has to go anyway."""
    path = path or default_model_path()
    if not path.exists():
        return None
    try:
        return read_parts(path)
    except ConfigError:
        return None


def _from_journal(directory: Path) -> TrainingSet:
    rows = [row for row in read_journal(directory) if not row.censored and row.output_tokens > 0]
    if not rows:
        raise ValueError(f"{directory}: no records of this version")
    return TrainingSet(
        values=np.array([row.values for row in rows], dtype=np.float32),
        prompts=[],
        tokens=np.array([row.output_tokens for row in rows], dtype=np.float64),
        sources=[row.tenant for row in rows],
        groups=[row.group for row in rows],
        models=[row.model for row in rows],
    )


def _scores(parts: ModelParts, rows: TrainingSet, *, complete: bool) -> tuple[Scores, float]:
    """Static scores of a model on prepared rows; `complete` ones have their learned columns already."""
    model = parts.build()
    completed = _completed(parts, rows, complete=complete).tolist()
    probabilities = np.array([list(model.of_values(values)) for values in completed])
    labels = label_of(rows.tokens)
    loss = -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-6)).mean()
    fast, standard = EDGES.index(FAST_TOKENS) + 1, EDGES.index(STANDARD_TOKENS) + 1
    classes = np.stack(
        [
            probabilities[:, :fast].sum(axis=1),
            probabilities[:, fast:standard].sum(axis=1),
            probabilities[:, standard:].sum(axis=1),
        ],
        axis=1,
    )
    above = np.stack([classes[:, 1:].sum(axis=1), classes[:, 2], np.zeros(len(classes))], axis=1)
    dispatched = np.array([rung_of(each, DEFAULT_CUTOFFS) for each in above.tolist()])
    return score(classes, dispatched, np.exp(probabilities @ np.array(list(LN_MIDDLES))), rows.tokens), float(loss)


def _completed(parts: ModelParts, rows: TrainingSet, *, complete: bool) -> NDArray[np.float32]:
    if complete:
        return rows.values
    values = rows.values.copy()
    for index, terms in enumerate(rows.prompts):
        habit = parts.habits.get(normal_name(rows.models[index]), UNKNOWN_HABIT)
        values[index, _LEXICON] = sum(parts.words.get(term, 0.0) for term in terms) / scale(len(terms))
        values[index, _HABITS] = habit.values()
    return values
