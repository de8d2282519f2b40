"""The fair queue: order, fairness, cancellation, bounded leftovers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prelude_proxy.core.limits import PoolSlots, Route
from prelude_proxy.core.queues import FairQueue, Ticket, work_of

ROUTE = Route(PoolSlots("pool", []), None)


def ticket(number, tenant="", tokens=100, prompt=0):
    return Ticket(
        number,
        ROUTE,
        0,
        arrival=float(number),
        deadline=1e9,
        tenant=tenant,
        expected_tokens=tokens,
        prompt_tokens=prompt,
    )


def make(*tickets, weights=None):
    queue = FairQueue(lambda t: t.arrival, weights)
    for item in tickets:
        queue.push(item)
    return queue


def test_one_tenant_is_first_come_first_served():
    """Whatever the order of arrival in the heap."""
    queue = make(ticket(3), ticket(1), ticket(2))
    assert [queue.pop().id for _ in range(3)] == [1, 2, 3]


def test_two_tenants_alternate_by_work():
    """A tenant with ten times the work a request gets a tenth of the turns."""
    queue = make(*[ticket(i, "heavy", 1000) for i in range(20)], *[ticket(100 + i, "light", 100) for i in range(200)])
    first = [queue.pop() for _ in range(110)]
    heavy = sum(work_of(t) for t in first if t.tenant == "heavy")
    light = sum(work_of(t) for t in first if t.tenant == "light")
    assert 0.75 <= heavy / light <= 1.35


def test_a_small_ticket_does_not_wait_for_a_large_one_of_every_tenant():
    """It came last and goes first: it needs fewer of the visits that all tenants get in turn."""
    queue = make(*[ticket(i, f"tenant-{i}", 500) for i in range(8)], ticket(8, "small", 50))
    assert queue.pop().tenant == "small"


def test_weights_scale_the_share():
    """A tenant of weight 3 gets three times the work."""
    queue = make(
        *[ticket(i, "a") for i in range(400)], *[ticket(1000 + i, "b") for i in range(400)], weights={"a": 3.0}
    )
    first = [queue.pop().tenant for _ in range(200)]
    assert 2.4 <= first.count("a") / first.count("b") <= 3.6


def test_prefill_counts_as_work():
    """A long prompt is work even for a short answer."""
    assert work_of(ticket(1, tokens=10, prompt=10_000)) > work_of(ticket(1, tokens=500))
    assert work_of(ticket(1, tokens=0)) == 1


def test_cancelled_tickets_never_come_out_and_leave_no_pile():
    """Tombstones are swept before they outnumber the living."""
    tickets = [ticket(i) for i in range(1000)]
    queue = make(*tickets)
    for item in tickets[:990]:
        queue.discard(item)
    assert len(queue) == 10
    assert len(queue._arrivals) < 50
    assert [queue.pop().id for _ in range(10)] == list(range(990, 1000))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 500), st.booleans()), max_size=60))
def test_every_ticket_comes_out_once_or_was_discarded(items):
    """Nothing lost, nothing twice, the oldest is the oldest."""
    tickets = [ticket(i, tenant, tokens) for i, (tenant, tokens, _) in enumerate(items)]
    queue = make(*tickets)
    for item, (_, _, gone) in zip(tickets, items, strict=True):
        if gone:
            queue.discard(item)
    kept = {item.id for item, (_, _, gone) in zip(tickets, items, strict=True) if not gone}
    oldest = queue.oldest()
    assert (oldest.id if oldest else None) == min(kept, default=None)
    assert {queue.pop().id for _ in range(len(kept))} == kept
    assert len(queue) == 0
