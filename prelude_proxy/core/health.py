"""May this backend get work? Circuit breaker, probes, short suspensions and the operator's wish, joined.

Healthy (observed) is not enabled (wished): a backend is *available* when it is enabled, not draining, not known to be
down, not suspended, and its breaker is not open. Policy as in Envoy's outlier detection: consecutive failures eject for
a time that doubles with each ejection, one trial request re-admits.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

_MAX_BACKOFF: Final = 16


class BreakerState(StrEnum):
    """Position of the circuit breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """Bounds of `Health`; the same words as in the configuration."""

    unhealthy_after: int = 3
    eject_after: int = 5
    eject_s: float = 5.0


class Health:
    """What is known of one backend's fitness."""

    __slots__ = (
        "_backoff",
        "_failed_probes",
        "_failures",
        "_open_until",
        "_policy",
        "_suspended_until",
        "_trial_out",
        "draining",
        "enabled",
        "reachable",
    )

    def __init__(self, policy: HealthPolicy, *, reachable: bool = False) -> None:
        self._policy = policy
        self.enabled = True
        self.draining = False
        self.reachable = reachable
        """Last word of the probes; False until the first one succeeds."""
        self._failed_probes = 0
        self._failures = 0
        self._backoff = 0
        self._open_until = 0.0
        self._suspended_until = 0.0
        self._trial_out = False

    def is_available(self, now: float) -> bool:
        """Whether it may get new work at `now`."""
        if not (self.enabled and self.reachable) or self.draining or now < self._suspended_until:
            return False
        state = self.breaker(now)
        return state is BreakerState.CLOSED or (state is BreakerState.HALF_OPEN and not self._trial_out)

    def is_up(self, now: float) -> bool:
        """Whether it is there at all: like available, but for a moment's suspension or a trial that is out."""
        return self.returns_by_time and self.breaker(now) is not BreakerState.OPEN

    def breaker(self, now: float) -> BreakerState:
        """Position of the breaker at `now`."""
        if self._backoff == 0:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self._open_until else BreakerState.HALF_OPEN

    @property
    def returns_by_time(self) -> bool:
        """Whether it is only suspended or ejected; otherwise a probe or the operator must say that it is back."""
        return self.enabled and self.reachable and not self.draining

    def next_change(self, now: float) -> float | None:
        """When availability may change by the passing of time alone."""
        times = [at for at in (self._suspended_until, self._open_until if self._backoff else 0.0) if at > now]
        return min(times) if times else None

    def probe_succeeded(self) -> None:
        """A health probe answered 200."""
        self.reachable = True
        self._failed_probes = 0

    def probe_failed(self) -> None:
        """A health probe failed or timed out."""
        self._failed_probes += 1
        if self._failed_probes >= self._policy.unhealthy_after:
            self.reachable = False

    def dispatched(self, now: float) -> None:
        """A request goes out: in the half-open state it is the one trial."""
        if self.breaker(now) is BreakerState.HALF_OPEN:
            self._trial_out = True

    def succeeded(self) -> None:
        """A request proved that the backend works."""
        self._failures = 0
        self._backoff = 0
        self._trial_out = False

    def failed(self, now: float) -> None:
        """A request failed by the backend's fault."""
        self._failures += 1
        if self._trial_out or (self._backoff == 0 and self._failures >= self._policy.eject_after):
            self._backoff = min(_MAX_BACKOFF, self._backoff * 2 or 1)
            self._open_until = now + self._policy.eject_s * self._backoff
            self._trial_out = False
            self._failures = 0

    def undecided(self) -> None:
        """A request ended without saying anything of the backend (the client left): free the trial."""
        self._trial_out = False

    def suspend(self, until: float) -> None:
        """Give it no new work until `until`: it refused a connection or said it is full."""
        self._suspended_until = max(self._suspended_until, until)
