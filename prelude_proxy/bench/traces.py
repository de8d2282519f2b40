"""Traces of arrivals and lengths: CSV with a header, JSON lines, or ServeGen's per-client statistics; `.gz`/`.zst` too.

Columns are found by the names the published traces use: Azure 2023 (`TIMESTAMP, ContextTokens, GeneratedTokens`),
Mooncake (`timestamp` in ms, `input_length`, `output_length`, `hash_ids`), Vidur (`num_prefill_tokens`,
`num_decode_tokens`, no arrivals), and the plain `t_s, input_tokens, output_tokens[, prefix_block_ids_512, tenant]`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from math import exp, log
from pathlib import Path
from typing import IO, Any

from prelude_proxy.bench.workload import Limits, WorkItem, class_of, poisson_arrivals, shifted

_TIME = ("t_s", "timestamp", "arrived_at", "arrival_time", "time")
_INPUT = ("input_tokens", "contexttokens", "input_length", "num_prefill_tokens", "prompt_tokens", "request tokens")
_OUTPUT = ("output_tokens", "generatedtokens", "output_length", "num_decode_tokens", "response tokens")
_BLOCKS = ("prefix_block_ids_512", "hash_ids")
_TENANT = ("tenant", "user", "client", "client_id", "session id")
_SERVEGEN_PROBABILITIES = (0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99)
_SERVEGEN_WINDOW_S = 21_600.0


def open_text(path: Path) -> IO[str]:
    """Opens a text file, decompressing `.gz` and `.zst`."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix == ".zst":
        return _open_zst(path)
    return path.open(encoding="utf-8")


def _open_zst(path: Path) -> IO[str]:
    try:
        import zstandard  # noqa: PLC0415  (an optional dependency)
    except ImportError:
        raise ValueError(f"{path}: reading .zst needs `pip install zstandard`") from None
    reader = zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(path.open("rb"), closefd=True)
    return io.TextIOWrapper(reader, encoding="utf-8")


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file.

    Raises:
        ValueError: a line is not a JSON object; the message names file and line.
    """
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: not a JSON object")  # noqa: TRY004  (the file's fault, not the caller's)
            yield row


def load_trace(
    path: Path,
    limits: Limits,
    *,
    seed: int = 0,
    rate: float | None = None,
    seconds: float | None = None,
    category: str | None = None,
    max_requests: int = 1_000_000,
) -> list[WorkItem]:
    """The plan a trace file describes, first arrival at 0, ordered by time.

    `rate` is only for traces without arrivals (they become a Poisson stream), `category` only for ServeGen.

    Raises:
        ValueError: columns are missing or a cell is no number; the message names the file and what it has.
    """
    if ".jsonl" in path.suffixes:
        rows = read_json_lines(path)
        first = next(rows, None)
        if first is not None and "out_q" in first and "cv" in first:
            return servegen_plan(
                [first, *rows],
                limits,
                seed=seed,
                seconds=seconds or 600.0,
                category=category,
                max_requests=max_requests,
            )
        given = [] if first is None else [first, *islice(rows, max_requests - 1)]
        return _plan_of_rows(path, given, limits, seed, rate)
    with open_text(path) as lines:
        return _plan_of_rows(path, islice(csv.DictReader(lines), max_requests), limits, seed, rate)


def _plan_of_rows(
    path: Path, rows: Iterable[Mapping[str, Any]], limits: Limits, seed: int, rate: float | None
) -> list[WorkItem]:
    rng = random.Random(f"{seed}/trace")
    plan: list[WorkItem] = []
    arrivals = poisson_arrivals(rate, float("inf"), rng) if rate else None
    for number, raw in enumerate(rows, 1):
        row = {str(key).strip().lower(): value for key, value in raw.items()}
        try:
            plan.append(_item(row, limits, rng, arrivals))
        except KeyError as missing:
            raise ValueError(f"{path}: no column for {missing.args[0]}; it has {', '.join(row)}") from None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: row {number}: {error}") from None
    plan.sort(key=lambda item: item.at_s)
    return _from_zero(plan)


def _item(row: Mapping[str, Any], limits: Limits, rng: random.Random, arrivals: Iterator[float] | None) -> WorkItem:
    output = int(float(_cell(row, _OUTPUT, "output tokens")))
    time = next((row[name] for name in _TIME if row.get(name) not in (None, "")), None)
    if time is None and arrivals is None:
        raise KeyError("arrival times (give a rate for a trace without them)")
    tenant = next((str(row[name]) for name in _TENANT if row.get(name) not in (None, "")), None)
    return WorkItem(
        at_s=_seconds(time, "hash_ids" in row) if time is not None else next(arrivals or iter(())),
        klass=class_of(output),
        prompt_tokens=min(max(1, int(float(_cell(row, _INPUT, "input tokens")))), limits.max_prompt_tokens),
        output_tokens=min(max(1, output), limits.max_output_tokens),
        tenant=tenant,
        prefix_blocks=_blocks(next((row[name] for name in _BLOCKS if name in row), None)),
        seed=rng.getrandbits(32),
    )


def _cell(row: Mapping[str, Any], names: Sequence[str], meaning: str) -> Any:
    for name in names:
        if name in row:
            return row[name]
    raise KeyError(meaning)


def _seconds(value: object, in_ms: bool) -> float:
    """Seconds of a number (Mooncake's are milliseconds) or of a date and time (Azure's)."""
    try:
        return float(str(value)) / (1000.0 if in_ms else 1.0)
    except ValueError:
        moment = datetime.fromisoformat(str(value))
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _blocks(value: object) -> tuple[int, ...]:
    if isinstance(value, str):
        return tuple(map(int, value.split()))
    return tuple(value) if isinstance(value, list) else ()


def _from_zero(plan: list[WorkItem]) -> list[WorkItem]:
    return shifted(plan, -plan[0].at_s) if plan else plan


# --- ServeGen ---------------------------------------------------------------------------------------------------------


def servegen_plan(
    rows: Sequence[Mapping[str, Any]],
    limits: Limits,
    *,
    seed: int,
    seconds: float,
    category: str | None = None,
    max_requests: int = 1_000_000,
) -> list[WorkItem]:
    """`seconds` of the clients of one category in its busiest window; each client is a tenant.

    A row is one client's six-hour window: `n` requests, the coefficient of variation `cv` of its gaps, and quantiles
    `in_q`, `out_q` of its lengths (1, 5, 10, 25, 50, 75, 90, 95, 99 %). As ServeGen does, a client is a renewal process
    with gamma-distributed gaps (Xiang et al., 2025, arXiv:2505.09999); it is started in equilibrium.

    Raises:
        ValueError: no row of that category.
    """
    clients = _busiest_window(rows, category)
    rng = random.Random(f"{seed}/servegen")
    plan: list[WorkItem] = []
    for row in clients:
        arrivals = renewal_arrivals(row["n"] / _SERVEGEN_WINDOW_S, row["cv"], seconds, rng)
        for at_s in islice(arrivals, max_requests):
            output = max(1, round(quantile_draw(row["out_q"], rng)))
            prompt = max(1, round(quantile_draw(row["in_q"], rng)))
            plan.append(
                WorkItem(
                    at_s=at_s,
                    klass=class_of(output),
                    prompt_tokens=min(prompt, limits.max_prompt_tokens),
                    output_tokens=min(output, limits.max_output_tokens),
                    tenant=f"client-{row['client']}",
                    seed=rng.getrandbits(32),
                )
            )
    plan.sort(key=lambda item: item.at_s)
    return _from_zero(plan[:max_requests])


def _busiest_window(rows: Sequence[Mapping[str, Any]], category: str | None) -> list[Mapping[str, Any]]:
    totals: dict[tuple[str, int], float] = {}
    for row in rows:
        key = (row["cat"], row["win"])
        totals[key] = totals.get(key, 0.0) + row["n"]
    known = sorted({name for name, _ in totals})
    if category is not None and category not in known:
        raise ValueError(f"no category {category!r}; there is {', '.join(known)}")
    busiest = max((key for key in totals if category in (None, key[0])), key=lambda key: totals[key])
    return [row for row in rows if (row["cat"], row["win"]) == busiest and row["n"] > 0]


def renewal_arrivals(rate: float, cv: float, seconds: float, rng: random.Random) -> Iterator[float]:
    """Arrivals in `[0, seconds)` with gamma gaps of mean `1 / rate` and coefficient of variation `cv`.

    The first gap is the residual life of the equilibrium process: a uniform part of a length-biased gap, and a
    length-biased Gamma(k, θ) is a Gamma(k + 1, θ).
    """
    shape = 1.0 / max(cv, 0.05) ** 2
    scale = 1.0 / (rate * shape)
    at_s = rng.random() * rng.gammavariate(shape + 1.0, scale)
    while at_s < seconds:
        yield at_s
        at_s += rng.gammavariate(shape, scale)


def quantile_draw(quantiles: Sequence[float], rng: random.Random) -> float:
    """A draw from the distribution with these quantiles, log-linear between them, flat outside."""
    u = rng.random()
    index = bisect_right(_SERVEGEN_PROBABILITIES, u)
    if index == 0:
        return quantiles[0]
    if index == len(quantiles):
        return quantiles[-1]
    low_p, high_p = _SERVEGEN_PROBABILITIES[index - 1], _SERVEGEN_PROBABILITIES[index]
    low, high = log(max(1.0, quantiles[index - 1])), log(max(1.0, quantiles[index]))
    return exp(low + (high - low) * (u - low_p) / (high_p - low_p))
