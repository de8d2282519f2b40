"""What requests are summed up in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prelude_proxy.core.tally import OTHER, Histogram, LabelCap


@given(st.lists(st.floats(0, 100, allow_nan=False)), st.lists(st.floats(0.001, 50), min_size=1, unique=True))
def test_histogram_buckets_are_cumulative_and_complete(values, bounds):
    """Each bucket counts the values up to its bound, the last counts all."""
    bounds = sorted(bounds)
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    rows = histogram.buckets()
    assert [seen for _, seen in rows[:-1]] == [sum(value <= bound for value in values) for bound in bounds]
    assert rows[-1] == ("+Inf", len(values))
    assert histogram.total == pytest.approx(sum(values))


def test_observe_many_is_observing_often():
    """`observe_many` is the same as that many calls."""
    once, often = Histogram((1.0, 2.0)), Histogram((1.0, 2.0))
    once.observe_many(1.5, 3)
    for _ in range(3):
        often.observe(1.5)
    assert once.buckets() == often.buckets()
    assert once.total == often.total


def test_label_cap_lets_the_first_through():
    """The first names keep their own series for ever, later ones share `other`, no name is the empty one."""
    cap = LabelCap(2)
    assert [cap(name) for name in ("a", "b", "c", "a", None, "d")] == ["a", "b", OTHER, "a", "", OTHER]
