"""Which of the backends that have a slot gets a request. Small policies with one `choose`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from prelude_proxy.core.domain import Rng

if TYPE_CHECKING:
    from prelude_proxy.core.limits import BackendSlots, OpenSet
    from prelude_proxy.core.queues import Ticket

_SCAN_AT_MOST = 8


class RoutingPolicy(Protocol):
    """Chooses among open backends; `candidates` is never empty."""

    def choose(self, ticket: Ticket, candidates: OpenSet, rng: Rng) -> BackendSlots:
        """The backend for `ticket`."""
        ...


class LeastWork:
    """Least predicted outstanding work relative to the window.

    Small fleets are scanned; in large ones the better of two random ones is taken (Mitzenmacher 2001: exponentially
    better than one, and no herd runs to the same minimum).
    """

    def choose(self, ticket: Ticket, candidates: OpenSet, rng: Rng) -> BackendSlots:
        """The least loaded of the candidates looked at."""
        items = candidates.items
        if len(items) == 1:
            return items[0]
        if len(items) > _SCAN_AT_MOST:
            first, second = candidates.sample(rng, 2)
            return first if first.load() <= second.load() else second
        return min(items, key=_load)


class LeastRequests:
    """Fewest requests out relative to weight: what a plain load balancer does (mode `fcfs`)."""

    def choose(self, ticket: Ticket, candidates: OpenSet, rng: Rng) -> BackendSlots:
        """The one with the fewest requests."""
        return min(candidates.items, key=_requests)


def _load(backend: BackendSlots) -> float:
    return backend.load()


def _requests(backend: BackendSlots) -> float:
    return backend.num_in_use / backend.weight
