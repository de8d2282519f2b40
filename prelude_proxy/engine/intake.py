"""From a request body to sequences for the engine: limits, lengths, priority; refused as the real engine refuses."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prelude_proxy.core.domain import Dialect, EngineKind, RequestFacts
from prelude_proxy.core.parse import iter_text
from prelude_proxy.engine.lengths import draw_output_tokens
from prelude_proxy.engine.model import EngineConfig, Sequence
from prelude_proxy.errors import ClientError

PRIORITY_HEADER = "x-vllm-priority"
TGI_DEFAULT_TOKENS = 1024
"""What TGI 3 reserves and writes when `max_new_tokens` is not given."""
_TEMPLATE_TOKENS = 4
_MAX_CHOICES = 64


@dataclass(frozen=True, slots=True)
class Work:
    """What a request asks of the engine."""

    sequences: list[Sequence]
    reasons: list[str]
    prompt_tokens: int
    first_word: int


def read_work(facts: RequestFacts, kind: EngineKind, config: EngineConfig, *, seed: int, hash_prefix: bool) -> Work:
    """The sequences that `facts` (its payload not forgotten) stands for.

    Raises:
        ClientError: longer than the engine allows, or a field of the wrong kind.
    """
    payload = facts.payload or {}
    text = _prompt_text(payload)
    prompt_tokens = max(1, facts.prompt_tokens + _TEMPLATE_TOKENS * facts.num_messages)
    max_tokens = _max_tokens(facts, kind, config, prompt_tokens)
    num_choices = min(facts.num_choices, _MAX_CHOICES)
    priority = _priority(payload, facts.headers, kind)
    prefix = _prefix_hashes(text, prompt_tokens, config.block_size) if hash_prefix else ()
    sequences, reasons = [], []
    for index in range(num_choices):
        length = _wanted_tokens(payload, facts, text, seed + index)
        length = max(length, facts.min_tokens, 1)
        reasons.append("stop" if length <= max_tokens else "length")
        sequences.append(
            Sequence(
                prompt_tokens=prompt_tokens,
                output_tokens=min(length, max_tokens),
                priority=priority,
                reserve_tokens=max_tokens,
                prefix=prefix,
            )
        )
    return Work(sequences, reasons, prompt_tokens, first_word=zlib.crc32(text.encode("utf-8", "replace")) % 97)


def _max_tokens(facts: RequestFacts, kind: EngineKind, config: EngineConfig, prompt_tokens: int) -> int:
    """The bound on output tokens; by default what the context leaves."""
    room = config.max_model_len - prompt_tokens
    limit = f"the maximum context length of {config.max_model_len} tokens, {prompt_tokens} of them in the prompt"
    if room < 1:
        raise _refused(facts, f"The request exceeds {limit}.", "input_tokens")
    if facts.max_tokens is None:
        return min(room, TGI_DEFAULT_TOKENS) if kind is EngineKind.TGI else room
    if facts.max_tokens < 1:
        raise _refused(facts, f"max_tokens must be at least 1, got {facts.max_tokens}.", "max_tokens")
    if facts.max_tokens > room:
        raise _refused(facts, f"max_tokens={facts.max_tokens} exceeds {limit}.", "max_tokens")
    return facts.max_tokens


def _refused(facts: RequestFacts, message: str, param: str) -> ClientError:
    if facts.dialect is Dialect.TGI:
        return ClientError(message, status=422, kind="validation")
    return ClientError(message, param=param, kind="BadRequestError")


def _wanted_tokens(payload: Mapping[str, Any], facts: RequestFacts, text: str, seed: int) -> int:
    """Length of the answer before `max_tokens` cuts it."""
    for holder in (payload.get("vllm_xargs"), payload.get("parameters"), payload):
        target = holder.get("target_len") if isinstance(holder, dict) else None
        if isinstance(target, int | float) and target >= 1:
            return int(target)
    if payload.get("ignore_eos") is True:
        return 2**31
    if facts.has_fixed_choices:
        return 2
    return draw_output_tokens(text, seed)


def _priority(payload: Mapping[str, Any], headers: Mapping[str, str], kind: EngineKind) -> int:
    """Lower is more urgent. SGLang's numbers run the other way round."""
    priority = payload.get("priority") or 0
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise ClientError(f"priority must be a whole number, not {priority!r}", param="priority")
    with contextlib.suppress(KeyError, ValueError):  # vLLM ignores a header that is no number
        priority = int(headers[PRIORITY_HEADER])
    return -priority if kind is EngineKind.SGLANG else priority


def _prompt_text(payload: Mapping[str, Any]) -> str:
    """All text the engine reads, in order."""
    messages = payload.get("messages")
    if isinstance(messages, list):
        return "\n".join(text for message in messages for text in iter_text(message.get("content")))
    for key in ("prompt", "inputs", "text"):
        value = payload.get(key)
        if isinstance(value, str):
            return value
        if isinstance(value, list):
            return "\n".join(str(item) for item in value)
    return ""


def _prefix_hashes(text: str, prompt_tokens: int, block_size: int) -> tuple[int, ...]:
    """A chained checksum for each full block, at 4 bytes a token: prompts that begin alike share hashes."""
    num_blocks = prompt_tokens // block_size
    data = text.encode("utf-8", "replace")
    width = block_size * 4
    chain, hashes = 0, []
    for index in range(min(num_blocks, len(data) // width)):
        chain = zlib.crc32(data[index * width : (index + 1) * width], chain)
        hashes.append(chain)
    return tuple(hashes)
