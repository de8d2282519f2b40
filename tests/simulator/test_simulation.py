"""Policies on a simulated fleet: the books close, a seed makes a run, and classes do what they are for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prelude_proxy.bench.report import summarise
from prelude_proxy.bench.workload import WorkItem, mix_plan
from prelude_proxy.engine.model import PROFILES
from prelude_proxy.simulator import POLICIES, EngineSpec, Fleet, Simulation, simulate
from prelude_proxy.simulator.forecasters import Confused, Ladder

PROFILE = PROFILES["vllm-cpu-tiny"]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_is_answered_once_and_whole(policy, overload, fleet):
    """Records are those of the plan, in its order, with times that can be."""
    result = simulate(overload, fleet, policy)
    assert [record.scheduled_s for record in result.records] == [item.at_s for item in overload]
    for record, item in zip(result.records, overload, strict=True):
        assert record.ok
        assert record.tokens == item.output_tokens
        assert 0 < record.ttft_s <= record.e2e_s
        assert record.scheduled_s + record.e2e_s <= result.makespan_s + 1e-9


@pytest.mark.parametrize("policy", ["least-request", "prelude"])
def test_a_seed_makes_a_run(policy, overload):
    """To the bit, with routing and forecasts drawn."""
    fleet = Fleet.of(EngineSpec.of(PROFILE, 4), 12)
    runs = [simulate(overload, fleet, policy, Simulation.of(seed=seed)).records for seed in (5, 5, 6)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_short_work_does_not_wait_behind_long_work(overload, fleet):
    """Even from a cold start: perfect classes cut the wait of fast requests at next to no cost in throughput."""
    direct = summarise(simulate(overload, fleet, "fcfs"))
    held = summarise(simulate(overload, fleet, "prelude+oracle-classes"))
    assert held.classes["fast"].ttft_s.p50 < direct.classes["fast"].ttft_s.p50 / 50
    assert held.classes["fast"].ttft_s.p99 < direct.classes["fast"].ttft_s.p99 / 5
    assert held.tokens_per_s > 0.97 * direct.tokens_per_s
    assert held.classes["deep"].e2e_s.p99 < 1.1 * direct.classes["deep"].e2e_s.p99


def test_unequal_engines_are_each_kept_full():
    """No tuning: windows find what each can do."""
    fleet = Fleet((EngineSpec.of(PROFILE, 16), EngineSpec.of(PROFILE, 4)))
    plan = mix_plan({"fast": 0.75, "deep": 0.25}, 25.0, 10.0, seed=1)
    turns = summarise(simulate(plan, fleet, "round-robin"))
    held = summarise(simulate(plan, fleet, "prelude+oracle-classes"))
    assert held.tokens_per_s > 1.15 * turns.tokens_per_s


def test_low_load_costs_the_proxys_own_hop_and_nothing_else(fleet):
    """Nothing is held when there is room."""
    plan = mix_plan({"fast": 0.75, "deep": 0.25}, 3.0, 30.0, seed=2)
    direct = summarise(simulate(plan, fleet, "fcfs"))
    held = summarise(simulate(plan, fleet, "prelude"))
    for klass in ("fast", "deep"):
        assert held.classes[klass].ttft_s.p50 - direct.classes[klass].ttft_s.p50 < 0.002
        assert held.classes[klass].e2e_s.p99 - direct.classes[klass].e2e_s.p99 < 0.002


def test_a_kv_bound_engine_loses_nothing():
    """Its window follows what the cache holds, and there are fewer preemptions than under FCFS."""
    fleet = Fleet.of(EngineSpec.of(PROFILE, 16, num_gpu_blocks=200), 1)
    plan = mix_plan({"fast": 0.75, "deep": 0.25}, 15.0, 10.0, seed=1)
    direct = summarise(simulate(plan, fleet, "fcfs"))
    held = summarise(simulate(plan, fleet, "prelude+oracle-classes"))
    assert held.tokens_per_s > 0.96 * direct.tokens_per_s


def test_a_wrong_guess_is_recharged(overload, fleet):
    """Deep requests that pass for fast count as deep once they outgrow it."""
    simulation = Simulation.of()
    wrong = {"deep": {"fast": 1.0}, "fast": {"fast": 1.0}}
    forecaster = Confused(Ladder(simulation.settings.classes), 1, wrong, {"fast": 30.0})
    result = simulate(overload, fleet, "prelude", replace(simulation, forecaster=forecaster))
    assert {record.served_as for record in result.records} == {"fast"}
    assert any(sample.values["classes.deep.inflight"] > 0 for sample in result.samples)


def test_an_engine_that_refuses_is_offered_the_rest_later(overload):
    """The engine's own admission control: the request goes back to its old place, none is lost."""
    spec = EngineSpec.of(PROFILE, 8)
    spec = replace(spec, config=replace(spec.config, max_num_queued_reqs=9))
    plan = overload[:60]
    assert all(record.ok for record in simulate(plan, Fleet((spec,)), "prelude").records)
    refused = [record for record in simulate(plan, Fleet((spec,)), "fcfs").records if not record.ok]
    assert refused
    assert {record.status for record in refused} == {503}


def test_a_full_queue_is_a_429(fleet):
    """What the core rejects is a record too."""
    simulation = Simulation.of()
    classes = tuple(replace(spec, queue_size=2) for spec in simulation.settings.classes)
    settings = replace(simulation.settings, classes=classes)
    plan = [WorkItem(0.0, "deep", 20, 600) for _ in range(60)]
    records = simulate(plan, fleet, "prelude", replace(simulation, settings=settings)).records
    assert {record.status for record in records} == {200, 429}


def test_stale_telemetry_never_stops_dispatch(overload, fleet):
    """Samples that are ten seconds old still end in the same answers."""
    late = simulate(overload, fleet.with_lag(10.0), "prelude+oracle-classes")
    assert all(record.ok for record in late.records)


def test_an_unknown_policy_is_said():
    """With the known ones."""
    with pytest.raises(ValueError, match="srpt-oracle"):
        Simulation.of().policy("fifo")
