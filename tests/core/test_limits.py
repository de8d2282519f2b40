"""Slots: what a class may use, what is kept free of it, and where in a pool."""

from __future__ import annotations

import pytest

from prelude_proxy.core.domain import ClassSpec
from prelude_proxy.core.limits import Permit, PoolSlots, Route
from prelude_proxy.core.queues import Ticket
from prelude_proxy.core.telemetry import Sample
from prelude_proxy.core.window import Window

from ..fleets import static_backend

FAST, DEEP = 0, 1


class Bench:
    """A pool of classes `fast` and `deep` over backends with fixed windows."""

    def __init__(
        self,
        *windows: int,
        fast: dict[str, object] | None = None,
        deep: dict[str, object] | None = None,
        **given: float,
    ) -> None:
        specs = [
            ClassSpec("fast", 0, **{"reserve": None, **(fast or {})}),
            ClassSpec("deep", 1, **{"reserve": 0.0, **(deep or {})}),
        ]
        self.pool = PoolSlots("p", specs, beta=1.0)
        self.route = Route(self.pool, None)
        for index, size in enumerate(windows):
            backend = static_backend(self.pool, index, size, **given)
            backend.available = True
            self.pool.backends.append(backend)
        self.route.attach(self.pool.backends)

    def issue(self, klass: int, backend: int = 0, prompt_tokens: int = 10) -> Permit:
        """A request of the class goes to a backend."""
        ticket = Ticket(
            0, self.route, klass, arrival=0.0, deadline=9.0, expected_tokens=50, prompt_tokens=prompt_tokens
        )
        permit = Permit(ticket, self.pool.backends[backend], 51, 0.0)
        permit.backend.issue(permit)
        self.pool.rebalance()
        return permit

    def traffic(self, klass: int, rate: float, stay_s: float, seconds: float = 30.0) -> float:
        """Measured traffic of a class up to the time returned."""
        for index in range(int(rate * seconds)):
            at = index / rate
            self.pool.staffing.arrived(klass, at, 40.0)
            if index >= int(rate * stay_s):
                self.pool.staffing.left(klass, at)
            self.pool.staffing.began(klass, at)
        for _ in range(int(rate * stay_s)):
            self.pool.staffing.left(klass, seconds)
        self.pool.measure(seconds)
        return seconds

    def room(self, klass: int) -> list[int]:
        """How many more requests of the class each backend takes, one after the other."""
        rooms = []
        for index, backend in enumerate(self.pool.backends):
            issued = []
            while backend.compute_mask() >> klass & 1:
                issued.append(self.issue(klass, index))
            rooms.append(len(issued))
            for permit in issued:
                backend.give_back(permit)
            self.pool.rebalance()
        return rooms


def test_without_traffic_nothing_is_kept():
    """Every class may use the whole window."""
    bench = Bench(8)
    assert (bench.room(FAST), bench.room(DEEP)) == ([8], [8])


def test_the_automatic_reserve_is_square_root_staffing():
    """Four busy slots keep 4 + √4 of 16."""
    bench = Bench(16)
    bench.traffic(FAST, rate=20.0, stay_s=0.2)
    assert bench.room(DEEP) == [10]
    assert bench.room(FAST) == [16]


def test_slots_in_use_by_its_class_fill_the_reserve():
    """What is kept free shrinks by what is there already."""
    bench = Bench(16)
    bench.traffic(FAST, rate=20.0, stay_s=0.2)
    for _ in range(6):
        bench.issue(FAST)
    assert bench.room(DEEP) == [10]
    for _ in range(4):
        bench.issue(FAST)
    assert bench.room(DEEP) == [6]


def test_a_reserve_ends_soon_after_its_traffic():
    """Seconds of silence are enough when twenty a second came."""
    bench = Bench(16)
    end = bench.traffic(FAST, rate=20.0, stay_s=0.2)
    rooms = []
    for silence_s in (0.0, 1.0, 3.0, 6.0):
        bench.pool.measure(end + silence_s)
        rooms += bench.room(DEEP)
    assert rooms == [10, 15, 15, 16]


def test_the_reserve_never_takes_more_than_its_share_of_a_window():
    """An overload of fast work leaves the other half to deep work."""
    bench = Bench(16, max_reserve=0.5)
    bench.traffic(FAST, rate=100.0, stay_s=1.0)
    assert bench.room(DEEP) == [8]


def test_a_fleet_keeps_slots_as_a_whole():
    """Six slots over 64 backends are six, not one on each."""
    bench = Bench(*[16] * 64)
    bench.traffic(FAST, rate=20.0, stay_s=0.2)
    assert sum(backend.kept[DEEP] for backend in bench.pool.backends) == 6
    assert max(backend.kept[DEEP] for backend in bench.pool.backends) == 1


def test_large_engines_keep_more_than_small_ones():
    """Slots are laid out by the size of the windows."""
    bench = Bench(32, 8)
    bench.traffic(FAST, rate=40.0, stay_s=0.2)
    large, small = (backend.kept[DEEP] for backend in bench.pool.backends)
    assert large + small == 11
    assert large > 2 * small


def test_a_change_of_one_slot_touches_one_backend():
    """So a dispatch in a large fleet costs no more than in a small one."""
    bench = Bench(*[16] * 64)
    bench.traffic(FAST, rate=20.0, stay_s=0.2)
    ticket = Ticket(0, bench.route, FAST, arrival=0.0, deadline=9.0)
    permit = Permit(ticket, bench.pool.backends[0], 1, 0.0)
    permit.backend.issue(permit)
    assert len(bench.pool.rebalance()) == 1
    assert bench.pool.rebalance() == []


def test_a_reserve_in_numbers_is_kept_by_every_backend():
    """A count on each."""
    bench = Bench(8, 8, fast={"reserve": 3.0})
    assert bench.room(DEEP) == [5, 5]


@pytest.mark.parametrize(("ceiling", "room"), [(3.0, 3), (0.25, 2), (0.01, 1)])
def test_a_ceiling_is_a_count_or_a_share(ceiling, room):
    """A share of something is at least one slot."""
    assert Bench(8, deep={"ceiling": ceiling}).room(DEEP) == [room]


def test_an_unknown_limit_is_not_hidden_by_a_reserve():
    """Six are kept there too; tried for 2 s they count as proof, so that deep requests find what the engine runs."""
    bench = Bench(16)
    bench.traffic(FAST, rate=20.0, stay_s=0.2)
    backend = bench.pool.backends[0]
    window = backend.window = Window(initial=16, maximum=99, feed=1)
    assert bench.room(DEEP) == [10]
    sizes = []
    for index in range(400):
        while backend.compute_mask() >> DEEP & 1:
            bench.issue(DEEP)
        in_use = backend.num_in_use
        window.observe(Sample(in_use, 0), in_use=in_use, wanted=True, now=index / 4, kept=backend.num_kept_free())
        sizes.append(window.size)
    assert sizes[7:9] == [16, 17]
    assert (window.size, len(backend.permits[DEEP])) == (99, 93)


def test_kept_slots_prove_nothing_while_nobody_waits_for_them():
    """Else the window would have grown beyond the engine by the time that somebody does."""
    window = Window(initial=16, maximum=99, feed=1)
    for index in range(100):
        window.observe(Sample(10, 0), in_use=10, wanted=False, now=index / 4, kept=6)
    assert window.size == 16


def test_the_feed_belongs_to_urgent_classes_where_they_have_traffic():
    """A deep request in an engine's queue would stand before the next fast one."""
    bench = Bench(16)
    window = bench.pool.backends[0].window = Window(initial=18, maximum=99, feed=1)
    for _ in range(3):
        window.observe_first_token(0.1, has_telemetry=True, in_use=18, started=16, wanted=True, now=0.0)
    window.limit, window.size, window.feed = 16, 17, 1
    assert bench.room(DEEP) == [17]
    bench.traffic(FAST, rate=20.0, stay_s=0.2)
    assert (bench.room(DEEP), bench.room(FAST)) == ([10], [17])


def test_a_kv_bound_engine_keeps_room_by_size():
    """A fast request takes a fraction of the cache that a deep one takes."""
    bench = Bench(16)
    for index in range(600):
        bench.pool.staffing.arrived(DEEP, index / 20, 400.0)
    bench.traffic(FAST, rate=20.0, stay_s=0.2)
    assert bench.room(DEEP) == [10]
    bench.pool.backends[0].window.is_kv_bound = True
    assert bench.room(DEEP) == [15]


def test_prompt_tokens_are_pending_until_the_answer_begins():
    """And not counted twice when the request ends before that."""
    bench = Bench(8)
    backend = bench.pool.backends[0]
    first, second = bench.issue(FAST, prompt_tokens=300), bench.issue(DEEP, prompt_tokens=500)
    assert backend.pending_prefill_tokens == 800
    backend.start(first, 1.0)
    backend.start(first, 1.0)
    assert (backend.pending_prefill_tokens, backend.num_started) == (500, 1)
    backend.give_back(second)
    backend.give_back(first)
    assert (backend.pending_prefill_tokens, backend.num_started, backend.num_in_use) == (0, 0, 0)


def test_a_recharged_permit_counts_for_its_new_class():
    """In the backend and in the pool."""
    bench = Bench(8)
    permit = bench.issue(FAST)
    bench.pool.backends[0].recharge(permit, DEEP)
    assert (bench.pool.num_in_use(FAST), bench.pool.num_in_use(DEEP)) == (0, 1)
    assert permit.klass == DEEP
