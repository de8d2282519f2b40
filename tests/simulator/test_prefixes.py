"""Shared prefixes of a trace, in the engines' caches and in the routing."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from prelude_proxy.bench.workload import WorkItem
from prelude_proxy.core.prefix import BLOCK_TOKENS
from prelude_proxy.engine.model import PROFILES
from prelude_proxy.simulator import EngineSpec, Fleet, Simulation, simulate
from prelude_proxy.simulator.prefixes import chain, engine_blocks

SPEC = EngineSpec.of(PROFILES["vllm-cpu-tiny"], 16)


def conversations(turns: int = 6, of: int = 8) -> list[WorkItem]:
    """Turns of several conversations, each 512 tokens longer than the one before, in any order."""
    plan = []
    for turn in range(turns):
        for place, each in enumerate(random.Random(turn).sample(range(of), of)):
            blocks = tuple(100 * (each + 1) + index for index in range(turn + 2))
            plan.append(WorkItem(2.0 * turn + 0.05 * place, "fast", 512 * len(blocks), 20, prefix_blocks=blocks))
    return plan


def spared(result) -> float:
    """Share of all prompt tokens that were in a cache."""
    values = result.samples[-1].values
    return values["prefix_hits_tokens"] / values["prompt_tokens"]


def test_ids_become_blocks_and_chains():
    """Equal ids give equal blocks and links up to the prompt's length, different ones nothing in common."""
    item = WorkItem(0.0, "fast", 1200, 5, prefix_blocks=(7, 8, 9))
    longer = replace(item, prompt_tokens=1536)
    other = replace(item, prefix_blocks=(7, 5, 6))
    assert len(engine_blocks(item, 16)) == 1200 // 16
    assert engine_blocks(longer, 16)[: 1200 // 16] == engine_blocks(item, 16)
    assert set(engine_blocks(other, 16)) & set(engine_blocks(item, 16)) == set(engine_blocks(item, 16)[:32])
    assert len(chain(item)) == sum(end <= 1200 for end in BLOCK_TOKENS)
    assert chain(longer)[: len(chain(item))] == chain(item)
    assert set(chain(other)) & set(chain(item)) == set(chain(item)[:2])
    assert engine_blocks(replace(item, prefix_blocks=()), 16) == chain(replace(item, prefix_blocks=())) == ()


def test_an_engine_prefills_what_it_knows_only_once():
    """And nothing is spared without a cache, or without ids."""
    plan = conversations()
    fleet, uncached = Fleet.of(SPEC, 1), Fleet.of(replace(SPEC, prefix_cache=False), 1)
    # turn n has n + 1 blocks, n of them known; all but one of 16 tokens that the engine keeps to compute
    assert spared(simulate(plan, fleet, "fcfs")) == pytest.approx(20 / 27, abs=0.02)
    assert spared(simulate(plan, uncached, "fcfs")) == 0.0
    assert spared(simulate([replace(item, prefix_blocks=()) for item in plan], fleet, "fcfs")) == 0.0


def test_turns_follow_their_conversation():
    """Nearly all that can be spared is, and first tokens come sooner for it."""
    plan, fleet, simulation = conversations(), Fleet.of(SPEC, 4), Simulation.of()
    blind = replace(simulation, settings=replace(simulation.settings, affinity=None))
    tied, untied = (simulate(plan, fleet, "prelude+oracle-classes", one) for one in (simulation, blind))
    assert spared(tied) > 0.65 > 0.4 > spared(untied)
    ttfts = [sum(record.ttft_s for record in result.records) for result in (tied, untied)]
    assert ttfts[0] < ttfts[1]
