"""How good forecasts are: pooled, per source, and averaged over sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

CLASSES = ("fast", "standard", "deep")
FAST_TOKENS = 64
STANDARD_TOKENS = 512
_BINS = 10

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scores:
    """Figures of one set of forecasts; None where they are not defined (one class only, all equal)."""

    rows: int
    accuracy: float
    """Of the class with the largest probability."""
    macro_f1: float
    """Over the classes that occur or are predicted."""
    auc_deep: float | None
    auc_fast: float | None
    kendall_tau: float | None
    spearman: float | None
    calibration_error: float
    """Expected calibration error of the largest probability, ten bins of equal width."""
    dispatch_accuracy: float
    """Of the class that requests are dispatched as, with the cost-weighted cut-offs."""
    deep_recall: float | None
    """Of the dispatched class."""
    deep_precision: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def true_classes(tokens: Floats) -> NDArray[np.int_]:
    """Class index of each count."""
    classes: NDArray[np.int_] = (tokens > FAST_TOKENS).astype(int) + (tokens > STANDARD_TOKENS)
    return classes


def score(probabilities: Floats, dispatched: NDArray[np.int_], predicted: Floats, actual: Floats) -> Scores:
    """Scores of forecasts: class `probabilities` (rows, 3), `dispatched` class, `predicted` and `actual` tokens."""
    truth = true_classes(actual)
    likely = probabilities.argmax(axis=1)
    called = dispatched == 2
    deep = truth == 2
    return Scores(
        rows=len(actual),
        accuracy=float((likely == truth).mean()),
        macro_f1=_macro_f1(truth, likely),
        auc_deep=_auc(deep, probabilities[:, 2]),
        auc_fast=_auc(truth == 0, probabilities[:, 0]),
        kendall_tau=_rank_correlation("kendalltau", predicted, actual),
        spearman=_rank_correlation("spearmanr", predicted, actual),
        calibration_error=_calibration_error(probabilities.max(axis=1), likely == truth),
        dispatch_accuracy=float((dispatched == truth).mean()),
        deep_recall=float((called & deep).sum() / deep.sum()) if deep.any() else None,
        deep_precision=float((called & deep).sum() / called.sum()) if called.any() else None,
    )


def _macro_f1(truth: NDArray[np.int_], predicted: NDArray[np.int_]) -> float:
    scores = []
    for index in range(len(CLASSES)):
        real, said = truth == index, predicted == index
        if real.any() or said.any():
            scores.append(2.0 * float((real & said).sum()) / float(real.sum() + said.sum()))
    return float(np.mean(scores))


def _auc(positive: NDArray[np.bool_], scores: Floats) -> float | None:
    """Mann-Whitney: the chance that a positive scores above a negative."""
    count = int(positive.sum())
    if count in (0, len(positive)):
        return None
    ranks = scipy.stats.rankdata(scores)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))


def _rank_correlation(name: str, predicted: Floats, actual: Floats) -> float | None:
    if len(actual) < 3 or np.ptp(predicted) == 0 or np.ptp(actual) == 0:
        return None
    return float(getattr(scipy.stats, name)(predicted, actual).statistic)


def _calibration_error(confidence: Floats, hit: NDArray[np.bool_]) -> float:
    where = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = [
        abs(float(hit[where == index].mean() - confidence[where == index].mean())) * float((where == index).mean())
        for index in range(_BINS)
        if (where == index).any()
    ]
    return float(sum(gaps))


def average(scores: Mapping[str, Scores]) -> dict[str, float | None]:
    """Mean of each figure over sources, a source counting only where the figure is defined.

    A source whose forecasts rank nothing (all equal) counts as τ = ρ = 0.
    """
    means: dict[str, float | None] = {}
    for name in Scores.__slots__:
        if name == "rows":
            continue
        values = [getattr(each, name) for each in scores.values()]
        if name in ("kendall_tau", "spearman"):
            values = [0.0 if value is None else value for value in values]
        known: Sequence[float] = [value for value in values if value is not None]
        means[name] = float(np.mean(known)) if known else None
    return means
