"""Prefill: the speed that first tokens show, the budget it makes, and who waits for it."""

from __future__ import annotations

import math
import random

import pytest

from prelude_proxy.config import build_config
from prelude_proxy.core.admission import Admission, Dispatch
from prelude_proxy.core.domain import ClassSpec
from prelude_proxy.core.limits import Permit, PoolSlots, Route
from prelude_proxy.core.outcome import Outcome
from prelude_proxy.core.prefill import LEAST_BUDGET_TOKENS, PrefillSpeed
from prelude_proxy.core.queues import Ticket

from ..fleets import static_backend

FAST, STANDARD, DEEP = 0, 1, 2
SPEED = 10_000.0
STALL_S = 0.2


class Prompts:
    """One engine that prefills prompts one after the other, `overhead_s` a prompt beside its tokens."""

    def __init__(self, tokens_per_s: float = SPEED, overhead_s: float = 0.0) -> None:
        self.speed = PrefillSpeed()
        self.tokens_per_s = tokens_per_s
        self.overhead_s = overhead_s
        self.now = 100.0
        self.serial = 0

    def send(self, *prompts: int, is_telling: bool = True, late_s: float = 0.0) -> None:
        """All are sent at the same time; then a pause."""
        issued_at = self.now
        for tokens in prompts:
            self.serial += 1
            self.now += self.overhead_s + tokens / self.tokens_per_s + late_s
            self.speed.observe(tokens, self.serial, issued_at, is_telling=is_telling, now=self.now)
        self.now += 1.0


def test_the_speed_is_not_known_from_a_few_prompts():
    """Until then there is no budget."""
    prompts = Prompts()
    prompts.send(1000, 1000, 1000, 1000)
    assert prompts.speed.tokens_per_s is None
    assert prompts.speed.budget(STALL_S) == math.inf


def test_the_speed_is_that_of_the_engine_whether_prompts_come_alone_or_together():
    """A prompt behind others is served from the first token of the one before it."""
    alone, together = Prompts(), Prompts()
    for _ in range(10):
        alone.send(2000)
    together.send(*[2000] * 10)
    assert alone.speed.tokens_per_s == pytest.approx(SPEED)
    assert together.speed.tokens_per_s == pytest.approx(SPEED)


def test_long_prompts_outweigh_the_step_that_short_ones_ride_in():
    """Twenty ms a prompt beside its tokens: half of what a short one takes, a twentieth of a long one."""
    prompts = Prompts(overhead_s=0.02)
    for _ in range(20):
        prompts.send(300)
        prompts.send(4000)
    assert prompts.speed.tokens_per_s == pytest.approx(SPEED, rel=0.08)


def test_the_speed_follows_the_engine():
    """A slower one is known within a few dozen prompts."""
    prompts = Prompts()
    for _ in range(20):
        prompts.send(2000)
    prompts.tokens_per_s = SPEED / 3
    for _ in range(60):
        prompts.send(2000)
    assert prompts.speed.tokens_per_s == pytest.approx(SPEED / 3, rel=0.1)


def test_one_stall_does_not_pass_for_slowness():
    """A prompt that took a minute counts as four times its usual time."""
    prompts = Prompts()
    for _ in range(40):
        prompts.send(2000)
    prompts.send(2000, late_s=60.0)
    assert prompts.speed.tokens_per_s == pytest.approx(SPEED / (1 + 3 * 0.05 / (1 - 0.95**41)), rel=1e-6)


def test_prompts_that_tell_nothing_are_left_out():
    """Those not meant to, and those overtaken by a later one."""
    prompts = Prompts()
    prompts.send(*[2000] * 20, is_telling=False)
    prompts.serial = 0
    prompts.send(*[2000] * 20)
    assert prompts.speed.tokens_per_s is None


def test_a_prompt_tells_the_speed_when_it_is_long_and_finds_a_place_in_the_batch():
    """A short one rides in any step, and one beyond what the engine runs at once waits in its queue."""
    bench = Bench(3)
    bench.backends[0].window.limit = 2
    sent = [bench.offer(FAST, tokens)[0] for tokens in (255, 256, 4000)]
    assert [permit.is_telling for permit in sent] == [False, True, False]


def test_the_budget_is_speed_times_stall_but_never_less_than_a_chunk():
    """And none for a class that is not paced."""
    prompts = Prompts()
    prompts.send(*[1000] * 5)
    assert prompts.speed.budget(STALL_S) == pytest.approx(SPEED * STALL_S)
    assert prompts.speed.budget(0.001) == LEAST_BUDGET_TOKENS
    assert prompts.speed.budget(None) == math.inf


class Bench:
    """A pool of three classes, the lower two paced, over engines with fixed windows whose prefill speed is known."""

    def __init__(self, *windows: int, specs: dict[str, dict[str, object]] | None = None) -> None:
        given = specs or {}
        paced: dict[str, dict[str, object]] = {
            "standard": {"prefill_stall_s": STALL_S, "max_output_tokens": 500},
            "deep": {"prefill_stall_s": STALL_S},
        }
        self.pool = PoolSlots(
            "p",
            [
                ClassSpec(name, index, **{"reserve": 0.0, "aging_s": 9e9, **paced.get(name, {}), **given.get(name, {})})
                for index, name in enumerate(("fast", "standard", "deep"))
            ],
        )
        self.now = 0.0
        self.admission = Admission([self.pool], rng=random.Random(1))
        self.backends = []
        for index, size in enumerate(windows):
            backend = static_backend(self.pool, index, size)
            self.admission.add_backend(backend, self.now)
            self.backends.append(backend)
        self.route = Route(self.pool, None)
        self.route.attach(self.backends)
        self.num_offered = 0

    @classmethod
    def taught(cls, *windows: int, **given: dict[str, dict[str, object]]) -> Bench:
        """With the speed of every engine learned from five prompts."""
        bench = cls(*windows, **given)
        for backend in bench.backends:
            for _ in range(5):
                permit = Permit(bench.ticket(STANDARD, 1000), backend, 100, bench.now)
                backend.issue(permit)
                bench.first_token(permit)
                bench.admission.release(permit, Outcome.OK, bench.now)
        return bench

    def ticket(self, klass: int, prompt_tokens: int, **fields: object) -> Ticket:
        self.num_offered += 1
        return Ticket(
            self.num_offered, self.route, klass, arrival=self.now, deadline=self.now + 1000.0,
            prompt_tokens=prompt_tokens, **{"expected_tokens": 100, **fields},
        )  # fmt: skip

    def offer(self, klass: int, prompt_tokens: int = 50, **fields: object) -> list[Permit]:
        """The permits that come of one more request."""
        return permits(self.admission.offer(self.ticket(klass, prompt_tokens, **fields), self.now))

    def first_token(self, permit: Permit) -> list[Permit]:
        """After the time that its prompt takes."""
        self.now += permit.prefill_tokens / SPEED
        decisions = self.admission.first_token(permit, self.now - permit.issued_at, has_telemetry=True, now=self.now)
        return permits(decisions)

    def release(self, permit: Permit, outcome: Outcome = Outcome.OK) -> list[Permit]:
        return permits(self.admission.release(permit, outcome, self.now))


def permits(decisions: list[object]) -> list[Permit]:
    """Those of what was dispatched; nothing else may have happened."""
    assert all(isinstance(decision, Dispatch) for decision in decisions)
    return [decision.permit for decision in decisions]


def test_deep_prompts_go_one_after_the_other_while_fast_work_is_in_flight():
    """The next one when the first token of the one before is there."""
    bench = Bench.taught(8)
    bench.offer(FAST)
    (first,) = bench.offer(DEEP, 4000)
    assert bench.offer(DEEP, 4000) == []
    assert bench.offer(DEEP, 4000) == []
    (second,) = bench.first_token(first)
    assert second.prefill_tokens == 4000
    assert len(bench.first_token(second)) == 1


def test_short_prompts_go_together_up_to_the_budget():
    """Two thousand tokens, 0.2 s at 10,000 a second: the one that reaches them is the last."""
    bench = Bench.taught(16)
    bench.offer(FAST)
    assert sum(len(bench.offer(DEEP, 600)) for _ in range(8)) == 4


@pytest.mark.parametrize("outcome", [Outcome.CLIENT_GONE, Outcome.CONNECT_FAILED, Outcome.STREAM_BROKEN, Outcome.OK])
def test_a_prompt_that_ends_any_other_way_makes_room_too(outcome):
    """Aborted, failed or refused: nothing of it is left in the books."""
    bench = Bench.taught(8, 8)
    for backend in bench.backends:
        backend.health.draining = backend.index == 1
        bench.admission.changed(backend, bench.now)
    bench.offer(FAST)
    (first,) = bench.offer(DEEP, 4000)
    assert bench.offer(DEEP, 3000) == []
    bench.backends[1].health.draining = False
    gone = bench.release(first, outcome)
    assert len(gone + permits(bench.admission.changed(bench.backends[1], bench.now))) == 1
    assert sum(backend.pending_prefill_tokens for backend in bench.backends) == 3050


def test_without_more_urgent_work_there_is_no_budget():
    """Neither at the start nor when the last urgent request has ended."""
    bench = Bench.taught(8)
    assert [len(bench.offer(DEEP, 4000)) for _ in range(2)] == [1, 1]
    (fast,) = bench.offer(FAST)
    assert bench.offer(DEEP, 4000) == []
    assert len(bench.release(fast)) == 1


def test_urgent_classes_are_never_paced():
    """They wait for slots alone."""
    bench = Bench.taught(8)
    bench.offer(FAST)
    bench.offer(DEEP, 4000)
    assert [len(bench.offer(FAST, 4000)) for _ in range(6)] == [1] * 6


def test_a_class_with_no_prompt_in_prefill_is_let_in_beside_others():
    """Else a stream of short prompts of a more urgent class would keep long ones out for good."""
    bench = Bench.taught(8)
    bench.offer(FAST, 4000)
    assert len(bench.offer(STANDARD, 4000)) == 1
    assert len(bench.offer(DEEP, 4000)) == 1


def test_a_paced_engine_does_not_hold_up_another():
    """The other one takes it."""
    bench = Bench.taught(8, 8)
    for _ in range(2):
        bench.offer(FAST)
    placed = [bench.offer(DEEP, 4000)[0].backend.index for _ in range(2)]
    assert sorted(placed) == [0, 1]
    assert bench.offer(DEEP, 4000) == []


def test_an_engine_whose_speed_is_not_known_takes_all():
    """Nothing is held back for a guess."""
    bench = Bench(8)
    bench.offer(FAST)
    assert [len(bench.offer(DEEP, 4000)) for _ in range(7)] == [1] * 7


def test_answers_in_one_piece_are_presumed_to_be_prefilled_after_twice_the_time():
    """Their first token is not seen; the core asks to be woken and lets the next one go."""
    bench = Bench.taught(8)
    bench.offer(FAST)
    bench.offer(DEEP, 4000, streams=False)
    assert bench.offer(DEEP, 2000, streams=False) == []
    due = bench.now + 2 * 4050 / SPEED
    assert bench.admission.next_deadline(bench.now) == pytest.approx(due)
    assert permits(bench.admission.tick(due - 0.001)) == []
    assert len(permits(bench.admission.tick(due))) == 1
    assert bench.backends[0].pending_prefill_tokens == 2050


def test_presumed_ends_are_noticed_by_the_next_request_too():
    """Nobody was held, so nobody asked to be woken; the time that is due is never one long gone."""
    bench = Bench.taught(8)
    bench.offer(FAST)
    bench.offer(DEEP, 4000, streams=False)
    bench.now += 10.0
    assert len(bench.offer(DEEP, 4000)) == 1
    assert bench.offer(DEEP, 4000) == []
    assert bench.admission.next_deadline(bench.now) > bench.now


def test_a_presumed_end_after_the_real_one_changes_nothing():
    """The books stay right when the answer was there first."""
    bench = Bench.taught(8)
    (permit,) = bench.offer(DEEP, 4000, streams=False)
    bench.release(permit)
    assert bench.admission.tick(bench.now + 10.0) == []
    assert bench.backends[0].pending_prefill_tokens == 0


def test_fcfs_mode_paces_nothing():
    """There everything is passed on at once."""
    paced = build_config({}).class_specs()
    flat = build_config({"admission": {"mode": "fcfs"}}).class_specs()
    assert [spec.prefill_stall_s for spec in paced] == [None, None, 0.2, 0.2]
    assert [spec.prefill_stall_s for spec in flat] == [None] * 4


def test_a_ceiling_in_tokens_closes_a_backend_once_it_is_reached():
    """Prompt and answer count; the one that reaches it still goes, a large one alone too."""
    bench = Bench(8, specs={"deep": {"ceiling_tokens": 1000}})
    assert [len(bench.offer(DEEP, 300)) for _ in range(4)] == [1, 1, 1, 0]
    other = Bench(8, specs={"deep": {"ceiling_tokens": 1000}})
    assert [len(other.offer(DEEP, 5000)) for _ in range(2)] == [1, 0]
    assert len(other.offer(STANDARD, 5000)) == 1


def test_a_fleet_ceiling_in_tokens_counts_all_backends():
    """And opens again when something ends."""
    bench = Bench(8, 8, specs={"deep": {"fleet_ceiling_tokens": 1000}})
    placed = [bench.offer(DEEP, 400) for _ in range(3)]
    assert [len(one) for one in placed] == [1, 1, 0]
    assert len(bench.release(placed[0][0])) == 1


def test_a_stream_that_outgrows_its_class_counts_for_twice_the_bound_it_passed():
    """In the class it turned out to be, and no more than that for one that was expected to be as long."""
    bench = Bench(8, specs={"deep": {"ceiling_tokens": 1000}})
    (permit,) = bench.offer(STANDARD, 300, expected_tokens=200)
    (known,) = bench.offer(STANDARD, 300, expected_tokens=1700)
    assert bench.backends[0].tokens == [0, 2500, 0]
    bench.admission.recharge(permit, DEEP, bench.now)
    assert bench.backends[0].tokens == bench.pool.tokens == [0, 2000, 1300]
    bench.admission.recharge(known, DEEP, bench.now)
    assert bench.backends[0].tokens == bench.pool.tokens == [0, 0, 3300]
    assert bench.offer(DEEP, 10) == []
    bench.release(permit)
    bench.release(known)
    assert bench.backends[0].tokens == bench.pool.tokens == [0, 0, 110]
