"""Rates and means that forget: exponentially decayed counters, exact between events, O(1)."""

from __future__ import annotations

import math
from typing import Final


class DecayingRate:
    """Events a second, forgotten with time constant `tau_s`. A burst of n events shows as n / tau_s at first."""

    __slots__ = ("_at", "_count", "_tau_s")

    def __init__(self, tau_s: float = 10.0) -> None:
        self._tau_s = tau_s
        self._count = 0.0
        self._at = 0.0

    def add(self, now: float, amount: float = 1.0) -> None:
        """Count `amount` at `now`."""
        self._count = self._decayed(now) + amount
        self._at = now

    def per_second(self, now: float) -> float:
        """The rate at `now`."""
        return self._decayed(now) / self._tau_s

    def _decayed(self, now: float) -> float:
        return self._count * math.exp((self._at - now) / self._tau_s) if self._count else 0.0


_LEAST_SPAN_S: Final = 0.5
_CREDIBLE_GAP: Final = 3.0


class ArrivalRate:
    """Arrivals a second, right from the first second on and down again as soon as they stop.

    A decayed count divided by the time it really covers (τ·(1 − e^(−age/τ)), at least half a second; a pause of 3·τ
    begins anew), and never more than what silence allows: of a Poisson stream of rate λ one gap in twenty is longer
    than 3/λ, so after `s` seconds of silence a rate above 3/s is no longer believed.
    """

    __slots__ = ("_at", "_count", "_first_at", "_tau_s")

    def __init__(self, tau_s: float = 5.0) -> None:
        self._tau_s = tau_s
        self._count = 0.0
        self._at = 0.0
        self._first_at: float | None = None

    def add(self, now: float) -> None:
        """Count one arrival."""
        if self._first_at is None or now - self._at > 3 * self._tau_s:
            self._first_at, self._count = now, 0.0
        self._count = self._decayed(now) + 1.0
        self._at = now

    def per_second(self, now: float) -> float:
        """The rate at `now`."""
        if self._first_at is None:
            return 0.0
        span_s = max(_LEAST_SPAN_S, self._tau_s * -math.expm1((self._first_at - now) / self._tau_s))
        rate = self._decayed(now) / span_s
        silence_s = now - self._at
        return min(rate, _CREDIBLE_GAP / silence_s) if silence_s > 0 else rate

    def _decayed(self, now: float) -> float:
        return self._count * math.exp((self._at - now) / self._tau_s)


class DecayingMean:
    """Mean of the last some `1 / share` values; a plain mean until there are as many."""

    __slots__ = ("_num", "_share", "value")

    def __init__(self, share: float = 0.05) -> None:
        self._share = share
        self._num = 0
        self.value: float | None = None

    def add(self, value: float) -> None:
        """Take in one value."""
        self._num += 1
        share = max(self._share, 1.0 / self._num)
        self.value = value if self.value is None else self.value + share * (value - self.value)


class DecayingFloor:
    """About the least of the last some `1 / share` values: down at once, up slowly. 0 until there is one."""

    __slots__ = ("_share", "value")

    def __init__(self, share: float = 0.05) -> None:
        self._share = share
        self.value = 0.0

    def add(self, value: float) -> None:
        """Take in one value."""
        self.value = min(value, self.value + self._share * (value - self.value)) if self.value else value


class DrainRate:
    """Work a second that a queue is served while something waits in it: of about the last twenty served.

    Time in which nothing waits does not count, nor what is served in the moment it comes: neither says how long one
    who waits will wait. The time since the last was served counts in full, so a queue that stands still shows it.
    """

    __slots__ = ("_filled_at", "_seconds", "_share", "_since", "_work", "num_served")

    def __init__(self, share: float = 0.05) -> None:
        self._share = share
        self._work = 0.0
        self._seconds = 0.0
        self.num_served = 0
        """How many there were to learn from, ever."""
        self._filled_at = 0.0
        self._since: float | None = None
        """Up to when the time in which something waited is counted; None: nothing waits."""

    def fill(self, now: float) -> None:
        """Something waits from now on."""
        if self._since is None:
            self._since = self._filled_at = now

    def serve(self, now: float, work: float) -> None:
        """One that waited was served."""
        if self._since is None or now == self._filled_at:
            return
        kept = 1.0 - self._share
        self._work = self._work * kept + work
        self._seconds = self._seconds * kept + now - self._since
        self.num_served += 1
        self._since = now

    def empty(self, now: float) -> None:
        """Nothing waits any more."""
        if self._since is not None:
            self._seconds += now - self._since
            self._since = None

    def per_second(self, now: float) -> float | None:
        """The rate; None when nothing is known."""
        seconds = self._seconds + (now - self._since if self._since is not None else 0.0)
        return self._work / seconds if self.num_served and seconds > 0.0 else None
