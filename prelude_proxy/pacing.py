"""Long streams in larger pieces while other requests wait.

Every piece of a stream costs a read, a write and two wake-ups here, at the client and at whatever stands between,
however little is in it. While requests are held that is time taken from all of them, where proxy and engine share a
machine from the engine itself. So a stream of a class with a `stream_interval_ms` that is faster than that rests after
each piece, and what came meanwhile goes on as one: the bytes are the same, only when they leave is not. (A network
card's interrupt moderation; vLLM's `--stream-interval` does the same by count, in the engine, for everybody.)

Never held back: the beginning of an answer, a stream slower than the interval, and anything while nobody waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

_GRAIN: Final = 0.25
"""Of the interval: streams due within that are woken together."""


class Pacer:
    """Wakes the resting streams of one class."""

    def __init__(self, interval_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self.interval_s: Final = interval_s
        self._loop = loop
        self._resting: deque[tuple[float, Callable[[], None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def now(self) -> float:
        """Seconds, of the loop's clock."""
        return self._loop.time()

    def rest(self, resume: Callable[[], None]) -> None:
        """Call `resume` an interval from now, or up to a quarter of it sooner."""
        due = self._loop.time() + self.interval_s
        self._resting.append((due, resume))
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._wake)

    def close(self) -> None:
        """Wake nobody any more."""
        self._resting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        resting = self._resting
        until = self._loop.time() + _GRAIN * self.interval_s
        while resting and resting[0][0] <= until:
            resting.popleft()[1]()
        self._timer = self._loop.call_at(resting[0][0], self._wake) if resting else None
