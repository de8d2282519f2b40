"""An engine's `/metrics` page in, one `Sample` out. Only the needed lines are looked at: the page is some 60 KB.

With data parallelism an engine prints one line a rank: they are summed (a share, such as KV usage, takes the largest).
A gauge that is missing is `None`: only that one is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from prelude_proxy.core.domain import EngineKind


@dataclass(frozen=True, slots=True)
class Sample:
    """What an engine said of itself at one moment."""

    running: float | None = None
    """Requests in its batch."""
    waiting: float | None = None
    """Requests in its own queue."""
    kv_usage: float | None = None
    """Share of KV-cache blocks in use, 0 to 1."""
    preemptions: float | None = None
    """Requests ever thrown out of the batch for want of KV blocks."""
    generation_tokens: float | None = None
    """Tokens ever produced."""

    @property
    def is_empty(self) -> bool:
        """Whether the page held nothing we know."""
        return self.running is None and self.waiting is None


@dataclass(frozen=True, slots=True)
class _Names:
    running: bytes
    waiting: bytes
    kv_usage: bytes | None = None
    preemptions: bytes | None = None
    generation_tokens: bytes | None = None


_NAMES: Final[Mapping[EngineKind, _Names]] = {
    EngineKind.VLLM: _Names(
        b"vllm:num_requests_running",
        b"vllm:num_requests_waiting",
        b"vllm:kv_cache_usage_perc",
        b"vllm:num_preemptions_total",
        b"vllm:generation_tokens_total",
    ),
    EngineKind.TGI: _Names(b"tgi_batch_current_size", b"tgi_queue_size"),
    EngineKind.SGLANG: _Names(
        b"sglang:num_running_reqs",
        b"sglang:num_queue_reqs",
        b"sglang:token_usage",
        None,
        b"sglang:generation_tokens_total",
    ),
}


def has_telemetry(kind: EngineKind) -> bool:
    """Whether engines of this kind publish gauges we can read."""
    return kind in _NAMES


def parse_metrics(kind: EngineKind, page: bytes) -> Sample:
    """The sample on `page`; an empty one for a kind without telemetry or a page without the names. Never raises."""
    names = _NAMES.get(kind)
    if names is None:
        return Sample()
    page = b"\n" + page
    usages = _values(page, names.kv_usage)
    return Sample(
        running=_total(page, names.running),
        waiting=_total(page, names.waiting),
        kv_usage=max(usages) if usages else None,
        preemptions=_total(page, names.preemptions),
        generation_tokens=_total(page, names.generation_tokens),
    )


def _total(page: bytes, name: bytes | None) -> float | None:
    values = _values(page, name)
    return sum(values) if values else None


def _values(page: bytes, name: bytes | None) -> list[float]:
    """Values of all samples of exactly this name. `page` begins with a newline, so every name stands after one.

    They stand together (the format demands it), so the rest of the page, nearly all of it, is not looked at.
    """
    values: list[float] = []
    if name is None:
        return values
    mark = b"\n" + name
    at = page.find(mark)
    while at >= 0:
        end = page.find(b"\n", at + 1)
        value = _value(page[at + 1 : end if end >= 0 else len(page)], len(name))
        if value is not None:
            values.append(value)
        if not values:
            at = page.find(mark, at + 1)
        elif end >= 0 and page.startswith(mark, end):
            at = end
        else:
            break
    return values


def _value(line: bytes, name_length: int) -> float | None:
    rest = line[name_length:]
    if rest.startswith(b"{"):
        rest = rest[rest.rfind(b"}") + 1 :]
    elif not rest.startswith(b" "):
        return None  # a longer name that begins the same, e.g. …_waiting_by_reason
    fields = rest.split()
    try:
        value = float(fields[0])
    except (IndexError, ValueError):
        return None
    return value if value == value and abs(value) != float("inf") else None  # noqa: PLR0124  NaN is not itself
