"""A plan, a fleet, a policy: in; what their clients would have seen: out, as the records a live run brings back."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from prelude_proxy.bench.records import GapHistogram, RequestRecord, RunResult
from prelude_proxy.bench.workload import WorkItem
from prelude_proxy.config import Config
from prelude_proxy.simulator.fleet import Fleet
from prelude_proxy.simulator.forecasters import Forecaster, Ladder, Noisy, Oracle
from prelude_proxy.simulator.policies import LeastConnections, LeastRequest, RoundRobin, ShortestFirst
from prelude_proxy.simulator.prelude import Prelude, PreludeSettings
from prelude_proxy.simulator.world import Job, Policy, World

POLICIES = ("fcfs", "least-request", "round-robin", "prelude", "prelude+oracle-classes", "srpt-oracle")


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a run needs beside plan, fleet and policy."""

    settings: PreludeSettings
    forecaster: Forecaster | None = None
    """For policy `prelude`; None: a noisy guess."""
    seed: int = 0
    warmup: Sequence[WorkItem] = ()
    """Requests served before the plan begins, to the last answer; nobody counts them."""

    @classmethod
    def of(
        cls,
        config: Config | None = None,
        *,
        forecaster: Forecaster | None = None,
        seed: int = 0,
        warmup: Sequence[WorkItem] = (),
    ) -> Simulation:
        """With the admission settings, classes and first pool's routing of `config` (default: all defaults)."""
        config = config or Config.model_validate({"classes": {}})
        admission = config.admission
        settings = PreludeSettings(
            classes=tuple(config.class_specs()),
            initial_window=admission.initial_window,
            max_window=admission.max_window,
            feed=admission.feed,
            reserve_beta=admission.reserve_beta,
            max_reserve=admission.max_reserve,
            affinity=config.pools[0].routing.policy(),
        )
        return cls(settings, forecaster, seed, warmup)

    def policy(self, name: str) -> Policy:
        """The policy of that name.

        Raises:
            ValueError: there is none.
        """
        simple = {
            "fcfs": LeastConnections,
            "least-request": LeastRequest,
            "round-robin": RoundRobin,
            "srpt-oracle": ShortestFirst,
        }
        if name in simple:
            return simple[name](self.seed)
        ladder = Ladder(self.settings.classes)
        if name == "prelude":
            return Prelude(self.settings, self.forecaster or Noisy(ladder, self.seed), self.seed)
        if name == "prelude+oracle-classes":
            return Prelude(self.settings, Oracle(ladder), self.seed)
        raise ValueError(f"unknown policy {name!r}: one of {', '.join(POLICIES)}")


def simulate(
    plan: Sequence[WorkItem],
    fleet: Fleet,
    policy: str | Policy,
    simulation: Simulation | None = None,
    on_done: Callable[[int], None] | None = None,
) -> RunResult:
    """Run `plan` to its last answer.

    Args:
        plan: requests in order of time.
        fleet: engines and network.
        policy: one of `POLICIES`, or an object of your own.
        simulation: settings and seed; the same ones give the same result, to the bit.
        on_done: told now and then how many requests have not ended.

    Raises:
        ValueError: an unknown policy, or a request that no engine of the fleet can hold.
    """
    simulation = simulation or Simulation.of()
    name = policy if isinstance(policy, str) else type(policy).__name__.lower()
    front_door = simulation.policy(policy) if isinstance(policy, str) else policy
    world = World(plan, fleet, front_door, simulation.warmup)
    with _uncollected():
        world.run(on_done)
    start_s = world.plan_at_s
    result = RunResult(name, [_record(job, start_s) for job in world.jobs], {}, 0.0, plan[-1].at_s if plan else 0.0)
    result.makespan_s = max((job.last_s or start_s for job in world.jobs), default=start_s) - start_s
    result.gaps = _gaps(result.records)
    result.samples = world.samples
    return result


@contextmanager
def _uncollected() -> Iterator[None]:
    """A run keeps all it makes until its end: the collector would only look at a million requests again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _record(job: Job, start_s: float) -> RequestRecord:
    item, first_s, last_s = job.item, job.first_s, job.last_s or 0.0
    at_s = start_s + item.at_s
    ok = job.status == 200
    record = RequestRecord(
        item.klass, item.at_s, item.prompt_tokens, item.output_tokens, item.tenant, job.status, ok,
        "" if ok else f"{job.status}", served_as=job.served_as,
    )  # fmt: skip
    record.e2e_s = last_s - at_s
    if ok and first_s is not None:
        record.ttft_s = first_s - at_s
        record.tokens = item.output_tokens
        record.queue_s = job.sent_s - job.arrived_s
        if item.output_tokens > 1:
            record.gap_mean_s = (last_s - first_s) / (item.output_tokens - 1)
    return record


def _gaps(records: Sequence[RequestRecord]) -> dict[str, GapHistogram]:
    """One value a request, its mean gap: single tokens are not simulated."""
    means: dict[str, list[float]] = {}
    for record in records:
        if record.gap_mean_s:
            means.setdefault(record.klass, []).append(record.gap_mean_s)
    histograms = {}
    for klass, values in means.items():
        histograms[klass] = GapHistogram()
        histograms[klass].add(values)
    return histograms
