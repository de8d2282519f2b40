"""What a fleet can do of a workload, to say how loaded it is: measured on its engines, not guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prelude_proxy.bench.workload import WorkItem, mean_rate, rescaled
from prelude_proxy.simulator.fleet import EngineSpec, Fleet
from prelude_proxy.simulator.simulation import simulate

_SAMPLES_A_SLOT = 12
_WARM_SHARE, _FULL_SHARE = 0.2, 0.8


def capacity(plan: Sequence[WorkItem], fleet: Fleet) -> float:
    """Requests a second that `fleet` ends at most, of a workload like `plan`.

    Each kind of engine gets a few requests a batch slot, all at once, evenly drawn from the plan, first come, first
    served; what counts is the time between the first and last fifth of their ends.
    """
    kinds: dict[EngineSpec, int] = {}
    for spec in fleet.engines:
        kinds[spec] = kinds.get(spec, 0) + 1
    return sum(count * _of_one(plan, spec) for spec, count in kinds.items())


def at_load(plan: Sequence[WorkItem], fleet: Fleet, load: float) -> list[WorkItem]:
    """`plan` in its own order and burstiness, at `load` times the capacity of `fleet`.

    Raises:
        ValueError: the plan is too short to have a rate.
    """
    rate = mean_rate(plan)
    if rate <= 0:
        raise ValueError("the workload is too short to be scaled to a load")
    return rescaled(plan, load * capacity(plan, fleet) / rate)


def _of_one(plan: Sequence[WorkItem], spec: EngineSpec) -> float:
    count = max(200, _SAMPLES_A_SLOT * spec.config.max_num_seqs)
    stride = max(1, len(plan) // count)
    burst = [replace(item, at_s=0.0) for item in plan[::stride][:count]]
    records = simulate(burst, Fleet((spec,)), "fcfs").records
    ends = sorted(record.e2e_s for record in records)
    low, high = int(_WARM_SHARE * (len(ends) - 1)), int(_FULL_SHARE * (len(ends) - 1))
    return (high - low) / max(1e-9, ends[high] - ends[low])
