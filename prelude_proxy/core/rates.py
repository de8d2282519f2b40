"""Rates and means that forget: exponentially decayed counters, exact between events, O(1)."""

from __future__ import annotations

import math


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


class DecayingMean:
    """Mean of the last some `1 / share` values; the first value counts fully."""

    __slots__ = ("_share", "value")

    def __init__(self, share: float = 0.05) -> None:
        self._share = share
        self.value: float | None = None

    def add(self, value: float) -> None:
        """Take in one value."""
        self.value = value if self.value is None else self.value + self._share * (value - self.value)
