import json
from dataclasses import asdict, replace

import pytest

from prelude_proxy.engine.model import PROFILES, EngineConfig, EngineProfile, StepCosts
from prelude_proxy.errors import ConfigError


def test_a_decode_step_is_bound_by_memory_and_a_prefill_by_arithmetic():
    """Reading the weights hides the arithmetic of a few tokens, and the other way round for many."""
    profile = PROFILES["llama8b-a100"]
    costs = StepCosts(profile)
    alone = costs.step_ns(1, 100, 0, 0, 0)
    batch = costs.step_ns(32, 3200, 0, 0, 0)
    prefill = costs.step_ns(0, 0, 1, 2048, 2048 * 2049 // 2)
    assert batch < 1.2 * alone
    assert prefill / 1e9 > 2048 * profile.token_s > 5 * profile.load_s


def test_the_gpu_presets_match_the_data_sheets():
    """8B in bf16 decodes alone at about 11 ms a token on an A100 and 68 ms on an L4, and leaves room for KV."""
    for name, milliseconds in (("llama8b-a100", 11), ("llama8b-l4", 68)):
        assert StepCosts(PROFILES[name]).step_ns(1, 500, 0, 0, 0) / 1e6 == pytest.approx(milliseconds, rel=0.05)
    assert 20_000 < PROFILES["llama8b-a100"].num_gpu_blocks < 30_000
    assert 1_000 < PROFILES["llama8b-l4"].num_gpu_blocks < 3_000


def test_a_profile_survives_json(profile):
    """What `fit` writes is read back as it was."""
    assert EngineProfile.from_mapping(json.loads(json.dumps(asdict(profile)))) == profile


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fixed_ms": 1}, "unknown field 'fixed_ms'"),
        ({"fixed_s": "fast"}, "fixed_s must be a number"),
        ({"fixed_s": -1.0}, "fixed_s must be 0"),
        ({"fixed_s": 0.0, "sequence_s": 0.0}, "at least 1 µs"),
    ],
)
def test_a_wrong_profile_says_what_is_wrong(profile, change, message):
    """The message names the field."""
    with pytest.raises(ConfigError, match=message):
        EngineProfile.from_mapping(asdict(profile) | change)


def test_a_profile_with_a_field_missing_is_refused(profile):
    """A missing field is named."""
    values = asdict(profile)
    del values["token_s"]
    with pytest.raises(ConfigError, match="token_s"):
        EngineProfile.from_mapping(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1"),
        ({"max_num_batched_tokens": 100}, "must be at least max_num_seqs"),
        ({"num_gpu_blocks": 32, "max_model_len": 512}, "cannot hold one request of max_model_len 512"),
        ({"max_num_queued_reqs": -1}, "must not be negative"),
    ],
)
def test_limits_that_could_stall_an_engine_are_refused(change, message):
    """As vLLM, an engine does not start when one request could fill it beyond its KV cache."""
    with pytest.raises(ConfigError, match=message):
        replace(EngineConfig(), **change)
