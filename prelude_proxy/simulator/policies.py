"""Front doors that know nothing of classes, and one that knows everything: what the proxy is measured against."""

from __future__ import annotations

import heapq
import random

import numpy as np

from prelude_proxy.engine.model import EngineStats
from prelude_proxy.simulator.world import Job, World


class Direct:
    """Requests go to an engine at once and queue there. The base of the load balancers."""

    uses_proxy = False
    wants_samples = False

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"{seed}/routing")
        self._world: World

    def start(self, world: World) -> None:
        """Learn how many engines there are; nobody has a request yet."""
        self._world = world
        self._out = np.zeros(len(world.engines), dtype=np.int64)

    def choose(self, job: Job) -> int:
        """The engine for `job`."""
        raise NotImplementedError

    def arrive(self, job: Job, now: float) -> None:
        """Send it on."""
        engine = self.choose(job)
        self._out[engine] += 1
        self._world.send(job, engine, now)

    def first_token(self, job: Job, now: float) -> None:
        """Nothing to do."""

    def finished(self, job: Job, now: float) -> None:
        """One fewer is out."""
        self._out[job.engine] -= 1

    def refused(self, job: Job, now: float) -> None:
        """The engine's refusal is passed on to the client."""
        self._out[job.engine] -= 1
        self._world.shed(job, 503, now)

    def sampled(self, engine: int, stats: EngineStats, now: float) -> None:
        """Not asked for."""

    def gauges(self) -> dict[str, float]:
        """Nothing but the engines' own."""
        return {}


class LeastConnections(Direct):
    """Fewest requests out over the whole fleet (nginx `least_conn`, HAProxy `leastconn`); one engine: just FCFS."""

    def choose(self, job: Job) -> int:
        """The engine with fewest; ties in random order, so that no herd runs to the first."""
        start = int(self._rng.random() * len(self._out))
        best = int(self._out[start:].argmin()) + start
        if start:
            other = int(self._out[:start].argmin())
            best = other if self._out[other] < self._out[best] else best
        return best


class LeastRequest(Direct):
    """The better of two random engines by requests out (Envoy's `LEAST_REQUEST`)."""

    def choose(self, job: Job) -> int:
        """Two are drawn, the one with fewer taken."""
        count = len(self._out)
        first, second = int(self._rng.random() * count), int(self._rng.random() * count)
        return first if self._out[first] <= self._out[second] else second


class RoundRobin(Direct):
    """Each engine in turn."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._last = -1

    def choose(self, job: Job) -> int:
        """The next one."""
        self._last = (self._last + 1) % len(self._out)
        return self._last


class ShortestFirst(Direct):
    """One queue, perfect lengths: the shortest goes to whichever engine has a free batch slot. Engines are kept full.

    Without preemption, so "shortest remaining" is the shortest. One request more than the batch holds is sent, so that
    a slot is not idle for the way there and back. A bound to compare with, not a thing that can be built.
    """

    uses_proxy = True

    def start(self, world: World) -> None:
        """All slots are free."""
        super().start(world)
        self._held: list[tuple[int, int, Job]] = []
        self._serial = 0
        self._free = [(0, index) for index in range(len(world.engines))]
        self._limits = [spec.config.max_num_seqs + 1 for spec in world.fleet.engines]

    def arrive(self, job: Job, now: float) -> None:
        """Hold it until its turn, which may be now."""
        self._serial += 1
        heapq.heappush(self._held, (job.item.output_tokens, self._serial, job))
        self._fill(now)

    def finished(self, job: Job, now: float) -> None:
        """A slot is free."""
        super().finished(job, now)
        self._offer(job.engine)
        self._fill(now)

    def gauges(self) -> dict[str, float]:
        """How many it holds."""
        return {"classes.all.held": float(len(self._held))}

    def _offer(self, engine: int) -> None:
        if self._out[engine] < self._limits[engine]:
            heapq.heappush(self._free, (int(self._out[engine]), engine))

    def _fill(self, now: float) -> None:
        while self._held and self._free:
            count, engine = heapq.heappop(self._free)
            if count != self._out[engine]:
                continue  # written down before it changed
            job = heapq.heappop(self._held)[2]
            self._out[engine] += 1
            self._offer(engine)
            self._world.send(job, engine, now)
