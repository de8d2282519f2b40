"""Readers of training and evaluation data: JSON lines, plain, `.gz` or `.zst`, in either of two row formats.

A *request row* is a whole request: `{"request": body, "output_tokens", "path"?, "headers"?, "ts"?, "source"?,
"group"?}`. A *corpus row* is a prompt and an answer's length, its history cut: `{"messages": [{"role", "content",
"chars"}], "model", "endpoint", "out_tokens", "source", "group", …}`. Corpus rows are made whole again, padding cut
texts in their middle to their true length, and then go through the proxy's own parser: training and serving see the
same facts.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import orjson

from prelude_proxy.core.domain import RequestFacts
from prelude_proxy.core.parse import parse_request
from prelude_proxy.errors import ClientError

_CHAT_PATH = "/v1/chat/completions"
_PATHS: Mapping[str, str] = {"chat": _CHAT_PATH, "completions": "/v1/completions"}


@dataclass(frozen=True, slots=True)
class Row:
    """One request and how long its answer was."""

    body: bytes
    path: str
    headers: Mapping[str, str]
    output_tokens: int
    source: str
    group: str
    """Rows of one group go to the same side of every split."""
    model: str
    ts: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def facts(self) -> RequestFacts:
        """The request as the proxy sees it.

        Raises:
            ClientError: the row holds no request the proxy would accept.
        """
        headers = {key.lower(): value for key, value in self.headers.items()}
        return parse_request(self.path, self.body, headers, headers.get("x-tenant-id"))


def read_lines(path: Path) -> Iterator[bytes]:
    """Lines of a text file, decompressed by its suffix."""
    if path.suffix == ".zst":
        import zstandard  # noqa: PLC0415 - only training needs it

        with path.open("rb") as file:
            reader = zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(file)
            yield from io.BufferedReader(reader)
    elif path.suffix == ".gz":
        with gzip.open(path) as file:
            yield from file
    else:
        with path.open("rb") as file:
            yield from file


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of either format.

    Rows that teach nothing about a model's answers are left out: reference answers written by people, and answers whose
    reasoning was not counted.

    Raises:
        ValueError: a line is not JSON, or not a row.
    """
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = _row(orjson.loads(line), number)
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ValueError(f"{path}:{number}: not a row: {type(error).__name__}: {error}") from None
        if row is not None:
            yield row


def _row(raw: dict[str, Any], number: int) -> Row | None:
    if "request" in raw:
        return _request_row(raw, number)
    if raw.get("hidden_reasoning") or raw.get("label") == "reference":
        return None
    return _corpus_row(raw, number)


def _request_row(raw: dict[str, Any], number: int) -> Row:
    request = raw["request"]
    path = raw.get("path") or (_CHAT_PATH if "messages" in request else "/v1/completions")
    return Row(
        body=orjson.dumps(request),
        path=path,
        headers=raw.get("headers") or {},
        output_tokens=int(raw["output_tokens"]),
        source=str(raw.get("source", "all")),
        group=str(raw.get("group", f"row{number}")),
        model=str(request.get("model") or ""),
        ts=raw.get("ts"),
    )


def _corpus_row(raw: dict[str, Any], number: int) -> Row:
    endpoint = raw.get("endpoint", "chat")
    messages = [{"role": m["role"], "content": _whole(m)} for m in raw["messages"]]
    body: dict[str, Any] = {"model": raw.get("model")}
    if endpoint == "completions":
        body["prompt"] = messages[-1]["content"]
    else:
        body["messages"] = messages
    tools = raw.get("tools")
    if tools:
        tools = orjson.loads(tools) if isinstance(tools, str) else tools
        body["tools"] = [t if "function" in t else {"type": "function", "function": t} for t in tools]
    body |= raw.get("params") or {}
    source = str(raw.get("source", "all"))
    tenant = f"{source}/{raw['sub']}" if raw.get("sub") and source not in _FLAT else source
    return Row(
        body=orjson.dumps(body),
        path=_PATHS.get(endpoint, _CHAT_PATH),
        headers={"x-tenant-id": tenant},
        output_tokens=int(raw["out_tokens"]),
        source=source,
        group=str(raw.get("group", f"row{number}")),
        model=str(raw.get("model") or ""),
    )


_FLAT = frozenset({"misguided_attention", "lrm_token_economy"})
"""Sources whose `sub` is the single prompt, not an application."""


def _whole(message: Mapping[str, Any]) -> str:
    """The message's text at its true length, the cut-out middle filled with spaces."""
    content: str = message["content"]
    missing = int(message.get("chars", len(content))) - len(content)
    if missing <= 0:
        return content
    middle = len(content) // 2
    return content[:middle] + " " * missing + content[middle:]


def cap_sources(rows: list[Row], max_rows: int = 25_000) -> list[Row]:
    """No source with more than about `max_rows`.

    Of larger ones fewer answers per prompt are kept, chosen by checksum, until it fits: a benchmark that put each
    prompt to sixty models must not outweigh everything else.
    """
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in sorted(rows, key=lambda row: crc32(row.body)):
        groups.setdefault(row.source, {}).setdefault(row.group, []).append(row)
    kept: list[Row] = []
    for members in groups.values():
        cap = max(map(len, members.values()))
        while cap > 1 and sum(min(cap, len(member)) for member in members.values()) > max_rows:
            cap -= 1
        for member in members.values():
            kept += member[:cap]
    return kept


def facts_of(rows: list[Row]) -> list[RequestFacts | None]:
    """Facts of every row, None where the proxy would refuse the request."""
    facts: list[RequestFacts | None] = []
    for row in rows:
        try:
            facts.append(row.facts())
        except ClientError:
            facts.append(None)
    return facts
