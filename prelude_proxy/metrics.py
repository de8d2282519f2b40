"""Prometheus metrics `prelude_proxy_*`, aggregated in plain lists and numbers, rendered only when scraped.

The data path adds to the sums of `core.tally`; prometheus-client sees the sums at scrape time through a
collector. (A `Counter.labels(…).inc()` costs microseconds and a lock each; this costs a dictionary look-up a request.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from prelude_proxy.core.tally import ClassTally, Counter, Histogram, LabelCap

_MICRO_S = (20e-6, 40e-6, 60e-6, 80e-6, 100e-6, 150e-6, 200e-6, 300e-6, 500e-6, 1e-3, 5e-3)


class Metrics:
    """Everything the data path counts."""

    def __init__(self, class_names: Iterable[str], *, max_label_values: int) -> None:
        self.classes = {name: ClassTally() for name in class_names}
        self.model_label = LabelCap(max_label_values)
        self.requests: Counter = {}
        self.admits: Counter = {}
        self.retries: Counter = {}
        self.promotions: Counter = {}
        self.reasons: Counter = {}
        self.confusion: Counter = {}
        self.upstream_aborts: Counter = {}
        self.classification_s = Histogram(_MICRO_S)
        self.overhead_s = Histogram(_MICRO_S)
        self.registry = CollectorRegistry()
        self.registry.register(_DataPathCollector(self))

    def add_collector(self, collect: Callable[[], Iterable[Metric]]) -> None:
        """Have `collect` called at each scrape, for gauges that are derived from live state."""
        self.registry.register(_Callback(collect))

    def page(self) -> bytes:
        """The page in Prometheus' text format."""
        return generate_latest(self.registry)


class _Callback(Collector):
    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()


class _DataPathCollector(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        m = self._metrics
        yield counter("requests", "Requests by how they ended.", ("class", "model", "backend", "outcome"), m.requests)
        yield counter("admit", "Admission decisions.", ("class", "outcome"), m.admits)
        yield counter("retries", "Attempts after the first.", ("class", "reason"), m.retries)
        yield counter("promotions", "Streams that outgrew their class.", ("from", "to"), m.promotions)
        yield counter("classified", "Requests by class and what decided it.", ("class", "reason"), m.reasons)
        yield counter("class_confusion", "Predicted against actual class.", ("predicted", "actual"), m.confusion)
        yield counter("upstream_aborts", "Upstream requests aborted before their end.", ("stage",), m.upstream_aborts)
        yield from self._histograms()

    def _histograms(self) -> Iterator[Metric]:
        m = self._metrics
        per_class = {
            "ttft_seconds": ("Arrival to the first token, time held included.", "ttft_s"),
            "itl_seconds": ("Mean gap between tokens of a stream, counted once a token.", "itl_s"),
            "request_duration_seconds": ("Arrival to the end of the answer.", "duration_s"),
            "queue_wait_seconds": ("Time held.", "queue_wait_s"),
            "predicted_tokens": ("Output tokens expected when classified.", "predicted_tokens"),
            "actual_tokens": ("Output tokens produced.", "actual_tokens"),
        }
        for name, (text, attribute) in per_class.items():
            family = HistogramMetricFamily(f"prelude_proxy_{name}", text, labels=("class",))
            for klass, tally in m.classes.items():
                histogram: Histogram = getattr(tally, attribute)
                family.add_metric((klass,), histogram.buckets(), histogram.total)
            yield family
        for name, text, histogram in (
            ("classification_seconds", "Parsing, features and prediction of one request.", m.classification_s),
            ("overhead_seconds", "Time spent in the proxy itself before dispatch, time held excluded.", m.overhead_s),
        ):
            family = HistogramMetricFamily(f"prelude_proxy_{name}", text)
            family.add_metric((), histogram.buckets(), histogram.total)
            yield family


def counter(name: str, text: str, labels: Sequence[str], values: Counter) -> CounterMetricFamily:
    """A counter family `prelude_proxy_<name>_total`."""
    family = CounterMetricFamily(f"prelude_proxy_{name}", text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def gauge(name: str, text: str, labels: tuple[str, ...], values: Iterable[tuple[Sequence[str], float]]) -> Metric:
    """A gauge family `prelude_proxy_<name>`."""
    family = GaugeMetricFamily(f"prelude_proxy_{name}", text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family
