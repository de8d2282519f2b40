"""Metrics: plain numbers that render as Prometheus expects them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from prelude_proxy.core.tally import count
from prelude_proxy.metrics import Metrics, gauge


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of the page, by name and sorted labels, as Prometheus' own parser reads it."""
    families = text_string_to_metric_families(metrics.page().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


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
