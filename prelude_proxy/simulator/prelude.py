"""The proxy's core as a policy: what `dispatcher.py` does with a loop, done in virtual time.

Offer on arrival, send what is dispatched, tell of first tokens and ends, re-charge streams that outgrow their class,
hand in telemetry samples, and call `tick` when the core asks for it. Every decision is `core.admission.Admission`'s.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from prelude_proxy.core.admission import Admission, Decision, Dispatch, DropReason, QueueBounds
from prelude_proxy.core.affinity import Affinity, AffinityPolicy, Ties
from prelude_proxy.core.classify import placed, promotions
from prelude_proxy.core.deadlines import patience_of
from prelude_proxy.core.domain import ClassSpec
from prelude_proxy.core.health import Health, HealthPolicy
from prelude_proxy.core.limits import BackendSlots, PoolSlots, Route
from prelude_proxy.core.outcome import Outcome
from prelude_proxy.core.queues import Ticket
from prelude_proxy.core.telemetry import Sample
from prelude_proxy.core.window import Window
from prelude_proxy.engine.model import EngineStats
from prelude_proxy.simulator.forecasters import Forecaster
from prelude_proxy.simulator.prefixes import chain
from prelude_proxy.simulator.world import Job, World

_GRAIN_S = 0.001
_FEW_ENGINES = 12


@dataclass(frozen=True, slots=True)
class PreludeSettings:
    """What of the proxy's configuration matters here; same words, same defaults."""

    classes: tuple[ClassSpec, ...]
    initial_window: int = 16
    max_window: int = 4096
    static_window: int | None = None
    feed: int = 1
    reserve_beta: float = 1.0
    max_reserve: float = 0.75
    bounds: QueueBounds = field(default_factory=QueueBounds)
    affinity: AffinityPolicy | None = field(default_factory=AffinityPolicy)


class Prelude:
    """The class-aware front door."""

    uses_proxy = True
    wants_samples = True

    def __init__(self, settings: PreludeSettings, forecaster: Forecaster, seed: int) -> None:
        self._settings = settings
        self._classes = settings.classes
        self._index = {spec.name: index for index, spec in enumerate(self._classes)}
        self._promotions = promotions(self._classes)
        self._forecaster = forecaster
        self._pool = PoolSlots("default", self._classes, beta=settings.reserve_beta)
        if settings.affinity is not None:
            self._pool.affinity = Affinity(settings.affinity)
        self._route = Route(self._pool, None)
        self.admission = Admission([self._pool], rng=random.Random(f"{seed}/routing"), bounds=settings.bounds)
        self._tick_at: float | None = None
        self._ids = itertools.count()
        self._world: World

    @property
    def backends(self) -> Sequence[BackendSlots]:
        """The engines as the core sees them."""
        return self._pool.backends

    def start(self, world: World) -> None:
        """One backend an engine, all up."""
        self._world = world
        settings = self._settings
        for index in range(len(world.engines)):
            window = Window(
                initial=settings.initial_window,
                maximum=settings.max_window,
                feed=settings.feed,
                static=settings.static_window,
            )
            health = Health(HealthPolicy(), reachable=True)
            backend = BackendSlots(
                index, f"engine-{index}", self._pool, window, health, max_reserve=settings.max_reserve
            )
            self.admission.add_backend(backend, 0.0)
        self._route.attach(self._pool.backends)

    def arrive(self, job: Job, now: float) -> None:
        """Classify and offer."""
        verdict = placed(self._forecaster.classify(job.item, now), self._index, self.admission.num_held_of)
        job.served_as = verdict.name
        job.klass = self._index[verdict.name]
        job.planned = self._index[verdict.likeliest]
        job.expected_tokens = max(1, round(verdict.expected_tokens))
        self._offer(job, now)

    def first_token(self, job: Job, now: float) -> None:
        """Tell the core; watch streams that will outgrow their class."""
        assert job.permit is not None
        decisions = self.admission.first_token(job.permit, now - job.sent_s, has_telemetry=True, now=now)
        self._apply(decisions, now)
        self._watch(job, now)

    def finished(self, job: Job, now: float) -> None:
        """Give the slot back, learn the length."""
        assert job.permit is not None
        self._forecaster.ended(job.item, now)
        self._apply(self.admission.release(job.permit, Outcome.OK, now), now)

    def refused(self, job: Job, now: float) -> None:
        """The engine is full: the request is offered again, in its old place."""
        assert job.permit is not None
        self._apply(self.admission.release(job.permit, Outcome.ENGINE_BUSY, now), now)
        self._offer(job, now)

    def sampled(self, engine: int, stats: EngineStats, now: float) -> None:
        """Hand it in as a scrape would have read it."""
        sample = Sample(
            running=float(stats.num_running),
            waiting=float(stats.num_waiting),
            kv_usage=stats.kv_usage,
            preemptions=float(stats.num_preemptions),
            generation_tokens=float(stats.generation_tokens),
        )
        self._apply(self.admission.observe(self._pool.backends[engine], sample, now), now)

    def gauges(self) -> dict[str, float]:
        """Held and in flight by class; windows and reserves where there are few engines."""
        values: dict[str, float] = {}
        for index, spec in enumerate(self._classes):
            values[f"classes.{spec.name}.held"] = float(self.admission.num_held_of(index))
            values[f"classes.{spec.name}.inflight"] = float(self._pool.num_in_use(index))
        for backend in self._pool.backends[:_FEW_ENGINES]:
            values[f"pools.default.{backend.name}.window"] = float(backend.window.size)
            values[f"pools.default.{backend.name}.reserve"] = float(sum(backend.reserves))
        return values

    def _offer(self, job: Job, now: float) -> None:
        prefix = chain(job.item) if self._pool.affinity is not None and len(self._pool.backends) > 1 else ()
        spec = self._classes[job.klass]
        patience = patience_of(spec, dict(job.item.headers), job.arrived_s, job.arrived_s)
        ticket = Ticket(
            next(self._ids),
            self._route,
            job.klass,
            arrival=job.arrived_s,
            deadline=patience.deadline,
            due=patience.due,
            sheds=patience.sheds,
            tenant=job.item.tenant or "",
            expected_tokens=job.expected_tokens,
            prompt_tokens=job.item.prompt_tokens,
            payload=job,
            planned=job.planned,
            ties=Ties(prefix) if prefix else None,
        )
        job.ticket = ticket
        self._apply(self.admission.offer(ticket, now), now)

    def _apply(self, decisions: list[Decision], now: float) -> None:
        for decision in decisions:
            job: Job = decision.ticket.payload
            if isinstance(decision, Dispatch):
                job.permit = decision.permit
                self._forecaster.dispatched(job.item, now)
                self._world.send(job, decision.permit.backend.index, now, priority=job.klass)
            else:
                self._world.shed(job, 503 if decision.reason is DropReason.NO_ENDPOINTS else 429, now)
        due = self.admission.next_deadline(now)
        if due is not None and (self._tick_at is None or due < self._tick_at):
            self._tick_at = due
            self._world.at(max(now, due) + _GRAIN_S, self._tick, due)

    def _tick(self, due: float, now: float) -> None:
        if due == self._tick_at:
            self._tick_at = None
            self._apply(self.admission.tick(now), now)

    # --- promotion ----------------------------------------------------------------------------------------------------

    def _watch(self, job: Job, now: float) -> None:
        """Look again when the stream may have outgrown its class; one that never will is not looked at."""
        assert job.permit is not None
        step = self._promotions[job.permit.klass]
        if step is None or job.item.output_tokens <= step[0]:
            return
        missing = step[0] + 1 - self._world.generated(job, now)
        if missing > 0:
            self._world.at(now + missing * self._world.step_s(job), self._look, job)
            return
        self._apply(self.admission.recharge(job.permit, step[1], now), now)
        self._forecaster.outgrown(job.item, step[0] + 1, now)
        self._watch(job, now)

    def _look(self, job: Job, now: float) -> None:
        if job.last_s is None:
            self._watch(job, now)
