"""The one timer of the dispatcher."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from prelude_proxy.core.admission import Admission, DropReason, QueueBounds
from prelude_proxy.core.catalog import Catalog
from prelude_proxy.core.domain import ClassSpec
from prelude_proxy.core.limits import PoolSlots
from prelude_proxy.core.queues import Ticket
from prelude_proxy.dispatcher import Dispatcher
from prelude_proxy.errors import ShedError

from .fleets import static_backend

uvloop = pytest.importorskip("uvloop")


def test_a_time_that_has_passed_is_a_timer_like_any_other(monkeypatch):
    """The loop was late: what is due already ends at once, once, and does not stand in the way of what is due later."""
    pool = PoolSlots("p", [ClassSpec("only", 0, reserve=0.0)])
    admission = Admission([pool], rng=random.Random(1), bounds=QueueBounds())
    catalog = Catalog([pool], models={}, aliases={})
    backend = static_backend(pool, 0, 1)
    admission.add_backend(backend, time.monotonic())
    catalog.reattach(pool)

    real_clock, lags_s = time.monotonic, []
    monkeypatch.setattr(time, "monotonic", lambda: real_clock() - (lags_s.pop() if lags_s else 0.0))

    def ticket(number: int, due_in_s: float) -> Ticket:
        now = time.monotonic()
        return Ticket(number, catalog.resolve("m"), 0, arrival=now, deadline=now + due_in_s)

    async def late(loop: asyncio.AbstractEventLoop) -> list[BaseException]:
        dispatcher = Dispatcher(admission, loop)
        async with dispatcher.admit(ticket(1, 60.0)):
            held = [dispatcher.wait_permit(ticket(2, -2.0)), dispatcher.wait_permit(ticket(3, 0.05))]
            tasks = [loop.create_task(one) for one in held]
            lags_s.append(5.0)  # between its offer and the setting of the timer the deadline of the first passes
            await asyncio.sleep(0)
            assert admission.num_held == 2
            for _ in range(3):
                dispatcher.changed(backend)
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        dispatcher.close()
        return ended

    loop = uvloop.new_event_loop()
    try:
        ended = loop.run_until_complete(late(loop))
    finally:
        loop.close()
    assert [type(error) for error in ended] == [ShedError, ShedError]
    assert [error.reason for error in ended] == [DropReason.TTL_EXPIRED] * 2
    assert admission.num_held == 0
