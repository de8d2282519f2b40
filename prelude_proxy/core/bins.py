"""The grid on which output lengths are predicted: bins of token counts, about evenly wide in ln(tokens)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from math import exp, log
from operator import mul
from typing import Final

import numpy as np
from numpy.typing import NDArray

from prelude_proxy.core.domain import Forecast

Probabilities = NDArray[np.float64]

EDGES: Final[tuple[float, ...]] = (
    2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192, 32768,
)  # fmt: skip
"""Largest token count of each bin. The last is as far as anything is predicted."""
NUM_BINS: Final = len(EDGES)
_LN_EDGES: Final = tuple(log(edge + 0.5) for edge in EDGES)
LN_EDGES: Final[Probabilities] = np.array(_LN_EDGES)
"""Upper ends in ln(tokens): half a token above the edge, for counts are whole."""
_LN_LOW: Final = log(0.5)
LN_MIDDLES: Final[Probabilities] = np.array(
    [(a + b) / 2 for a, b in zip((_LN_LOW, *_LN_EDGES), _LN_EDGES, strict=False)]
)


def bin_of(tokens: float) -> int:
    """Index of the bin that `tokens` falls into; counts beyond the grid fall into the last."""
    return min(bisect_left(EDGES, tokens), NUM_BINS - 1)


def mean_ln(probabilities: Sequence[float]) -> float:
    """Expected ln(tokens)."""
    mean: float = sum(map(mul, probabilities, _LN_MIDDLES))
    return mean


def shift(probabilities: list[float], mean: float, expected: float, stretch: float) -> list[float]:
    """The distribution moved so that its `mean` comes to `expected` in ln(tokens), and stretched about it.

    Inside a bin probability is spread evenly over ln(tokens); what leaves the grid is in its first and last bin.
    Twenty numbers are fewer than an array pays for: plain floats are faster here.
    """
    scale = 1.0 / stretch
    offset = mean - expected * scale
    moved: list[float] = []
    index = 0
    below = done = 0.0
    for end in _LN_EDGES[:-1]:
        at = end * scale + offset
        while index < NUM_BINS and at >= _LN_EDGES[index]:
            below += probabilities[index]
            index += 1
        reached = below
        if index < NUM_BINS:
            part = (at - _LN_STARTS[index]) * _PER_WIDTH[index]
            if part > 0.0:
                reached += part * probabilities[index]
        moved.append(reached - done)
        done = reached
    moved.append(1.0 - done)
    return moved


def shifted_bin(probabilities: list[float], mean: float, expected: float, stretch: float, where: int) -> float:
    """Bin `where` of `shift(...)`, without the others."""
    scale = 1.0 / stretch
    offset = mean - expected * scale
    below = 0.0 if where == 0 else _cdf_at(probabilities, _LN_EDGES[where - 1] * scale + offset)
    upto = 1.0 if where == NUM_BINS - 1 else _cdf_at(probabilities, _LN_EDGES[where] * scale + offset)
    return upto - below


def _cdf_at(probabilities: list[float], at: float) -> float:
    index = bisect_right(_LN_EDGES, at)
    below = sum(probabilities[:index])
    if index == NUM_BINS:
        return below
    return below + max(0.0, (at - _LN_STARTS[index]) * _PER_WIDTH[index]) * probabilities[index]


_LN_MIDDLES: Final[list[float]] = LN_MIDDLES.tolist()
_LN_STARTS: Final = (_LN_LOW, *_LN_EDGES[:-1])
_PER_WIDTH: Final = tuple(1.0 / (end - start) for start, end in zip(_LN_STARTS, _LN_EDGES, strict=True))


def forecast_of(probabilities: Sequence[float], mean: float) -> Forecast:
    """The forecast for one answer with expected ln(tokens) `mean`."""
    cdf = list(accumulate(probabilities))
    cdf[-1] = 1.0
    return Forecast(EDGES, tuple(cdf), exp(mean))


def censored_mean(probabilities: Probabilities | Sequence[float], floor: float) -> float:
    """E[ln tokens | ln tokens ≥ `floor`]: what to learn from an answer that was cut off at `floor`."""
    above = np.where(floor < LN_EDGES, probabilities, 0.0)
    total = float(above.sum())
    if total < 1e-6:
        return floor
    return float(above @ np.maximum(LN_MIDDLES, floor)) / total
