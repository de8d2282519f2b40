"""Long prompts are paced where fast work would feel them: shown in virtual time."""

from __future__ import annotations

from dataclasses import replace

from prelude_proxy.bench.report import spread
from prelude_proxy.bench.workload import WorkItem
from prelude_proxy.engine.model import PROFILES
from prelude_proxy.simulator import EngineSpec, Fleet, Simulation, simulate

from ..scripts import run_bench


def test_fast_requests_do_not_wait_for_a_train_of_long_prompts():
    """Five deep prompts of half a second each arrive at once, fast requests all the time; the first five teach."""
    fast = [WorkItem(0.1 * n, "fast", 100, 20) for n in range(200)]
    long = [WorkItem(5.0 * n, "deep", 5000, 600) for n in range(4) for _ in range(5)]
    plan = sorted(fast + long, key=lambda item: item.at_s)
    fleet = Fleet.of(EngineSpec.of(PROFILES["llama8b-a100"], 64), 1)
    paced = Simulation.of()
    classes = tuple(replace(spec, prefill_stall_s=None) for spec in paced.settings.classes)
    free = replace(paced, settings=replace(paced.settings, classes=classes))
    with_budget, without = (simulate(plan, fleet, "prelude+oracle-classes", settings) for settings in (paced, free))
    waits = [
        spread([record.ttft_s for record in run.records if record.klass == "fast" and record.scheduled_s >= 5.0])
        for run in (with_budget, without)
    ]
    assert waits[0].p99 < 0.5 * waits[1].p99
    assert with_budget.makespan_s < 1.025 * without.makespan_s


def test_the_measuring_script_runs():
    """`bench/compute-density` at its smallest, so that it cannot rot."""
    assert "not paced" in run_bench("compute-density", "--tiny", timeout_s=120.0)
