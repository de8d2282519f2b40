"""Which of the backends that have a slot gets a request. Small policies with one `choose`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from prelude_proxy.core.domain import Rng

if TYPE_CHECKING:
    from prelude_proxy.core.limits import BackendSlots, OpenSet
    from prelude_proxy.core.queues import Ticket

_LOOKED_AT = 8
_PREFILL_TOKENS_A_SLOT = 256.0
"""Prompt tokens yet to be prefilled that slow a batch as much as one more answer in it."""


class RoutingPolicy(Protocol):
    """Chooses among open backends; `candidates` is never empty."""

    def choose(self, ticket: Ticket, candidates: OpenSet, rng: Rng) -> BackendSlots:
        """The backend for `ticket`."""
        ...


class LeastOccupied:
    """Least of its window in use, prefill still to be done counted in; then least predicted outstanding work.

    Occupancy first, because a decode step costs nearly the same whatever the answers in it have left, while one more
    answer in the batch, or a prompt to prefill, slows all of them (`docs/scheduling.md` has the figures). Small fleets
    are scanned; in large ones the best of a few random ones is taken (Mitzenmacher 2001: exponentially better than one,
    and no herd runs to the same minimum).
    """

    def choose(self, ticket: Ticket, candidates: OpenSet, rng: Rng) -> BackendSlots:
        """The least occupied of the candidates looked at."""
        items = candidates.items
        if len(items) == 1:
            return items[0]
        return min(items if len(items) <= _LOOKED_AT else candidates.sample(rng, _LOOKED_AT), key=_occupancy)


class LeastRequests:
    """Fewest requests out relative to weight: what a plain load balancer does (mode `fcfs`)."""

    def choose(self, ticket: Ticket, candidates: OpenSet, rng: Rng) -> BackendSlots:
        """The one with the fewest requests."""
        return min(candidates.items, key=_requests)


def _occupancy(backend: BackendSlots) -> tuple[float, int]:
    taken = backend.num_in_use + backend.pending_prefill_tokens / _PREFILL_TOKENS_A_SLOT
    return taken / (backend.window.size * backend.weight), backend.outstanding_work


def _requests(backend: BackendSlots) -> float:
    return backend.num_in_use / backend.weight
