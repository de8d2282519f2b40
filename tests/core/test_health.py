"""Breaker, probes, suspension, wish: when a backend may get work."""

from __future__ import annotations

from prelude_proxy.core.health import BreakerState, Health, HealthPolicy

POLICY = HealthPolicy(unhealthy_after=3, eject_after=2, eject_s=5.0)


def test_a_backend_is_out_until_its_first_probe_succeeds():
    """Nothing is sent to what has never answered."""
    health = Health(POLICY)
    assert not health.is_available(0.0)
    health.probe_succeeded()
    assert health.is_available(0.0)


def test_one_failed_probe_is_not_enough():
    """Out after as many in a row as configured, back with one success."""
    health = Health(POLICY, reachable=True)
    health.probe_failed()
    health.probe_failed()
    assert health.is_available(0.0)
    health.probe_failed()
    assert not health.is_available(0.0)
    health.probe_succeeded()
    assert health.is_available(0.0)


def test_ejection_doubles_and_a_success_ends_it():
    """Closed → open → half open → open for twice as long → half open → closed."""
    health = Health(POLICY, reachable=True)
    health.failed(0.0)
    health.failed(0.0)
    assert health.breaker(4.9) is BreakerState.OPEN
    assert health.next_change(0.0) == 5.0
    assert health.breaker(5.0) is BreakerState.HALF_OPEN
    health.dispatched(5.0)
    assert not health.is_available(5.0), "one trial at a time"
    health.failed(5.0)
    assert health.breaker(14.9) is BreakerState.OPEN
    assert health.breaker(15.0) is BreakerState.HALF_OPEN
    health.dispatched(15.0)
    health.succeeded()
    assert health.breaker(15.0) is BreakerState.CLOSED
    assert health.is_available(15.0)


def test_successes_between_failures_keep_it_closed():
    """Only failures in a row eject."""
    health = Health(POLICY, reachable=True)
    for _ in range(10):
        health.failed(0.0)
        health.succeeded()
    assert health.breaker(0.0) is BreakerState.CLOSED


def test_a_client_that_leaves_frees_the_trial():
    """An undecided trial must not keep the breaker half open for ever."""
    health = Health(POLICY, reachable=True)
    health.failed(0.0)
    health.failed(0.0)
    health.dispatched(5.0)
    health.undecided()
    assert health.is_available(5.0)


def test_suspension_draining_and_disabling():
    """For a moment, for good, by wish."""
    health = Health(POLICY, reachable=True)
    health.suspend(1.0)
    assert not health.is_available(0.5)
    assert health.next_change(0.5) == 1.0
    assert health.is_available(1.0)
    health.draining = True
    assert not health.is_available(1.0)
    health.draining = False
    health.enabled = False
    assert not health.is_available(1.0)
