"""The classifier as the proxy runs it: the model, what the traffic taught, a shadow beside it, and their record.

`classify` before a request may be held, `learn` when its answer has ended. Both are synchronous and quick, and belong
to one thread. Loading a model reads a file: `load_model` may run elsewhere, `adopt` swaps it in between two requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from typing import Final

from librt.vecs import vec

from prelude_proxy.core.bins import EDGES, censored_mean, forecast_of
from prelude_proxy.core.calibration import Calibration, CalibrationStatistics, log_error
from prelude_proxy.core.classify import DEFAULT_CUTOFFS, Cutoffs, ladder_of, probability_above, rung_of, shares_of
from prelude_proxy.core.domain import ClassSpec, Forecast, RequestFacts
from prelude_proxy.core.features import Extract
from prelude_proxy.core.length import LengthModel, ModelInfo, packed
from prelude_proxy.core.prior import Blend, OnlinePrior, PriorSettings
from prelude_proxy.modelfile import load_model


class Observation:
    """What must be kept of a classified request to learn from its answer; under a kilobyte, no text."""

    __slots__ = ("blend", "digest", "keys", "max_tokens", "model", "num_choices", "path", "shadow", "values")

    def __init__(
        self,
        facts: RequestFacts,
        *,
        keys: tuple[int, ...],
        blend: Blend,
        values: bytes,
        digest: int,
        shadow: Blend | None,
    ) -> None:
        self.keys = keys
        self.blend = blend
        self.values = values
        """The features, float32, for the journal; empty where there is none."""
        self.digest = digest
        """Checksum of the prompt: rows of one prompt must stay on one side of a split."""
        self.path = facts.path
        self.model = facts.model
        self.num_choices = facts.num_choices
        self.max_tokens = facts.max_tokens
        self.shadow = shadow


@dataclass(frozen=True, slots=True)
class ShadowStatistics:
    """The shadow's record on the same requests."""

    model: ModelInfo
    calibration: CalibrationStatistics
    num_disagreed: int
    """Requests it would have put into another class."""


@dataclass(frozen=True, slots=True)
class ClassifierStatistics:
    """A snapshot for `/status` and metrics."""

    model: ModelInfo
    num_classified: int
    num_keys: int
    """Keys the prior remembers."""
    weights: dict[str, float]
    """Of the experts, over all tenants."""
    calibration: CalibrationStatistics
    shadow: ShadowStatistics | None = None


class _Scored:
    """A model, its prior and its record."""

    def __init__(self, model: LengthModel, prior: OnlinePrior, classes: Sequence[str]) -> None:
        self.model = model
        self.prior = prior
        self.calibration = Calibration(classes)


class Classifier:
    """Forecasts requests and learns from their answers.

    Args:
        model: the trained model; `load_model(path)` reads one.
        classes: the configured classes, for the record of what was right.
        cutoffs: those that `core.classify.decide` is called with.
        settings: of the online prior.
        keeps_features: whether observations carry their features, for a journal.
    """

    def __init__(
        self,
        model: LengthModel,
        classes: Sequence[ClassSpec],
        *,
        cutoffs: Cutoffs = DEFAULT_CUTOFFS,
        settings: PriorSettings | None = None,
        keeps_features: bool = False,
    ) -> None:
        self._ladder = ladder_of(classes)
        self._cutoffs = cutoffs
        self._settings = settings or PriorSettings()
        self._live = _Scored(model, OnlinePrior(self._settings), [spec.name for spec in self._ladder])
        self._shadow: _Scored | None = None
        self._keeps_features = keeps_features
        self._num_classified = 0
        self._num_disagreed = 0

    @property
    def model(self) -> LengthModel:
        """The model in use."""
        return self._live.model

    def classify(self, facts: RequestFacts, now: float = 0.0) -> tuple[Forecast, Observation]:
        """Forecast one answer (one choice, limits not applied: `decide` does that) before the payload is forgotten."""
        self._num_classified += 1
        live = self._live
        extract, static = live.model.predict(facts)
        keys = keys_of(facts, extract, stratum_of(static))
        blend = live.prior.predict(keys, static)
        shadow = None
        if self._shadow is not None:
            shadow = self._shadow.prior.predict(keys, self._shadow.model.predict(facts)[1])
        values = packed(extract.values) if self._keeps_features else b""
        observation = Observation(facts, keys=keys, blend=blend, values=values, digest=extract.digest, shadow=shadow)
        return forecast_of(blend.blended, blend.mean, blend.support), observation

    def learn(
        self, observation: Observation, output_tokens: float, *, censored: bool = False, now: float = 0.0
    ) -> None:
        """The answer took `output_tokens`, all choices together.

        Args:
            observation: from `classify`.
            output_tokens: counted, or reported by the engine; reasoning included.
            censored: the answer did not end by itself (`finish_reason: length`, client gone, time-out), so the count
                is a lower bound.
            now: unused so far; forgetting goes by answers, not by time.
        """
        tokens = output_tokens / observation.num_choices
        if tokens <= 0:
            return
        self._learn_one(self._live, observation.blend, observation, tokens, censored=censored)
        if self._shadow is not None and observation.shadow is not None:
            self._learn_one(self._shadow, observation.shadow, observation, tokens, censored=censored)
            limit = observation.max_tokens
            if self._class_of(observation.blend, limit)[0] != self._class_of(observation.shadow, limit)[0]:
                self._num_disagreed += 1

    def _learn_one(
        self, scored: _Scored, blend: Blend, observation: Observation, tokens: float, *, censored: bool
    ) -> None:
        if censored:
            scored.calibration.censor()
            tokens = exp(censored_mean(blend.blended, log(tokens)))
        else:
            predicted, probabilities = self._class_of(blend, observation.max_tokens)
            actual = next((i for i, spec in enumerate(self._ladder) if _holds(spec, tokens)), len(self._ladder) - 1)
            scored.calibration.learn(actual, predicted, probabilities, log_error(tokens, exp(blend.mean)))
        scored.prior.learn(observation.keys, blend, tokens)

    def _class_of(self, blend: Blend, max_tokens: int | None) -> tuple[int, list[float]]:
        """Index of the class that `decide` chooses by output tokens, and the probability of each."""
        forecast = forecast_of(blend.blended, blend.mean)
        above = [
            0.0
            if spec.max_output_tokens is None or (max_tokens is not None and max_tokens <= spec.max_output_tokens)
            else probability_above(forecast, spec.max_output_tokens)
            for spec in self._ladder
        ]
        above[-1] = 0.0
        return rung_of(above, self._cutoffs, blend.support), shares_of(above)

    def adopt(self, model: LengthModel) -> None:
        """Use `model` from the next request on; what the traffic taught stays."""
        self._live.model = model

    def reload(self, path: Path | None = None) -> ModelInfo:
        """Load the model at `path` (None: the shipped one) and use it.

        Raises:
            ConfigError: it cannot be used; the model in use stays.
        """
        model = load_model(path)
        self.adopt(model)
        return model.info

    def set_shadow(self, model: LengthModel | None) -> None:
        """Score `model` beside the one in use, deciding nothing; None stops it."""
        self._num_disagreed = 0
        if model is None:
            self._shadow = None
        else:
            self._shadow = _Scored(model, OnlinePrior(self._settings), [spec.name for spec in self._ladder])

    def statistics(self) -> ClassifierStatistics:
        """What is known now."""
        shadow = self._shadow
        return ClassifierStatistics(
            model=self._live.model.info,
            num_classified=self._num_classified,
            num_keys=len(self._live.prior),
            weights=self._live.prior.weights(),
            calibration=self._live.calibration.statistics(),
            shadow=None
            if shadow is None
            else ShadowStatistics(shadow.model.info, shadow.calibration.statistics(), self._num_disagreed),
        )


def keys_of(facts: RequestFacts, extract: Extract, stratum: int) -> tuple[int, ...]:
    """Keys of the prior, coarse to fine: tenant, model, first word, first words, call site, the very prompt.

    The coarse ones are kept apart by `stratum`. Which answers are known at any time depends on what was dispatched, so
    on the forecast: while deep work is held, only short answers come back. Given the forecast, the known ones are a
    fair sample; over all strata they are not, and everything would soon be taken for short.
    """
    tenant, model = facts.tenant, facts.model
    return (
        hash((tenant, facts.path, stratum)),
        hash((tenant, model, stratum, 1)),
        hash((tenant, extract.opening, 2)),
        hash((tenant, extract.template, 3)),
        hash((tenant, model, extract.fingerprint, facts.max_tokens, facts.has_json_schema, stratum)),
        hash((tenant, extract.digest, 4)),
    )


def stratum_of(static: vec[float]) -> int:
    """Rough class by the model alone: 0 short, 1 middle, 2 long."""
    if sum(static[:_SHORT_BINS]) >= 0.5:
        return 0
    return 2 if sum(static[_MIDDLE_BINS:]) >= 0.35 else 1


_SHORT_BINS: Final = EDGES.index(64) + 1
_MIDDLE_BINS: Final = EDGES.index(512) + 1


def _holds(spec: ClassSpec, tokens: float) -> bool:
    return spec.max_output_tokens is None or tokens <= spec.max_output_tokens
