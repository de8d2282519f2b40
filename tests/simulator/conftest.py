"""A small fleet and a small overload."""

from __future__ import annotations

import pytest

from prelude_proxy.bench.workload import WorkItem, mix_plan
from prelude_proxy.engine.model import PROFILES
from prelude_proxy.simulator import EngineSpec, Fleet


@pytest.fixture
def fleet() -> Fleet:
    """One engine of 16 batch slots."""
    return Fleet.of(EngineSpec.of(PROFILES["vllm-cpu-tiny"], 16), 1)


@pytest.fixture
def overload() -> list[WorkItem]:
    """Twelve seconds of 1.5 times what it can do, a quarter of it deep."""
    return mix_plan({"fast": 0.75, "deep": 0.25}, 15.0, 12.0, seed=3)
