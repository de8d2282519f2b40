"""How many requests one engine may hold at once, found from what it does and followed as it changes.

The aim: every slot of the engine's running batch full, its own waiting queue no longer than `feed`. So the window is
what the engine is *known to run at once*, and a little more:

- *Proof.* An answer that has begun is a request that runs. As many as have begun and not ended, run side by side;
  telemetry says the same every now and then. Every new proof moves the window up at once, with no need of a sample.
- *The limit is not known*: the window is one or a sixteenth above the proof, so it grows by that a round trip, and no
  more than that is in the engine's queue when the limit is met. Slots that a reserve keeps free count as proof too, or
  it would hide what the engine can run; but one step at a time, each after tickets have waited for it for 2 s and no
  queue was seen: in that time what is urgent tries them, and a limit is met before slow work has taken the reserve.
- *The limit is met* when two samples in a row show a queue (a request that arrives during a step waits for its end on
  an idle engine too): any at all as long as the limit is not known, one longer than `feed` later. The window becomes
  what the engine ran at most in the last second, plus `feed`. It does not matter whether batch slots or KV cache end.
- *A known limit is refuted* when more than that have begun: it moves up by one. The second sample that shows it makes
  the limit unknown again; answers that have begun do not, for one may have ended in the engine and not yet here. So the
  feed slot is also the probe, and probing costs nothing. Refutation rests for 2 s after the limit was met, doubling to
  32 s while it keeps being met: the window swings no more often than that.
- *On the way.* Requests that were sent and have not reached the batch, and answers that have ended there and not here,
  hold a slot of the window and none of the engine's. When the window is used up, tickets wait and the engine still
  runs less than its limit with nothing queued, two samples in a row, one more is let out for them; one less when the
  engine queues.
- *KV cache.* When the limit is met with the cache full, or requests were preempted, the limit is one of tokens: the
  window follows what runs, in samples alone, as an answer that has begun may have been preempted since. Preempted
  requests count as queued. Preemption itself is no reason to hold fewer: prefilling a context again costs an engine
  a step or two, an empty place in its batch costs every step (`docs/scheduling.md` has the figures).
- *The gauges lie*: they read zero for some 18 s after an engine's start and lag by up to a second. A sample that shows
  less than half of what our own ledger has out is not believed.
- *No telemetry*: slow growth on success as long as time to first token does not inflate (after Netflix's
  concurrency-limits, Gradient2), so nothing stalls.

What it does not know: which requests are long. Classes and reserves (`limits.py`) decide who gets the slots.
"""

from __future__ import annotations

import math
from typing import Final

from prelude_proxy.core.telemetry import Sample

_GROWTH_DIVISOR: Final = 16
_WAY_DIVISOR: Final = 4
_PEAK_S: Final = 1.0
_FIRST_REST_S: Final = 2.0
_LAST_REST_S: Final = 32.0
_TRIED_S: Final = 2.0
_KV_FULL: Final = 0.95
_TRUST_SHARE: Final = 0.5
_TTFT_TOLERANCE: Final = 2.0
_TTFT_FAST: Final = 0.2
_TTFT_SLOW: Final = 0.01


class Window:
    """The adaptive window of one engine, in requests: `size` is all it may hold, `feed` of which beyond its limit."""

    __slots__ = (
        "_feed",
        "_max",
        "_num_idle",
        "_num_queued",
        "_num_refuted",
        "_on_the_way",
        "_peak",
        "_peak_at",
        "_preemptions",
        "_rest_s",
        "_rests_until",
        "_ttft_long",
        "_ttft_short",
        "_waits_since",
        "feed",
        "is_kv_bound",
        "is_static",
        "limit",
        "size",
    )

    def __init__(self, *, initial: int, maximum: int, feed: int, static: int | None = None) -> None:
        self.is_static = static is not None
        self.size = static if static is not None else min(initial, maximum)
        self.limit: int | None = static
        """What the engine runs at once of ours; None: not known."""
        self.feed = 0
        """Slots of `size` beyond a known limit."""
        self.is_kv_bound = False
        """The limit is the cache, not the batch: short requests take less of it than one of `size`."""
        self._max = maximum
        self._feed = feed
        self._num_queued = 0
        self._num_idle = 0
        self._on_the_way = 0
        self._num_refuted = 0
        self._peak = 0.0
        self._peak_at = 0.0
        self._preemptions: float | None = None
        self._rests_until = 0.0
        self._rest_s = _FIRST_REST_S
        self._waits_since = math.inf
        self._ttft_short = 0.0
        self._ttft_long = 0.0

    def observe(self, sample: Sample, *, in_use: int, wanted: bool, now: float, kept: int = 0) -> None:
        """Learn from a fresh sample.

        Args:
            sample: what the engine shows.
            in_use: permits out.
            wanted: tickets are held that would use a further slot.
            now: when.
            kept: free slots that a reserve keeps from who would use them; they may count while the limit is not known.
        """
        if self.is_static or sample.running is None or sample.waiting is None:
            return
        total = sample.running + sample.waiting
        if total < in_use * _TRUST_SHARE:
            return  # lagging, or lying zero after a start
        if sample.running >= self._peak or now - self._peak_at > _PEAK_S:
            self._peak, self._peak_at = sample.running, now
        ours = min(1.0, in_use / total) if total else 1.0  # others may use the same engine
        usual = self._feed if self.limit is not None else 0
        self._num_queued = self._num_queued + 1 if sample.waiting > usual else 0
        is_cache_full = self._is_cache_full(sample)
        if self._num_queued > 1:
            if not in_use:
                return  # a queue of others' requests alone says nothing of what it would run of ours
            self.is_kv_bound = is_cache_full
            self._meet(self._peak * ours, now)
        else:
            self._prove(math.floor(sample.running * ours), now, kept=kept if self._have_waited(wanted, now) else 0)
        self._allow_for_the_way(sample, ours, is_full=wanted and in_use >= self.size)

    def observe_first_token(
        self, ttft_s: float, *, has_telemetry: bool, in_use: int, started: int, wanted: bool, now: float
    ) -> None:
        """Learn from an answer that has begun `ttft_s` after dispatch. `started`: answers under way, with this one."""
        if self.is_static:
            return
        if has_telemetry:
            if not self.is_kv_bound:
                self._prove(started, now, is_sample=False)
        else:
            self._feel(ttft_s, is_full=wanted and in_use >= self.size)

    def engine_refused(self, in_use: int) -> None:
        """The engine's own admission control rejected a request: it holds less than we thought."""
        if not self.is_static:
            self._set(max(1, min(self.size, in_use - 1)), feed=0)

    def _allow_for_the_way(self, sample: Sample, ours: float, *, is_full: bool) -> None:
        assert sample.running is not None
        assert sample.waiting is not None
        if self.limit is None:
            self._num_idle = self._on_the_way = 0
            return
        is_idle = is_full and not sample.waiting and sample.running * ours < self.limit and not self.is_kv_bound
        self._num_idle = self._num_idle + 1 if is_idle else 0
        before = self._on_the_way
        if self._num_idle > 1:
            self._on_the_way = min(before + 1, max(1, self.limit // _WAY_DIVISOR))
        elif sample.waiting > self._feed:
            self._on_the_way = max(0, before - 1)
        if self._on_the_way != before:
            self._set(self.limit, feed=self._feed)

    def _have_waited(self, wanted: bool, now: float) -> bool:
        """Whether tickets have waited long enough for what a reserve keeps free; if so, the time begins anew."""
        self._waits_since = min(self._waits_since, now) if wanted else math.inf
        if now - self._waits_since < _TRIED_S:
            return False
        self._waits_since = now
        return True

    def _is_cache_full(self, sample: Sample) -> bool:
        before, self._preemptions = self._preemptions, sample.preemptions
        preempted = before is not None and sample.preemptions is not None and sample.preemptions > before
        return preempted or (sample.kv_usage is not None and sample.kv_usage >= _KV_FULL)

    def _meet(self, running: float, now: float) -> None:
        """The engine runs this many of ours and no more."""
        self._set(max(1, round(running)), feed=self._feed)
        if now >= self._rests_until:
            self._rests_until = now + self._rest_s
            self._rest_s = min(_LAST_REST_S, self._rest_s * 2)
        self._num_refuted = 0
        self._num_queued = 0

    def _prove(self, running: int, now: float, *, kept: int = 0, is_sample: bool = True) -> None:
        """The engine runs at least this many of ours; answers that have begun may overlap in transit."""
        if self.limit is None:
            base = running + kept
            self.size = max(self.size, min(self._max, base + max(1, self._feed, base // _GROWTH_DIVISOR)))
        elif running > self.limit:
            self._num_refuted += is_sample
            if self._num_refuted > 1 and now >= self._rests_until:
                self.limit = None
                self.feed = 0
                self.is_kv_bound = False
                self._rest_s = _FIRST_REST_S if now > self._rests_until + self._rest_s else self._rest_s
                self._prove(running, now)
            else:
                self._set(running, feed=self._feed)

    def _set(self, limit: int, feed: int) -> None:
        self.limit = min(self._max, limit)
        self.size = min(self._max, limit + feed + (self._on_the_way if feed else 0))
        self.feed = self.size - self.limit

    def _feel(self, ttft_s: float, *, is_full: bool) -> None:
        """Without gauges: inflation of short-term over long-term time to first token says that there is a queue."""
        self._ttft_short += _TTFT_FAST * (ttft_s - self._ttft_short) if self._ttft_short else ttft_s
        self._ttft_long += _TTFT_SLOW * (ttft_s - self._ttft_long) if self._ttft_long else ttft_s
        self._ttft_long = min(self._ttft_long, 2 * self._ttft_short) if self._ttft_short else self._ttft_long
        if self._ttft_short > _TTFT_TOLERANCE * self._ttft_long:
            self.size = max(1, math.floor(self.size * 0.9))
            self._ttft_short = self._ttft_long
        elif is_full:
            self.size = min(self._max, self.size + 1)
