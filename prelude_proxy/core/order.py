"""Keys of the orders in which the held requests of one class (of one tenant) can be served; the smallest goes first.

Every key is a point in time, fixed when the request comes and no earlier than that: an urgency number in the sense of
Jackson (1960). So a queue is a heap, and each order has its bound: a request whose key is `k` is overtaken by none that
arrives after `k`, and `k` is at most `aging_s` after its own arrival.

- `fcfs`: the arrival. Nobody overtakes.
- `shortest`: arrival + c · expected output tokens: the shortest first, where one second of waiting is worth 1/c tokens.
- `deadline`: when the first token is due. A request that has no due time has the latest key that the bound allows.
"""

from __future__ import annotations

from collections.abc import Callable

from prelude_proxy.core.domain import ClassSpec, Order
from prelude_proxy.core.queues import Ticket


def by_arrival(ticket: Ticket) -> float:
    """First come, first served."""
    return ticket.arrival


def key_of(spec: ClassSpec) -> Callable[[Ticket], float]:
    """The key of a ticket in the order of its class."""
    aging_s, s_per_token = spec.aging_s, spec.shortest_s_per_token
    if spec.order is Order.SHORTEST:
        return lambda ticket: ticket.arrival + min(aging_s, s_per_token * ticket.expected_tokens)
    if spec.order is Order.DEADLINE:
        return lambda ticket: min(ticket.due, ticket.arrival + aging_s)
    return by_arrival
