"""Reading requests: facts of every endpoint, and clear errors for what is wrong. Never anything but `ClientError`."""

from __future__ import annotations

import contextlib
import json

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prelude_proxy.core.domain import Dialect, Endpoint
from prelude_proxy.core.parse import ENDPOINTS, dialect_of, endpoint_of, estimate_tokens, parse_request
from prelude_proxy.errors import ClientError

CHAT = "/v1/chat/completions"

FIELDS = [
    "model", "messages", "prompt", "input", "inputs", "stream", "max_tokens", "n", "tools", "system", "parameters",
    "response_format", "reasoning", "thinking", "chat_template_kwargs", "documents", "structured_outputs",
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "text", "type"]), inner, max_size=3)
    ),
    max_leaves=4,
)


def chat(**fields):
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello there"}], **fields}
    return parse_request(CHAT, orjson.dumps(body), {})


@given(st.sampled_from(sorted(ENDPOINTS)), st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6))
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_object_gives_facts_or_a_client_error(path, body):
    """Whatever a client sends, the parser raises nothing but its own error."""
    with contextlib.suppress(ClientError):
        facts = parse_request(path, json.dumps(body).encode(), {})
        assert facts.prompt_tokens >= 0
        assert facts.num_choices >= 1


@given(st.binary(max_size=60))
def test_any_bytes_give_facts_or_a_client_error(body):
    """Not JSON, not UTF-8, not an object: 400."""
    with pytest.raises(ClientError):
        parse_request(CHAT, body, {})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[1]", "must be a JSON object, not a list"),
        (b'"x"', "must be a JSON object, not a string"),
        (b'{"model": 5, "messages": []}', "'model' must be a string, not a number"),
        (b'{"model": "m"}', "'messages' must be a list of at least one message"),
        (b'{"model": "m", "messages": ["x"]}', "messages[0] must be an object, not a string"),
        (b'{"model": "m", "messages": [{}], "stream": "yes"}', "'stream' must be true or false"),
        (b'{"model": "m", "messages": [{}], "max_tokens": "9"}', "'max_tokens' must be a whole number"),
        (b'{"model": "m", "messages": [{}], "max_tokens": -1}', "'max_tokens' must not be negative"),
        (b'{"model": "m", "messages": [{}], "n": 1.5}', "'n' must be a whole number"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "not valid JSON"),
    ],
)
def test_mistakes_are_named(body, message):
    """The error says which field, what it must be, and what it was."""
    with pytest.raises(ClientError) as caught:
        parse_request(CHAT, body, {})
    assert message in str(caught.value)
    assert caught.value.status == 400


def test_chat_counts_every_text_part():
    """Strings, parts with text, system prompt and tools are all prefill."""
    facts = chat(
        messages=[
            {"role": "system", "content": "x" * 400},
            {"role": "user", "content": [{"type": "text", "text": "y" * 400}, {"type": "image_url", "image_url": {}}]},
        ]
    )
    assert facts.num_messages == 2
    assert facts.prompt_chars == 800
    assert 190 <= facts.prompt_tokens <= 210
    with_tools = chat(tools=[{"type": "function", "function": {"name": "f" * 400}}])
    assert with_tools.has_tools
    assert with_tools.prompt_tokens > 100


def test_limits_take_the_tighter_name():
    """`max_completion_tokens` and `max_tokens` are one bound."""
    facts = chat(max_tokens=100, max_completion_tokens=50, min_tokens=5, n=3)
    assert (facts.max_tokens, facts.min_tokens, facts.num_choices) == (50, 5, 3)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"chat_template_kwargs": {"thinking": True}}, True),
        ({"reasoning_effort": "high"}, True),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning": {"enabled": False}}, False),
        ({"reasoning": {"effort": "low"}}, True),
        ({"thinking": {"type": "enabled", "budget_tokens": 100}}, True),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": ["enabled"]}}, None),
    ],
)
def test_reasoning_switches_of_every_dialect(fields, expected):
    """On, off, or not said."""
    assert chat(**fields).reasoning is expected


def test_structure_is_seen():
    """Schema, fixed choices and prompt log-probabilities."""
    assert chat(response_format={"type": "json_schema"}).has_json_schema
    assert not chat(response_format={"type": "text"}).has_json_schema
    assert not chat(response_format={"type": ["json_schema"]}).has_json_schema
    assert chat(guided_choice=["yes", "no"]).has_fixed_choices
    assert chat(structured_outputs={"choice": ["a"]}).has_fixed_choices
    assert chat(prompt_logprobs=0).wants_prompt_logprobs


def test_tgi_and_sglang_generate():
    """TGI speaks `inputs`, SGLang `text`; both have their limits nested."""
    body = b'{"inputs": "Hi there", "parameters": {"max_new_tokens": 20, "best_of": 2}}'
    tgi = parse_request("/generate_stream", body, {})
    assert (tgi.dialect, tgi.stream, tgi.max_tokens, tgi.num_choices) == (Dialect.TGI, True, 20, 2)
    sglang = parse_request("/generate", b'{"text": "Hi", "sampling_params": {"max_new_tokens": 9}}', {})
    assert (sglang.dialect, sglang.max_tokens) == (Dialect.OPENAI, 9)
    with pytest.raises(ClientError, match="'inputs' is required"):
        parse_request("/generate", b"{}", {})


def test_token_ids_are_counted_exactly():
    """A prompt of ids needs no estimate."""
    facts = parse_request("/v1/completions", b'{"model": "m", "prompt": [1, 2, 3, 4]}', {})
    assert facts.prompt_tokens == 4
    facts = parse_request("/v1/embeddings", b'{"model": "m", "input": [[1, 2], [3]]}', {})
    assert (facts.endpoint, facts.prompt_tokens) == (Endpoint.EMBEDDINGS, 3)


def test_anthropic_messages():
    """System prompt beside the messages, errors in its dialect."""
    body = b'{"model": "m", "max_tokens": 5, "system": "Be brief", "messages": [{"role": "user", "content": "Hi"}]}'
    facts = parse_request("/v1/messages", body, {})
    assert facts.dialect is Dialect.ANTHROPIC
    assert facts.prompt_chars == 10
    assert dialect_of("/v1/messages/count_tokens") is Dialect.ANTHROPIC


def test_unknown_paths_are_other():
    """They are proxied, not understood."""
    assert endpoint_of("/v1/audio/speech") is Endpoint.OTHER
    assert parse_request("/tokenize", b'{"model": "m"}', {}).endpoint is Endpoint.OTHER


def test_estimates_follow_the_script():
    """Four characters a token for ASCII, about one for CJK."""
    assert estimate_tokens("") == 0
    assert estimate_tokens("a" * 400) == 101
    assert 380 <= estimate_tokens("語" * 400) <= 420
    assert estimate_tokens("\ud800") >= 1
