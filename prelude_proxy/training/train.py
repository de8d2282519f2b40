"""Rows to model: features, cross-fitted lexicon and habits, forest, calibration.

The lexicon's score and a model name's habits are learned from the same answers the forest is trained on. To keep the
forest from trusting them more than they deserve on new prompts, every training row gets scores from a fit that did not
see its prompt (five folds by group); the shipped lexicon and habits are fitted on all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from prelude_proxy.core.bins import EDGES, NUM_BINS
from prelude_proxy.core.features import FEATURES, FeatureExtractor
from prelude_proxy.core.lexicon import Lexicon
from prelude_proxy.core.modelname import UNKNOWN_HABIT, ModelHabit, normal_name
from prelude_proxy.modelfile import ModelParts
from prelude_proxy.training.dataset import Row
from prelude_proxy.training.flatten import flatten
from prelude_proxy.training.habits import fit_habits
from prelude_proxy.training.lexicon import TermMatrix

NUM_FOLDS = 5
Progress = Callable[[str, float], None]
"""Called with what is being done and the share of it done."""
_LEVEL = FEATURES.index("habit_level")


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How a model is trained. Chosen on a group-split validation set; see the model card."""

    rounds: int = 100
    depth: int = 6
    learning_rate: float = 0.15
    min_child_weight: float = 5.0
    subsample: float = 0.8
    hide_names: float = 0.2
    """Share of rows shown to the forest as of an unknown model, so that it copes with one."""
    threads: int = 1
    seed: int = 7


@dataclass(slots=True)
class TrainingSet:
    """Rows as arrays, lexicon and habit columns still to be filled."""

    values: NDArray[np.float32]
    prompts: list[list[bytes]]
    tokens: NDArray[np.float64]
    sources: list[str]
    groups: list[str]
    models: list[str]

    @property
    def ln_tokens(self) -> NDArray[np.float64]:
        """ln of the output tokens, at least one."""
        ln: NDArray[np.float64] = np.log(np.maximum(self.tokens, 1.0))
        return ln

    def select(self, keep: NDArray[np.bool_]) -> TrainingSet:
        """The chosen rows."""
        chosen = np.flatnonzero(keep)
        return TrainingSet(
            values=self.values[chosen],
            prompts=[self.prompts[i] for i in chosen],
            tokens=self.tokens[chosen],
            sources=[self.sources[i] for i in chosen],
            groups=[self.groups[i] for i in chosen],
            models=[self.models[i] for i in chosen],
        )


def prepare(rows: Sequence[Row], progress: Progress) -> TrainingSet:
    """Features of every row that the proxy would accept."""
    from prelude_proxy.errors import ClientError

    extractor = FeatureExtractor(Lexicon({}, {}), {})
    values: list[list[float]] = []
    prompts: list[list[bytes]] = []
    used: list[Row] = []
    shared: dict[tuple[int, str], list[bytes]] = {}
    for number, row in enumerate(rows):
        try:
            facts = row.facts()
        except ClientError:
            continue
        extract = extractor.extract(facts)
        values.append(extract.values)
        prompts.append(shared.setdefault((extract.digest, row.group), extractor.words(facts)))
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


def train(data: TrainingSet, settings: TrainSettings, progress: Progress, name: str = "model") -> ModelParts:
    """A model from `data`.

    Raises:
        ValueError: there is nothing to learn from.
    """
    if len(data.tokens) < 50:  # noqa: PLR2004
        raise ValueError(f"only {len(data.tokens)} usable rows; at least 50 are needed")
    folds = np.array([fold_of(group) for group in data.groups])
    values = data.values.copy()
    words, pairs = _add_lexicon(data, folds, values, progress)
    habits = _add_habits(data, folds, values, settings)
    booster = _boost(values, data.tokens, settings, progress)
    return ModelParts(
        manifest={
            "name": name,
            "trained_rows": len(data.tokens),
            "sources": sorted(set(data.sources)),
            "settings": {
                "rounds": settings.rounds,
                "depth": settings.depth,
                "learning_rate": settings.learning_rate,
            },
            "temperature": 1.0,
        },
        words=words,
        pairs=pairs,
        habits=habits,
        **flatten(booster, NUM_BINS),
    )


def _add_lexicon(
    data: TrainingSet, folds: NDArray[np.int_], values: NDArray[np.float32], progress: Progress
) -> tuple[dict[bytes, float], dict[tuple[bytes, bytes], float]]:
    matrix = TermMatrix(data.prompts, data.groups)
    weight = np.ones(len(data.tokens))
    column = FEATURES.index("lexicon")
    for fold in range(NUM_FOLDS):
        progress("fitting the lexicon", fold / (NUM_FOLDS + 1))
        held = folds == fold
        if held.any() and not held.all():
            values[held, column] = matrix.score(matrix.fit(data.ln_tokens, weight, ~held))[held]
    progress("fitting the lexicon", NUM_FOLDS / (NUM_FOLDS + 1))
    return matrix.largest(matrix.fit(data.ln_tokens, weight, np.ones(len(folds), dtype=bool)))


def _add_habits(
    data: TrainingSet, folds: NDArray[np.int_], values: NDArray[np.float32], settings: TrainSettings
) -> dict[str, ModelHabit]:
    hidden = np.random.default_rng(settings.seed).random(len(folds)) < settings.hide_names
    for fold in range(NUM_FOLDS):
        known = _habits_of(data, np.flatnonzero(folds != fold))
        for index in np.flatnonzero(folds == fold):
            habit = UNKNOWN_HABIT if hidden[index] else known.get(normal_name(data.models[index]), UNKNOWN_HABIT)
            values[index, _LEVEL : _LEVEL + 3] = habit.level, habit.excess, habit.support
    return _habits_of(data, np.arange(len(folds)))


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

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:  # noqa: ANN401, ARG002
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
        "nthread": settings.threads,
        "seed": settings.seed,
    }
    matrix = xgb.DMatrix(values, label=label_of(tokens))
    return xgb.train(parameters, matrix, settings.rounds, callbacks=[_Ticker(progress, settings.rounds)])
