"""How a prompt begins, as a chain of hashes: prompts that begin alike share the first links, and only those.

An engine keeps the keys and values of prompts it has prefilled, in blocks that each stand for all before them too
(vLLM's automatic prefix caching, SGLang's radix cache). Here the same is done on text, without a tokeniser: link k of a
chain stands for the first `BLOCK_ENDS[k]` characters. The first blocks are 1 KiB, some 256 tokens; later ones grow, so
that 64 links reach a quarter of a million characters and still tell within a sixteenth how far two prompts agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from prelude_proxy.core.conversation import prompt_of, tool_name
from prelude_proxy.core.domain import GENERATING, RequestFacts
from prelude_proxy.core.parse import iter_text

CHARS_PER_TOKEN: Final = 4
_FIRST_BLOCK_CHARS: Final = 1024
_BLOCKS_OF_A_SIZE: Final = 16
_NUM_SIZES: Final = 4


def _ends() -> tuple[int, ...]:
    ends: list[int] = []
    end = 0
    for doubling in range(_NUM_SIZES):
        for _ in range(_BLOCKS_OF_A_SIZE):
            end += _FIRST_BLOCK_CHARS << doubling
            ends.append(end)
    return tuple(ends)


BLOCK_ENDS: Final = _ends()
"""Characters that a chain of one link, two links, … covers."""
BLOCK_TOKENS: Final = tuple(end // CHARS_PER_TOKEN for end in BLOCK_ENDS)
"""The same in tokens of four characters."""


def prefix_of(facts: RequestFacts) -> tuple[int, ...]:
    """The chain of a request's prompt; empty for one shorter than a block, and where nothing is decoded.

    Whatever makes an engine cache apart makes the chain another one: model, `cache_salt` (vLLM), offered tools.
    """
    payload = facts.payload
    if payload is None or facts.prompt_tokens < BLOCK_TOKENS[0] or facts.endpoint not in GENERATING:
        return ()
    ids = _token_ids(payload)
    try:
        seed = hash((facts.model, str(payload.get("cache_salt")), _tool_names(payload)))
        return _chain(seed, _opening(payload), BLOCK_ENDS) if ids is None else _chain(seed, ids, BLOCK_TOKENS)
    except TypeError:  # "token ids" that are no numbers: the engine will say so
        return ()


def _chain(seed: int, prompt: str | tuple[Any, ...], ends: Sequence[int]) -> tuple[int, ...]:
    links: list[int] = []
    link, start, length = seed, 0, len(prompt)
    for end in ends:
        if end > length:
            break
        link = hash((link, prompt[start:end]))
        links.append(link)
        start = end
    return tuple(links)


def _opening(payload: Mapping[str, Any]) -> str:
    """The text an engine reads, from its start, as far as a chain can reach; each message after its role."""
    parts: list[str] = []
    missing = BLOCK_ENDS[-1]
    for role, content in _spoken(payload):
        parts.append(role)
        for text in iter_text(content):
            parts.append(text)
            missing -= len(text)
            if missing <= 0:
                return "\n".join(parts)
    return "\n".join(parts)


def _spoken(payload: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Who says what, in order, in any dialect."""
    messages = payload.get("messages")
    if not isinstance(messages, list):
        messages = payload.get("input")
    spoken: list[tuple[str, Any]] = [
        ("system", payload[key]) for key in ("system", "instructions") if payload.get(key) is not None
    ]
    if isinstance(messages, list):
        for message in messages:
            if isinstance(message, dict):
                spoken.append((str(message.get("role")), message.get("content")))
            else:
                spoken.append(("user", message))
        return spoken
    return [*spoken, ("", prompt_of(payload))]


def _token_ids(payload: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """A prompt given as token ids (of a batch, the first), as far as a chain can reach."""
    for key in ("prompt", "input_ids"):
        given = payload.get(key)
        if isinstance(given, list) and given and isinstance(given[0], list):
            given = given[0]
        if isinstance(given, list) and given and isinstance(given[0], int):
            return tuple(given[: BLOCK_TOKENS[-1]])
    return None


def _tool_names(payload: Mapping[str, Any]) -> tuple[str, ...]:
    """Templates write the tools before everything else."""
    tools = payload.get("tools")
    if not isinstance(tools, list):
        return ()
    return tuple(tool_name(tool) for tool in tools)
