"""Which of the backends that have a slot gets a request. Small policies with one `choose`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from prelude_proxy.core.domain import Rng

if TYPE_CHECKING:
    from prelude_proxy.core.affinity import Affinity, Ties
    from prelude_proxy.core.limits import BackendSlots, OpenSet
    from prelude_proxy.core.queues import Ticket

_LOOKED_AT: Final = 16
_TOKENS_AHEAD_A_SLOT: Final = 64.0
"""Prompt tokens of others yet to be prefilled that weigh as much as one more answer in the batch: they come first."""
_OWN_TOKENS_A_SLOT: Final = 256.0
"""The same of its own prompt: they slow the batch, and nobody is before them."""


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
    and no herd runs to the same minimum). What ties a request to a backend may outweigh that: `_drawn`.
    """

    def choose(self, ticket: Ticket, candidates: OpenSet, rng: Rng) -> BackendSlots:
        """The least occupied of the candidates looked at, or one that the request is tied to."""
        items = candidates.items
        if len(items) == 1:
            return items[0]
        least = min(items if len(items) <= _LOOKED_AT else candidates.sample(rng, _LOOKED_AT), key=_occupancy)
        affinity = ticket.route.pool.affinity
        if ticket.ties is None or affinity is None:
            return least
        return _drawn(affinity, ticket.ties, ticket.prompt_tokens, least, candidates)


class LeastRequests:
    """Fewest requests out relative to weight: what a plain load balancer does (mode `fcfs`)."""

    def choose(self, ticket: Ticket, candidates: OpenSet, rng: Rng) -> BackendSlots:
        """The one with the fewest requests."""
        return min(candidates.items, key=_requests)


def _drawn(
    affinity: Affinity, ties: Ties, prompt_tokens: int, least: BackendSlots, candidates: OpenSet
) -> BackendSlots:
    """Where its past draws a request, unless more load there than on `least` outweighs it.

    Its session's backend; else of those that hold most of its prompt, and of `least`, whichever would be less occupied
    once the request is there, with only the prompt tokens still to prefill that it does not hold: a prefix draws as far
    as it saves work. Neither may have more of its window in use than `least` plus `max_extra_load`: there are no hot
    spots (the bound of Mirrokni, Thorup & Zadimoghaddam 2016, added instead of multiplied: at low load a factor would
    forbid what costs nothing).
    """
    home = affinity.home_of(ties)
    if home is not None and home in candidates and _is_within(affinity.policy.max_extra_load, home, least):
        return home
    best, best_cost = least, _occupancy_with(least, prompt_tokens - affinity.tokens_held(ties, prompt_tokens, least))
    for num_links in range(affinity.num_known(ties), 0, -1):
        near = [
            backend
            for backend in affinity.holders_at(ties, num_links)
            if backend in candidates and _is_within(affinity.policy.max_extra_load, backend, least)
        ]
        for backend in near:
            cost = _occupancy_with(backend, prompt_tokens - affinity.tokens_held(ties, prompt_tokens, backend))
            if cost < best_cost:
                best, best_cost = backend, cost
        if near:
            break
    return best


def _occupancy(backend: BackendSlots) -> tuple[float, int]:
    taken = backend.num_in_use + backend.pending_prefill_tokens / _TOKENS_AHEAD_A_SLOT
    return taken / (backend.window.size * backend.weight), backend.outstanding_work


def _occupancy_with(backend: BackendSlots, prefill_tokens: int) -> float:
    ahead = backend.num_in_use + backend.pending_prefill_tokens / _TOKENS_AHEAD_A_SLOT
    taken = ahead + 1 + prefill_tokens / _OWN_TOKENS_A_SLOT
    return taken / (backend.window.size * backend.weight)


def _is_within(max_extra_load: float, backend: BackendSlots, least: BackendSlots) -> bool:
    """Whether `backend` has little enough more in use than `least`; one request more is always little enough."""
    room = backend.window.size * backend.weight
    level = least.num_in_use / (least.window.size * least.weight)
    return backend is least or backend.num_in_use <= level * room + max(1.0, max_extra_load * room)


def _requests(backend: BackendSlots) -> float:
    return backend.num_in_use / backend.weight
