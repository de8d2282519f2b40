"""How good the forecasts of late were: confusion by class, calibration, over- and under-prediction, drift.

All counts forget: they weigh about the last `MEMORY` answers, so that a page of statistics speaks of now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt
from typing import Final

MEMORY: Final = 5_000.0
_GROWTH: Final = 1.0 / (1.0 - 1.0 / MEMORY)
_REBASE: Final = 1e9
_RELIABILITY_BINS: Final = 10
_FAST: Final = 0.02
_SLOW: Final = 0.001
DRIFT_ALARM: Final = 4.0
"""Drift signal from which on an operator should look."""


@dataclass(frozen=True, slots=True)
class CalibrationStatistics:
    """A snapshot. Shares are between 0 and 1; `nan` never appears: nothing seen is 0."""

    num_learned: int
    num_censored: int
    classes: tuple[str, ...]
    confusion: tuple[tuple[float, ...], ...]
    """Rows: what it was; columns: what was predicted. Exponentially forgotten counts."""
    accuracy: float
    underpredicted: float
    """Share of answers longer than their predicted class allows."""
    overpredicted: float
    calibration_error: float
    """Expected calibration error of the predicted class's probability, ten bins."""
    mean_log_error: float
    """Recent mean of ln(actual) - ln(predicted): above 0, answers are longer than forecast."""
    drift: float
    """How far the recent mean error has moved from the long one, in standard errors; see `DRIFT_ALARM`."""


class Calibration:
    """Accumulates outcomes for one ladder of classes."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = tuple(classes)
        size = len(self._classes)
        self._unit = 1.0
        """What one answer counts now. It grows instead of all others shrinking."""
        self._confusion = [[0.0] * size for _ in range(size)]
        self._hits = [0.0] * _RELIABILITY_BINS
        self._sure = [0.0] * _RELIABILITY_BINS
        self._num_learned = 0
        self._num_censored = 0
        self._fast = 0.0
        self._slow = 0.0
        self._variance = 1.0

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the ladder's classes, shortest first."""
        return self._classes

    def censor(self) -> None:
        """An answer was cut off, so its class is not known."""
        self._num_censored += 1

    def learn(self, actual: int, predicted: int, probabilities: Sequence[float], log_error: float) -> None:
        """An answer of class index `actual` was forecast with `probabilities` and put into class `predicted`."""
        self._num_learned += 1
        self._unit *= _GROWTH
        self._confusion[actual][predicted] += self._unit
        most = max(probabilities)
        where = min(int(most * _RELIABILITY_BINS), _RELIABILITY_BINS - 1)
        self._sure[where] += self._unit * most
        if probabilities[actual] == most:
            self._hits[where] += self._unit
        if self._unit > _REBASE:
            self._rebase()
        self._learn_error(log_error)

    def _rebase(self) -> None:
        for counts in (*self._confusion, self._hits, self._sure):
            counts[:] = [count / self._unit for count in counts]
        self._unit = 1.0

    def _learn_error(self, error: float) -> None:
        rate = max(_SLOW, 1.0 / self._num_learned)
        self._slow += rate * (error - self._slow)
        self._variance += rate * ((error - self._slow) ** 2 - self._variance)
        self._fast += max(_FAST, 1.0 / self._num_learned) * (error - self._fast)

    def statistics(self) -> CalibrationStatistics:
        """What is known now."""
        total = sum(map(sum, self._confusion)) or 1.0
        size = range(len(self._classes))
        gaps = (abs(h - s) for h, s in zip(self._hits, self._sure, strict=True))
        standard_error = sqrt(max(self._variance, 1e-6) * _FAST / (2.0 - _FAST))
        return CalibrationStatistics(
            num_learned=self._num_learned,
            num_censored=self._num_censored,
            classes=self._classes,
            confusion=tuple(tuple(count / self._unit for count in row) for row in self._confusion),
            accuracy=sum(self._confusion[i][i] for i in size) / total,
            underpredicted=sum(self._confusion[i][j] for i in size for j in size if j < i) / total,
            overpredicted=sum(self._confusion[i][j] for i in size for j in size if j > i) / total,
            calibration_error=sum(gaps) / total,
            mean_log_error=self._fast,
            drift=abs(self._fast - self._slow) / standard_error if self._num_learned > 1 / _FAST else 0.0,
        )


def log_error(actual_tokens: float, expected_tokens: float) -> float:
    """ln(actual) - ln(expected), both at least one token."""
    return log(max(actual_tokens, 1.0)) - log(max(expected_tokens, 1.0))
