"""Sums that a request adds to: counts by label, histograms. Plain numbers; what is made of them is for who is asked."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

OTHER: Final = "other"

Counter = dict[tuple[str, ...], int]
"""Label values → count."""

Bounds = Sequence[float]
"""Upper bounds, rising. As a constant a sequence, not a tuple of so many floats: mypyc loses one of those."""

_LATENCY_S: Final[Bounds] = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_GAP_S: Final[Bounds] = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_TOKENS: Final[Bounds] = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


class Histogram:
    """Counts by upper bound, plus the sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def observe_many(self, value: float, count: int) -> None:
        """Count `value` `count` times."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.total += value * count

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts as the exposition format wants them."""
        rows: list[tuple[str, float]] = []
        seen = 0
        for bound, count in zip([*(f"{b:g}" for b in self.bounds), "+Inf"], self.counts, strict=True):
            seen += count
            rows.append((bound, seen))
        return rows


class LabelCap:
    """Lets the first `limit` values of a client-given label through; the rest are `other`."""

    __slots__ = ("_known", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def __call__(self, value: str | None) -> str:
        """The label value to use for `value`."""
        if value is None:
            return ""
        if value in self._known:
            return value
        if len(self._known) >= self._limit:
            return OTHER
        self._known.add(value)
        return value


class ClassTally:
    """Sums of one execution class."""

    __slots__ = ("actual_tokens", "duration_s", "itl_s", "predicted_tokens", "queue_wait_s", "ttft_s")

    def __init__(self) -> None:
        self.ttft_s = Histogram(_LATENCY_S)
        self.itl_s = Histogram(_GAP_S)
        self.duration_s = Histogram(_LATENCY_S)
        self.queue_wait_s = Histogram(_LATENCY_S)
        self.predicted_tokens = Histogram(_TOKENS)
        self.actual_tokens = Histogram(_TOKENS)


def count(counter: Counter, *labels: str) -> None:
    """Add one to `counter` at `labels`."""
    counter[labels] = counter.get(labels, 0) + 1
