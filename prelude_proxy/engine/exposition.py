"""`/metrics` of each engine kind: the real names and labels, only the lines that a scheduler in front can use."""

from __future__ import annotations

from prelude_proxy.core.domain import EngineKind
from prelude_proxy.engine.model import EngineConfig, EngineStats

_Sample = tuple[str, str, float]
"""Type, series, value."""


def render_metrics(kind: EngineKind, stats: EngineStats, config: EngineConfig, model: str, *, gauges_lag: bool) -> str:
    """The page in Prometheus text format. `gauges_lag`: gauges read 0, as real ones do just after a cold start."""
    render = {EngineKind.TGI: _tgi, EngineKind.SGLANG: _sglang}.get(kind, _vllm)
    lines: list[str] = []
    typed: set[str] = set()
    for sort, series, value in render(stats, config, model):
        name = series.partition("{")[0]
        if name not in typed:
            typed.add(name)
            lines.append(f"# TYPE {name} {sort}")
        lags = gauges_lag and sort == "gauge" and not name.endswith("_info")
        lines.append(f"{series} {0.0 if lags else float(value)}")
    return "\n".join(lines) + "\n"


def _vllm(stats: EngineStats, config: EngineConfig, model: str) -> list[_Sample]:
    labels = f'{{engine="0",model_name="{model}"}}'
    by_reason = f'vllm:num_requests_waiting_by_reason{{engine="0",model_name="{model}",reason="%s"}}'
    rejections = f'vllm:admission_rejections_total{{model_name="{model}",reason="%s"}}'
    cache = (
        f'vllm:cache_config_info{{block_size="{config.block_size}",cache_dtype="auto",engine="0",'
        f'num_gpu_blocks="{config.num_gpu_blocks}"}}'
    )
    return [
        ("gauge", f"vllm:num_requests_running{labels}", stats.num_running),
        ("gauge", f"vllm:num_requests_waiting{labels}", stats.num_waiting),
        ("gauge", by_reason % "capacity", stats.num_waiting),
        ("gauge", by_reason % "deferred", 0),
        ("gauge", f"vllm:kv_cache_usage_perc{labels}", stats.kv_usage),
        ("counter", f"vllm:prefix_cache_queries_total{labels}", stats.prefix_queries_tokens),
        ("counter", f"vllm:prefix_cache_hits_total{labels}", stats.prefix_hits_tokens),
        ("counter", f"vllm:num_preemptions_total{labels}", stats.num_preemptions),
        ("counter", f"vllm:prompt_tokens_total{labels}", stats.prompt_tokens),
        ("counter", f"vllm:generation_tokens_total{labels}", stats.generation_tokens),
        ("counter", rejections % "max_num_queued_reqs", stats.num_rejected),
        ("counter", rejections % "max_num_queued_tokens", 0),
        ("gauge", cache, 1),
    ]


def _tgi(stats: EngineStats, config: EngineConfig, model: str) -> list[_Sample]:
    del model
    max_tokens = round(stats.kv_usage * config.usable_blocks) * config.block_size
    accepted = stats.num_finished + stats.num_aborted + stats.num_running + stats.num_waiting
    return [
        ("gauge", "tgi_queue_size", stats.num_waiting),
        ("gauge", "tgi_batch_current_size", stats.num_running),
        ("gauge", "tgi_batch_current_max_tokens", max_tokens),
        ("counter", "tgi_request_count", accepted + stats.num_rejected),
        ("counter", "tgi_request_success", stats.num_finished),
        ("counter", 'tgi_request_failure{err="overloaded"}', stats.num_rejected),
        ("counter", "tgi_request_input_length_sum", stats.prompt_tokens),
        ("counter", "tgi_request_generated_tokens_sum", stats.generation_tokens),
        ("counter", "tgi_request_generated_tokens_count", stats.num_finished),
    ]


def _sglang(stats: EngineStats, config: EngineConfig, model: str) -> list[_Sample]:
    del config
    labels = f'{{engine_type="unified",model_name="{model}",pp_rank="0",tp_rank="0"}}'
    return [
        ("gauge", f"sglang:num_running_reqs{labels}", stats.num_running),
        ("gauge", f"sglang:num_queue_reqs{labels}", stats.num_waiting),
        ("gauge", f"sglang:token_usage{labels}", stats.kv_usage),
        ("counter", f"sglang:prompt_tokens_total{labels}", stats.prompt_tokens),
        ("counter", f"sglang:generation_tokens_total{labels}", stats.generation_tokens),
    ]
