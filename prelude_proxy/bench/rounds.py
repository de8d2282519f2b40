"""Several targets, the same requests, in interleaved rounds: drift of the machine hits every target alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import aiohttp
import orjson

from prelude_proxy.bench.driver import DriverOptions, drive
from prelude_proxy.bench.records import RequestRecord, RunResult
from prelude_proxy.bench.report import RunSummary, median_summary, summarise
from prelude_proxy.bench.sampler import Sampler
from prelude_proxy.bench.wire import Target
from prelude_proxy.bench.workload import WorkItem


class TargetError(Exception):
    """A target cannot be benchmarked; the message says which and why."""


async def run_rounds(
    targets: Sequence[Target],
    plans: Sequence[Sequence[WorkItem]],
    *,
    warmup: Sequence[WorkItem] = (),
    options: DriverOptions | None = None,
    watch: Mapping[str, Mapping[str, str]] | None = None,
    on_done: Callable[[Target, RequestRecord], None] | None = None,
) -> dict[str, list[RunResult]]:
    """One round a plan; in each, every target gets that plan, one after the other, the first one rotating.

    `warmup` goes to every target once before; its answers are not counted. `watch` maps a target's name to the sources
    a `Sampler` reads while it is under load.
    """
    results: dict[str, list[RunResult]] = {target.name: [] for target in targets}
    for target in targets if warmup else ():
        await drive(target, warmup, options)
    for number, plan in enumerate(plans):
        first = number % len(targets)
        for target in [*targets[first:], *targets[:first]]:
            async with Sampler((watch or {}).get(target.name, {})) as sampler:
                result = await drive(target, plan, options, _reporter(target, on_done))
            result.samples = sampler.samples
            results[target.name].append(result)
    return results


def _reporter(
    target: Target, on_done: Callable[[Target, RequestRecord], None] | None
) -> Callable[[RequestRecord], None] | None:
    if on_done is None:
        return None
    report = on_done
    return lambda record: report(target, record)


def summaries_of(
    results: Mapping[str, Sequence[RunResult]], slo_s: Mapping[str, float]
) -> tuple[list[RunSummary], dict[str, list[RunSummary]]]:
    """Medians a target, and every round's figures."""
    rounds = {name: [summarise(result, slo_s) for result in runs] for name, runs in results.items()}
    return [median_summary(summaries) for summaries in rounds.values()], rounds


async def first_model(url: str, api_key: str | None = None) -> str:
    """The first model `GET /v1/models` names.

    Raises:
        TargetError: the target does not answer, or knows no model.
    """
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10.0), headers=headers) as session,
            session.get(f"{url}/v1/models") as response,
        ):
            answer = orjson.loads(await response.read())
        return str(answer["data"][0]["id"])
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise TargetError(f"{url} does not answer: {error or type(error).__name__}") from None
    except (ValueError, LookupError, TypeError):
        raise TargetError(f"{url}/v1/models names no model; say which with --model") from None
