from __future__ import annotations

import asyncio

from prelude_proxy.bench.fleet import free_ports
from prelude_proxy.bench.sampler import Sampler, values_of_metrics, values_of_status


def test_engine_gauges_are_summed_over_label_sets() -> None:
    """With data parallelism there is a line an engine; other lines and broken ones are passed over."""
    page = (
        '# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine="0",model_name="a b"} 3.0\n'
        'vllm:num_requests_running{engine="1"} 2.0\nvllm:num_requests_waiting x\ntgi_queue_size 4\nother 9\n'
    )
    assert values_of_metrics(page) == {"running": 5.0, "waiting": 4.0}


def test_status_is_flattened_by_name() -> None:
    """Numbers get dotted paths; list items go by name, URL or index; texts and booleans are no numbers."""
    status = {"classes": [{"name": "fast", "queued": 2}], "backends": [{"url": "http://a", "window": 16.5, "up": True}],
              "plain": [7], "version": "1"}  # fmt: skip
    assert values_of_status(status) == {
        "classes.fast.queued": 2.0,
        "backends.http://a.window": 16.5,
        "plain.0": 7.0,
    }


async def test_sources_are_sampled_and_absent_ones_left_out(engine_url: str) -> None:
    """A source that answers is in the sample under its prefix; one that does not disturbs nothing."""
    nobody = f"http://127.0.0.1:{free_ports(1)[0]}/status"
    async with Sampler({"engine": f"{engine_url}/metrics", "gone": nobody}, interval_s=0.01) as sampler:
        while not sampler.samples:  # noqa: ASYNC110  (it has no event, and needs none but here)
            await asyncio.sleep(0.01)
    assert sampler.samples[0].values == {"engine.running": 2.0, "engine.waiting": 1.0}


async def test_without_sources_nothing_runs() -> None:
    """No source, no task, no sample."""
    async with Sampler({}) as sampler:
        pass
    assert sampler.samples == []
