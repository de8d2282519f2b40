"""The asyncio skin of `core.admission`: futures for held tickets, one timer, the clock. Decides nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from prelude_proxy.core.admission import Admission, Decision, Dispatch, DropReason
from prelude_proxy.core.limits import BackendSlots, Permit
from prelude_proxy.core.outcome import Outcome
from prelude_proxy.core.queues import Ticket
from prelude_proxy.core.telemetry import Sample
from prelude_proxy.errors import ShedError

_TIMER_GRAIN_S = 0.001
"""uvloop counts whole milliseconds: a timer must not fire before it is due."""

_SHED = {
    DropReason.SATURATED: (429, "The queue for this class of request is full. Retry after the time given."),
    DropReason.TTL_EXPIRED: (429, "No capacity became free within the time this request may be held."),
    DropReason.UNMEETABLE: (429, "The queue is too long for this request's deadline. Retry after the time given."),
    DropReason.NO_ENDPOINTS: (503, "No backend for this model is up at the moment."),
    DropReason.SHUTTING_DOWN: (503, "This proxy is shutting down."),
}


class Slot:
    """`async with dispatcher.admit(ticket) as slot`: held while entering, released with `outcome` on leaving."""

    __slots__ = ("_dispatcher", "_ticket", "outcome", "permit")

    def __init__(self, dispatcher: Dispatcher, ticket: Ticket) -> None:
        self._dispatcher = dispatcher
        self._ticket = ticket
        self.permit: Permit
        self.outcome = Outcome.CLIENT_GONE
        """What the permit is released with; whoever leaves without saying is taken to have left by cancellation."""

    async def __aenter__(self) -> Self:
        """Wait for the slot.

        Raises:
            ShedError: rejected or expired.
        """
        self.permit = await self._dispatcher.wait_permit(self._ticket)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dispatcher.release(self.permit, self.outcome)


class Dispatcher:
    """Feeds events to `Admission` and carries its decisions to whoever waits for them."""

    def __init__(self, admission: Admission, loop: asyncio.AbstractEventLoop) -> None:
        self.admission = admission
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def now(self) -> float:
        """The clock of every `now` the core sees: seconds, the loop's own time base but finer (uvloop's is cached)."""
        return time.monotonic()

    def admit(self, ticket: Ticket) -> Slot:
        """A slot for `ticket`, to be entered."""
        return Slot(self, ticket)

    async def wait_permit(self, ticket: Ticket) -> Permit:
        """Hold `ticket` until it is dispatched.

        Raises:
            ShedError: it was rejected or expired.
        """
        decisions = self.admission.offer(ticket, self.now())
        if len(decisions) == 1 and decisions[0].ticket is ticket:  # by far the most frequent: it goes at once
            return _permit_of(decisions[0])
        future: asyncio.Future[Decision] = self._loop.create_future()
        ticket.payload = future
        self._apply(decisions)
        try:
            return _permit_of(await future)
        except asyncio.CancelledError:
            self._abandon(ticket, future)
            raise
        finally:
            ticket.payload = None  # ticket, future and decision hold each other: free them now, not by the collector

    def release(self, permit: Permit, outcome: Outcome) -> None:
        """The response body ended."""
        self._apply(self.admission.release(permit, outcome, self.now()))

    def recharge(self, permit: Permit, klass: int) -> None:
        """The stream outgrew its class."""
        self._apply(self.admission.recharge(permit, klass, self.now()))

    def first_token(self, permit: Permit, *, has_telemetry: bool) -> None:
        """The first token arrived."""
        now = self.now()
        self._apply(self.admission.first_token(permit, now - permit.issued_at, has_telemetry=has_telemetry, now=now))

    def observe(self, backend: BackendSlots, sample: Sample) -> None:
        """A fresh telemetry sample."""
        self._apply(self.admission.observe(backend, sample, self.now()))

    def changed(self, backend: BackendSlots, change: Callable[[], None] | None = None) -> None:
        """Apply `change` to the health or wishes of `backend`, then look what it may do now."""
        if change is not None:
            change()
        self._apply(self.admission.changed(backend, self.now()))

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _abandon(self, ticket: Ticket, future: asyncio.Future[Decision]) -> None:
        """The waiter was cancelled; a dispatch decided in the same tick must give its slot back."""
        now = self.now()
        if future.done() and not future.cancelled() and isinstance(decision := future.result(), Dispatch):
            self._apply(self.admission.release(decision.permit, Outcome.CLIENT_GONE, now))
        else:
            self._apply(self.admission.cancel(ticket, now))

    def _apply(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            future = decision.ticket.payload
            if not future.done():
                future.set_result(decision)
            elif isinstance(decision, Dispatch):  # its waiter was cancelled and has not run yet
                self._loop.call_soon(self.release, decision.permit, Outcome.CLIENT_GONE)
        self._rearm()

    def _rearm(self) -> None:
        if not self.admission.num_held:
            return
        now = self.now()
        due = self.admission.next_deadline(now)
        if due is None:
            return
        at = max(due, now) + _TIMER_GRAIN_S  # never in the past: uvloop would give no timer for that
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._apply(self.admission.tick(self.now()))


def _permit_of(decision: Decision) -> Permit:
    if isinstance(decision, Dispatch):
        return decision.permit
    status, message = _SHED[decision.reason]
    raise ShedError(message, status=status, reason=decision.reason, retry_after_s=decision.retry_after_s)
