"""Tickets and the queue they wait in: fair between tenants, ordered inside a tenant, O(log n) in and out.

Between tenants: deficit round robin (Shreedhar & Varghese 1995) on predicted work. The quantum is an eighth of the
largest cost seen: so a small ticket need not wait until every other tenant has had a large one, while no ticket costs
more than eight visits to its tenant's line, whatever the number of tenants.
Inside a tenant: a heap on (key, sequence). Cancelled tickets stay in the heaps as tombstones until they surface or make
up half of it.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from prelude_proxy.core.affinity import Ties
    from prelude_proxy.core.limits import Route


class Ticket:
    """One request that asks for a slot. Mutable only in `held`; everything else is fixed when it is made."""

    __slots__ = (
        "arrival",
        "deadline",
        "due",
        "expected_tokens",
        "held",
        "id",
        "is_retry",
        "klass",
        "num_bytes",
        "payload",
        "planned",
        "prompt_tokens",
        "route",
        "sheds",
        "streams",
        "tenant",
        "ties",
    )

    def __init__(
        self,
        ticket_id: int,
        route: Route,
        klass: int,
        *,
        arrival: float,
        deadline: float,
        tenant: str = "",
        expected_tokens: int = 0,
        prompt_tokens: int = 0,
        num_bytes: int = 0,
        payload: Any = None,
        is_retry: bool = False,
        ties: Ties | None = None,
        streams: bool = True,
        due: float = math.inf,
        sheds: bool = False,
        planned: int | None = None,
    ) -> None:
        self.id = ticket_id
        self.route = route
        self.klass = klass
        self.planned = klass if planned is None else planned
        """Class whose traffic it is counted as: nothing is kept free for guests with the benefit of the doubt."""
        self.arrival = arrival
        """Original arrival, in seconds of the caller's monotonic clock; a retry keeps it."""
        self.deadline = deadline
        """Held until then at most."""
        self.due = due
        """When its first token is wanted."""
        self.sheds = sheds
        """It is of no use after `due`: not held when it cannot make it."""
        self.tenant = tenant
        self.expected_tokens = expected_tokens
        self.prompt_tokens = prompt_tokens
        self.num_bytes = num_bytes
        self.payload = payload
        """Whatever the shell wants to find again in the decision (its future)."""
        self.is_retry = is_retry
        """Another attempt of a request that was let in before: it is let in during a shutdown too."""
        self.streams = streams
        """Its first token will be seen; an answer in one piece tells nothing before its end."""
        self.ties = ties
        """What ties it to a backend; None: nothing does."""
        self.held = False
        """Waiting in a queue now."""


# Decoding one token of one sequence costs a step its share of memory bandwidth; prefilling one prompt token costs about
# a hundredth to a tenth of that on common engines (compute-bound, thousands a step). One tenth errs to the safe side.
_PREFILL_WEIGHT: Final = 0.1


def work_of(ticket: Ticket) -> int:
    """Predicted work of a ticket in decode-token equivalents, at least 1."""
    return max(1, ticket.expected_tokens + int(ticket.prompt_tokens * _PREFILL_WEIGHT))


_QUANTA: Final = 8
"""Turns that a ticket of the largest cost needs."""
_LOOKED_AT: Final = 64
"""Tickets, and tenants, that an estimate looks at."""


class _Line:
    """One tenant's tickets."""

    __slots__ = ("deficit", "heap", "num_held", "tenant", "weight", "work")

    def __init__(self, tenant: str, weight: float) -> None:
        self.tenant = tenant
        self.weight = weight
        self.heap: list[tuple[float, int, Ticket]] = []
        self.num_held = 0
        self.work = 0
        """Of all that are held."""
        self.deficit = 0.0


class FairQueue:
    """Held tickets of one class on one route."""

    __slots__ = ("_arrivals", "_key", "_lines", "_num_held", "_quantum", "_rotation", "_weights")

    def __init__(self, key: Callable[[Ticket], float], weights: dict[str, float] | None = None) -> None:
        self._key = key
        self._weights = weights or {}
        self._lines: dict[str, _Line] = {}
        self._rotation: deque[_Line] = deque()
        self._arrivals: list[tuple[float, int, Ticket]] = []
        self._num_held = 0
        self._quantum = 1.0

    def __len__(self) -> int:
        return self._num_held

    def push(self, ticket: Ticket) -> None:
        """Hold `ticket`."""
        line = self._lines.get(ticket.tenant)
        if line is None:
            line = self._lines[ticket.tenant] = _Line(ticket.tenant, self._weights.get(ticket.tenant, 1.0))
            self._rotation.append(line)
        ticket.held = True
        heapq.heappush(line.heap, (self._key(ticket), ticket.id, ticket))
        heapq.heappush(self._arrivals, (ticket.arrival, ticket.id, ticket))
        work = work_of(ticket)
        line.num_held += 1
        line.work += work
        self._num_held += 1
        self._quantum = max(self._quantum, work / _QUANTA)

    def discard(self, ticket: Ticket) -> None:
        """Stop holding `ticket` (it was cancelled, expired or popped by age)."""
        if not ticket.held:
            return
        ticket.held = False
        line = self._lines[ticket.tenant]
        line.num_held -= 1
        line.work -= work_of(ticket)
        self._num_held -= 1
        if len(line.heap) > 2 * line.num_held + 16:
            line.heap = _compact(line.heap)
        if len(self._arrivals) > 2 * self._num_held + 16:
            self._arrivals = _compact(self._arrivals)

    def oldest(self) -> Ticket | None:
        """The ticket that came first, of any tenant."""
        heap = self._arrivals
        while heap and not heap[0][2].held:
            heapq.heappop(heap)
        return heap[0][2] if heap else None

    def pop(self) -> Ticket:
        """Take out the ticket whose turn it is.

        Raises:
            IndexError: nothing is held.
        """
        rotation = self._rotation
        while True:
            line = rotation[0]
            if not line.num_held:
                rotation.popleft()
                del self._lines[line.tenant]
                continue
            heap = line.heap
            while not heap[0][2].held:
                heapq.heappop(heap)
            ticket = heap[0][2]
            cost = work_of(ticket)
            if line.deficit < cost and len(rotation) > 1:
                line.deficit += self._quantum * line.weight
                rotation.rotate(-1)
                continue
            line.deficit = max(0.0, line.deficit - cost)
            heapq.heappop(heap)
            self.discard(ticket)
            return ticket

    def work_ahead(self, ticket: Ticket, arrival: float) -> float:
        """Predicted work that would go before `ticket`, had it come at `arrival` and came nothing more.

        Of its own tenant all that has no greater key. Of every other tenant what the turns allow it: a quantum for each
        turn that the tenant of `ticket` needs, and one more. Looks at no more than `_LOOKED_AT` tickets and tenants:
        beyond that at an even sample.
        """
        own = self._lines.get(ticket.tenant)
        key = self._key(ticket) - ticket.arrival + arrival
        ahead = _work_up_to(key, own) if own is not None and own.num_held else 0.0
        weight = own.weight if own is not None else self._weights.get(ticket.tenant, 1.0)
        turns = 1.0 + (ahead + work_of(ticket)) / (self._quantum * weight)
        looked_at = others = 0.0
        for line in islice(self._rotation, _LOOKED_AT):
            looked_at += 1
            if line is not own:
                others += min(line.work, turns * self._quantum * line.weight)
        return ahead + (others * len(self._rotation) / looked_at if looked_at else 0.0)


def _work_up_to(key: float, line: _Line) -> float:
    """Work of the tickets in `line` whose key is not greater."""
    before = total = 0
    for other_key, _, other in line.heap[:: 1 + len(line.heap) // _LOOKED_AT]:
        if other.held:
            work = work_of(other)
            total += work
            if other_key <= key:
                before += work
    return line.work * before / total if total else 0.0


def _compact(heap: list[tuple[float, int, Ticket]]) -> list[tuple[float, int, Ticket]]:
    kept = [entry for entry in heap if entry[2].held]
    heapq.heapify(kept)
    return kept
