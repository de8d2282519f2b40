"""Virtual time: a heap of what happens next, the engines, and one request on its way through them.

Every engine has one entry in the heap, for when it next starts or ends a request; a newer one makes the older void.
Between these nothing is computed, so the cost of a run is some ten heap operations a request, however many tokens.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from prelude_proxy.bench.records import Sample
from prelude_proxy.bench.workload import WorkItem
from prelude_proxy.engine.model import EngineStats, Event, EventKind
from prelude_proxy.engine.model import Sequence as EngineSequence
from prelude_proxy.engine.scheduler import Engine
from prelude_proxy.simulator.fleet import Fleet
from prelude_proxy.simulator.prefixes import engine_blocks

if TYPE_CHECKING:
    from prelude_proxy.core.limits import Permit
    from prelude_proxy.core.queues import Ticket

_NEVER_S = float("inf")


class Job:
    """One request under way."""

    __slots__ = (
        "arrived_s", "engine", "expected_tokens", "first_s", "item", "klass", "last_s", "permit", "planned", "sent_s",
        "sequence", "served_as", "status", "ticket",
    )  # fmt: skip

    def __init__(self, item: WorkItem) -> None:
        self.item = item
        self.arrived_s = item.at_s
        """At the front door."""
        self.sent_s = 0.0
        """From the front door to the engine that has it."""
        self.engine = -1
        self.sequence: EngineSequence | None = None
        self.first_s: float | None = None
        self.last_s: float | None = None
        """First token and end of the answer, at the client."""
        self.status = 0
        self.klass = 0
        self.planned = 0
        self.expected_tokens = item.output_tokens
        self.served_as: str | None = None
        self.ticket: Ticket | None = None
        self.permit: Permit | None = None


class Policy(Protocol):
    """A front door. It sends jobs with `World.send` and is told what becomes of them, when it could know."""

    uses_proxy: bool
    wants_samples: bool

    def start(self, world: World) -> None:
        """Before the first arrival."""
        ...

    def arrive(self, job: Job, now: float) -> None:
        """A request is at the front door."""
        ...

    def first_token(self, job: Job, now: float) -> None:
        """The first token of its answer passes the front door."""
        ...

    def finished(self, job: Job, now: float) -> None:
        """The end of its answer passes the front door."""
        ...

    def refused(self, job: Job, now: float) -> None:
        """The engine's own admission control said no."""
        ...

    def sampled(self, engine: int, stats: EngineStats, now: float) -> None:
        """A telemetry sample of an engine."""
        ...

    def gauges(self) -> dict[str, float]:
        """What to record of its insides."""
        ...


class World:
    """The clock, the engines, and all that is under way. `warmup` is served to its end before `plan` begins."""

    def __init__(self, plan: Sequence[WorkItem], fleet: Fleet, policy: Policy, warmup: Sequence[WorkItem] = ()) -> None:
        self.fleet = fleet
        self.engines = [Engine(spec.config, spec.profile, prefix_cache=spec.prefix_cache) for spec in fleet.engines]
        self.jobs = [Job(item) for item in plan]
        self.plan_at_s = 0.0 if not warmup else _NEVER_S
        """When the plan begins."""
        self.num_open = len(self.jobs) + len(warmup)
        self.samples: list[Sample] = []
        self._policy = policy
        self._proxy_s = fleet.proxy_s if policy.uses_proxy else 0.0
        self._heap: list[tuple[float, int, Callable[[Any, float], None], Any]] = []
        self._serial = 0
        self._due = [_NEVER_S] * len(self.engines)
        self._arrivals = iter([Job(item) for item in warmup] if warmup else self.jobs)

    def run(self, on_done: Callable[[int], None] | None = None) -> None:
        """Until every request has ended. `on_done` is told now and then how many of the plan still have not."""
        self._policy.start(self)
        self._next_arrival(None, 0.0)
        for index in range(len(self.engines)) if self._policy.wants_samples else ():
            # spread over the interval, as pollers that started at different times are
            self.at(self.fleet.sample_every_s * (index + 1) / len(self.engines), self._sample, index)
        self.at(0.0, self._record, None)
        heap, pop = self._heap, heapq.heappop
        count = 0
        while self.num_open:
            now, _, action, argument = pop(heap)
            action(argument, now)
            count += 1
            if on_done is not None and not count % 65_536:
                on_done(min(self.num_open, len(self.jobs)))

    def at(self, time_s: float, action: Callable[[Any, float], None], argument: Any) -> None:
        """Call `action(argument, time_s)` when it is that late."""
        self._serial += 1
        heapq.heappush(self._heap, (time_s, self._serial, action, argument))

    def send(self, job: Job, engine: int, now: float, priority: int = 0) -> None:
        """From the front door to an engine."""
        job.engine = engine
        job.sent_s = now
        item, spec = job.item, self.fleet.engines[engine]
        job.sequence = EngineSequence(
            prompt_tokens=item.prompt_tokens,
            output_tokens=item.output_tokens,
            priority=priority,
            prefix=engine_blocks(item, spec.config.block_size) if spec.prefix_cache and item.prefix_blocks else (),
            owner=job,
        )
        self.at(now + self.fleet.network_s + self.fleet.api_s, self._deliver, job)

    def shed(self, job: Job, status: int, now: float) -> None:
        """The front door itself answers."""
        job.status = status
        job.last_s = now + self._proxy_s
        self._ended(now)

    def generated(self, job: Job, now: float) -> int:
        """Output tokens its engine has made by `now`."""
        engine = self.engines[job.engine]
        self._take(engine.advance(now))
        assert job.sequence is not None
        return engine.generated(job.sequence)

    def step_s(self, job: Job) -> float:
        """How long a step of its engine takes at present."""
        engine = self.engines[job.engine]
        return max(1e-4, engine.next_step_s() - engine.clock_s)

    # --- what happens -------------------------------------------------------------------------------------------------

    def _next_arrival(self, job: Job | None, now: float) -> None:
        following = next(self._arrivals, None)
        if following is not None:
            following.arrived_s += self._proxy_s
            self.at(following.arrived_s, self._next_arrival, following)
        if job is not None:
            self._policy.arrive(job, now)

    def _deliver(self, job: Job, now: float) -> None:
        engine = self.engines[job.engine]
        self._take(engine.advance(now))
        assert job.sequence is not None
        if not engine.add(job.sequence, now):
            self.at(now + self.fleet.network_s, self._refused, job)
        self._rearm(job.engine)

    def _refused(self, job: Job, now: float) -> None:
        self._policy.refused(job, now)

    def _wake(self, index: int, now: float) -> None:
        if self._due[index] != now:
            return  # a newer entry replaced this one
        self._due[index] = _NEVER_S
        self._take(self.engines[index].advance(now))
        self._rearm(index)

    def _rearm(self, index: int) -> None:
        due = self.engines[index].next_event_s()
        if due != self._due[index]:
            self._due[index] = due
            if due < _NEVER_S:
                self.at(due, self._wake, index)

    def _take(self, events: list[Event]) -> None:
        back_s = self.fleet.network_s
        for kind, time_s, sequence in events:
            if kind is EventKind.FIRST_TOKEN:
                self.at(time_s + back_s, self._first_token, sequence.owner)
            elif kind is EventKind.FINISHED:
                self.at(time_s + back_s, self._finished, sequence.owner)

    def _first_token(self, job: Job, now: float) -> None:
        if job.first_s is None:  # a preempted request starts to stream only once
            job.first_s = now + self._proxy_s
            self._policy.first_token(job, now)

    def _finished(self, job: Job, now: float) -> None:
        job.last_s = now + self._proxy_s
        job.status = 200
        assert job.sequence is not None
        job.sequence.prefix = ()  # up to thousands of hashes, of no use any more
        self._ended(now)
        self._policy.finished(job, now)

    def _ended(self, now: float) -> None:
        self.num_open -= 1
        if self.num_open == len(self.jobs) and self.plan_at_s == _NEVER_S:
            self.plan_at_s = now
            for job in self.jobs:
                job.arrived_s += now
            self._arrivals = iter(self.jobs)
            self._next_arrival(None, now)

    def _sample(self, index: int, now: float) -> None:
        engine = self.engines[index]
        self._take(engine.advance(now))
        stats = engine.stats()
        if self.fleet.sample_lag_s:
            self.at(now + self.fleet.sample_lag_s, self._sampled, (index, stats))
        else:
            self._policy.sampled(index, stats, now)
        self.at(now + self.fleet.sample_every_s, self._sample, index)

    def _sampled(self, given: tuple[int, EngineStats], now: float) -> None:
        self._policy.sampled(given[0], given[1], now)

    def _record(self, _: None, now: float) -> None:
        stats = [engine.stats() for engine in self.engines]
        values = {
            "running": float(sum(one.num_running for one in stats)),
            "waiting": float(sum(one.num_waiting for one in stats)),
            "kv": sum(one.kv_usage for one in stats) / len(stats),
            "prompt_tokens": float(sum(one.prompt_tokens for one in stats)),
            "prefix_hits_tokens": float(sum(one.prefix_hits_tokens for one in stats)),
            **self._policy.gauges(),
        }
        if now >= self.plan_at_s:
            self.samples.append(Sample(now - self.plan_at_s, values))
        self.at(now + self.fleet.sample_every_s, self._record, None)
