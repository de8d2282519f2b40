"""The grid on which output lengths are predicted: bins of token counts, about evenly wide in ln(tokens)."""

from __future__ import annotations

from bisect import bisect_left
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


def shifted(probabilities: Probabilities, mean: float, expected: float, stretch: float) -> Probabilities:
    """The distribution moved so that its `mean` comes to `expected` in ln(tokens), and stretched about it."""
    below = np.zeros(NUM_BINS + 1)
    probabilities.cumsum(out=below[1:])
    cdf = np.interp((_INNER_EDGES - expected) / stretch + mean, _KNOTS, below)
    moved = np.empty(NUM_BINS)
    moved[0] = cdf[0]
    moved[-1] = 1.0 - cdf[-1]
    np.subtract(cdf[1:], cdf[:-1], out=moved[1:-1])
    return moved


_KNOTS = np.array((_LN_LOW, *_LN_EDGES))
_INNER_EDGES = LN_EDGES[:-1]


def quantile(cdf: list[float], share: float) -> float:
    """Tokens below which `share` of the distribution lies, interpolated in ln(tokens)."""
    index = min(bisect_left(cdf, share), NUM_BINS - 1)
    low, high = (cdf[index - 1], cdf[index]) if index else (0.0, cdf[0])
    start = _LN_EDGES[index - 1] if index else _LN_LOW
    part = (share - low) / (high - low) if high > low else 1.0
    return exp(start + part * (_LN_EDGES[index] - start))


def forecast_of(probabilities: Probabilities, mean: float | None = None) -> Forecast:
    """The forecast for one answer; its point forecast is exp(E[ln tokens]), near the median for these shapes."""
    cdf = np.cumsum(probabilities).tolist()
    cdf[-1] = 1.0
    return Forecast(
        edges=EDGES,
        cdf=tuple(cdf),
        expected_tokens=exp(mean_ln(probabilities) if mean is None else mean),
        low_tokens=quantile(cdf, 0.1),
        high_tokens=quantile(cdf, 0.9),
    )


def censored_mean(probabilities: Probabilities, floor: float) -> float:
    """E[ln tokens | ln tokens ≥ `floor`]: what to learn from an answer that was cut off at `floor`."""
    above = np.where(floor < LN_EDGES, probabilities, 0.0)
    total = float(above.sum())
    if total < 1e-6:
        return floor
    return float(above @ np.maximum(LN_MIDDLES, floor)) / total
