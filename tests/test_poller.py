"""When the poller looks at its backends; what it makes of the answers is in the journeys."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest

from prelude_proxy.poller import Poller, PollerSettings

SETTINGS = PollerSettings(
    interval_s=1.0,
    steady_interval_s=4.0,
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


@pytest.mark.parametrize(
    ("limit", "num_in_use", "num_looks", "num_scrapes"),
    [(None, 0, 40, 10), (16, 16, 10, 10), (None, 9, 40, 40), (None, 8, 40, 10)],
    ids=["idle", "limit known", "filling up", "half empty"],
)
async def test_a_steady_window_is_scraped_less_often(monkeypatch, limit, num_in_use, num_looks, num_scrapes):
    """Every `steady_interval_s`; while an engine may fill whose limit is not known, a look is taken at `interval_s`."""
    slots = SimpleNamespace(num_in_use=num_in_use, window=SimpleNamespace(limit=limit, size=16))
    now = 0.0
    clock = SimpleNamespace(now=lambda: now)
    poller = Poller(SimpleNamespace(slots=slots), None, SETTINGS, dispatcher=clock, catalog=None)
    poller._num_steady = 8
    scrapes: list[float] = []
    looks: list[float] = []

    async def scrape() -> None:
        poller._scraped_at = now
        scrapes.append(now)

    async def sleep(pause_s: float) -> None:
        nonlocal now
        now += pause_s
        looks.append(now)
        if now >= 40 * SETTINGS.interval_s:
            raise asyncio.CancelledError

    monkeypatch.setattr(poller, "scrape", scrape)
    monkeypatch.setattr("prelude_proxy.poller.asyncio.sleep", sleep)
    monkeypatch.setattr("prelude_proxy.poller.random.uniform", lambda *_: 1.0)
    with pytest.raises(asyncio.CancelledError):
        await poller._every(poller._scrape_pause_s, poller.scrape_if_due)
    assert (len(looks), len(scrapes)) == (num_looks, num_scrapes)


@pytest.mark.parametrize("stretch", [0.95, 1.05])
async def test_a_window_whose_limit_is_known_is_scraped_after_every_pause(monkeypatch, stretch):
    """However long the pause is beside `interval_s`, and however it was stretched: none is slept through twice."""
    slots = SimpleNamespace(num_in_use=0, window=SimpleNamespace(limit=16, size=16))
    now = 0.0
    clock = SimpleNamespace(now=lambda: now)
    settings = replace(SETTINGS, steady_interval_s=40.0)
    poller = Poller(SimpleNamespace(slots=slots), None, settings, dispatcher=clock, catalog=None)
    poller._num_steady = 8
    scrapes: list[float] = []

    async def scrape() -> None:
        poller._scraped_at = now
        scrapes.append(now)

    monkeypatch.setattr(poller, "scrape", scrape)
    for _ in range(5):
        await poller.scrape_if_due()
        now += stretch * poller._scrape_pause_s()
    assert scrapes == pytest.approx([stretch * 40.0 * index for index in range(5)])


async def nothing() -> None:
    """An action that is done at once."""
