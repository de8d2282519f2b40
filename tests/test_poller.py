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
            await poller._every(SETTINGS.interval_s, nothing)
    first = sorted(each[0] for each in pauses)
    assert 0.5 <= first[0] < 0.6
    assert 1.4 < first[-1] <= 1.5
    assert all(0.95 <= pause_s <= 1.05 for each in pauses for pause_s in each[1:])


@pytest.mark.parametrize(
    ("limit", "num_in_use", "num_scrapes"),
    [(None, 0, 10), (16, 16, 10), (None, 9, 40), (None, 8, 10)],
    ids=["idle", "limit known", "filling up", "half empty"],
)
async def test_a_steady_window_is_looked_at_less_often(monkeypatch, limit, num_in_use, num_scrapes):
    """One time in four, but every time while an engine fills whose limit is not known."""
    slots = SimpleNamespace(num_in_use=num_in_use, window=SimpleNamespace(limit=limit, size=16))
    poller = Poller(SimpleNamespace(slots=slots), None, SETTINGS, dispatcher=None, catalog=None)
    poller._num_steady = 8
    scrapes = []
    monkeypatch.setattr(poller, "scrape", lambda: nothing(scrapes.append(1)))
    for _ in range(40):
        await poller.scrape_if_due()
    assert len(scrapes) == num_scrapes


async def nothing(_: object = None) -> None:
    """An action that is done at once."""
