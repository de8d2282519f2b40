"""Admission with part of the fleet away: what is down costs nothing, what is only suspended is let in by time."""

from __future__ import annotations

import random

import pytest

from prelude_proxy.core import health
from prelude_proxy.core.admission import Admission, Dispatch
from prelude_proxy.core.domain import ClassSpec
from prelude_proxy.core.health import Health, HealthPolicy
from prelude_proxy.core.limits import PoolSlots, Route
from prelude_proxy.core.outcome import Outcome
from prelude_proxy.core.queues import Ticket

from ..fleets import static_backend


def fleet(*reachable: bool) -> tuple[Admission, Route]:
    pool = PoolSlots("p", [ClassSpec("only", 0, reserve=0.0)])
    admission = Admission([pool], rng=random.Random(1))
    for index, is_up in enumerate(reachable):
        backend = static_backend(pool, index, 1, health=HealthPolicy(unhealthy_after=1), reachable=is_up)
        admission.add_backend(backend, 0.0)
    route = Route(pool, None)
    route.attach(pool.backends)
    return admission, route


def offer(admission: Admission, route: Route, number: int, now: float) -> list[Dispatch]:
    return admission.offer(Ticket(number, route, 0, arrival=now, deadline=now + 60.0), now)


@pytest.mark.skipif(not str(health.__file__).endswith(".py"), reason="methods of compiled classes cannot be watched")
def test_backends_that_are_down_are_not_looked_at_for_a_request(monkeypatch):
    """Half of a large fleet may be down for days: a request costs the same until a probe says otherwise."""
    admission, route = fleet(True, *[False] * 50)
    down = {id(backend.health) for backend in route.pool.backends[1:]}
    looks = []
    real = Health.is_available
    monkeypatch.setattr(Health, "is_available", lambda self, now: (looks.append(id(self)), real(self, now))[1])
    for number in range(20):
        (dispatch,) = offer(admission, route, number, now=float(number))
        admission.release(dispatch.permit, Outcome.OK, number + 0.5)
    assert looks
    assert not down.intersection(looks)
    returned = route.pool.backends[7]
    returned.health.probe_succeeded()
    admission.changed(returned, 20.0)
    assert {offer(admission, route, number, 21.0)[0].permit.backend.name for number in (20, 21)} == {"b0", "b7"}


def test_a_suspended_backend_comes_back_by_time_alone():
    """No event is needed: the held ticket names the time, and the tick at that time lets it out."""
    admission, route = fleet(True)
    backend = route.pool.backends[0]
    backend.health.suspend(5.0)
    admission.changed(backend, 0.0)
    assert offer(admission, route, 0, 1.0) == []
    assert admission.next_deadline(1.0) == 5.0
    assert admission.tick(4.9) == []
    (dispatch,) = admission.tick(5.1)
    assert dispatch.permit.backend is backend


def test_a_backend_that_went_down_while_suspended_waits_for_its_probe():
    """The end of the suspension alone does not bring it back; the probe does."""
    admission, route = fleet(True)
    backend = route.pool.backends[0]
    backend.health.suspend(5.0)
    backend.health.probe_failed()
    admission.changed(backend, 0.0)
    assert offer(admission, route, 0, 1.0) == []
    assert admission.tick(6.0) == []
    backend.health.probe_succeeded()
    (dispatch,) = admission.changed(backend, 7.0)
    assert dispatch.permit.backend is backend
