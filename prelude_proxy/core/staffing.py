"""How many slots of a pool its urgent classes will need, and so how many must be kept free of lower ones.

**Square-root staffing** (Halfin & Whitt 1981): a stream that keeps `a` slots busy on average (arrivals a second times
seconds a slot is held) needs a + β·√a of them to find one free nearly always. Loads are added up from the most urgent
class down before the root is taken, since classes share what is kept: the level of class k is the load of 0 … k.

What is *kept free* is that less what is there already: slots that these classes use now (they come back within one
service time), and slots that lower classes give back meanwhile. In the mean service time S_k of level k a lower class
that has n slots and gives each of them back at a rate of h a second gives back n·h·S_k. So a class of short requests
keeps nearly all it needs, and a class of long ones keeps little against longer ones.

A request that outgrows its class and counts for another from then on has ended its stay, but given nothing back: stays
make the load, returned slots the rate h.

Classes with a configured reserve take no part: theirs is a fixed number, kept by each backend (`limits.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from prelude_proxy.core.domain import ClassSpec
from prelude_proxy.core.rates import ArrivalRate, DecayingMean

MEASURE_S: Final = 0.25
_LEAST_LOAD: Final = 0.05
"""Busy slots; less is no traffic worth keeping a slot for."""


class _Stays:
    """How long requests of one class hold a slot in its name, and how many of them give it back at the end."""

    __slots__ = ("_returned", "_seconds")

    def __init__(self) -> None:
        self._seconds = DecayingMean()
        self._returned = DecayingMean()

    def add(self, stay_s: float, *, returned: bool) -> None:
        self._seconds.add(stay_s)
        self._returned.add(float(returned))

    @property
    def mean_s(self) -> float:
        return self._seconds.value or 0.0

    @property
    def returns_per_s(self) -> float:
        """Of one slot in use."""
        return (self._returned.value or 0.0) / self._seconds.value if self._seconds.value else 0.0


class Staffing:
    """Measured traffic of one pool by class, and what to keep free for it."""

    __slots__ = ("_arrivals", "_beta", "_levels", "_measured_at", "_stays", "_tokens", "footprint", "wanted_above")

    def __init__(self, classes: Sequence[ClassSpec], beta: float) -> None:
        self._beta = beta
        self._arrivals = [ArrivalRate() for _ in classes]
        self._stays = [_Stays() for _ in classes]
        self._tokens = [DecayingMean() for _ in classes]
        self._measured_at = -math.inf
        self._levels: list[tuple[float, list[float]] | None] = [
            (0.0, [0.0] * len(classes)) if spec.reserve is None else None for spec in classes
        ]
        """Of each class with an automatic reserve: slots wanted, and what a slot in use of each class counts for."""
        self.wanted_above = [0.0] * len(classes)
        """By class: slots of the pool that more urgent ones want, whether in use or not."""
        self.footprint = [1.0] * len(classes)
        """By class: how much of the KV cache a request of the more urgent classes takes, for one of this class."""

    def arrived(self, klass: int, now: float, tokens: float = 0.0) -> None:
        """A request of `tokens` (prompt and half the answer: its mean size) asks for a slot of this class."""
        self._arrivals[klass].add(now)
        if tokens:
            self._tokens[klass].add(tokens)

    def left(self, klass: int, stay_s: float, *, returned: bool) -> None:
        """A request held a slot in the name of this class for that long, and gave it back or grew out of the class."""
        self._stays[klass].add(stay_s, returned=returned)

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
            own = rates[level] * self._stays[level].mean_s
            load += own
            wanted = load + self._beta * math.sqrt(load) if own >= _LEAST_LOAD else 0.0
            most = max(most, wanted)
            self._levels[level] = (wanted, self._weights(level))
        self._compare_sizes(rates)
        return True

    def kept_against(self, in_use: Sequence[int]) -> list[int]:
        """For each class: slots of the pool that it must leave free for more urgent ones. `in_use`: by class, now."""
        kept = [0] * len(in_use)
        most = 0
        for level, known in enumerate(self._levels[:-1]):
            if known is not None and known[0]:
                wanted, weights = known
                for weight, count in zip(weights, in_use, strict=True):
                    wanted -= weight * count
                most = max(most, int(wanted + 0.5))
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

    def _weights(self, level: int) -> list[float]:
        service_s = self._stays[level].mean_s
        return [
            float(self._levels[c] is not None) if c <= level else min(1.0, stays.returns_per_s * service_s)
            for c, stays in enumerate(self._stays)
        ]
