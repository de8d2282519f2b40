"""The engine in real time: sleeps to the end of each step, then hands out the tokens it wrote."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from prelude_proxy.engine.model import EngineStats, EventKind, Sequence, SequenceState
from prelude_proxy.engine.scheduler import Engine

TIMER_GRAIN_S = 0.001
"""Resolution of the event loop's timers; steps shorter than that are handed out several at a time."""
MAX_CATCH_UP_S = 0.25
"""A process that was stopped for longer resumes where it stood, as an engine would, instead of rushing."""


class Reader(Protocol):
    """Who gets the tokens of a sequence; its `owner`."""

    def deliver(self, sequence: Sequence, num_generated: int, *, ended: bool) -> None:
        """`sequence` has `num_generated` output tokens now; called again whenever there are more. Must not block."""


class EngineService:
    """Runs an `Engine` against a clock. Step ends are absolute, so a late wake-up is made up for and nothing drifts."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        """`clock` in seconds; finer than the event loop's own, which uvloop keeps in whole milliseconds."""
        self._engine = engine
        self._clock = clock
        self._origin_s = clock()
        self._has_work = asyncio.Event()

    def submit(self, sequences: list[Sequence]) -> bool:
        """All sequences of one request join the queue, or none: False, the engine is full.

        Raises:
            ValueError: one of them is longer than the engine allows.
        """
        now_s = self._now_s()
        self._hand_out(now_s)
        for index, sequence in enumerate(sequences):
            if not self._engine.add(sequence, now_s):
                for admitted in sequences[:index]:
                    self._engine.abort(admitted, now_s)
                return False
        self._has_work.set()
        return True

    def abort(self, sequences: list[Sequence]) -> None:
        """Their client left. What has ended already is left alone."""
        now_s = self._now_s()
        self._hand_out(now_s)
        for sequence in sequences:
            self._engine.abort(sequence, now_s)

    def stats(self) -> EngineStats:
        """The engine's figures now."""
        self._hand_out(self._now_s())
        return self._engine.stats()

    async def run(self) -> None:
        """Steps for ever; cancel to stop."""
        while True:
            self._hand_out(self._now_s())
            next_step_s = self._engine.next_step_s()
            if next_step_s == float("inf"):
                self._has_work.clear()
                await self._has_work.wait()
                continue
            delay_s = next_step_s - self._now_s()
            # rounded up to the timer's grain, so that one wake-up suffices; 0: behind, but others must have their turn
            await asyncio.sleep(delay_s + TIMER_GRAIN_S / 2 if delay_s > 0 else 0)

    def _now_s(self) -> float:
        now_s = self._clock() - self._origin_s
        late_s = now_s - self._engine.next_step_s()
        if late_s > MAX_CATCH_UP_S:
            self._origin_s += late_s
            now_s -= late_s
        return now_s

    def _hand_out(self, now_s: float) -> None:
        """Let the engine catch up, and give each running request what it got."""
        engine = self._engine
        steps = engine.num_steps
        events = engine.advance(now_s)
        if engine.num_steps == steps:
            return
        for kind, _, sequence in events:
            if kind is EventKind.FINISHED:
                sequence.owner.deliver(sequence, sequence.generated, ended=True)
        for sequence in engine.running:
            if sequence.state is SequenceState.DECODING:
                sequence.owner.deliver(sequence, engine.generated(sequence), ended=False)
