"""Streams are called after their interval, neighbours together, and never after the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from prelude_proxy.pacing import Pacer


class Handle:
    """A timer of `Clock`."""

    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at, self.call, self.is_cancelled = at, call, False

    def cancel(self) -> None:
        self.is_cancelled = True


class Clock:
    """The two methods of an event loop that a pacer uses, in virtual time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Handle] = []

    def time(self) -> float:
        return self.now

    def call_at(self, at: float, call: Callable[[], None]) -> Handle:
        self.timers.append(Handle(at, call))
        return self.timers[-1]

    def run_until(self, until: float) -> None:
        while due := [timer for timer in self.timers if timer.at <= until and not timer.is_cancelled]:
            timer = min(due, key=lambda each: each.at)
            self.timers.remove(timer)
            self.now = max(self.now, timer.at)
            timer.call()
        self.now = until


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def woken() -> list[str]:
    return []


def test_each_is_woken_once_after_its_interval(clock, woken):
    """Not before three quarters of it, and not after all of it."""
    pacer = Pacer(1.0, clock)
    pacer.call_later(lambda now: woken.append("a"))
    clock.run_until(100.5)
    pacer.call_later(lambda now: woken.append("b"))
    clock.run_until(100.99)
    assert woken == []
    clock.run_until(101.0)
    assert woken == ["a"]
    clock.run_until(101.49)
    assert woken == ["a"]
    clock.run_until(110.0)
    assert woken == ["a", "b"]
    assert not clock.timers


def test_neighbours_are_woken_together(clock, woken):
    """One timer serves all that are due within a quarter of an interval."""
    pacer = Pacer(1.0, clock)
    for index in range(3):
        pacer.call_later(lambda now, index=index: woken.append(index))
        clock.run_until(clock.now + 0.1)
    clock.run_until(101.0)
    assert woken == [0, 1, 2]
    assert not clock.timers


def test_one_that_is_woken_may_rest_again(clock, woken):
    """As a fast stream does, interval after interval."""
    pacer = Pacer(1.0, clock)

    def again(now: float) -> None:
        woken.append(now)
        pacer.call_later(again)

    pacer.call_later(again)
    clock.run_until(103.5)
    assert woken == [101.0, 102.0, 103.0]


def test_nobody_is_woken_after_the_end(clock, woken):
    """Closing forgets who rests, and the timer."""
    pacer = Pacer(1.0, clock)
    pacer.call_later(lambda now: woken.append("a"))
    pacer.close()
    clock.run_until(110.0)
    assert woken == []
