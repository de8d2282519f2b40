"""The state machine that joins queues, limits, windows, health and routing: an event in, decisions out.

Every public method is an event; it changes the books and ends in the one private step `_dispatch_ready`. Holding is the
absence of a decision. Invariants, numbered as the property tests number them:

1. slots in use = live permits (counts are sizes of permit sets);
2. never above a limit, a window or a reserve at the moment of dispatch (a shrinking window never revokes a permit), and
   nothing more to a class that has reached a ceiling in tokens or a prefill budget;
3. each ticket ends in exactly one of dispatch, reject, expire, cancel;
4. work-conserving: no ticket is held beside a slot that it may use;
5. no ticket is held past its deadline, and a deadline never touches dispatched work;
6. a backend that is draining, disabled, down, suspended or ejected gets nothing new;
7. starvation bound: a ticket held for its class's `aging_s` goes before every ticket that is not, so each slot outside
   the reserves that comes free after that goes to the tickets that aged before it, then to it;
8. held bytes and counts never exceed the configured bounds.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from prelude_proxy.core.domain import Rng
from prelude_proxy.core.lanes import Lane
from prelude_proxy.core.limits import BackendSlots, Permit, PoolSlots, Route
from prelude_proxy.core.order import by_arrival
from prelude_proxy.core.outcome import Outcome
from prelude_proxy.core.prefill import UnseenPrefills
from prelude_proxy.core.queues import Ticket, work_of
from prelude_proxy.core.routing import LeastOccupied, RoutingPolicy

if TYPE_CHECKING:
    from prelude_proxy.core.telemetry import Sample

_REFUSED_SUSPEND_S: Final = 0.1
_CONNECT_SUSPEND_S: Final = 0.5


class DropReason(StrEnum):
    """Why a ticket was not served."""

    SATURATED = "rejected-saturated"
    TTL_EXPIRED = "rejected-ttl-expired"
    UNMEETABLE = "rejected-ttl-unmeetable"
    """Not even held: its turn would come too late."""
    NO_ENDPOINTS = "rejected-no-endpoints"
    SHUTTING_DOWN = "rejected-shutting-down"

    @property
    def word(self) -> str:
        """What goes out in `x-prelude-dropped-reason`: to the client a deadline is a deadline."""
        return (DropReason.TTL_EXPIRED if self is DropReason.UNMEETABLE else self).value


class Dispatch:
    """Send it now; the permit already holds a slot of its backend."""

    __slots__ = ("permit", "ticket")

    def __init__(self, ticket: Ticket, permit: Permit) -> None:
        self.ticket: Final = ticket
        self.permit: Final = permit


@dataclass(frozen=True, slots=True)
class Reject:
    """Not even held: a queue bound is reached, or nothing may be held."""

    ticket: Ticket
    reason: DropReason
    retry_after_s: int


@dataclass(frozen=True, slots=True)
class Expire:
    """Held until its deadline, or until the wait for a first backend was over."""

    ticket: Ticket
    reason: DropReason
    retry_after_s: int


Decision = Dispatch | Reject | Expire


@dataclass(frozen=True, slots=True)
class QueueBounds:
    """Bounds over all classes together."""

    max_size: int = 65536
    max_bytes: int = 2**30
    cold_start_wait_s: float = 15.0


class Admission:
    """Decides for each request whether it goes now, and where. Not thread-safe; never blocks; `now` never runs back."""

    def __init__(
        self,
        pools: Iterable[PoolSlots],
        *,
        rng: Rng,
        bounds: QueueBounds | None = None,
        routing: RoutingPolicy | None = None,
        tenant_weights: dict[str, float] | None = None,
    ) -> None:
        self.pools = list(pools)
        self._bounds = bounds or QueueBounds()
        self._routing = routing or LeastOccupied()
        self._rng = rng
        self._tenant_weights = tenant_weights or {}
        self._lanes: dict[tuple[int, int], Lane] = {}
        self._waiting: dict[Lane, None] = {}
        self._deadlines: list[tuple[float, int, Ticket]] = []
        self._empty_since: dict[PoolSlots, float] = {}
        self._out: dict[BackendSlots, None] = {}
        """Backends not available that may come back by time alone."""
        self._unseen = UnseenPrefills()
        self._num_held = 0
        self._num_held_bytes = 0
        self._accepting = True
        num_classes = max((len(pool.classes) for pool in self.pools), default=0)
        self._held_by_class = [0] * num_classes
        self._bytes_by_class = [0] * num_classes

    # --- what the shell asks ------------------------------------------------------------------------------------------

    @property
    def num_held(self) -> int:
        """Tickets held now."""
        return self._num_held

    @property
    def num_held_bytes(self) -> int:
        """Body bytes of the tickets held now."""
        return self._num_held_bytes

    def num_held_of(self, klass: int) -> int:
        """Tickets of a class held now."""
        return self._held_by_class[klass]

    def next_deadline(self, now: float) -> float | None:
        """When `tick` must be called at the latest; None when time alone changes nothing, as while nothing is held."""
        if not self._num_held:
            return None
        times: list[float] = []
        self._drop_dead_deadlines()
        if self._deadlines:
            times.append(self._deadlines[0][0])
        for pool in self.pools:
            if pool in self._empty_since:
                oldest = self._oldest_of(pool)
                if oldest is not None:
                    times.append(self._cold_deadline(pool, oldest))
        if (due := self._unseen.next_due()) is not None:
            times.append(due)
        times += [pool.staffing.next_measure for pool in self.pools if pool.keeps_slots]
        times += [at for backend in self._out if (at := backend.health.next_change(now)) is not None]
        return min(times) if times else None

    # --- events -------------------------------------------------------------------------------------------------------

    def offer(self, ticket: Ticket, now: float) -> list[Decision]:
        """A request asks for a slot. No decision about it among the returned ones: it is held."""
        pool = ticket.route.pool
        pool.staffing.arrived(ticket.planned, now, ticket.prompt_tokens + ticket.expected_tokens / 2)
        self._measure(pool, now)
        self._refresh_out(now)
        self._end_unseen(now)
        if not pool.backends:
            self._note_emptiness(pool, now)
        has_slot = ticket.route.has_slot(ticket.klass)
        reason = self._refusal(ticket, now, has_slot=has_slot)
        if reason is not None:
            return [Reject(ticket, reason, self._retry_after_s(ticket, now))]
        if has_slot and not self._waiting:
            return [self._dispatch(ticket, now)]  # nobody to be overtaken, nothing to queue for
        self._hold(ticket, now)
        decisions = self._dispatch_ready(now)
        if ticket.held and not pool.classes[ticket.klass].queue_size:
            self._unhold(ticket, now)
            decisions.append(Reject(ticket, DropReason.SATURATED, self._retry_after_s(ticket, now)))
        return decisions

    def cancel(self, ticket: Ticket, now: float) -> list[Decision]:
        """The client left while its ticket was held. Harmless for a ticket that is not held any more."""
        if ticket.held:
            self._unhold(ticket, now)
        return self._dispatch_ready(now)

    def release(self, permit: Permit, outcome: Outcome, now: float) -> list[Decision]:
        """The response body (or the attempt) ended. A second release of the same permit changes nothing."""
        if permit.released:
            return []
        backend = permit.backend
        backend.give_back(permit)
        self._judge(backend, outcome, now)
        backend.pool.staffing.left(permit.planned, now, learned=outcome.value.learned)
        self.refresh(backend, now)
        return self._dispatch_ready(now)

    def recharge(self, permit: Permit, klass: int, now: float) -> list[Decision]:
        """A stream outgrew its class: its slot counts for `klass` from now on (it is never revoked)."""
        if permit.released or permit.klass == klass:
            return []
        if permit.planned != klass:
            staffing = permit.backend.pool.staffing
            staffing.left(permit.planned, now)
            staffing.arrived(klass, now)
            staffing.began(klass, now)
            permit.planned = klass
        permit.backend.recharge(permit, klass)
        self.refresh(permit.backend, now)
        return self._dispatch_ready(now)

    def observe(self, backend: BackendSlots, sample: Sample, now: float) -> list[Decision]:
        """A fresh telemetry sample of `backend`."""
        backend.window.observe(
            sample,
            in_use=backend.num_in_use,
            wanted=self._is_wanted(backend),
            now=now,
            kept=backend.num_kept_free(),
        )
        self._measure(backend.pool, now)
        self.refresh(backend, now)
        return self._dispatch_ready(now)

    def first_token(self, permit: Permit, ttft_s: float, *, has_telemetry: bool, now: float) -> list[Decision]:
        """The first token of an answer arrived `ttft_s` after dispatch."""
        backend = permit.backend
        may_open = backend.start(permit, now)
        size = backend.window.size
        self._lane(permit.route, permit.klass).first_token_s.add(ttft_s)
        backend.window.observe_first_token(
            ttft_s,
            has_telemetry=has_telemetry,
            in_use=backend.num_in_use,
            started=backend.num_started,
            wanted=not has_telemetry and self._is_wanted(backend),
            now=now,
        )
        if backend.window.size == size and not may_open:
            return []
        self.refresh(backend, now)
        return self._dispatch_ready(now)

    def changed(self, backend: BackendSlots, now: float) -> list[Decision]:
        """Health, draining or the wish of the operator changed."""
        self.refresh(backend, now)
        return self._dispatch_ready(now)

    def tick(self, now: float) -> list[Decision]:
        """Time passed: expire what is due, look at what time alone changes."""
        for pool in self.pools:
            self._measure(pool, now)
        self._refresh_out(now)
        self._end_unseen(now)
        decisions = self._expire_due(now)
        decisions += self._expire_cold(now)
        decisions += self._dispatch_ready(now)
        return decisions

    def shut_down(self) -> None:
        """Take nothing new; what is held or out goes on, further attempts of it included."""
        self._accepting = False

    def add_backend(self, backend: BackendSlots, now: float) -> None:
        """A backend joins its pool."""
        backend.pool.backends.append(backend)
        self._note_emptiness(backend.pool, now)
        self.refresh(backend, now)

    # --- books --------------------------------------------------------------------------------------------------------

    def refresh(self, backend: BackendSlots, now: float) -> None:
        """Recompute what `backend` may give, and tell its routes if that changed."""
        available = backend.health.is_available(now)
        backend.available = available
        if not available and backend.health.returns_by_time:
            self._out[backend] = None
        elif self._out:
            self._out.pop(backend, None)
        if not available or backend.pool in self._empty_since:
            self._note_emptiness(backend.pool, now)
        for touched in backend.pool.rebalance():
            _publish(touched)
        _publish(backend)

    def _retry_after_s(self, ticket: Ticket, now: float) -> int:
        return self._lane(ticket.route, ticket.klass).retry_after_s(ticket, now)

    def _measure(self, pool: PoolSlots, now: float) -> None:
        for backend in pool.measure(now):
            _publish(backend)

    def _refusal(self, ticket: Ticket, now: float, *, has_slot: bool) -> DropReason | None:
        if not self._accepting and not ticket.is_retry:
            return DropReason.SHUTTING_DOWN
        if has_slot:
            return None  # it goes at once
        spec = ticket.route.pool.classes[ticket.klass]
        full = (
            self._num_held >= self._bounds.max_size
            or self._num_held_bytes + ticket.num_bytes > self._bounds.max_bytes
            or (self._held_by_class[ticket.klass] >= spec.queue_size > 0)
            or self._bytes_by_class[ticket.klass] + ticket.num_bytes > spec.queue_bytes
        )
        if full:
            return DropReason.SATURATED
        lane = self._lane(ticket.route, ticket.klass)
        if lane.held_until(ticket) <= now:
            return DropReason.TTL_EXPIRED
        return DropReason.UNMEETABLE if ticket.sheds and not lane.can_make_it(ticket, now) else None

    def _hold(self, ticket: Ticket, now: float) -> None:
        lane = self._lane(ticket.route, ticket.klass)
        lane.queue.push(ticket)
        lane.drain.fill(now)
        self._waiting[lane] = None
        heapq.heappush(self._deadlines, (lane.held_until(ticket), ticket.id, ticket))
        self._count(ticket, 1)

    def _unhold(self, ticket: Ticket, now: float) -> None:
        lane = self._lane(ticket.route, ticket.klass)
        lane.queue.discard(ticket)
        self._left(lane, ticket, now)

    def _left(self, lane: Lane, ticket: Ticket, now: float) -> None:
        self._count(ticket, -1)
        if not len(lane.queue):
            lane.drain.empty(now)
            self._waiting.pop(lane, None)
        if len(self._deadlines) > 2 * self._num_held + 64:
            self._deadlines = [entry for entry in self._deadlines if entry[2].held]
            heapq.heapify(self._deadlines)

    def _count(self, ticket: Ticket, sign: int) -> None:
        self._num_held += sign
        self._num_held_bytes += sign * ticket.num_bytes
        self._held_by_class[ticket.klass] += sign
        self._bytes_by_class[ticket.klass] += sign * ticket.num_bytes

    def _lane(self, route: Route, klass: int) -> Lane:
        lane = self._lanes.get((id(route), klass))
        if lane is None:
            lane = Lane(route, klass, route.pool.classes[klass], self._tenant_weights)
            self._lanes[id(route), klass] = lane
        return lane

    def _judge(self, backend: BackendSlots, outcome: Outcome, now: float) -> None:
        meaning = outcome.value
        if meaning.backend_proof:
            backend.health.succeeded()
        elif meaning.backend_fault:
            backend.health.failed(now)
        else:
            backend.health.undecided()
        if outcome is Outcome.CONNECT_FAILED:
            backend.health.suspend(now + _CONNECT_SUSPEND_S)
        elif outcome is Outcome.ENGINE_BUSY:
            backend.health.suspend(now + _REFUSED_SUSPEND_S)
            backend.window.engine_refused(backend.num_in_use + 1)

    # --- the one step -------------------------------------------------------------------------------------------------

    def _dispatch_ready(self, now: float) -> list[Decision]:
        """Give every free slot that a held ticket may use to the ticket whose turn it is."""
        decisions: list[Decision] = []
        while self._waiting:
            lane, aged = self._next_lane(now)
            if lane is None:
                break
            decisions.append(self._dispatch(self._take(lane, aged, now), now))
        return decisions

    def _next_lane(self, now: float) -> tuple[Lane | None, bool]:
        """The lane to serve next: aged tickets first, by arrival, then classes by priority, then by arrival."""
        best: Lane | None = None
        best_key: tuple[int, float] | None = None
        for lane in self._waiting:
            if not lane.route.has_slot(lane.klass):
                continue
            oldest = lane.queue.oldest()
            assert oldest is not None
            aged = now - oldest.arrival >= lane.aging_s
            key = (-1 if aged else lane.klass, oldest.arrival)
            if best_key is None or key < best_key:
                best, best_key = lane, key
        return best, best_key is not None and best_key[0] < 0

    def _take(self, lane: Lane, aged: bool, now: float) -> Ticket:
        if aged:
            oldest = lane.queue.oldest()
            assert oldest is not None
            lane.queue.discard(oldest)
            ticket = oldest
        else:
            ticket = lane.queue.pop()
        lane.drain.serve(now, work_of(ticket))
        self._left(lane, ticket, now)
        return ticket

    def _dispatch(self, ticket: Ticket, now: float) -> Dispatch:
        """Give `ticket` one of the slots that its class may have."""
        backend = self._routing.choose(ticket, ticket.route.open[ticket.klass], self._rng)
        permit = Permit(ticket, backend, work_of(ticket), now)
        if ticket.ties is not None and backend.pool.affinity is not None:
            permit.prefill_tokens -= backend.pool.affinity.dispatched(ticket.ties, ticket.prompt_tokens, backend)
        backend.issue(permit)
        backend.pool.staffing.began(permit.planned, now)
        if not ticket.streams and permit.prefill_tokens:
            self._end_unseen(now)
            self._unseen.add(permit, now)
        backend.health.dispatched(now)
        self.refresh(backend, now)
        return Dispatch(ticket, permit)

    # --- time ---------------------------------------------------------------------------------------------------------

    def _expire_due(self, now: float) -> list[Decision]:
        due: list[Ticket] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            ticket = heapq.heappop(self._deadlines)[2]
            if ticket.held:
                self._unhold(ticket, now)
                due.append(ticket)  # when to come back is said when all of them are gone from the queue
        return [Expire(ticket, DropReason.TTL_EXPIRED, self._retry_after_s(ticket, now)) for ticket in due]

    def _expire_cold(self, now: float) -> list[Decision]:
        decisions: list[Decision] = []
        for pool in self._empty_since:
            while (oldest := self._oldest_of(pool)) is not None and self._cold_deadline(pool, oldest) <= now:
                self._unhold(oldest, now)
                decisions.append(Expire(oldest, DropReason.NO_ENDPOINTS, 5))
        return decisions

    def _cold_deadline(self, pool: PoolSlots, ticket: Ticket) -> float:
        return max(ticket.arrival, self._empty_since[pool]) + self._bounds.cold_start_wait_s

    def _oldest_of(self, pool: PoolSlots) -> Ticket | None:
        heads = [lane.queue.oldest() for lane in self._waiting if lane.route.pool is pool]
        return min((head for head in heads if head is not None), key=by_arrival, default=None)

    def _note_emptiness(self, pool: PoolSlots, now: float) -> None:
        if any(backend.health.is_up(now) for backend in pool.backends):
            self._empty_since.pop(pool, None)
        else:
            self._empty_since.setdefault(pool, now)

    def _refresh_out(self, now: float) -> None:
        """Suspensions and ejections end by time alone: look again before saying that nobody is free."""
        for backend in list(self._out):
            if backend.health.is_available(now) or backend.pool in self._empty_since:
                self.refresh(backend, now)

    def _end_unseen(self, now: float) -> None:
        """Prefills that nobody sees end are over by time alone."""
        while (permit := self._unseen.pop_due(now)) is not None:
            permit.backend.end_prefill(permit)
            self.refresh(permit.backend, now)

    def _drop_dead_deadlines(self) -> None:
        while self._deadlines and not self._deadlines[0][2].held:
            heapq.heappop(self._deadlines)

    def _is_wanted(self, backend: BackendSlots) -> bool:
        """Whether a held ticket would use one more slot of `backend`."""
        return any(lane.route in backend.routes for lane in self._waiting)


def _publish(backend: BackendSlots) -> None:
    """Tell the routes of `backend` which classes it has a slot for, if that changed."""
    mask = backend.compute_mask()
    if mask != backend.open_mask:
        backend.open_mask = mask
        for route in backend.routes:
            route.update(backend, mask)
