"""When the poller looks at its backends; what it makes of the answers is in the journeys."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from prelude_proxy.poller import Poller, PollerSettings

SETTINGS = PollerSettings(
    interval_s=1.0,
    timeout_s=1.0,
    stale_after_s=3.0,
    health_interval_s=2.0,
    health_timeout_s=1.0,
    discovery_interval_s=9.0,
)


async def test_backends_are_not_looked_at_in_step(monkeypatch):
    """All begin at once; the first pause puts them anywhere within an interval, later ones keep them there."""
    pauses: list[list[float]] = []

    async def sleep(pause_s: float) -> None:
        pauses[-1].append(pause_s)
        if len(pauses[-1]) == 3:
            raise asyncio.CancelledError

    monkeypatch.setattr("prelude_proxy.poller.asyncio.sleep", sleep)
    for _ in range(200):
        pauses.append([])
        clock = SimpleNamespace(now=lambda: 0.0)
        poller = Poller(SimpleNamespace(), None, SETTINGS, dispatcher=clock, catalog=None)
        with pytest.raises(asyncio.CancelledError):
            await poller._every(lambda: SETTINGS.interval_s, nothing)
    first = sorted(each[0] for each in pauses)
    assert 0.5 <= first[0] < 0.6
    assert 1.4 < first[-1] <= 1.5
    assert all(0.95 <= pause_s <= 1.05 for each in pauses for pause_s in each[1:])


async def nothing() -> None:
    """An action that is done at once."""
