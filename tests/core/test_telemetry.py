"""Metrics pages of the engines, as they really are."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prelude_proxy.core.domain import EngineKind
from prelude_proxy.core.telemetry import Sample, has_telemetry, parse_metrics

FIXTURES = Path(__file__).parent.parent / "fixtures"


def test_a_real_vllm_page():
    """The needed lines of a page that a real vLLM 0.32 printed under load."""
    page = (FIXTURES / "vllm_metrics.txt").read_bytes()
    sample = parse_metrics(EngineKind.VLLM, page)
    assert sample.running is not None
    assert sample.waiting is not None
    assert sample.kv_usage is not None
    assert 0 <= sample.kv_usage <= 1
    assert sample.preemptions is not None
    assert sample.generation_tokens is not None


def test_ranks_of_data_parallelism_are_summed():
    """One line an engine: counts add up, of shares the fullest counts."""
    page = b"""vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0"} 0.0
vllm:num_requests_waiting{engine="1"} 2.0
vllm:num_requests_waiting_by_reason{engine="1",reason="capacity"} 2.0
vllm:kv_cache_usage_perc{engine="0"} 0.5
vllm:kv_cache_usage_perc{engine="1"} 0.9
"""
    assert parse_metrics(EngineKind.VLLM, page) == Sample(running=7.0, waiting=2.0, kv_usage=0.9)


def test_tgi_and_sglang_pages():
    """Their own names; TGI has no gauge of its KV cache."""
    tgi = parse_metrics(EngineKind.TGI, b"# TYPE tgi_queue_size gauge\ntgi_queue_size 3\ntgi_batch_current_size 8\n")
    assert tgi == Sample(running=8.0, waiting=3.0)
    sglang = parse_metrics(
        EngineKind.SGLANG,
        b'sglang:num_running_reqs{model="m"} 5\nsglang:num_queue_reqs{model="m"} 1\nsglang:token_usage{model="m"} 0.25',
    )
    assert sglang == Sample(running=5.0, waiting=1.0, kv_usage=0.25)


@pytest.mark.parametrize("line", [b"", b"x", b"vllm:num_requests_running", b"vllm:num_requests_running NaN", b"\xff"])
def test_a_missing_or_broken_gauge_is_unknown(line):
    """Only that one is unknown, the others are not."""
    sample = parse_metrics(EngineKind.VLLM, line + b"\nvllm:num_requests_waiting 1\n")
    assert sample.running is None
    assert sample.waiting == 1.0


@given(st.binary(max_size=200))
def test_any_bytes_give_a_sample(page):
    """A lying or broken page never raises."""
    for kind in EngineKind:
        parse_metrics(kind, page)


def test_engines_without_telemetry():
    """A generic OpenAI-shaped server has nothing we can read."""
    assert not has_telemetry(EngineKind.OPENAI)
    assert parse_metrics(EngineKind.OPENAI, b"vllm:num_requests_running 1").is_empty


def test_the_whole_page_is_read_as_if_line_by_line():
    """Values stop being looked for where their group ends; on a real page of 51 KB nothing is missed by that."""
    page = (FIXTURES / "vllm_metrics_full.txt").read_bytes()
    names = {
        "running": b"vllm:num_requests_running{",
        "waiting": b"vllm:num_requests_waiting{",
        "kv_usage": b"vllm:kv_cache_usage_perc{",
        "preemptions": b"vllm:num_preemptions_total{",
        "generation_tokens": b"vllm:generation_tokens_total{",
    }
    lines = page.splitlines()
    expected = {
        field: sum(float(line.split()[-1]) for line in lines if line.startswith(name)) for field, name in names.items()
    }
    assert asdict(parse_metrics(EngineKind.VLLM, page)) == expected
    assert expected["waiting"] == 192.0
