"""Measures that forget: how fast a queue is served, and the least of the last values."""

from __future__ import annotations

import pytest

from prelude_proxy.core.rates import DecayingFloor, DrainRate


def served(drain: DrainRate, times: list[float], work: float = 10.0) -> None:
    for at in times:
        drain.serve(at, work)


def test_the_drain_rate_is_work_over_time_waited():
    """Ten of work every half a second are twenty a second."""
    drain = DrainRate()
    drain.fill(100.0)
    served(drain, [100.0 + 0.5 * step for step in range(1, 41)])
    assert drain.per_second(120.0) == pytest.approx(20.0)
    assert drain.num_served == 40


def test_time_without_a_queue_does_not_count():
    """An hour in which nothing waited does not make the queue slow."""
    drain = DrainRate()
    for start in (0.0, 3600.0, 7200.0):
        drain.fill(start)
        served(drain, [start + 1.0, start + 2.0])
        drain.empty(start + 2.0)
    assert drain.per_second(9999.0) == pytest.approx(10.0)


def test_who_goes_the_moment_it_comes_says_nothing():
    """What never waited is no evidence of how long a wait would be."""
    drain = DrainRate()
    for now in range(50):
        drain.fill(float(now))
        drain.serve(float(now), 10.0)
        drain.empty(float(now))
    assert drain.per_second(50.0) is None
    assert drain.num_served == 0


def test_a_queue_that_stands_still_shows_it():
    """While something waits and nothing is served the rate falls, also when the queue empties by itself."""
    drain = DrainRate()
    drain.fill(0.0)
    served(drain, [float(step) for step in range(1, 21)])
    busy = drain.per_second(20.0)
    assert busy is not None
    still = drain.per_second(120.0)
    assert still is not None
    assert still < busy / 5
    drain.empty(120.0)
    assert drain.per_second(500.0) == pytest.approx(still)


def test_the_drain_rate_follows_a_change():
    """Twenty served at the new rate are enough to forget most of the old."""
    drain = DrainRate()
    drain.fill(0.0)
    served(drain, [float(step) for step in range(1, 101)])
    served(drain, [100.0 + 0.1 * step for step in range(1, 61)])
    assert drain.per_second(106.0) == pytest.approx(100.0, rel=0.4)


def test_the_floor_falls_at_once_and_rises_slowly():
    """One good value counts fully, one bad one for a twentieth."""
    floor = DecayingFloor()
    assert floor.value == 0.0
    for value, expected in ((1.0, 1.0), (0.2, 0.2), (1.2, 0.25), (0.1, 0.1)):
        floor.add(value)
        assert floor.value == pytest.approx(expected)
    for _ in range(200):
        floor.add(0.5)
    assert floor.value == pytest.approx(0.5, rel=0.01)
