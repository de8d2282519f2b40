"""Which backend gets a request."""

from __future__ import annotations

import random

import pytest

from prelude_proxy.core.admission import Admission, Dispatch
from prelude_proxy.core.affinity import Affinity, AffinityPolicy, Ties
from prelude_proxy.core.domain import ClassSpec
from prelude_proxy.core.limits import Permit, PoolSlots, Route
from prelude_proxy.core.outcome import Outcome
from prelude_proxy.core.queues import Ticket

from ..fleets import static_backend


class Fleet:
    """Equal backends with room, and requests that stay until they are ended."""

    def __init__(self, count: int, window: int = 20, **policy) -> None:
        self.pool = PoolSlots("p", [ClassSpec("standard", 0, reserve=0.0)])
        self.pool.affinity = Affinity(AffinityPolicy(**policy))
        self.admission = Admission([self.pool], rng=random.Random(1))
        for index in range(count):
            self.admission.add_backend(static_backend(self.pool, index, window), 0.0)
        self.backends = self.pool.backends
        self.route = Route(self.pool, None)
        self.route.attach(self.backends)
        self.num_sent = 0

    def send(self, ties: Ties | None = None, prompt_tokens: int = 0) -> Permit:
        self.num_sent += 1
        ticket = Ticket(self.num_sent, self.route, 0, arrival=0.0, deadline=9.0, prompt_tokens=prompt_tokens, ties=ties)
        (decision,) = self.admission.offer(ticket, 0.0)
        assert isinstance(decision, Dispatch)
        return decision.permit

    def end(self, permit: Permit) -> None:
        self.admission.release(permit, Outcome.OK, 0.0)

    def begin(self, permit: Permit) -> None:
        self.admission.first_token(permit, 0.01, has_telemetry=True, now=0.0)

    def loads(self) -> list[int]:
        return [backend.num_in_use for backend in self.backends]


PROMPT = Ties((11, 12, 13, 14))
"""Of some 1,100 tokens."""
TOKENS = 1100


@pytest.mark.parametrize("ties", [None, PROMPT, Ties(session="s")], ids=["untied", "prefix", "session"])
def test_requests_of_one_tick_spread(ties):
    """Each decision sees the ones before it: no herd, not even after the same prefix or session beyond its bound."""
    fleet = Fleet(4, max_extra_load=0.1)
    for _ in range(40):
        fleet.send(ties, TOKENS)
    assert max(fleet.loads()) - min(fleet.loads()) <= (3 if ties else 1)


def test_a_large_fleet_is_sampled_and_stays_even():
    """The best of sixteen random backends: the fullest holds little more than its share."""
    fleet = Fleet(200)
    for _ in range(1000):
        fleet.send()
    assert max(fleet.loads()) <= 7


def test_a_second_turn_follows_the_first():
    """Although another backend is less occupied."""
    fleet = Fleet(3)
    first = fleet.send(PROMPT, TOKENS)
    fleet.begin(first)
    assert fleet.send(Ties((*PROMPT.prefix, 15)), 1300).backend is first.backend


def test_a_prefix_is_found_in_a_large_fleet():
    """Whoever the random sample holds."""
    fleet = Fleet(300)
    for number in range(0, 3000, 10):
        fleet.end(fleet.send(Ties(tuple(range(number, number + 4))), TOKENS))
    for number in range(0, 3000, 10):
        permit = fleet.send(Ties(tuple(range(number, number + 5))), 1300)
        assert permit.prefill_tokens < 300
        fleet.end(permit)


def test_what_is_held_needs_no_prefill():
    """It does not count as prefill to be done."""
    fleet = Fleet(2)
    fleet.end(fleet.send(PROMPT, TOKENS))
    permit = fleet.send(PROMPT, TOKENS)
    assert permit.backend.pending_prefill_tokens == permit.prefill_tokens == TOKENS - 1024
    fleet.begin(permit)
    fleet.end(permit)
    assert permit.backend.pending_prefill_tokens == 0


def test_a_small_prefix_does_not_outweigh_load():
    """256 tokens are worth one request more there, not five."""
    fleet = Fleet(2)
    home = fleet.send(Ties((11,)), 300)
    fleet.begin(home)
    for _ in range(4):
        fleet.begin(fleet.send(Ties(session="s"), 0))
    others = [backend for backend in fleet.backends if backend is not home.backend]
    for backend in others:
        for permit in [permit for permits in backend.permits for permit in permits]:
            fleet.end(permit)
    assert fleet.send(Ties((11,)), 300).backend in others


@pytest.mark.parametrize("ties", [PROMPT, Ties(session="s")], ids=["prefix", "session"])
def test_load_beyond_the_bound_sends_it_elsewhere(ties):
    """The rest goes to the least occupied, and is at home there too from then on."""
    fleet = Fleet(2, window=20, max_extra_load=0.25)
    tokens = TOKENS if ties is PROMPT else 0
    homes = []
    for _ in range(8):
        permit = fleet.send(ties, tokens)
        fleet.begin(permit)
        homes.append(permit.backend)
    assert homes[0] is homes[1]
    assert max(fleet.loads()) - min(fleet.loads()) <= 0.25 * 20 + 1
    assert len(set(homes)) == 2
    assert fleet.pool.affinity.num_moved > 0


@pytest.mark.parametrize("ties", [PROMPT, Ties(session="s")], ids=["prefix", "session"])
def test_a_backend_that_drains_is_left_at_once(ties):
    """And what comes goes on where it went instead, even when the first one is back."""
    fleet = Fleet(3)
    first = fleet.send(ties, TOKENS).backend
    first.health.draining = True
    fleet.admission.changed(first, 0.0)
    second = fleet.send(ties, TOKENS).backend
    assert second is not first
    first.health.draining = False
    fleet.admission.changed(first, 0.0)
    if ties.session:
        assert fleet.send(ties, TOKENS).backend is second


def test_a_full_backend_is_not_waited_for():
    """A free slot elsewhere is taken at once, however long the prefix."""
    fleet = Fleet(2, window=2, max_extra_load=9.0)
    first = fleet.send(PROMPT, TOKENS)
    fleet.begin(first)
    assert fleet.send(PROMPT, TOKENS).backend is first.backend
    assert fleet.send(PROMPT, TOKENS).backend is not first.backend


def test_a_session_outweighs_a_prefix():
    """Its earlier turns are there."""
    fleet = Fleet(2)
    home = fleet.send(Ties(session="s")).backend
    other = next(backend for backend in fleet.backends if backend is not home)
    home.health.draining = True
    fleet.admission.changed(home, 0.0)
    assert fleet.send(PROMPT, TOKENS).backend is other
    home.health.draining = False
    fleet.admission.changed(home, 0.0)
    assert fleet.send(Ties(PROMPT.prefix, session="s"), TOKENS).backend is home
