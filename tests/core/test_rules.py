"""Operator rules: first match wins; everything given must hold."""

from __future__ import annotations

import pytest

from prelude_proxy.core.domain import Dialect, Endpoint, RequestFacts
from prelude_proxy.core.rules import Condition, Rule, first_match


def facts(**fields):
    made = RequestFacts(fields.pop("path", "/v1/chat/completions"), Endpoint.CHAT, Dialect.OPENAI)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("condition", "matching", "other"),
    [
        ({"path": "/v1/chat/*"}, {}, {"path": "/v1/completions"}),
        ({"tenant": "batch-*"}, {"tenant": "batch-7"}, {"tenant": None}),
        ({"model": "llama*"}, {"model": "llama-8b"}, {"model": "qwen"}),
        ({"headers": {"x-team": "s*"}}, {"headers": {"x-team": "search"}}, {"headers": {}}),
        ({"prompt_tokens": (100, None)}, {"prompt_tokens": 100}, {"prompt_tokens": 99}),
        ({"max_tokens": (None, 16)}, {"max_tokens": 16}, {"max_tokens": None}),
        ({"stream": True}, {"stream": True}, {"stream": False}),
        ({"tools": False}, {"has_tools": False}, {"has_tools": True}),
        ({"json_schema": True}, {"has_json_schema": True}, {}),
        ({"reasoning": False}, {"reasoning": False}, {"reasoning": None}),
    ],
)
def test_each_condition(condition, matching, other):
    """One field each, a request that matches and one that does not."""
    rule = Rule("r", Condition(**condition), class_name="deep")
    assert first_match([rule], facts(**matching)) is rule
    assert first_match([rule], facts(**other)) is None


def test_the_first_match_wins():
    """Order in the file is order of precedence; all parts of one condition must hold."""
    both = Rule("both", Condition(model="a", stream=True), class_name="fast")
    one = Rule("one", Condition(model="a"), class_name="deep")
    assert first_match([both, one], facts(model="a", stream=True)) is both
    assert first_match([both, one], facts(model="a")) is one
    assert first_match([both, one], facts(model="b")) is None
