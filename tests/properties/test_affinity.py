"""Affinity under any history: bounded, only ever to whom a request may go, and never far from the least loaded."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from prelude_proxy.core.admission import Admission, Dispatch
from prelude_proxy.core.affinity import Affinity, AffinityPolicy, Ties
from prelude_proxy.core.domain import ClassSpec
from prelude_proxy.core.limits import BackendSlots, Permit, PoolSlots, Route
from prelude_proxy.core.outcome import Outcome
from prelude_proxy.core.prefix import BLOCK_TOKENS
from prelude_proxy.core.queues import Ticket

from ..fleets import static_backend

MAX_LINKS, MAX_SESSIONS = 12, 3
EXTRA = 0.25


class AffinityMachine(RuleBasedStateMachine):
    @initialize(windows=st.lists(st.integers(1, 12), min_size=2, max_size=12), seed=st.integers(0, 99))
    def build(self, windows, seed):
        self.now = 0.0
        self.num_sent = 0
        self.live: list[Permit] = []
        self.pool = PoolSlots(
            "p", [ClassSpec("any", 0, reserve=0.0), ClassSpec("batch", 1)], class_labels={"batch": {"b": "1"}}
        )
        policy = AffinityPolicy(max_extra_load=EXTRA, cache_tokens=5000)
        self.pool.affinity = Affinity(policy, max_links=MAX_LINKS, max_sessions=MAX_SESSIONS)
        self.admission = Admission([self.pool], rng=random.Random(seed))
        for index, size in enumerate(windows):
            labels = {"b": "1"} if index % 2 else {}
            self.admission.add_backend(static_backend(self.pool, index, size, labels=labels), 0.0)
        self.route = Route(self.pool, None)
        self.route.attach(self.pool.backends)

    @rule(
        klass=st.integers(0, 1),
        root=st.integers(0, 3),
        length=st.integers(0, 8),
        branch=st.integers(0, 2),
        session=st.sampled_from(["", "", "s", "t", "u", "v", "w"]),
    )
    def send(self, klass, root, length, branch, session):
        """What may go somewhere goes at once, and not far from the least loaded."""
        prefix = tuple(hash((root, index, branch if index > 3 else 0)) for index in range(length))
        tokens = BLOCK_TOKENS[length - 1] + 9 if length else 9
        free = [backend for backend in self.pool.backends if self.may_go(klass, backend)]
        least = min((self.share(backend) for backend in free), default=0.0)
        self.num_sent += 1
        ticket = Ticket(
            self.num_sent, self.route, klass, arrival=self.now, deadline=self.now, prompt_tokens=tokens,
            ties=Ties(prefix, session) if prefix or session else None,
        )  # fmt: skip
        (decision,) = self.admission.offer(ticket, self.now)
        if not free:
            assert not isinstance(decision, Dispatch)
            return
        assert isinstance(decision, Dispatch), "it waits for nobody"
        permit = decision.permit
        self.live.append(permit)
        assert permit.backend in free
        if len(free) <= 8 and not any(backend.pending_prefill_tokens for backend in free):
            size = permit.backend.window.size
            assert permit.backend.num_in_use - 1 <= least * size + max(1.0, EXTRA * size)
        assert 0 <= permit.prefill_tokens <= tokens
        self.admission.first_token(permit, 0.01, has_telemetry=True, now=self.now)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def end(self, data):
        permit = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        self.admission.release(permit, Outcome.OK, self.now)

    @rule(which=st.integers(0, 11), what=st.sampled_from(["drain", "undrain", "restart"]))
    def health(self, which, what):
        backend = self.pool.backends[which % len(self.pool.backends)]
        if what == "restart":
            self.pool.affinity.forget(backend)
        else:
            backend.health.draining = what == "drain"
        self.admission.changed(backend, self.now)

    def may_go(self, klass: int, backend: BackendSlots) -> bool:
        has_slot = backend.compute_mask() >> klass & 1
        return bool(has_slot) and not backend.health.draining and (klass == 0 or backend.labels == {"b": "1"})

    def share(self, backend: BackendSlots) -> float:
        return backend.num_in_use / backend.window.size

    @invariant()
    def memory_is_bounded(self):
        """Links and sessions; and a link is never forgotten before those that follow it."""
        assert len(self.pool.affinity) <= MAX_LINKS
        assert self.pool.affinity.num_sessions <= MAX_SESSIONS

    @invariant()
    def books_add_up(self):
        """What affinity takes off the pending prefill is taken off once."""
        for backend in self.pool.backends:
            assert backend.pending_prefill_tokens == 0


TestAffinity = AffinityMachine.TestCase
TestAffinity.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
