"""Playbooks for admission: events in, expected decisions out, in virtual time."""

from __future__ import annotations

import random

import pytest

from prelude_proxy.core.admission import Admission, Dispatch, DropReason, Expire, QueueBounds, Reject
from prelude_proxy.core.catalog import Catalog
from prelude_proxy.core.domain import ClassSpec, Order
from prelude_proxy.core.limits import PoolSlots
from prelude_proxy.core.outcome import Outcome
from prelude_proxy.core.queues import Ticket
from prelude_proxy.core.telemetry import Sample
from prelude_proxy.core.window import Window

from ..fleets import static_backend

FAST, STANDARD, DEEP = 0, 1, 2


class Bench:
    """One pool, some backends with fixed windows, and names for tickets."""

    def __init__(self, *windows: int, specs: dict[str, dict[str, object]] | None = None, **bounds: float) -> None:
        given = specs or {}
        self.pool = PoolSlots(
            "p",
            [
                ClassSpec(name, index, **{"reserve": 0.0, "aging_s": 1000.0, **given.get(name, {})})
                for index, name in enumerate(("fast", "standard", "deep"))
            ],
        )
        self.now = 0.0
        self.admission = Admission([self.pool], rng=random.Random(1), bounds=QueueBounds(**bounds))
        self.catalog = Catalog([self.pool], models={}, aliases={})
        self.backends = []
        for index, size in enumerate(windows):
            backend = static_backend(self.pool, index, size)
            self.backends.append(backend)
            self.admission.add_backend(backend, self.now)
        self.catalog.reattach(self.pool)
        self.permits: dict[str, object] = {}
        self.tickets: dict[str, Ticket] = {}

    def offer(self, name: str, klass: int = FAST, *, wait_s: float = 100.0, **fields: object) -> list[str]:
        ticket = Ticket(
            len(self.tickets),
            self.catalog.resolve("m"),
            klass,
            arrival=self.now,
            deadline=self.now + wait_s,
            **fields,
        )
        self.tickets[name] = ticket
        return self.say(self.admission.offer(ticket, self.now))

    def release(self, name: str, outcome: Outcome = Outcome.OK) -> list[str]:
        return self.say(self.admission.release(self.permits[name], outcome, self.now))

    def at(self, now: float) -> list[str]:
        self.now = now
        return self.say(self.admission.tick(now))

    def say(self, decisions: list[object]) -> list[str]:
        said = []
        for decision in decisions:
            name = next(name for name, ticket in self.tickets.items() if ticket is decision.ticket)
            if isinstance(decision, Dispatch):
                self.permits[name] = decision.permit
                said.append(f"{name}→{decision.permit.backend.name}")
            else:
                said.append(f"{name}:{decision.reason}")
        return said


def test_a_request_goes_at_once_when_a_slot_is_free():
    """No held ticket beside a free slot."""
    bench = Bench(1)
    assert bench.offer("x") == ["x→b0"]
    assert bench.offer("y") == []
    assert bench.release("x") == ["y→b0"]


def test_higher_classes_overtake_lower_ones():
    """Of held tickets the most urgent class goes first, whatever came first."""
    bench = Bench(1)
    bench.offer("running", DEEP)
    bench.offer("d", DEEP)
    bench.offer("s", STANDARD)
    bench.offer("f", FAST)
    order = [bench.release("running"), bench.release("f"), bench.release("s")]
    assert order == [["f→b0"], ["s→b0"], ["d→b0"]]


def test_an_aged_ticket_goes_before_every_other_class():
    """Invariant 7: held for its aging bound, a deep ticket takes the next slot outside the reserves."""
    bench = Bench(1, specs={"deep": {"aging_s": 10.0}})
    bench.offer("running")
    bench.offer("d", DEEP)
    bench.now = 9.0
    bench.offer("f1")
    assert bench.release("running") == ["f1→b0"]
    bench.now = 11.0
    bench.offer("f2")
    assert bench.release("f1") == ["d→b0"]


def test_starvation_bound_under_permanent_overload():
    """However many fast requests keep coming, a deep one waits no longer than its aging bound plus one service."""
    bench = Bench(2, specs={"deep": {"aging_s": 5.0}})
    bench.offer("f0")
    bench.offer("f1")
    bench.offer("d", DEEP)
    for step in range(2, 100):
        bench.now = step * 0.1
        bench.offer(f"f{step}")
        if "d→b0" in bench.release(f"f{step - 2}"):
            break
    assert bench.now == pytest.approx(5.0, abs=0.11)


def test_aging_does_not_reach_into_a_reserve():
    """A reserve is kept for its class even against tickets that have aged."""
    bench = Bench(2, specs={"fast": {"reserve": 1.0}, "deep": {"aging_s": 1.0}})
    assert bench.offer("d0", DEEP) == ["d0→b0"]
    assert bench.offer("d1", DEEP) == []
    assert bench.at(50.0) == []
    assert bench.offer("f", FAST) == ["f→b0"]


def test_a_reserve_that_is_used_up_is_no_longer_kept():
    """While the class holds its reserve, the other slots are anyone's."""
    bench = Bench(3, specs={"fast": {"reserve": 1.0}})
    bench.offer("f")
    assert bench.offer("d0", DEEP) == ["d0→b0"]
    assert bench.offer("d1", DEEP) == ["d1→b0"]
    assert bench.offer("d2", DEEP) == []


def test_tenants_share_a_class_by_predicted_work():
    """Deficit round robin: a tenant with long answers gets fewer turns than one with short ones."""
    bench = Bench(1)
    bench.offer("running")
    for index in range(20):
        bench.offer(f"long{index}", tenant="long", expected_tokens=400)
    for index in range(20):
        bench.offer(f"short{index}", tenant="short", expected_tokens=100)
    served, last = [], "running"
    for _ in range(20):
        last = bench.release(last)[0].partition("→")[0]
        served.append(last)
    work = {kind: sum(kind in name for name in served) * size for kind, size in (("long", 400), ("short", 100))}
    assert work["long"] == pytest.approx(work["short"], rel=0.35)


def test_ceilings_bound_a_class_on_a_backend_and_in_the_pool():
    """A count on one backend, a share of all windows together."""
    bench = Bench(4, 4, specs={"deep": {"ceiling": 3, "fleet_ceiling": 0.5}})
    dispatched = [bool(bench.offer(f"d{index}", DEEP)) for index in range(6)]
    assert dispatched == [True] * 4 + [False] * 2
    assert max(len(backend.permits[DEEP]) for backend in bench.backends) <= 3
    assert bench.release("d0") == ["d4→b0"] or bench.release("d0") == []


def test_queue_bounds_reject_with_a_reason():
    """Full by count or by bytes: rejected at once, 429 material."""
    bench = Bench(1, max_size=2, max_bytes=100)
    bench.offer("x")
    assert bench.offer("big", num_bytes=101) == [f"big:{DropReason.SATURATED}"]
    bench.offer("y")
    bench.offer("z")
    assert bench.offer("one too many") == [f"one too many:{DropReason.SATURATED}"]


def test_a_class_that_may_not_be_held_is_rejected_instead():
    """`queue_size: 0` means now or never."""
    bench = Bench(1, specs={"deep": {"queue_size": 0}})
    assert bench.offer("x", DEEP) == ["x→b0"]
    assert bench.offer("y", DEEP) == [f"y:{DropReason.SATURATED}"]
    assert bench.admission.num_held == 0


def test_a_deadline_ends_holding_and_never_touches_dispatched_work():
    """Expired at its time; the running one stays."""
    bench = Bench(1)
    bench.offer("running", wait_s=1.0)
    bench.offer("x", wait_s=5.0)
    assert bench.admission.next_deadline(0.0) == 5.0
    assert bench.at(4.9) == []
    assert bench.at(5.0) == [f"x:{DropReason.TTL_EXPIRED}"]
    assert bench.backends[0].num_in_use == 1


def test_without_any_backend_requests_wait_for_a_first_one_only_so_long():
    """Pool empty is another wait than pool saturated: 503 after the cold-start wait, or served when one appears."""
    bench = Bench(1, cold_start_wait_s=15.0)
    health = bench.backends[0].health
    for _ in range(3):
        health.probe_failed()
    bench.admission.changed(bench.backends[0], bench.now)
    bench.offer("x")
    assert bench.admission.next_deadline(0.0) == 15.0
    assert bench.at(15.0) == [f"x:{DropReason.NO_ENDPOINTS}"]
    bench.offer("y")
    health.probe_succeeded()
    assert bench.say(bench.admission.changed(bench.backends[0], bench.now)) == ["y→b0"]


def test_a_refused_connection_suspends_the_backend_and_the_ticket_goes_elsewhere():
    """The next backend gets it; alone, the same one after a pause."""
    bench = Bench(1, 1)
    first = bench.offer("x")[0].partition("→")[2]
    bench.release("x", Outcome.CONNECT_FAILED)
    other = bench.offer("again")[0].partition("→")[2]
    assert first != other
    assert bench.offer("third") == []
    assert bench.at(bench.admission.next_deadline(bench.now)) == [f"third→{first}"]


def test_an_engine_that_says_it_is_full_is_not_ill():
    """Its window shrinks, it rests for a moment, its breaker stays closed."""
    bench = Bench(2)
    bench.backends[0].window = Window(initial=4, maximum=64, feed=1)
    for index in range(3):
        bench.offer(f"x{index}")
    for index in range(3):
        bench.release(f"x{index}", Outcome.ENGINE_BUSY)
    assert bench.backends[0].window.size < 4
    assert bench.backends[0].health.breaker(bench.now) == "closed"
    assert bench.offer("y") == []
    assert bench.at(bench.admission.next_deadline(bench.now)) == ["y→b0"]


def test_consecutive_failures_open_the_breaker_and_one_trial_closes_it():
    """Ejected, one trial after the pause, back on success."""
    bench = Bench(4)
    for index in range(5):
        bench.offer(f"x{index}")
        bench.release(f"x{index}", Outcome.UPSTREAM_5XX)
    assert bench.offer("a") == []
    bench.offer("b")
    due = bench.admission.next_deadline(bench.now)
    assert due == 5.0
    assert bench.at(due) == ["a→b0"], "half open: exactly one"
    assert bench.release("a") == ["b→b0"]


def test_a_promoted_stream_frees_the_slot_of_the_class_it_was_taken_for():
    """A wrong guess cannot eat the fast reserve."""
    bench = Bench(3, specs={"fast": {"reserve": 1.0}})
    bench.offer("f")
    bench.offer("d0", DEEP)
    bench.offer("d1", DEEP)
    bench.admission.recharge(bench.permits["f"], DEEP, bench.now)
    bench.release("d0")
    assert bench.offer("d2", DEEP) == [], "one slot is kept for fast again"
    assert bench.offer("f2") == ["f2→b0"]


def test_shutting_down_takes_nothing_new_and_serves_what_is_held():
    """Held tickets still go."""
    bench = Bench(1)
    bench.offer("x")
    bench.offer("y")
    bench.admission.shut_down()
    assert bench.offer("z") == [f"z:{DropReason.SHUTTING_DOWN}"]
    assert bench.release("x") == ["y→b0"]


def drained(bench: Bench, count: int, step_s: float = 0.5, **fields: object) -> None:
    """`count` tickets wait in turn and one is served every `step_s`; nothing is left but one that runs, `x<count>`."""
    bench.offer("x0")
    for index in range(1, count + 1):
        bench.offer(f"x{index}", **fields)
    for index in range(count):
        bench.now += step_s
        bench.release(f"x{index}")


def test_retry_after_is_the_time_the_queue_takes_to_drain():
    """Work held over the measured rate at which it is served."""
    bench = Bench(1, max_size=20)
    drained(bench, 20)
    for index in range(20):
        bench.offer(f"held{index}")
    (reject,) = bench.admission.offer(
        Ticket(999, bench.catalog.resolve("m"), FAST, arrival=bench.now, deadline=bench.now + 9), bench.now
    )
    assert isinstance(reject, Reject)
    assert reject.retry_after_s == pytest.approx(10, abs=1)  # 20 held, 2 a second


def test_those_turned_away_are_told_times_one_after_the_other():
    """At half the rate of service, so that they do not all come back at once, and none after more than a minute."""
    bench = Bench(1, max_size=20)
    drained(bench, 20)
    for index in range(20):
        bench.offer(f"held{index}")
    told = []
    for number in range(300):
        ticket = Ticket(1000 + number, bench.catalog.resolve("m"), FAST, arrival=bench.now, deadline=bench.now + 9)
        (reject,) = bench.admission.offer(ticket, bench.now)
        assert isinstance(reject, Reject)
        told.append(reject.retry_after_s)
    assert told[:40] == pytest.approx([10 + number for number in range(40)], abs=1)  # one a second, two are served
    assert max(told) == 60
    assert min(told[50:]) >= 45
    assert max(told.count(second) for second in range(46, 61)) <= 300 / 10


def test_a_deadline_that_cannot_be_met_is_refused_at_once():
    """Held work over the measured rate says when its turn would come; who can wait that long is held."""
    bench = Bench(1)
    drained(bench, 20, expected_tokens=100)
    for index in range(10):
        bench.offer(f"held{index}", expected_tokens=100)  # five seconds of work
    strict = {"sheds": True, "expected_tokens": 100}
    assert bench.offer("late", wait_s=4.0, due=bench.now + 4.0, **strict) == [f"late:{DropReason.UNMEETABLE}"]
    assert bench.offer("in time", wait_s=6.0, due=bench.now + 6.0, **strict) == []
    assert bench.offer("wish", wait_s=60.0, due=bench.now + 4.0) == []


def test_nobody_is_refused_by_an_estimate_while_too_little_is_known():
    """Without evidence of the queue's speed a deadline is tried, and ends the holding when it is over."""
    bench = Bench(1)
    bench.offer("running")
    for index in range(50):
        bench.offer(f"held{index}")
    assert bench.offer("x", wait_s=1.0, due=1.0, sheds=True) == []
    assert bench.at(0.99) == []
    assert bench.at(1.0) == [f"x:{DropReason.TTL_EXPIRED}"]


def test_the_time_to_the_first_token_is_part_of_a_deadline():
    """Who is due in one second is not held for longer than that less the fastest first token lately."""
    bench = Bench(1)
    bench.offer("running")
    bench.admission.first_token(bench.permits["running"], 0.3, has_telemetry=True, now=0.0)
    bench.offer("x", wait_s=1.0, due=1.0, sheds=True)
    bench.offer("wish", wait_s=50.0, due=1.0)
    assert bench.admission.next_deadline(0.0) == pytest.approx(0.7)
    assert bench.at(0.71) == [f"x:{DropReason.TTL_EXPIRED}"]
    bench.release("running")
    assert bench.offer("too short", wait_s=0.2, due=bench.now + 0.2, sheds=True) == [
        f"too short:{DropReason.TTL_EXPIRED}"
    ]


def test_a_free_slot_is_proof_against_every_estimate():
    """However slow things looked, who need not be held is served: so estimates are corrected by what is served."""
    bench = Bench(1)
    bench.offer("slow")
    bench.admission.first_token(bench.permits["slow"], 30.0, has_telemetry=True, now=30.0)
    bench.now = 30.0
    bench.release("slow")
    assert bench.offer("x", wait_s=1.0, due=31.0, sheds=True) == ["x→b0"]


def test_orders_inside_a_class_meet_at_the_backend():
    """A class serves its own by its own order; the other class is untouched."""
    bench = Bench(1, specs={"fast": {"order": Order.DEADLINE}, "standard": {"order": Order.SHORTEST}})
    bench.offer("running")
    bench.offer("f1", due=bench.now + 50.0)
    bench.offer("f2", due=bench.now + 5.0)
    bench.offer("s1", STANDARD, expected_tokens=400)
    bench.offer("s2", STANDARD, expected_tokens=100)
    order = [bench.release(name) for name in ("running", "f2", "f1", "s2")]
    assert order == [["f2→b0"], ["f1→b0"], ["s2→b0"], ["s1→b0"]]


def test_the_automatic_reserve_follows_the_traffic_of_its_class():
    """Square-root staffing: slots are kept while fast requests come, and given up when they stop."""
    bench = Bench(16, specs={"fast": {"reserve": None}})
    for index in range(400):
        bench.now = index * 0.05
        bench.offer(f"f{index}")
        if index >= 4:
            bench.release(f"f{index - 4}")
    bench.at(bench.now)
    bench.admission.observe(bench.backends[0], Sample(4, 0), bench.now)
    kept = bench.backends[0].reserves[FAST]
    assert 4 <= kept <= 8  # 4 busy slots on average, and √4 more
    bench.now += 120.0
    bench.admission.observe(bench.backends[0], Sample(0, 0), bench.now)
    assert bench.backends[0].reserves[FAST] == 0


def test_nothing_is_kept_free_for_guests():
    """Who is in a class by the benefit of the doubt has its slots and does not make its reserve, outgrown or not."""
    bench = Bench(16, specs={"fast": {"reserve": None}})
    for index in range(400):
        bench.now = index * 0.05
        bench.offer(f"f{index}", FAST, planned=STANDARD)
        permit = bench.permits[f"f{index}"]
        assert (permit.klass, permit.planned) == (FAST, STANDARD)
        if index % 2:
            bench.admission.recharge(permit, STANDARD, bench.now)
            assert (permit.klass, permit.planned) == (STANDARD, STANDARD)
        if index >= 4:
            bench.release(f"f{index - 4}")
    bench.at(bench.now)
    bench.admission.observe(bench.backends[0], Sample(4, 0), bench.now)
    assert bench.backends[0].reserves[FAST] == 0
    assert bench.backends[0].num_in_use == 4


def test_the_least_occupied_of_unequal_backends_wins():
    """Requests in use count relative to the window: a small engine gets its share and no more."""
    bench = Bench(8, 2)
    placed = [bench.offer(f"x{index}", expected_tokens=100)[0].partition("→")[2] for index in range(10)]
    assert placed.count("b0") == 8
    assert placed[:5].count("b0") == 4


def test_a_prompt_that_waits_for_its_prefill_counts_as_occupation():
    """The next request goes where no long prefill is in its way."""
    bench = Bench(8, 8)
    first = bench.offer("long prompt", DEEP, prompt_tokens=4000)[0].partition("→")[2]
    others = [bench.offer(f"x{index}")[0].partition("→")[2] for index in range(5)]
    assert first not in others


def test_expired_and_rejected_are_told_apart():
    """Decisions are values with a reason the client can read."""
    bench = Bench(1)
    bench.offer("x")
    ticket = Ticket(7, bench.catalog.resolve("m"), FAST, arrival=0.0, deadline=1.0)
    assert bench.admission.offer(ticket, 0.0) == []
    (expired,) = bench.admission.tick(1.0)
    assert expired == Expire(ticket, DropReason.TTL_EXPIRED, expired.retry_after_s)


def test_slots_kept_for_traffic_that_has_stopped_come_free_by_time_alone():
    """Nothing arrives and nothing ends any more: the held deep request must not wait for an event."""
    bench = Bench(4, specs={"fast": {"reserve": None}})
    for index in range(200):
        bench.now = index * 0.05
        bench.offer(f"f{index}", expected_tokens=10)
        if index > 1:
            bench.release(f"f{index - 2}")
    bench.release("f198")
    bench.release("f199")
    assert bench.offer("d0", DEEP) == ["d0→b0"]
    assert bench.offer("d1", DEEP) == [], "the reserve holds it back"
    said, silent_s = [], 0.0
    while not said:
        due = bench.admission.next_deadline(bench.now)
        silent_s += due - bench.now
        said = bench.at(due)
    assert said == ["d1→b0"]
    assert silent_s < 5.0
