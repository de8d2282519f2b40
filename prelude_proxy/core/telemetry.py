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
    lines = _Lines(page)
    running = lines.total(names.running)
    waiting = lines.total(names.waiting)
    usages = lines.values(names.kv_usage)
    return Sample(
        running=running,
        waiting=waiting,
        kv_usage=max(usages) if usages else None,
        preemptions=lines.total(names.preemptions),
        generation_tokens=lines.total(names.generation_tokens),
    )


class _Lines:
    """A page that is asked for one name after another, in the order in which they stand on it if possible.

    Each is looked for behind the one before and only then from the top, so that the page is walked once.
    """

    __slots__ = ("_at", "_page")

    def __init__(self, page: bytes) -> None:
        self._page = page
        self._at = 0

    def total(self, name: bytes | None) -> float | None:
        """Sum of all samples of exactly this name, if there is one."""
        values = self.values(name)
        return sum(values) if values else None

    def values(self, name: bytes | None) -> list[float]:
        """All samples of exactly this name. They stand together, as the format demands, so the first run is all."""
        if name is None:
            return []
        values = self._run_of(name, self._at)
        return values if values or self._at == 0 else self._run_of(name, 0)

    def _run_of(self, name: bytes, start: int) -> list[float]:
        page = self._page
        values: list[float] = []
        at = 0 if page.startswith(name) else self._line(name, start)
        while at >= 0:
            end = page.find(b"\n", at)
            value = _value(page[at : end if end >= 0 else len(page)], len(name))
            if value is not None:
                values.append(value)
                self._at = at
            if not values:
                at = self._line(name, at)
            elif end >= 0 and page.startswith(name, end + 1):
                at = end + 1
            else:
                break
        return values

    def _line(self, name: bytes, start: int) -> int:
        """Where the next line after `start` begins that begins with `name`; -1 if there is none."""
        found = self._page.find(b"\n" + name, start)
        return found + 1 if found >= 0 else -1


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
