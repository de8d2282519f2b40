"""The adaptive window of one engine, told what an engine of a known size would show."""

from __future__ import annotations

import pytest

from prelude_proxy.core.telemetry import Sample
from prelude_proxy.core.window import Window


class Engine:
    """An engine with `slots` batch slots behind a window; a tick is a quarter of a second of saturated load."""

    def __init__(self, slots: int, window: Window) -> None:
        self.slots = slots
        self.window = window
        self.now = 0.0
        self.preemptions = 0.0

    def tick(self, rounds: int = 10, kv_usage: float = 0.3) -> int:
        """Some round trips of a full queue here, then one sample."""
        for _ in range(rounds):
            started = min(self.slots, self.window.size)
            self.window.observe_first_token(
                0.02, has_telemetry=True, in_use=self.window.size, started=started, wanted=True, now=self.now
            )
        self.now += 0.25
        running = min(self.slots, self.window.size)
        sample = Sample(running, self.window.size - running, kv_usage, self.preemptions)
        self.window.observe(sample, in_use=self.window.size, wanted=True, now=self.now)
        return self.window.size


def make(initial: int = 16, feed: int = 1, maximum: int = 4096) -> Window:
    """An adaptive window."""
    return Window(initial=initial, maximum=maximum, feed=feed)


@pytest.mark.parametrize("slots", [4, 16, 48, 256])
def test_it_finds_what_the_engine_runs(slots):
    """From any start it comes to the batch size plus the feed within seconds, and stays there."""
    engine = Engine(slots, make())
    for _ in range(40):
        engine.tick()
    assert engine.window.limit == slots
    assert {engine.tick() for _ in range(400)} == {slots + 1}


def test_growth_puts_at_most_a_sixteenth_into_the_engines_queue():
    """Slow start goes by proof: what has begun is the base, so the overshoot is bounded."""
    engine = Engine(64, make())
    sizes = [engine.tick() for _ in range(60)]
    assert max(sizes) <= 64 + 64 // 16


def test_answers_that_begin_move_it_without_a_sample():
    """No telemetry sample is needed to grow."""
    window = make(initial=4)
    for started in range(1, 41):
        window.observe_first_token(0.02, has_telemetry=True, in_use=started, started=started, wanted=True, now=0.0)
    assert window.size >= 41
    assert window.limit is None


def test_an_engine_restarted_with_a_larger_batch_is_found_out():
    """More answers under way than the limit refute it; the second time it counts as unknown and grows fast."""
    engine = Engine(8, make())
    for _ in range(20):
        engine.tick()
    engine.slots = 64
    for _ in range(60):
        engine.tick()
    assert engine.window.limit == 64


def test_an_engine_restarted_with_a_smaller_batch_is_followed_within_seconds():
    """Its queue is seen in two samples, and the peak of what it ran is forgotten after a second."""
    engine = Engine(64, make())
    for _ in range(40):
        engine.tick()
    engine.slots = 8
    for _ in range(12):
        engine.tick()
    assert engine.window.size == 9


def test_one_sample_with_a_queue_says_nothing():
    """Requests that came during a step wait for its end on an idle engine too."""
    window = make(initial=16)
    window.observe(Sample(5, 3), in_use=8, wanted=True, now=0.0)
    window.observe(Sample(8, 0), in_use=8, wanted=True, now=0.25)
    window.observe(Sample(5, 3), in_use=8, wanted=True, now=0.5)
    assert window.size == 16


def test_gauges_that_lie_are_not_believed():
    """Zero for 18 s after a start, while our own ledger has requests out: the window stays."""
    window = make(initial=16)
    for index in range(72):
        window.observe(Sample(0, 0), in_use=16, wanted=True, now=index * 0.25)
    assert window.size == 16


def test_a_missing_gauge_changes_nothing():
    """Only that one is unknown."""
    window = make(initial=16)
    window.observe(Sample(waiting=9), in_use=16, wanted=True, now=0.0)
    window.observe(Sample(running=9), in_use=16, wanted=True, now=0.25)
    assert window.size == 16


def test_a_static_window_never_moves():
    """A number that was set is kept, and all of it is for anyone."""
    window = Window(initial=16, maximum=64, feed=1, static=12)
    for now in range(4):
        window.observe(Sample(4, 30, 0.99, float(now)), in_use=12, wanted=True, now=float(now))
        window.observe_first_token(9.0, has_telemetry=False, in_use=12, started=12, wanted=True, now=float(now))
    window.engine_refused(6)
    assert (window.size, window.limit, window.feed) == (12, 12, 0)


def test_a_share_of_an_engine_is_all_that_counts_when_others_use_it():
    """An engine that runs sixteen, half of them for someone else, runs eight of ours."""
    window = make(initial=24)
    for index in range(3):
        window.observe(Sample(16, 32), in_use=24, wanted=True, now=index * 0.25)
    assert window.limit == 8


def test_a_queue_of_others_alone_is_no_limit_of_ours():
    """With nothing of ours in the engine its queue does not say what it would run of ours."""
    window = make(initial=24)
    for index in range(8):
        window.observe(Sample(16, 32), in_use=0, wanted=False, now=index * 0.25)
    assert (window.limit, window.size) == (None, 24)


def test_answers_that_overlap_in_transit_do_not_make_a_limit_unknown():
    """One has ended in the engine and not yet here while the next one begins: that may look like one more."""
    engine = Engine(16, make())
    for _ in range(12):
        engine.tick()
    for index in range(50):
        engine.window.observe_first_token(
            0.02, has_telemetry=True, in_use=17, started=17, wanted=True, now=engine.now + index
        )
    assert (engine.window.limit, engine.window.size) == (17, 18)


def test_a_full_cache_is_a_limit_in_tokens():
    """Answers that begin prove nothing there (they may have been preempted since); what runs does."""
    window = make(initial=16)
    for index in range(3):
        window.observe(Sample(6, 10, 0.99, float(index)), in_use=16, wanted=True, now=index * 0.25)
    assert (window.limit, window.is_kv_bound) == (6, True)
    window.observe_first_token(0.02, has_telemetry=True, in_use=7, started=7, wanted=True, now=1.0)
    assert window.limit == 6
    window.observe(Sample(7, 0, 0.9, 2.0), in_use=7, wanted=True, now=1.25)
    assert window.limit == 7


def test_without_gauges_it_grows_until_first_tokens_come_later():
    """Gradient: success at a steady time to first token grows it, inflation shrinks it."""
    window = make(initial=4)
    for _ in range(20):
        window.observe_first_token(0.05, has_telemetry=False, in_use=window.size, started=1, wanted=True, now=0.0)
    grown = window.size
    assert grown > 8
    for _ in range(20):
        window.observe_first_token(2.0, has_telemetry=False, in_use=window.size, started=1, wanted=True, now=0.0)
    assert window.size < grown


def test_a_refusal_of_the_engine_is_a_limit():
    """It holds less than we thought; never less than one."""
    window = make(initial=8)
    window.engine_refused(5)
    assert window.size == 4
    for _ in range(5):
        window.engine_refused(1)
    assert window.size == 1


def test_it_does_not_swing():
    """Under steady load and a queue gauge that flickers by one, it stays within one of the limit."""
    engine = Engine(16, make())
    for _ in range(40):
        engine.tick()
    sizes = set()
    for index in range(800):
        engine.now += 0.25
        running = 16 - index % 2
        engine.window.observe(Sample(running, 17 - running), in_use=17, wanted=True, now=engine.now)
        engine.window.observe_first_token(
            0.02, has_telemetry=True, in_use=17, started=running, wanted=True, now=engine.now
        )
        sizes.add(engine.window.size)
    assert sizes <= {16, 17, 18}
