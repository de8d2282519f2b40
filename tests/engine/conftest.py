"""Engines for the tests: small, quick, with round numbers."""

from __future__ import annotations

import pytest

from prelude_proxy.engine.model import EngineConfig, EngineProfile, Sequence
from prelude_proxy.engine.scheduler import Engine


@pytest.fixture
def profile() -> EngineProfile:
    """1 ms a step and 0.1 ms a request, 10 µs a prefill token, nothing else: times can be told by heart."""
    return EngineProfile(
        name="round",
        fixed_s=1e-3,
        load_s=0.0,
        token_s=0.0,
        sequence_s=1e-4,
        kv_read_s=0.0,
        pair_s=0.0,
        num_gpu_blocks=1000,
    )


@pytest.fixture
def make_engine(profile):
    """An engine with the given limits and otherwise roomy ones."""

    def make(**limits) -> Engine:
        prefix_cache = limits.pop("prefix_cache", False)
        settings = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "num_gpu_blocks": 1001, "max_model_len": 512}
        return Engine(EngineConfig(**(settings | limits)), profile, prefix_cache=prefix_cache)

    return make


@pytest.fixture
def finish():
    """Advances an engine until it is idle; all events."""

    def run(engine: Engine) -> list:
        events = []
        while (next_s := engine.next_event_s()) != float("inf"):
            events += engine.advance(next_s)
        return events

    return run


@pytest.fixture
def seq():
    """A request by its two lengths."""

    def make(prompt: int, output: int, **more) -> Sequence:
        return Sequence(prompt_tokens=prompt, output_tokens=output, **more)

    return make
