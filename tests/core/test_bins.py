"""The grid of output lengths."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from librt.vecs import vec

from prelude_proxy.core.bins import (
    EDGES,
    LN_EDGES,
    LN_MIDDLES,
    NUM_BINS,
    bin_of,
    censored_mean,
    forecast_of,
    mean_ln,
    shift,
)


def _peak(index: int) -> vec[float]:
    probabilities = np.full(NUM_BINS, 0.001)
    probabilities[index] += 1 - probabilities.sum()
    return vec[float](probabilities.tolist())


@pytest.mark.parametrize(
    ("tokens", "index"), [(1, 0), (2, 0), (3, 1), (64, 7), (65, 8), (512, 13), (10**9, NUM_BINS - 1)]
)
def test_counts_fall_into_bins_up_to_and_with_their_edge(tokens: int, index: int) -> None:
    """64 is still fast, 65 no longer."""
    assert bin_of(tokens) == index


def test_shifting_moves_the_mean_and_keeps_a_distribution() -> None:
    """By as much as asked, for a shape well inside the grid."""
    probabilities = _peak(10)
    mean = mean_ln(probabilities)
    moved = shift(probabilities, mean, mean + 0.8, 1.0)
    assert sum(moved) == pytest.approx(1.0, abs=1e-5)
    assert min(moved) >= -1e-6
    assert mean_ln(moved) == pytest.approx(mean + 0.8, abs=0.15)


def test_stretching_widens() -> None:
    """About the mean."""
    probabilities = shift(_peak(10), LN_MIDDLES[10], LN_MIDDLES[10], 1.5)
    wide = shift(probabilities, LN_MIDDLES[10], LN_MIDDLES[10], 2.0)
    assert wide[10] < probabilities[10]


@given(
    weights=st.lists(st.floats(0.001, 1.0), min_size=NUM_BINS, max_size=NUM_BINS),
    expected=st.floats(-2.0, 12.0),
    stretch=st.floats(0.35, 2.5),
)
def test_shifting_is_a_stretched_copy_of_the_distribution(
    weights: list[float], expected: float, stretch: float
) -> None:
    """As interpolating the cumulated distribution says."""
    probabilities = vec[float]([weight / sum(weights) for weight in weights])
    mean = mean_ln(probabilities)
    knots = np.array([log(0.5), *LN_EDGES])
    cdf = np.interp((knots - expected) / stretch + mean, knots, np.concatenate(([0.0], np.cumsum(list(probabilities)))))
    cdf[0], cdf[-1] = 0.0, 1.0
    assert np.allclose(list(shift(probabilities, mean, expected, stretch)), np.diff(cdf), atol=1e-9)


def test_a_forecast_is_ordered() -> None:
    """10 % quantile, expectation and 90 % quantile of a smooth shape."""
    probabilities = np.exp(-0.5 * (np.array(list(LN_MIDDLES)) - 5.0) ** 2)
    forecast = forecast_of(vec[float]((probabilities / probabilities.sum()).tolist()), 5.0)
    assert forecast.quantile(0.1) < forecast.expected_tokens < forecast.quantile(0.9)
    assert forecast.cdf[-1] == 1.0
    assert list(forecast.cdf) == sorted(forecast.cdf)
    assert len(forecast.edges) == len(EDGES)


def test_a_cut_off_answer_counts_as_what_it_may_have_become() -> None:
    """The conditional mean is above the cut; beyond the grid it is the cut itself."""
    assert censored_mean(vec[float]([1 / NUM_BINS] * NUM_BINS), log(100)) > log(100)
    short = vec[float]([value if index < 5 else 0.0 for index, value in enumerate(_peak(3))])
    assert censored_mean(short, log(5000)) == log(5000)
