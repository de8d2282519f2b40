"""Looks inside targets while they run: a proxy's `/status` or an engine's `/metrics`, at a fixed interval."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Self

import aiohttp
import orjson

from prelude_proxy.bench.records import Sample

_GAUGES: Mapping[str, str] = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "tgi_batch_current_size": "running",
    "tgi_queue_size": "waiting",
    "sglang:num_running_reqs": "running",
    "sglang:num_queue_reqs": "waiting",
}
_NAME_KEYS = ("name", "url", "id")
_MAX_VALUES = 2000


def values_of_metrics(page: str) -> dict[str, float]:
    """An engine's running and waiting requests from a Prometheus page, summed over label sets."""
    values: dict[str, float] = {}
    for line in page.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name in _GAUGES:
            with suppress(ValueError):
                values[_GAUGES[name]] = values.get(_GAUGES[name], 0.0) + float(line.rpartition(" ")[2])
    return values


def values_of_status(status: object) -> dict[str, float]:
    """Every number of a JSON document under its dotted path; list items go by their name or URL where they have one."""
    values: dict[str, float] = {}
    for path, number in _numbers(status, ""):
        values[path] = number
        if len(values) >= _MAX_VALUES:
            break
    return values


def _numbers(value: object, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            name: Any = next((inner[k] for k in _NAME_KEYS if k in inner), index) if isinstance(inner, dict) else index
            yield from _numbers(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, float(value)


class Sampler:
    """`async with Sampler({"": admin_url, "engine-0": metrics_url}) as sampler: …`, then `sampler.samples`.

    A source that does not answer is left out of that sample; it never disturbs the run.
    """

    def __init__(self, sources: Mapping[str, str], interval_s: float = 0.25) -> None:
        self.samples: list[Sample] = []
        self._sources = sources
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._sources:
            self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        timeout = aiohttp.ClientTimeout(total=2.0)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                at_s = loop.time() - start
                values: dict[str, float] = {}
                for answer in await asyncio.gather(*(self._ask(session, *source) for source in self._sources.items())):
                    values.update(answer)
                self.samples.append(Sample(at_s, values))
                await asyncio.sleep(max(0.0, start + at_s + self._interval_s - loop.time()))

    async def _ask(self, session: aiohttp.ClientSession, prefix: str, url: str) -> dict[str, float]:
        try:
            async with session.get(url) as response:
                body = await response.read()
            is_page = url.endswith("/metrics")
            values = values_of_metrics(body.decode()) if is_page else values_of_status(orjson.loads(body))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return {}
        return {f"{prefix}.{name}" if prefix else name: value for name, value in values.items()}
