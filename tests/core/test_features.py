"""Requests as numbers: order, bounds, and the same for live requests and training rows."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prelude_proxy.core.domain import Dialect, Endpoint, RequestFacts
from prelude_proxy.core.features import FEATURES, FeatureExtractor
from prelude_proxy.core.lexicon import Lexicon
from prelude_proxy.core.modelname import ModelHabit
from prelude_proxy.core.parse import ENDPOINTS, parse_request
from prelude_proxy.training.dataset import read_rows

EXTRACTOR = FeatureExtractor(Lexicon.of({b"essay": 1.0}), {"qwen3-8b": ModelHabit(5.0, 0.5, 3.0, 0.25, 0.75)})


def facts_of(body: dict[str, Any], path: str = "/v1/chat/completions") -> RequestFacts:
    return parse_request(path, orjson.dumps(body), {})


def features_of(body: dict[str, Any], path: str = "/v1/chat/completions") -> dict[str, float]:
    return dict(zip(FEATURES, EXTRACTOR.extract(facts_of(body, path)).values, strict=True))


def chat(text: object, **more: object) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def test_names_are_unique_and_match_the_vector() -> None:
    """Each number has a name of its own."""
    assert len(set(FEATURES)) == len(FEATURES)
    assert len(EXTRACTOR.extract(facts_of(chat("hi"))).values) == len(FEATURES)


def test_text_is_measured() -> None:
    """Words, lines, marks, the asked-for count and the lexicon show in their features."""
    seen = features_of(chat("Write an essay of 300 words:\n- about Rome?"))
    assert seen["lexicon"] > 0
    assert seen["num_lines"] == 1
    assert seen["num_questions"] == 1
    assert seen["ends_with"] == 1
    assert seen["asked_unit"] == 1
    assert seen["asked_count"] == pytest.approx(np.log1p(300))
    assert seen["words_create"] >= 2


def test_a_known_model_name_brings_its_habit() -> None:
    """Owner and letter case of the name do not matter."""
    seen = features_of(chat("hi") | {"model": "Qwen/Qwen3-8B"})
    assert (seen["habit_level"], seen["habit_excess"], seen["name_size"]) == (5.0, 0.5, pytest.approx(np.log1p(8)))
    assert (seen["habit_support"], seen["habit_slope"], seen["habit_spread"]) == (3.0, 0.25, 0.75)
    assert features_of(chat("hi"))["habit_level"] == -1.0


def test_conversation_shape_is_seen() -> None:
    """Roles, earlier answers, tools and switches are counted."""
    body = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "x" * 100},
            {"role": "tool", "content": "{}"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "chat_template_kwargs": {"enable_thinking": False},
    }
    seen = features_of(body)
    assert (seen["num_messages"], seen["num_user"], seen["num_assistant"], seen["num_tool"]) == (4, 1, 1, 1)
    assert (seen["last_role"], seen["num_tools"], seen["reasoning_switch"]) == (1.0, 1.0, 0.0)
    assert seen["last_answer_chars"] == pytest.approx(np.log1p(100))


def test_sampling_parameters_change_nothing() -> None:
    """In public data they only tell the data set apart."""
    plain = EXTRACTOR.extract(facts_of(chat("hi"))).values
    assert EXTRACTOR.extract(facts_of(chat("hi", temperature=0.3, max_tokens=9, stop=["x"], seed=1))).values == plain


def test_the_same_text_is_the_same_at_every_endpoint_that_takes_it() -> None:
    """Chat, completions, responses and TGI read the prompt alike."""
    text = "Explain the tides in detail, please."
    views = [
        features_of(chat(text)),
        features_of({"model": "m", "prompt": text}, "/v1/completions"),
        features_of({"model": "m", "input": text}, "/v1/responses"),
        features_of({"inputs": text}, "/generate"),
    ]
    for name in ("text_chars", "num_words", "words_explain", "first_word", "prompt_chars"):
        assert len({view[name] for view in views}) == 1, name


def test_fingerprints_tell_call_sites_apart() -> None:
    """System prompt and tools make the fingerprint; the prompt makes template and digest."""

    def extract(system: str, text: str) -> Any:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        return EXTRACTOR.extract(facts_of({"model": "m", "messages": messages}))

    start = "Summarise the following article in one sentence: "
    one, two, other = extract("You are A.", start + "x"), extract("You are A.", start + "y"), extract("You are B.", "x")
    assert one.fingerprint == two.fingerprint != other.fingerprint
    assert one.template == two.template
    assert one.digest != two.digest


def test_a_cut_training_row_gives_the_features_of_the_whole_request(tmp_path: Path) -> None:
    """History cut to 200 characters and a prompt cut in its middle, with their true lengths, look like the request."""
    prompt = "Compare these. " * 200 + "-" * 6000 + " Which is longer?" * 60
    history = "An earlier answer with words. " * 40
    whole = {
        "model": "qwen3-8b",
        "messages": [
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": history},
            {"role": "user", "content": prompt},
        ],
    }
    cut = prompt[:2700] + prompt[-2700:]
    row = {
        "source": "s",
        "group": 1,
        "model": "qwen3-8b",
        "endpoint": "chat",
        "out_tokens": 10,
        "messages": [
            {"role": "user", "content": "first", "chars": 5},
            {"role": "assistant", "content": history[:200], "chars": len(history)},
            {"role": "user", "content": cut, "chars": len(prompt)},
        ],
    }
    file = tmp_path / "rows.jsonl"
    file.write_bytes(orjson.dumps(row))
    (read,) = read_rows(file)
    cut_down, complete = EXTRACTOR.extract(read.facts()), EXTRACTOR.extract(facts_of(whole))
    for name in ("values", "fingerprint", "opening", "template", "digest"):
        assert getattr(cut_down, name) == getattr(complete, name), name


def _many_parts() -> list[dict[str, Any]]:
    return [{"type": "text", "text": "x"}] * 5000 + [{"type": "image_url", "image_url": {"url": "https://e/x.png"}}]


ADVERSARIAL: dict[str, dict[str, Any]] = {
    "empty prompt": chat(""),
    "no content": {"model": "m", "messages": [{"role": "user"}]},
    "one megabyte of one character": chat("x" * 2**20),
    "control characters": chat("".join(map(chr, range(32))) * 500),
    "emoji": chat("😀👩‍👩‍👧‍👦" * 3000),
    "right to left": chat("\u202eمرحبا بالعالم שלום עולם " * 500),
    "thousands of messages": {"model": "m", "messages": [{"role": "user", "content": "hi"}] * 5000},
    "many content parts": chat(_many_parts()),
    "nested content parts": chat([[[{"type": "text", "text": "x"}]]]),
    "odd roles": {"model": "m", "messages": [{"role": 7, "content": 5}, {"role": None, "content": {"a": 1}}]},
    "odd tools": chat("hi", tools=[1, None, {"function": 3}, {"name": "x"}, {"function": {"name": 4}}]),
    "odd switches": chat("hi", tool_choice={"type": "function"}, reasoning_effort=["high"], response_format=3),
    "images by reference": chat([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}] * 50),
    "words without end": chat("a " * 10**6),
    "numbers": chat("9" * 5000 + " words"),
}


@pytest.mark.parametrize("body", ADVERSARIAL.values(), ids=ADVERSARIAL.keys())
def test_no_request_breaks_the_features(body: dict[str, Any]) -> None:
    """Every number is finite, whatever is sent."""
    assert all(isfinite(value) for value in EXTRACTOR.extract(facts_of(body)).values)


@pytest.mark.parametrize("endpoint", list(Endpoint))
def test_every_endpoint_has_features_even_without_a_payload(endpoint: Endpoint) -> None:
    """Unknown and forgotten payloads give a vector as well."""
    facts = RequestFacts(path="/x", endpoint=endpoint, dialect=Dialect.OPENAI)
    assert len(EXTRACTOR.extract(facts).values) == len(FEATURES)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "content",
                    "text",
                    "type",
                    "messages",
                    "tools",
                    "function",
                    "name",
                    "system",
                    "input",
                    "prompt",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(
    path=st.sampled_from(sorted(ENDPOINTS)),
    payload=st.dictionaries(
        st.sampled_from(
            ["messages", "prompt", "input", "inputs", "text", "tools", "system", "instructions", "tool_choice"]
        ),
        JSON,
        max_size=5,
    ),
)
def test_no_payload_of_any_shape_raises(path: str, payload: dict[str, Any]) -> None:
    """The extractor is total even for payloads that the parser would have refused."""
    facts = RequestFacts(path=path, endpoint=ENDPOINTS[path], dialect=Dialect.OPENAI, payload=payload)
    assert all(isfinite(value) for value in EXTRACTOR.extract(facts).values)
