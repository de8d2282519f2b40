"""How many slots of a pool its urgent classes will need, and so how many must be kept free of lower ones.

**Square-root staffing** (Halfin & Whitt 1981): a stream that keeps `a` slots busy on average (arrivals a second times
seconds a slot is held) needs a + β·√a of them to find one free nearly always. Loads are added up from the most urgent
class down before the root is taken, since classes share what is kept: the level of class k is the load of 0 … k.

What is *kept free* is that less the slots that these classes use now, which come back within one service time. (Slots
that lower classes will give back meanwhile are not counted on: with true classes it makes no difference, and those that
are called short and are long hold theirs for long.)

A request that outgrows its class counts for another from then on: its stay in the class has ended.

Classes with a configured reserve take no part: theirs is a fixed number, kept by each backend (`limits.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from prelude_proxy.core.domain import ClassSpec
from prelude_proxy.core.rates import ArrivalRate, DecayingMean

MEASURE_S: Final = 0.25
_MEMORY_S: Final = 20.0
_LEAST_LOAD: Final = 0.05
"""Busy slots; less is no traffic worth keeping a slot for."""


class _Stays:
    """How long requests hold a slot in the name of one class, of about the last `_MEMORY_S`.

    Seconds that slots were held over stays that ended in the same time, those under way counted with what they have
    lasted: the maximum-likelihood mean of censored exponential times. The mean of ended stays alone is that of the
    short ones for as long as the long ones last.
    """

    __slots__ = ("_at", "_num_ended", "_num_live", "_slot_s")

    def __init__(self) -> None:
        self._at = 0.0
        self._slot_s = 0.0
        """Exponentially forgotten, as the number of ends."""
        self._num_ended = 0.0
        self._num_live = 0

    def begin(self, now: float) -> None:
        """A stay begins."""
        self._pass(now)
        self._num_live += 1

    def end(self, now: float, *, learned: bool) -> None:
        """A stay ends; one that is not `learned` says nothing of others."""
        self._pass(now)
        self._num_live -= 1
        self._num_ended += learned

    def mean_s(self, now: float) -> float:
        """Seconds of a stay: at least the age of those under way, while fewer have ended than that."""
        self._pass(now)
        known = max(self._num_ended, self._num_live)
        return self._slot_s / known if known > 0.0 else 0.0

    def _pass(self, now: float) -> None:
        left = math.exp((self._at - now) / _MEMORY_S)
        self._slot_s = self._slot_s * left + self._num_live * _MEMORY_S * (1.0 - left)
        self._num_ended *= left
        self._at = now


class Staffing:
    """Measured traffic of one pool by class, and what to keep free for it."""

    __slots__ = ("_arrivals", "_beta", "_levels", "_measured_at", "_stays", "_tokens", "footprint", "wanted_above")

    def __init__(self, classes: Sequence[ClassSpec], beta: float) -> None:
        self._beta = beta
        self._arrivals = [ArrivalRate() for _ in classes]
        self._stays = [_Stays() for _ in classes]
        self._tokens = [DecayingMean() for _ in classes]
        self._measured_at = -math.inf
        self._levels: list[float | None] = [0.0 if spec.reserve is None else None for spec in classes]
        """Of each class with an automatic reserve: slots wanted by it and more urgent ones."""
        self.wanted_above = [0.0] * len(classes)
        """By class: slots of the pool that more urgent ones want, whether in use or not."""
        self.footprint = [1.0] * len(classes)
        """By class: how much of the KV cache a request of the more urgent classes takes, for one of this class."""

    def arrived(self, klass: int, now: float, tokens: float = 0.0) -> None:
        """A request of `tokens` (prompt and half the answer: its mean size) asks for a slot of this class."""
        self._arrivals[klass].add(now)
        if tokens:
            self._tokens[klass].add(tokens)

    def began(self, klass: int, now: float) -> None:
        """A request holds a slot in the name of this class from now on."""
        self._stays[klass].begin(now)

    def left(self, klass: int, now: float, *, learned: bool = True) -> None:
        """A request has given its slot back, or grown out of the class.

        `learned`: whether it tells how long others will stay; one that was broken off does not.
        """
        self._stays[klass].end(now, learned=learned)

    @property
    def next_measure(self) -> float:
        """When it will next take stock, if asked."""
        return self._measured_at + MEASURE_S

    def measure(self, now: float) -> bool:
        """Take stock, at most four times a second. Returns whether it did."""
        if now - self._measured_at < MEASURE_S:
            return False
        self._measured_at = now
        rates = [arrivals.per_second(now) for arrivals in self._arrivals]
        load = most = 0.0
        for level, known in enumerate(self._levels):
            self.wanted_above[level] = most
            if known is None:
                continue
            own = rates[level] * self._stays[level].mean_s(now)
            load += own
            wanted = load + self._beta * math.sqrt(load) if own >= _LEAST_LOAD else 0.0
            most = max(most, wanted)
            self._levels[level] = wanted
        self._compare_sizes(rates)
        return True

    def kept_against(self, in_use: Sequence[int]) -> list[int]:
        """For each class: slots of the pool that it must leave free for more urgent ones. `in_use`: by class, now."""
        kept = [0] * len(in_use)
        most = used = 0
        for level, wanted in enumerate(self._levels[:-1]):
            if wanted is not None:
                used += in_use[level]
                if wanted:
                    most = max(most, int(wanted - used + 0.5))
            kept[level + 1] = most
        return kept

    def _compare_sizes(self, rates: Sequence[float]) -> None:
        count = tokens = 0.0
        for c, rate in enumerate(rates):
            own = self._tokens[c].value
            self.footprint[c] = min(1.0, tokens / count / own) if own and count else 1.0
            if own:
                count += rate
                tokens += rate * own
