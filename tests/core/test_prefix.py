"""Chains of a prompt's start."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prelude_proxy.core.parse import parse_request
from prelude_proxy.core.prefix import BLOCK_ENDS, BLOCK_TOKENS, prefix_of

CHAT = "/v1/chat/completions"
LONG = "The quick brown fox jumps over the lazy dog. " * 100


def chain(body: dict, path: str = CHAT) -> tuple[int, ...]:
    return prefix_of(parse_request(path, orjson.dumps({"model": "m", **body}), {}))


def chat(*texts: str, **fields) -> dict:
    roles = ("system", "user", "assistant", "user", "assistant", "user")
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)], **fields}


def test_a_later_turn_begins_with_the_chain_of_the_one_before():
    """A conversation only grows at its end."""
    first = chain(chat(LONG, "and now?"))
    second = chain(chat(LONG, "and now?", LONG, "go on"))
    assert first
    assert second[: len(first)] == first
    assert len(second) > len(first)


def test_prompts_agree_as_far_as_their_text_does():
    """A difference in one block changes its link and all that follow, and none before."""
    one, other = chain(chat(LONG[:3000] + "x" * 2000)), chain(chat(LONG[:3000] + "y" * 2000))
    same = [a == b for a, b in zip(one, other, strict=True)]
    assert same == [True] * 2 + [False] * (len(one) - 2)


@given(st.integers(0, 3 * BLOCK_ENDS[-1] // 2))
def test_a_chain_is_as_long_as_its_full_blocks(length):
    """One link for each full block, and never more than there are blocks."""
    found = len(chain({"prompt": "x" * length}, "/v1/completions"))
    assert found == sum(end <= length + 1 for end in BLOCK_ENDS) or length // 4 + 1 < BLOCK_TOKENS[0]
    assert found <= len(BLOCK_ENDS)


def test_short_prompts_have_no_chain():
    """There is nothing worth to be cached."""
    assert chain(chat("short", "question")) == ()


@pytest.mark.parametrize(
    "fields",
    [{"model": "lora"}, {"cache_salt": "tenant"}, {"tools": [{"type": "function", "function": {"name": "f"}}]}],
    ids=["model", "cache_salt", "tools"],
)
def test_what_engines_cache_apart_has_chains_apart(fields):
    """The same words under another adapter, salt or set of tools share no block in an engine."""
    assert not set(chain(chat(LONG, "x"))) & set(chain(chat(LONG, "x", **fields)))


def test_every_dialect_gives_the_text_the_engine_reads():
    """Instructions and system prompts come first, wherever the dialect puts them; parts of a message count as text."""
    parts = [{"type": "text", "text": LONG}]
    assert chain({"messages": [{"role": "user", "content": parts}]}) == chain(
        {"messages": [{"role": "user", "content": LONG}]}
    )
    turns = [{"role": "user", "content": LONG}]
    expected = chain({"messages": [{"role": "system", "content": LONG}, *turns]})
    assert expected
    assert chain({"system": LONG, "messages": turns, "max_tokens": 9}, "/v1/messages") == expected
    assert chain({"instructions": LONG, "input": turns}, "/v1/responses") == expected
    assert chain({"instructions": LONG, "input": LONG}, "/v1/responses")[:4] == expected[:4]
    assert chain({"inputs": LONG}, "/generate") == chain({"prompt": [LONG, "x"]}, "/v1/completions") != ()


def test_token_ids_are_a_prompt_too():
    """Blocks count tokens then."""
    ids = list(range(3000))
    found = chain({"prompt": ids}, "/v1/completions")
    assert len(found) == sum(end <= 3000 for end in BLOCK_TOKENS)
    assert chain({"prompt": [ids[:1000] + [7] * 100]}, "/v1/completions")[:3] == found[:3]
    assert chain({"prompt": [1, ["not a token"]] * 300}, "/v1/completions") == ()


def test_what_is_not_decoded_has_no_chain():
    """Embeddings of the same text again are no second turn."""
    assert chain({"input": LONG}, "/v1/embeddings") == ()
