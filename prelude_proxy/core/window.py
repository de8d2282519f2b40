"""How many requests one engine may hold at once, found from its own gauges and followed as it changes.

The aim: every slot of the engine's running batch full, its waiting queue no longer than `feed`. What is known:

- *The engine has a queue* (`waiting > feed`), preempts, or its KV cache is full: it runs `running` and no more. Come
  back to that, plus the feed. `running` is taken as the peak of the last second, since a long prefill hides part of it.
- *The engine has no queue, the window is used up, and tickets wait here*: it might take more. Without a known limit the
  window grows by half a sample (slow start); near a known limit by one, and after each failed try the next comes later
  (2 s doubling to 32 s), so that it oscillates by at most one slot at that rate.
- *The gauges lie*: they read zero for some 18 s after an engine's start and lag by up to a second. A sample that shows
  less than half of what our own ledger has out is not believed.
- *No telemetry*: the window stays where it is. If it never was known, slow growth on success continues as long as time
  to first token does not inflate (after Netflix's concurrency-limits, Gradient2), so nothing stalls.

What it does not know: which requests are long. Classes and reserves (`limits.py`) decide who gets the slots.
"""

from __future__ import annotations

import math

from prelude_proxy.core.telemetry import Sample

_GROWTH = 1.5
_PEAK_S = 1.0
_FIRST_PROBE_S = 2.0
_LAST_PROBE_S = 32.0
_KV_FULL = 0.98
_TRUST_SHARE = 0.5
_TTFT_TOLERANCE = 2.0
_TTFT_FAST = 0.2
_TTFT_SLOW = 0.01


class Window:
    """The adaptive window of one engine, in requests. `size` is the only output."""

    __slots__ = (
        "_feed",
        "_limit",
        "_max",
        "_peak",
        "_peak_at",
        "_preemptions",
        "_probe_after",
        "_probe_wait",
        "_ttft_long",
        "_ttft_short",
        "is_static",
        "size",
    )

    def __init__(self, *, initial: int, maximum: int, feed: int, static: int | None = None) -> None:
        self.is_static = static is not None
        self.size = static if static is not None else min(initial, maximum)
        self._max = maximum
        self._feed = feed
        self._limit: int | None = None
        """The batch size at which the engine last queued; None: not met yet."""
        self._peak = 0.0
        self._peak_at = 0.0
        self._preemptions: float | None = None
        self._probe_after = 0.0
        self._probe_wait = _FIRST_PROBE_S
        self._ttft_short = 0.0
        self._ttft_long = 0.0

    @property
    def limit(self) -> int | None:
        """The engine's own limit as far as it is known."""
        return self._limit

    def observe(self, sample: Sample, *, in_use: int, wanted: bool, now: float) -> None:
        """Learn from a fresh sample. `in_use`: permits out; `wanted`: tickets that would use a further slot."""
        if self.is_static or sample.running is None or sample.waiting is None:
            return
        total = sample.running + sample.waiting
        if total < in_use * _TRUST_SHARE:
            return  # lagging, or lying zero after a start
        if sample.running >= self._peak or now - self._peak_at > _PEAK_S:
            self._peak, self._peak_at = sample.running, now
        if self._is_saturated(sample):
            self._come_back(sample, in_use, now)
        elif wanted and in_use >= self.size and sample.waiting == 0:
            self._grow(now)

    def observe_first_token(self, ttft_s: float, *, has_telemetry: bool, in_use: int, wanted: bool) -> None:
        """Learn from a response when gauges are absent: inflation of short-term over long-term time to first token."""
        if self.is_static or has_telemetry:
            return
        self._ttft_short += _TTFT_FAST * (ttft_s - self._ttft_short) if self._ttft_short else ttft_s
        self._ttft_long += _TTFT_SLOW * (ttft_s - self._ttft_long) if self._ttft_long else ttft_s
        self._ttft_long = min(self._ttft_long, 2 * self._ttft_short) if self._ttft_short else self._ttft_long
        if self._ttft_short > _TTFT_TOLERANCE * self._ttft_long:
            self.size = max(1, math.floor(self.size * 0.9))
            self._ttft_short = self._ttft_long
        elif wanted and in_use >= self.size:
            self.size = min(self._max, self.size + 1)

    def engine_refused(self, in_use: int) -> None:
        """The engine's own admission control rejected a request: it holds less than we thought."""
        if not self.is_static:
            self.size = max(1, min(self.size, in_use - 1))

    def _is_saturated(self, sample: Sample) -> bool:
        assert sample.waiting is not None
        preempted = (
            sample.preemptions is not None and self._preemptions is not None and sample.preemptions > self._preemptions
        )
        self._preemptions = sample.preemptions
        full = sample.kv_usage is not None and sample.kv_usage >= _KV_FULL and sample.waiting > 0
        return sample.waiting > self._feed or preempted or full

    def _come_back(self, sample: Sample, in_use: int, now: float) -> None:
        assert sample.running is not None
        assert sample.waiting is not None
        total = sample.running + sample.waiting
        ours = min(1.0, in_use / total) if total else 1.0  # others may use the same engine
        self._limit = max(1, round(self._peak))
        target = max(1, math.ceil((self._peak + self._feed) * ours))
        if target < self.size:
            self.size = target
            self._probe_after = now + self._probe_wait
            self._probe_wait = min(_LAST_PROBE_S, self._probe_wait * 2)

    def _grow(self, now: float) -> None:
        if self._limit is None:
            grown = math.ceil(self.size * _GROWTH)
        elif now < self._probe_after:
            return
        else:
            # past a limit that held for long the engine has changed: each success doubles the step
            beyond = self.size - self._limit - self._feed
            grown = self.size + max(1, beyond)
            if beyond > 2:
                self._probe_wait = _FIRST_PROBE_S
        self.size = min(self._max, grown)
