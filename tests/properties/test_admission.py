"""Admission as a rule-based state machine: whatever happens in whatever order, the numbered invariants hold."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from prelude_proxy.core.admission import Admission, Decision, Dispatch, QueueBounds
from prelude_proxy.core.catalog import Catalog
from prelude_proxy.core.domain import ClassSpec, Order
from prelude_proxy.core.health import Health, HealthPolicy
from prelude_proxy.core.limits import BackendSlots, Permit, PoolSlots
from prelude_proxy.core.outcome import Outcome
from prelude_proxy.core.queues import Ticket
from prelude_proxy.core.telemetry import Sample
from prelude_proxy.core.window import Window

MAX_HELD = 40
MAX_BYTES = 4000
COLD_WAIT_S = 15.0
NAMES = ("oneshot", "fast", "standard", "deep")
MODELS = ("a", "b")
AGING_S = (5.0, 5.0, 10.0, 20.0)
ORDERS = (Order.FCFS, Order.DEADLINE, Order.SHORTEST, Order.SHORTEST)


class AdmissionMachine(RuleBasedStateMachine):
    tickets = Bundle("tickets")
    permits = Bundle("permits")

    @initialize(
        seed=st.integers(0, 2**16),
        windows=st.lists(st.one_of(st.none(), st.integers(1, 6)), min_size=1, max_size=4),
        ceiling=st.sampled_from([None, 0.5, 2.0]),
        fleet_ceiling=st.sampled_from([None, 0.5, 3.0]),
        reserve=st.sampled_from([None, 0.0, 0.25, 2.0]),
        labelled=st.booleans(),
        ceiling_tokens=st.sampled_from([None, 2000]),
        fleet_ceiling_tokens=st.sampled_from([None, 5000]),
        prefill_tokens_per_s=st.sampled_from([None, 1000.0, 8000.0]),
    )
    def build(
        self, seed, windows, ceiling, fleet_ceiling, reserve, labelled, ceiling_tokens, fleet_ceiling_tokens,
        prefill_tokens_per_s,
    ):  # fmt: skip
        self.now = 1000.0
        self.next_id = 0
        self.held: dict[int, Ticket] = {}
        self.ended: dict[int, str] = {}
        self.live: dict[Permit, None] = {}  # in order of issue, so that examples replay
        classes = [
            ClassSpec(
                name,
                index,
                queue_size=30,
                aging_s=AGING_S[index],
                order=ORDERS[index],
                ceiling=ceiling if name == "deep" else None,
                fleet_ceiling=fleet_ceiling if name == "deep" else None,
                ceiling_tokens=ceiling_tokens if name == "deep" else None,
                fleet_ceiling_tokens=fleet_ceiling_tokens if name == "deep" else None,
                prefill_stall_s=0.1 if index > 1 else None,
                max_output_tokens=64 if name == "fast" else None,
                reserve=reserve if name == "fast" else 0.0,
            )
            for index, name in enumerate(NAMES)
        ]
        labels = {"deep": {"tier": "batch"}} if labelled else {}
        self.pool = PoolSlots("p", classes, class_labels=labels)
        self.admission = Admission(
            [self.pool], rng=random.Random(seed), bounds=QueueBounds(MAX_HELD, MAX_BYTES, COLD_WAIT_S)
        )
        self.catalog = Catalog([self.pool], models={"p": ["*"]}, aliases={})
        self.backends = []
        for index, size in enumerate(windows):
            window = Window(initial=3, maximum=12, feed=1, static=size)
            backend = BackendSlots(
                index,
                f"b{index}",
                self.pool,
                window,
                Health(HealthPolicy(eject_after=2, eject_s=1.0), reachable=index == 0),
                labels={"tier": "batch"} if index % 2 == 0 else {},
            )
            backend.models = frozenset(MODELS if index % 3 != 2 else MODELS[:1])
            if prefill_tokens_per_s is not None:
                backend.prefill_speed.tokens_per_s = prefill_tokens_per_s
            self.backends.append(backend)
            self.admission.add_backend(backend, self.now)
        self.catalog.reattach(self.pool)

    # --- events -------------------------------------------------------------------------------------------------------

    @rule(
        target=tickets,
        klass=st.integers(0, 3),
        model=st.sampled_from(MODELS),
        tenant=st.sampled_from(["", "x", "y"]),
        wait_s=st.sampled_from([0.0, 0.5, 3.0, 30.0]),
        tokens=st.integers(0, 3000),
        num_bytes=st.integers(0, 400),
        streams=st.booleans(),
        sheds=st.booleans(),
    )
    def offer(self, klass, model, tenant, wait_s, tokens, num_bytes, streams, sheds=False):
        self.next_id += 1
        ticket = Ticket(
            self.next_id,
            self.catalog.resolve(model),
            klass,
            arrival=self.now,
            deadline=self.now + wait_s,
            due=self.now + wait_s,
            sheds=sheds,
            tenant=tenant,
            expected_tokens=tokens,
            prompt_tokens=tokens,
            num_bytes=num_bytes,
            streams=streams,
        )
        self.held[ticket.id] = ticket
        before = self.admission.num_held
        decisions = self.admission.offer(ticket, self.now)
        if any(not isinstance(d, Dispatch) and d.ticket is ticket for d in decisions):
            assert self.admission.num_held <= before
        self.apply(decisions)
        return ticket

    @rule(ticket=consumes(tickets))
    def cancel(self, ticket):
        was_held = self.held.pop(ticket.id, None)
        if was_held is not None:
            self.end(ticket, "cancelled")
        self.apply(self.admission.cancel(ticket, self.now))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), outcome=st.sampled_from(list(Outcome)))
    def release(self, data, outcome):
        permit = data.draw(st.sampled_from(list(self.live)))
        self.live.pop(permit)
        self.apply(self.admission.release(permit, outcome, self.now))
        assert self.admission.release(permit, outcome, self.now) == [], "a second release changes nothing"

    @precondition(lambda self: self.live)
    @rule(data=st.data(), klass=st.integers(1, 3))
    def recharge(self, data, klass):
        permit = data.draw(st.sampled_from(list(self.live)))
        self.apply(self.admission.recharge(permit, klass, self.now))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def first_token(self, data):
        self.begin(data.draw(st.sampled_from(list(self.live))))

    def begin(self, permit):
        ttft_s = self.now - permit.issued_at
        self.apply(self.admission.first_token(permit, ttft_s, has_telemetry=True, now=self.now))
        assert permit.prefill_tokens == 0

    @rule(
        which=st.integers(0, 3),
        running=st.integers(0, 12),
        waiting=st.integers(0, 5),
        kv=st.sampled_from([None, 0.2, 0.99]),
        preemptions=st.sampled_from([None, 0.0, 1.0, 2.0]),
    )
    def observe(self, which, running, waiting, kv, preemptions):
        backend = self.backends[which % len(self.backends)]
        self.apply(self.admission.observe(backend, Sample(running, waiting, kv, preemptions), self.now))

    @rule(which=st.integers(0, 3), what=st.sampled_from(["up", "down", "drain", "undrain", "disable", "enable"]))
    def health(self, which, what):
        backend = self.backends[which % len(self.backends)]
        health = backend.health
        if what == "up":
            health.probe_succeeded()
        elif what == "down":
            for _ in range(3):
                health.probe_failed()
        elif what in {"drain", "undrain"}:
            health.draining = what == "drain"
        else:
            health.enabled = what == "enable"
        self.apply(self.admission.changed(backend, self.now))

    @rule(seconds=st.sampled_from([0.001, 0.2, 1.0, 6.0, 40.0]))
    def time_passes(self, seconds):
        end = self.now + seconds
        for _ in range(200):
            due = self.admission.next_deadline(self.now)
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            self.apply(self.admission.tick(self.now))
        self.now = end
        self.apply(self.admission.tick(self.now))

    # --- the model ----------------------------------------------------------------------------------------------------

    def apply(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            ticket = decision.ticket
            assert self.held.pop(ticket.id, None) is ticket, "only tickets that wait are decided about"
            self.end(ticket, type(decision).__name__)
            if isinstance(decision, Dispatch):
                permit = decision.permit
                self.live[permit] = None
                assert permit.backend.health.enabled, "invariant 6"
                assert permit.backend.health.reachable, "invariant 6"
                assert not permit.backend.health.draining, "invariant 6"
                assert permit.backend in ticket.route.backends
                assert self.pool.may_use(ticket.klass, permit.backend)

    def end(self, ticket: Ticket, how: str) -> None:
        assert ticket.id not in self.ended, "invariant 3: one outcome a ticket"
        self.ended[ticket.id] = how

    # --- the invariants -----------------------------------------------------------------------------------------------

    @invariant()
    def slots_in_use_are_live_permits(self):
        """1: what the books call in use is what has been dispatched and not released."""
        for backend in self.backends:
            mine = {permit for permit in self.live if permit.backend is backend}
            assert set().union(*backend.permits) == mine
            assert backend.num_in_use == len(mine)
            assert backend.outstanding_work == sum(permit.work for permit in mine)
            for klass, permits in enumerate(backend.permits):
                if self.pool.has_ceilings_tokens:
                    assert backend.tokens[klass] == sum(permit.tokens for permit in permits)
                assert backend.prefilling[klass] == sum(permit.prefill_tokens for permit in permits)
            assert backend.pending_prefill_tokens == sum(backend.prefilling)
        for klass, permits in enumerate(self.pool.permits if self.pool.has_ceilings_tokens else ()):
            assert self.pool.tokens[klass] == sum(permit.tokens for permit in permits)

    @invariant()
    def every_ticket_is_held_or_ended(self):
        """3: none is lost, none is in two places."""
        assert self.admission.num_held == len(self.held)
        assert self.admission.num_held_bytes == sum(ticket.num_bytes for ticket in self.held.values())
        for klass in range(len(NAMES)):
            assert self.admission.num_held_of(klass) == sum(t.klass == klass for t in self.held.values())
        assert len(self.held) + len(self.ended) == self.next_id

    @invariant()
    def no_held_ticket_could_go(self):
        """4: work-conserving; recomputed from scratch, not from the open sets."""
        for ticket in self.held.values():
            if not self.pool.below_fleet_ceiling(ticket.klass):
                continue
            for backend in ticket.route.backends:
                assert backend.available == backend.health.is_available(self.now), "time alone brought it back"
                open_now = backend.available and backend.compute_mask() >> ticket.klass & 1
                assert not (open_now and self.pool.may_use(ticket.klass, backend)), "a free slot beside a ticket"

    @invariant()
    def tokens_never_close_an_idle_backend(self):
        """4: whatever the budgets and ceilings in tokens are, a backend with nothing to do takes the next request."""
        for backend in self.backends:
            if backend.available and not backend.num_in_use:
                assert backend.compute_mask() == 2 ** len(NAMES) - 1

    @invariant()
    def nobody_is_held_past_the_deadline(self):
        """5: `time_passes` ticks at the times the core asked for."""
        for ticket in self.held.values():
            assert ticket.deadline > self.now or ticket.arrival == self.now

    @invariant()
    def bounds_hold(self):
        """8: count and bytes."""
        assert self.admission.num_held <= MAX_HELD
        assert self.admission.num_held_bytes <= MAX_BYTES


def tokens_were_left(dispatched: list[Permit]) -> None:
    """Invariant 2 in tokens: each of the permits that were issued in turn found its budget and ceiling not reached."""
    backend, pool = dispatched[0].backend, dispatched[0].backend.pool
    for index, permit in enumerate(dispatched):
        klass, later = permit.klass, dispatched[index:]
        tokens = backend.tokens[klass] - sum(p.tokens for p in later if p.klass == klass)
        assert tokens < pool.ceilings_tokens[klass], "invariant 2: never above a ceiling in tokens"
        prefilling = backend.prefilling[klass] - sum(p.prefill_tokens for p in later if p.klass == klass)
        pending = backend.pending_prefill_tokens - sum(p.prefill_tokens for p in later)
        urgent = set().union(*backend.permits[:klass]) - set(later)
        if prefilling and urgent:
            assert pending < backend.prefill_budget(klass), "invariant 2: never above a prefill budget"


class DispatchLimits(AdmissionMachine):
    """Invariant 2 is checked at each dispatch, where it must hold; windows may shrink under live permits later."""

    def apply(self, decisions: list[Decision]) -> None:
        super().apply(decisions)
        if decisions and all(isinstance(decision, Dispatch) for decision in decisions):
            most_tokens = self.pool.classes[3].fleet_ceiling_tokens
            deep_tokens = [d.permit.tokens for d in decisions if d.permit.klass == 3]
            if deep_tokens and most_tokens is not None:
                assert self.pool.tokens[3] - deep_tokens[-1] < most_tokens, "invariant 2: never above a fleet ceiling"
            for backend in {decision.permit.backend for decision in decisions}:
                assert backend.num_in_use <= backend.window.size, "invariant 2: never above the window"
                tokens_were_left([d.permit for d in decisions if d.permit.backend is backend])
                deep = len(backend.permits[3])
                ceiling = self.pool.classes[3].ceiling
                if ceiling is not None and any(d.ticket.klass == 3 and d.permit.backend is backend for d in decisions):
                    most = int(ceiling) if ceiling >= 1 else max(1, int(ceiling * backend.window.size))
                    assert deep <= most, "invariant 2: never above a ceiling"
                kept = sum(
                    max(0, reserve - len(permits))
                    for reserve, permits in zip(backend.reserves[:3], backend.permits[:3], strict=True)
                )
                if any(d.ticket.klass == 3 and d.permit.backend is backend for d in decisions):
                    assert backend.num_in_use + kept <= backend.window.size, "invariant 2: never into a reserve"


TestAdmission = DispatchLimits.TestCase
TestAdmission.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


@pytest.mark.parametrize("seed", range(12))
def test_limits_in_tokens_hold_under_dense_traffic(seed):
    """The same invariants, with many long prompts at two backends: budgets and ceilings are reached all the time."""
    rng = random.Random(seed)
    machine = DispatchLimits()
    machine.build(
        seed=seed, windows=[12, 12], ceiling=None, fleet_ceiling=None, reserve=0.0, labelled=False,
        ceiling_tokens=rng.choice([None, 4000]), fleet_ceiling_tokens=rng.choice([None, 6000]),
        prefill_tokens_per_s=8000.0,
    )  # fmt: skip
    machine.health(1, "up")
    num_paced = 0
    for _ in range(400):
        permits = list(machine.live)
        event = rng.random()
        if event < 0.4 or not permits:
            machine.offer(
                klass=rng.choice([1, 2, 3, 3]), model="a", tenant="", wait_s=30.0, tokens=rng.randrange(2000),
                num_bytes=0, streams=rng.random() < 0.8,
            )  # fmt: skip
        elif event < 0.55:
            machine.begin(rng.choice(permits))
        elif event < 0.9:
            permit = rng.choice(permits)
            del machine.live[permit]
            machine.apply(machine.admission.release(permit, Outcome.OK, machine.now))
        elif event < 0.95:
            machine.apply(machine.admission.recharge(rng.choice(permits), 3, machine.now))
        machine.time_passes(0.02)
        machine.slots_in_use_are_live_permits()
        machine.no_held_ticket_could_go()
        machine.tokens_never_close_an_idle_backend()
        num_paced += any(backend.is_paced for backend in machine.backends)
    assert num_paced > 20
