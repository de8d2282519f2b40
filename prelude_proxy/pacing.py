"""Long streams in larger pieces while other requests wait.

Every piece of a stream costs a write here, a read at the client and a wake-up there, however little is in it. While
requests are held that is time taken from all of them; where proxy and engine share a machine, from the engine itself.
So pieces of a stream of a class with a `stream_interval_ms` that follow each other faster than that are kept for so
long and go on as one: the bytes are the same, only when they leave is not. (A network card's interrupt moderation;
vLLM's `--stream-interval` does the same by count, in the engine, for everybody.)

Never kept back: the beginning of an answer, its end, a slower stream, and anything while nobody waits.
Everything is still read, counted and acted upon as it arrives, so a slot is free the moment its answer ends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

_GRAIN: Final = 0.25
"""Of the interval: streams due within that are served together."""


class Pacer:
    """The timer of the streams of one class."""

    def __init__(self, interval_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self.interval_s: Final = interval_s
        self._loop = loop
        self._waiting: deque[tuple[float, Callable[[float], None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def now(self) -> float:
        """Seconds, of the loop's clock."""
        return self._loop.time()

    def call_later(self, call: Callable[[float], None]) -> None:
        """Call `call(now)` an interval from now, or up to a quarter of it sooner."""
        due = self._loop.time() + self.interval_s
        self._waiting.append((due, call))
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._serve)

    def close(self) -> None:
        """Call nobody any more."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _serve(self) -> None:
        waiting = self._waiting
        now = self._loop.time()
        until = now + _GRAIN * self.interval_s
        while waiting and waiting[0][0] <= until:
            waiting.popleft()[1](now)
        self._timer = self._loop.call_at(waiting[0][0], self._serve) if waiting else None
