"""Plain instructions about length are read plainly, and nothing else is touched."""

from __future__ import annotations

import orjson
import pytest
from librt.vecs import vec

from prelude_proxy.classifier import Classifier
from prelude_proxy.config import build_config
from prelude_proxy.core.bins import NUM_BINS
from prelude_proxy.core.classify import decide
from prelude_proxy.core.cues import Cue, read_cue
from prelude_proxy.core.parse import parse_request
from prelude_proxy.modelfile import load_model

CLASSES = build_config({}).class_specs()


def cue_of(text, asked=(0.0, 0.0), known=False):
    words = text.encode().split()
    return read_cue(words, set(words), asked=asked, is_known_model=known)


@pytest.mark.parametrize(
    ("text", "asked", "tokens"),
    [
        ("write about trees in about 150 words", (150, 1), 200),
        ("a 3000 word essay about trees", (3000, 1), 2000),
        ("answer in two paragraphs", (2, 3), 190),
        ("answer in three sentences", (3, 2), 84),
        ("design a detailed architecture and the full code with tests", (0, 0), 900),
        ("translate harbour to french", (0, 0), 20),
    ],
)
def test_instructions_are_read(text, asked, tokens):
    """Numbers of words, sentences and paragraphs; large orders; single words."""
    assert cue_of(text, asked).tokens == pytest.approx(tokens, rel=0.05)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "how do i cook rice",
        "the essay has a detailed and complete report",  # no order
        "write a poem",
        "is the capital of a company its cash " + "or more " * 10,  # too long for a single word
        "write " + "the full complete detailed essay " * 30,  # a long prompt says more than its first words
    ],
)
def test_other_prompts_give_no_cue(text):
    """A cue needs its instruction; words alone do not make one."""
    assert cue_of(text) is None


def test_a_model_known_to_write_at_length_is_not_taken_for_brief():
    """Reasoning models answer yes or no in a thousand tokens."""
    assert cue_of("is it true yes or no") is not None
    assert cue_of("is it true yes or no", known=True) is None


def test_a_cue_keeps_a_distribution_a_distribution():
    """Mixed, not replaced: the sum stays one and the model keeps its say."""
    flat = vec[float]([1.0 / NUM_BINS] * NUM_BINS)
    mixed = Cue(200.0, 0.6).applied_to(flat)
    assert sum(mixed) == pytest.approx(1.0, abs=1e-5)
    assert min(mixed) >= 0.39 / NUM_BINS


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("What is the capital of France?", "fast"),
        ("Translate 'lantern' to French.", "fast"),
        ("Is 'knapsack' spelled correctly? Answer yes or no.", "fast"),
        ("Write a detailed 3000 word essay about the history of rivers, with sections and a conclusion.", "deep"),
        ("Design a distributed cache. Compare alternatives in depth, and write the full code for each part.", "deep"),
        ("Explain in two paragraphs what a violin is.", "standard"),
    ],
)
def test_a_new_fleet_knows_plain_orders_from_plain_questions(prompt, expected):
    """With nothing learned yet and an unknown model."""
    body = orjson.dumps({"model": "own-model", "messages": [{"role": "user", "content": prompt}]})
    facts = parse_request("/v1/chat/completions", body, {})
    forecast, _ = Classifier(load_model(None), CLASSES).classify(facts, 0.0)
    assert decide(facts, forecast, CLASSES).name == expected
