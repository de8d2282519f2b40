"""A lane is the queue of one class on one route, and what has been seen of how it is served.

From that comes what is said to those who cannot be served in time: how long their turn would take (predicted work that
goes before them, over the work a second that the lane was given while something waited in it), and when to come back.
"""

from __future__ import annotations

import math
from typing import Final

from prelude_proxy.core.domain import ClassSpec
from prelude_proxy.core.limits import Route
from prelude_proxy.core.order import key_of
from prelude_proxy.core.queues import FairQueue, Ticket, work_of
from prelude_proxy.core.rates import DecayingFloor, DrainRate

_CREDIBLE_SERVED: Final = 4
"""A rate is believed, to turn a request away by, when it comes of that many served."""
_LONGEST_S: Final = 60.0
"""Nobody is told to stay away for longer: common clients do not heed it then."""
_LONGEST_DRAIN_S: Final = 45.0
"""A longer one counts as this; what is left to `_LONGEST_S` is room to spread those who come back."""
_UNKNOWN_S, _UNKNOWN_STEP_S = 5.0, 0.1
"""The first time told while no rate is known, and how much later each following one."""
_RETURNS_SHARE: Final = 0.5
"""Of what the lane is served, how much those who come back may take; the rest is for those who come first."""


class Lane:
    """The held tickets of one class on one route."""

    __slots__ = ("_booked_from", "_booked_until", "aging_s", "drain", "first_token_s", "klass", "queue", "route")

    def __init__(self, route: Route, klass: int, spec: ClassSpec, tenant_weights: dict[str, float]) -> None:
        self.route = route
        self.klass = klass
        self.aging_s = spec.aging_s
        self.queue = FairQueue(key_of(spec), tenant_weights)
        self.drain = DrainRate()
        self.first_token_s = DecayingFloor()
        """From dispatch to first token, of the fastest lately."""
        self._booked_from = math.inf
        self._booked_until = -math.inf

    def held_until(self, ticket: Ticket) -> float:
        """When there is no sense in holding `ticket` any longer."""
        if not ticket.sheds:
            return ticket.deadline
        return min(ticket.deadline, ticket.due - self.first_token_s.value)

    def can_make_it(self, ticket: Ticket, now: float) -> bool:
        """Whether the turn of `ticket` will come while it is held. What is not known counts in its favour."""
        rate = self.drain.per_second(now)
        if rate is None or self.drain.num_served < _CREDIBLE_SERVED:
            return True
        return self.queue.work_ahead(ticket, ticket.arrival) <= rate * (self.held_until(ticket) - now)

    def retry_after_s(self, ticket: Ticket, now: float) -> int:
        """Whole seconds after which to try again; books that time, so that not all come back at once.

        It is when a request like `ticket` would find its turn near enough if nobody else came: near enough for its
        deadline if that is why it sheds, else the end of all that would go before it now. Those who are turned away
        are told times that follow each other at half the rate at which the lane is served.
        """
        rate = self.drain.per_second(now)
        if rate is None:
            wait_s, step_s = _UNKNOWN_S, _UNKNOWN_STEP_S
        else:
            patience_s = max(0.0, self.held_until(ticket) - ticket.arrival) if ticket.sheds else 0.0
            wait_s = min(self.queue.work_ahead(ticket, now) / rate - patience_s, _LONGEST_DRAIN_S)
            step_s = work_of(ticket) / (rate * _RETURNS_SHARE)
        begin = now + wait_s
        if not self._booked_from <= begin < self._booked_until:  # nobody was told a time as early, or as late
            self._booked_from = self._booked_until = begin
        at = self._booked_until
        if at > now + _LONGEST_S:
            at = now + _LONGEST_DRAIN_S
        self._booked_until = at + step_s
        return max(1, math.ceil(at - now))
