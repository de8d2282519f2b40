"""A planned item as the bytes of an HTTP/1.1 request, and where it goes."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import orjson

from prelude_proxy.bench.prompts import sized_prompt
from prelude_proxy.bench.workload import WorkItem
from prelude_proxy.core.domain import GENERATING, Endpoint
from prelude_proxy.core.parse import endpoint_of

LABELS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "prelude": ("x-prelude-class", {name: name for name in ("oneshot", "fast", "standard", "deep")}),
    "haproxy": ("x-class", {name: name for name in ("oneshot", "fast", "standard", "deep")}),
    "prio": ("x-vllm-priority", {"oneshot": "0", "fast": "0", "standard": "5", "deep": "10"}),
    "smg": (
        "x-smg-priority",
        {"oneshot": "interactive", "fast": "interactive", "standard": "default", "deep": "bulk"},
    ),
}
"""Perfect knowledge of the class, in the header each peer reads it from."""

LengthMode = Literal["target", "max-tokens", "free"]


@dataclass(frozen=True, slots=True)
class Wire:
    """How a target wants its requests."""

    model: str = "tiny"
    max_tokens: int = 2048
    """The same for every request, so that it tells nothing."""
    length: LengthMode = "target"
    """How the engine learns the true length: `vllm_xargs.target_len`, an exact `max_tokens`, or not at all."""
    label: str = "none"
    api_key: str | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A front door under test: `http://host:port[/prefix]`."""

    name: str
    url: str
    wire: Wire = Wire()
    admin_url: str | None = None
    """Where `/status` of a proxy, or an engine's own `/metrics`, can be sampled."""

    @property
    def address(self) -> tuple[str, int, bool]:
        """Host, port, and whether it is TLS."""
        parts = urlsplit(self.url)
        secure = parts.scheme == "https"
        return parts.hostname or "127.0.0.1", parts.port or (443 if secure else 80), secure


def check_target(text: str) -> tuple[str, str]:
    """`NAME=URL` or a bare URL taken apart.

    Raises:
        ValueError: the URL is not `http://` or `https://` with a host.
    """
    name, separator, url = text.partition("=")
    if not separator or "/" in name:
        name, url = text, text
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"{url!r} is not a URL such as http://127.0.0.1:8000")
    return (name if separator and "/" not in name else parts.netloc), url.rstrip("/")


def encode(item: WorkItem, target: Target) -> bytes:
    """The whole request, head and body."""
    wire = target.wire
    body = orjson.dumps(_payload(item, wire))
    parts = urlsplit(target.url)
    lines = [
        f"POST {parts.path}{item.path} HTTP/1.1",
        f"host: {parts.netloc}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in item.headers),
    ]
    if item.tenant is not None:
        lines.append(f"x-tenant-id: {item.tenant}")
    if wire.api_key:
        lines.append(f"authorization: Bearer {wire.api_key}")
    if wire.label in LABELS:
        header, values = LABELS[wire.label]
        lines.append(f"{header}: {values[item.klass]}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def _payload(item: WorkItem, wire: Wire) -> dict[str, Any]:
    endpoint = endpoint_of(item.path)
    payload = dict(item.content) if item.content is not None else _synthetic(item, endpoint)
    payload["model"] = wire.model
    if endpoint not in GENERATING:
        return payload
    if endpoint is Endpoint.GENERATE:
        payload["parameters"] = {**payload.get("parameters", {}), "max_new_tokens": wire.max_tokens}
    else:
        payload.pop("max_completion_tokens", None)
        payload["max_tokens"] = item.output_tokens if wire.length == "max-tokens" else wire.max_tokens
        payload["stream"] = True
        payload["stream_options"] = {"include_usage": True}
    if wire.length == "target":
        payload["vllm_xargs"] = {"target_len": item.output_tokens}
    elif wire.length == "max-tokens":
        payload["ignore_eos"] = True
    return payload


def _synthetic(item: WorkItem, endpoint: Endpoint) -> dict[str, Any]:
    klass = "fast" if item.klass == "oneshot" else item.klass
    text = sized_prompt(klass, item.prompt_tokens, item.prefix_blocks, random.Random(item.seed))
    if endpoint is Endpoint.CHAT:
        return {"messages": [{"role": "user", "content": text}]}
    return {"inputs" if endpoint is Endpoint.GENERATE else "prompt": text}
