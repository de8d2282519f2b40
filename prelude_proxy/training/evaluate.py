"""Evaluates a model on rows through the very code that serves: `Classifier.classify`, `decide`, `Classifier.learn`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prelude_proxy.classifier import Classifier, Observation
from prelude_proxy.core.classify import class_probabilities, decide, whole_request
from prelude_proxy.core.domain import ClassSpec
from prelude_proxy.core.length import LengthModel
from prelude_proxy.errors import ClientError
from prelude_proxy.training.dataset import Row
from prelude_proxy.training.metrics import CLASSES, FAST_TOKENS, STANDARD_TOKENS, Scores, average, score

LADDER = (
    ClassSpec("fast", 1, FAST_TOKENS),
    ClassSpec("standard", 2, STANDARD_TOKENS),
    ClassSpec("deep", 3),
)
"""The classes figures are reported for: by output tokens alone, for that is what a row's label knows."""
_REFUSED = (0.0, 1.0, 0.0)
_REFUSED_TOKENS = 256.0


@dataclass(frozen=True, slots=True)
class Forecasts:
    """What was forecast for each row, in order."""

    probabilities: NDArray[np.float64]
    dispatched: NDArray[np.int_]
    predicted: NDArray[np.float64]
    num_refused: int = 0
    """Rows that the proxy would answer with 400; forecast as standard."""

    def predictions(self) -> list[dict[str, Any]]:
        """One object a row, as `evaluate --predictions` writes them."""
        return [
            {
                "predicted_tokens": round(float(tokens), 2),
                "class": CLASSES[index],
                "probabilities": {name: round(float(value), 6) for name, value in zip(CLASSES, row, strict=True)},
            }
            for tokens, index, row in zip(self.predicted, self.dispatched, self.probabilities, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Report:
    """Figures pooled, per source, and averaged over sources."""

    pooled: Scores
    sources: Mapping[str, Scores]
    averaged: Mapping[str, float | None]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "pooled": self.pooled.as_dict(),
            "averaged": dict(self.averaged),
            "sources": {name: scores.as_dict() for name, scores in self.sources.items()},
        }


def forecast_rows(
    rows: Sequence[Row],
    model: LengthModel,
    *,
    label_delay: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Forecasts:
    """Forecast every row in order, starting with an empty prior.

    Args:
        rows: as the requests came.
        model: the trained model.
        label_delay: a row's length is learned when this many more rows have been forecast; None: never.
        progress: called with the share done.
    """
    classifier = Classifier(model, LADDER)
    waiting: deque[tuple[Row, Observation | None]] = deque()
    probabilities = np.empty((len(rows), len(CLASSES)))
    dispatched = np.empty(len(rows), dtype=int)
    predicted = np.empty(len(rows))
    num_refused = 0
    for index, row in enumerate(rows):
        if label_delay is not None and len(waiting) > label_delay:
            _learn(classifier, *waiting.popleft())
        observation = None
        try:
            facts = row.facts()
        except ClientError:
            num_refused += 1
            probabilities[index], dispatched[index], predicted[index] = _REFUSED, 1, _REFUSED_TOKENS
        else:
            forecast, observation = classifier.classify(facts, float(index))
            decision = decide(facts, forecast, LADDER)
            likely = class_probabilities(whole_request(forecast, facts), LADDER)
            probabilities[index] = [likely[name] for name in CLASSES]
            dispatched[index] = CLASSES.index(decision.name)
            predicted[index] = decision.expected_tokens
        waiting.append((row, observation))
        if progress is not None and index % 200 == 0:
            progress(index / len(rows))
    return Forecasts(probabilities, dispatched, predicted, num_refused)


def _learn(classifier: Classifier, row: Row, observation: Observation | None) -> None:
    if observation is None:
        return
    limit = observation.max_tokens
    censored = limit is not None and row.output_tokens >= limit * observation.num_choices
    classifier.learn(observation, row.output_tokens, censored=censored)


def report_on(rows: Sequence[Row], forecasts: Forecasts) -> Report:
    """Scores of `forecasts` against what the rows say."""
    actual = np.array([row.output_tokens for row in rows], dtype=np.float64)
    names = np.array([row.source for row in rows])

    def scores(chosen: NDArray[np.bool_]) -> Scores:
        return score(
            forecasts.probabilities[chosen], forecasts.dispatched[chosen], forecasts.predicted[chosen], actual[chosen]
        )

    sources = {str(name): scores(names == name) for name in np.unique(names)}
    return Report(scores(np.ones(len(rows), dtype=bool)), sources, average(sources))
