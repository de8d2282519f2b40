"""How much a fleet can do of a workload."""

from __future__ import annotations

import pytest

from prelude_proxy.bench.report import summarise
from prelude_proxy.bench.workload import mean_rate
from prelude_proxy.engine.model import PROFILES
from prelude_proxy.simulator import EngineSpec, Fleet, simulate
from prelude_proxy.simulator.capacity import at_load, capacity


def test_capacity_adds_up_over_engines(overload, fleet):
    """Twice the engines do twice as much."""
    spec = fleet.engines[0]
    assert capacity(overload, Fleet((spec, spec))) == pytest.approx(2 * capacity(overload, fleet))


def test_above_capacity_queues_grow_and_below_they_do_not(overload):
    """The figure is what the engines really do."""
    fleet = Fleet.of(EngineSpec.of(PROFILES["vllm-cpu-tiny"], 8), 2)
    calm, busy = (summarise(simulate(at_load(overload, fleet, load), fleet, "fcfs")) for load in (0.5, 2.0))
    assert calm.classes["fast"].ttft_s.p99 < 0.5 < busy.classes["fast"].ttft_s.p50


def test_a_load_scales_the_rate_and_keeps_the_requests(overload, fleet):
    """Mix and order stay."""
    scaled = at_load(overload, fleet, 0.8)
    assert mean_rate(scaled) == pytest.approx(0.8 * capacity(overload, fleet))
    assert [item.output_tokens for item in scaled] == [item.output_tokens for item in overload]
    with pytest.raises(ValueError, match="too short"):
        at_load(overload[:1], fleet, 0.8)
