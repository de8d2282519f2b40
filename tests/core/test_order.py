"""Orders inside a class: keys, and for how long a held request can be overtaken."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prelude_proxy.core.domain import ClassSpec, Order
from prelude_proxy.core.limits import PoolSlots, Route
from prelude_proxy.core.order import key_of
from prelude_proxy.core.queues import FairQueue, Ticket

ROUTE = Route(PoolSlots("pool", []), None)
AGING_S = 30.0
S_PER_TOKEN = 0.02


def spec(order: Order) -> ClassSpec:
    return ClassSpec("standard", 0, order=order, shortest_s_per_token=S_PER_TOKEN, aging_s=AGING_S)


def ticket(number: int, arrival: float, tokens: int = 100, due_s: float = math.inf, tenant: str = "") -> Ticket:
    return Ticket(
        number, ROUTE, 0, arrival=arrival, deadline=1e9, due=arrival + due_s, expected_tokens=tokens, tenant=tenant
    )


def served(order: Order, *tickets: Ticket) -> list[int]:
    queue = FairQueue(key_of(spec(order)))
    for item in tickets:
        queue.push(item)
    return [queue.pop().id for _ in tickets]


def test_fcfs_is_by_arrival():
    """Neither length nor due time matters."""
    assert served(Order.FCFS, ticket(1, 0.0, 900), ticket(2, 1.0, 1, due_s=0.1), ticket(3, 2.0)) == [1, 2, 3]


def test_shortest_first_until_the_long_one_has_waited_for_its_tokens():
    """A request of 500 tokens is overtaken by short ones for ten seconds, not longer."""
    assert served(Order.SHORTEST, ticket(1, 0.0, 500), ticket(2, 5.0, 10), ticket(3, 9.9, 10)) == [2, 1, 3]


def test_earliest_deadline_first():
    """The one due first goes first; one without a due time takes its turn at its aging bound."""
    patient, hurried, unbound = ticket(1, 0.0, due_s=20.0), ticket(2, 5.0, due_s=1.0), ticket(3, 0.0)
    late = ticket(4, 29.0, due_s=2.0)
    assert served(Order.DEADLINE, patient, hurried, unbound, late) == [2, 1, 3, 4]


def test_a_due_time_far_away_ages_too():
    """Who can wait for an hour does not wait for longer than one who says nothing."""
    assert served(Order.DEADLINE, ticket(1, 0.0, due_s=3600.0), ticket(2, AGING_S + 1.0, due_s=0.5)) == [1, 2]


@pytest.mark.parametrize("order", list(Order))
@given(
    steps=st.lists(
        st.tuples(
            st.floats(0.0, 5.0),
            st.integers(0, 3000),
            st.one_of(st.just(math.inf), st.floats(0.0, 60.0)),
            st.sampled_from("ab"),
            st.booleans(),
        ),
        max_size=80,
    )
)
def test_nobody_is_overtaken_by_one_who_came_after_its_bound(order, steps):
    """Of one tenant: by nobody with `fcfs`, for c·tokens seconds with `shortest`, until due with `deadline`.

    In every order for no longer than the aging bound. Pushes and pops are mixed at will.
    """
    queue = FairQueue(key_of(spec(order)))
    now = 0.0
    gone: list[Ticket] = []

    def check(going: Ticket) -> None:
        bound_s = {
            Order.FCFS: 0.0,
            Order.SHORTEST: S_PER_TOKEN * going.expected_tokens,
            Order.DEADLINE: going.due - going.arrival,
        }[order]
        latest = going.arrival + min(bound_s, AGING_S) + 1e-9
        assert all(other.arrival <= latest for other in gone if other.tenant == going.tenant)
        gone.append(going)

    for number, (pause_s, tokens, due_s, tenant, pops) in enumerate(steps):
        now += pause_s
        queue.push(ticket(number, now, tokens, due_s, tenant))
        if pops:
            check(queue.pop())
    while len(queue):
        check(queue.pop())
    assert len(gone) == len(steps)


@given(
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 6)), min_size=1, max_size=60),
    st.integers(0, 2000),
    st.sampled_from(list(Order)),
)
def test_work_ahead_of_a_single_tenant_is_exact(held, tokens, order):
    """What is said to go before a newcomer is what goes before it."""
    queue = FairQueue(key_of(spec(order)))
    for number, (size, due_s) in enumerate(held):
        queue.push(ticket(number, float(number), size, float(due_s)))
    newcomer = ticket(10_000, float(len(held)), tokens, 3.0)
    said = queue.work_ahead(newcomer, newcomer.arrival)
    queue.push(newcomer)
    before = 0
    while (going := queue.pop()) is not newcomer:
        before += max(1, going.expected_tokens)
    assert said == pytest.approx(before)


def test_work_ahead_is_an_even_sample_of_a_long_queue():
    """With ten thousand held, of which two thirds are shorter, the estimate is close and does not look at them all."""
    queue = FairQueue(key_of(spec(Order.SHORTEST)))
    for number in range(9_999):
        queue.push(ticket(number, 0.0, 100 * (1 + number * 7919 % 3)))
    said = queue.work_ahead(ticket(10_000, 0.0, 200), 0.0)
    assert said == pytest.approx(3_333 * 100 + 3_333 * 200, rel=0.15)


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 500)), max_size=60), st.sampled_from("abcdef"))
def test_work_ahead_between_tenants_is_right_within_the_turns(held, tenant):
    """Each other tenant goes before by its share: right within two quanta a tenant."""
    queue = FairQueue(key_of(spec(Order.FCFS)))
    for number, (name, tokens) in enumerate(held):
        queue.push(ticket(number, float(number), tokens, tenant=name))
    newcomer = ticket(1000, 1000.0, 100, tenant=tenant)
    said = queue.work_ahead(newcomer, newcomer.arrival)
    quantum = max([100, *(tokens for _, tokens in held)])
    queue.push(newcomer)
    before = 0
    while (going := queue.pop()) is not newcomer:
        before += going.expected_tokens
    assert abs(said - before) <= 2 * quantum * len({name for name, _ in held})
