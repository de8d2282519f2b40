"""The grid on which output lengths are predicted: bins of token counts, about evenly wide in ln(tokens)."""

from __future__ import annotations

from bisect import bisect_left
from math import exp, log, sqrt
from typing import Final

from librt.vecs import vec
from mypy_extensions import i64

from prelude_proxy.core.domain import Forecast

EDGES: Final[tuple[float, ...]] = (
    2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192, 32768,
)  # fmt: skip
"""Largest token count of each bin. The last is as far as anything is predicted."""
NUM_BINS: Final = len(EDGES)
LN_EDGES: Final = vec[float]([log(edge + 0.5) for edge in EDGES])
"""Upper ends in ln(tokens): half a token above the edge, for counts are whole."""
_LN_STARTS: Final = vec[float]([log(edge + 0.5) for edge in (0.0, *EDGES[:-1])])
LN_MIDDLES: Final = vec[float]([(start + end) / 2 for start, end in zip(_LN_STARTS, LN_EDGES, strict=True)])
_PER_WIDTH: Final = vec[float]([1.0 / (end - start) for start, end in zip(_LN_STARTS, LN_EDGES, strict=True)])


def bin_of(tokens: float) -> int:
    """Index of the bin that `tokens` falls into; counts beyond the grid fall into the last."""
    return min(bisect_left(EDGES, tokens), NUM_BINS - 1)


def mean_ln(probabilities: vec[float]) -> float:
    """Expected ln(tokens)."""
    mean = 0.0
    for index in range(i64(NUM_BINS)):
        mean += probabilities[index] * LN_MIDDLES[index]
    return mean


def sigma_ln(probabilities: vec[float], mean: float) -> float:
    """Standard deviation of ln(tokens) about its `mean`, at least 0.1."""
    squares = 0.0
    for index in range(i64(NUM_BINS)):
        squares += probabilities[index] * LN_MIDDLES[index] * LN_MIDDLES[index]
    return sqrt(max(squares - mean * mean, 0.01))


def shift(probabilities: vec[float], mean: float, expected: float, stretch: float) -> vec[float]:
    """The distribution moved so that its `mean` comes to `expected` in ln(tokens), and stretched about it.

    Inside a bin probability is spread evenly over ln(tokens); what leaves the grid is in its first and last bin.
    """
    scale = 1.0 / stretch
    offset = mean - expected * scale
    moved = probabilities[:NUM_BINS]
    last: i64 = NUM_BINS - 1
    index: i64 = 0
    below = 0.0
    done = 0.0
    for target in range(last):
        at = LN_EDGES[target] * scale + offset
        while index <= last and at >= LN_EDGES[index]:
            below += probabilities[index]
            index += 1
        reached = below
        if index <= last:
            part = (at - _LN_STARTS[index]) * _PER_WIDTH[index]
            if part > 0.0:
                reached += part * probabilities[index]
        moved[target] = reached - done
        done = reached
    moved[last] = 1.0 - done
    return moved


def forecast_of(probabilities: vec[float], mean: float, support: float = 0.0) -> Forecast:
    """The forecast for one answer with expected ln(tokens) `mean`; `support` answers of its tenant are in it."""
    cdf: list[float] = []
    below = 0.0
    for index in range(i64(NUM_BINS - 1)):
        below += probabilities[index]
        cdf.append(below)
    cdf.append(1.0)
    return Forecast(EDGES, tuple(cdf), exp(mean), support)


def censored_mean(probabilities: vec[float], floor: float) -> float:
    """E[ln tokens | ln tokens ≥ `floor`]: what to learn from an answer that was cut off at `floor`."""
    total = 0.0
    moment = 0.0
    for index in range(i64(NUM_BINS)):
        if floor < LN_EDGES[index]:
            total += probabilities[index]
            moment += probabilities[index] * max(LN_MIDDLES[index], floor)
    return floor if total < 1e-6 else moment / total
