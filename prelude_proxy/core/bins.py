"""The grid on which output lengths are predicted: bins of token counts, about evenly wide in ln(tokens)."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from math import exp, log

import numpy as np
from numpy.typing import NDArray

from prelude_proxy.core.domain import Forecast

Probabilities = NDArray[np.float64]

EDGES: tuple[float, ...] = (
    2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192, 32768,
)  # fmt: skip
"""Largest token count of each bin. The last is as far as anything is predicted."""
NUM_BINS = len(EDGES)
_LN_EDGES = tuple(log(edge + 0.5) for edge in EDGES)
LN_EDGES: Probabilities = np.array(_LN_EDGES)
"""Upper ends in ln(tokens): half a token above the edge, for counts are whole."""
_LN_LOW = log(0.5)
LN_MIDDLES: Probabilities = np.array([(a + b) / 2 for a, b in zip((_LN_LOW, *_LN_EDGES), _LN_EDGES, strict=False)])


def bin_of(tokens: float) -> int:
    """Index of the bin that `tokens` falls into; counts beyond the grid fall into the last."""
    return min(bisect_left(EDGES, tokens), NUM_BINS - 1)


def mean_ln(probabilities: Probabilities) -> float:
    """Expected ln(tokens)."""
    return float(probabilities @ LN_MIDDLES)


def shift(probabilities: NDArray[np.float32], mean: float, expected: float, stretch: float) -> NDArray[np.float32]:
    """The distribution moved so that its `mean` comes to `expected` in ln(tokens), and stretched about it."""
    below = np.zeros(NUM_BINS + 1)
    np.add.accumulate(probabilities, out=below[1:])
    at = _ENDS * (1.0 / stretch)
    at += mean - expected / stretch
    cdf = np.interp(at, _KNOTS, below)
    cdf[0], cdf[-1] = 0.0, 1.0
    moved: NDArray[np.float32] = np.subtract(cdf[1:], cdf[:-1], dtype=np.float32)
    return moved


_KNOTS = np.array((_LN_LOW, *_LN_EDGES))
_ENDS = _KNOTS.copy()


def forecast_of(probabilities: Probabilities | NDArray[np.float32], mean: float) -> Forecast:
    """The forecast for one answer with expected ln(tokens) `mean`."""
    cdf = list(accumulate(probabilities.tolist()))
    cdf[-1] = 1.0
    return Forecast(EDGES, tuple(cdf), exp(mean))


def censored_mean(probabilities: Probabilities, floor: float) -> float:
    """E[ln tokens | ln tokens ≥ `floor`]: what to learn from an answer that was cut off at `floor`."""
    above = np.where(floor < LN_EDGES, probabilities, 0.0)
    total = float(above.sum())
    if total < 1e-6:
        return floor
    return float(above @ np.maximum(LN_MIDDLES, floor)) / total
