"""Metrics: plain numbers that render as Prometheus expects them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from prelude_proxy.metrics import OTHER, Histogram, LabelCap, Metrics, count, gauge


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of the page, by name and sorted labels, as Prometheus' own parser reads it."""
    families = text_string_to_metric_families(metrics.page().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


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


def test_page_is_what_prometheus_reads():
    """Counters, histograms and gauges parse with their labels and values; odd label values are escaped."""
    metrics = Metrics(["fast", "deep"], max_label_values=5)
    count(metrics.requests, "fast", 'm"o\\d\nel', "b", "ok")
    count(metrics.requests, "fast", 'm"o\\d\nel', "b", "ok")
    metrics.classes["deep"].ttft_s.observe(0.3)
    metrics.overhead_s.observe(0.0001)
    metrics.add_collector(lambda: [gauge("window", "Slots.", ("backend",), [(("b",), 7)])])
    seen = samples(metrics)
    labels = (("backend", "b"), ("class", "fast"), ("model", 'm"o\\d\nel'), ("outcome", "ok"))
    assert seen["prelude_proxy_requests_total", labels] == 2
    assert seen["prelude_proxy_ttft_seconds_count", (("class", "deep"),)] == 1
    assert seen["prelude_proxy_ttft_seconds_bucket", (("class", "deep"), ("le", "0.25"))] == 0
    assert seen["prelude_proxy_ttft_seconds_bucket", (("class", "deep"), ("le", "0.5"))] == 1
    assert seen["prelude_proxy_window", (("backend", "b"),)] == 7
    assert seen["prelude_proxy_overhead_seconds_count", ()] == 1


def test_every_class_has_its_series_from_the_start():
    """A class without traffic shows zeros, not nothing: rates and alerts work from the first scrape."""
    seen = samples(Metrics(["fast", "deep"], max_label_values=5))
    for name in ("ttft_seconds", "queue_wait_seconds", "actual_tokens"):
        for klass in ("fast", "deep"):
            assert seen[f"prelude_proxy_{name}_count", (("class", klass),)] == 0
