"""The one timer of the dispatcher."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from prelude_proxy.dispatcher import Dispatcher

uvloop = pytest.importorskip("uvloop")


def test_a_time_that_has_passed_is_a_timer_like_any_other():
    """The loop was late: what is due already fires at once, once, and does not stand in the way of the next event."""
    ticks = []

    async def late(loop: asyncio.AbstractEventLoop) -> None:
        due = [time.monotonic() - 5.0]
        admission = SimpleNamespace(
            num_held=1,
            next_deadline=lambda now: due[0] if due else None,
            changed=lambda backend, now: [],
            tick=lambda now: ticks.append(due.pop()) or [],
        )
        dispatcher = Dispatcher(admission, loop)
        for _ in range(3):
            dispatcher.changed(None)
        await asyncio.sleep(0.1)
        dispatcher.close()

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(late(loop))
    finally:
        loop.close()
    assert len(ticks) == 1
