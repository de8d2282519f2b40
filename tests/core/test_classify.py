"""From forecast to class: precedence, limits, cut-offs."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from prelude_proxy.core.classify import (
    Cutoffs,
    class_probabilities,
    decide,
    placed,
    probability_above,
    structural_class,
    whole_request,
)
from prelude_proxy.core.domain import ClassSpec, Dialect, Endpoint, Forecast, RequestFacts
from prelude_proxy.core.parse import parse_request

CLASSES = [
    ClassSpec("oneshot", 0, ladder=False),
    ClassSpec("fast", 1, 64, max_prompt_tokens=1000),
    ClassSpec("standard", 2, 512, max_prompt_tokens=8000),
    ClassSpec("deep", 3),
]


def forecast(fast: float, standard: float, expected: float = 100.0) -> Forecast:
    """P(fast) and P(standard); the rest is deep."""
    return Forecast((64.0, 512.0, 32768.0), (fast, fast + standard, 1.0), expected)


def request(path: str = "/v1/chat/completions", headers: dict[str, str] | None = None, **more: Any) -> RequestFacts:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "inputs": "hi", **more}
    return parse_request(path, orjson.dumps(body), headers or {})


@pytest.mark.parametrize(
    ("fast", "standard", "name"),
    [
        (0.9, 0.1, "fast"),
        (0.51, 0.4, "fast"),
        (0.45, 0.5, "standard"),
        (0.1, 0.6, "standard"),
        (0.1, 0.5, "deep"),
        (0.09, 0.1, "deep"),
        (0.11, 0.1, "standard"),
        (0.0, 0.0, "deep"),
    ],
)
def test_the_class_follows_the_forecast_and_deep_is_called_early(fast: float, standard: float, name: str) -> None:
    """The likelier side between fast and standard; deep from a lower probability on, unless it may well be short."""
    decision = decide(request(), forecast(fast, standard), CLASSES)
    assert (decision.name, decision.reason) == (name, "model")


def test_a_small_chance_to_be_short_counts_once_the_tenant_is_known() -> None:
    """A forecast by the model alone is not calibrated that finely."""
    for support, name in ((0.0, "deep"), (50.0, "standard")):
        given = Forecast((64.0, 512.0, 32768.0), (0.07, 0.17, 1.0), 900.0, support)
        assert decide(request(), given, CLASSES).name == name
        assert decide(request(max_tokens=2048), given, CLASSES).name == name


@pytest.mark.parametrize(
    ("fast", "standard", "perhaps"),
    [
        (0.51, 0.4, None),
        (0.45, 0.5, "fast"),
        (0.25, 0.1, "fast"),
        (0.21, 0.7, "fast"),
        (0.19, 0.7, None),
        (0.0, 0.3, None),
    ],
)
def test_what_may_well_be_short_is_marked(fast: float, standard: float, perhaps: str | None) -> None:
    """From one chance in five on; what is likely to be long keeps its class and says so."""
    decision = decide(request(), forecast(fast, standard), CLASSES)
    if perhaps is None:
        assert decision.perhaps is None
        return
    assert decision.name == decision.likeliest == "standard"
    instead = decision.perhaps
    assert instead is not None
    assert (instead.name, instead.reason, instead.likeliest) == (perhaps, "doubt", "standard")
    assert instead.confidence == pytest.approx(fast)
    assert instead.expected_tokens == decision.expected_tokens


def test_no_benefit_of_the_doubt_against_a_prompt_or_a_caller() -> None:
    """A prompt too long for the short class is none of theirs; who asked for a longer class gets it."""
    given = forecast(0.4, 0.5)
    assert decide(request(prompt="hi"), given, CLASSES).perhaps is not None
    assert decide(request(messages=[{"role": "user", "content": "hi " * 2000}]), given, CLASSES).perhaps is None
    for asked in ("standard", "deep"):
        assert decide(request(headers={"x-prelude-class": asked}), given, CLASSES).perhaps is None
    assert decide(request(headers={"x-prelude-class": "fast"}), given, CLASSES).perhaps is not None
    assert decide(request(), given, CLASSES, rule=("batch", "standard")).perhaps is None


def test_the_doubtful_go_with_the_short_while_few_of_these_wait() -> None:
    """Sixteen may be held, what a small engine runs at once."""
    doubtful, sure = decide(request(), forecast(0.4, 0.5), CLASSES), decide(request(), forecast(0.1, 0.8), CLASSES)
    index = {spec.name: number for number, spec in enumerate(CLASSES)}

    def name_with(num_held: int) -> str:
        return placed(doubtful, index, {index["fast"]: num_held}.__getitem__).name

    assert [name_with(held) for held in (0, 16, 17)] == ["fast", "fast", "standard"]
    assert placed(sure, index, {index["fast"]: 0}.__getitem__) is sure


def test_cutoffs_can_be_set() -> None:
    """An operator may want deep to be called later."""
    assert decide(request(), forecast(0.1, 0.5), CLASSES, cutoffs=Cutoffs(deepest=0.6)).name == "standard"


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/embeddings", {"input": "x"}),
        ("/v1/rerank", {"query": "x", "documents": ["y"]}),
        ("/score", {"text_1": "x", "text_2": "y"}),
        ("/classify", {"input": "x"}),
        ("/pooling", {"input": "x"}),
        ("/v1/completions", {"max_tokens": 1}),
        ("/v1/completions", {"max_tokens": 0, "echo": True}),
        ("/v1/completions", {"max_tokens": 8, "prompt_logprobs": 1}),
        ("/v1/chat/completions", {"max_completion_tokens": 1}),
        ("/v1/chat/completions", {"guided_choice": ["yes", "no"]}),
        ("/generate", {"parameters": {"max_new_tokens": 1}}),
    ],
)
def test_structure_makes_a_request_oneshot(path: str, more: dict[str, Any]) -> None:
    """What answers in one step is known from the request, whatever the model says."""
    decision = decide(request(path, **more), forecast(0.0, 0.0), CLASSES)
    assert (decision.name, decision.reason) == ("oneshot", "structure")


def test_a_long_decode_is_not_oneshot_for_its_prompt_logprobs() -> None:
    """They cost a prefill, the decode stays."""
    assert structural_class(request(prompt_logprobs=1, max_tokens=500)) is None


def test_an_unknown_path_gets_the_default() -> None:
    """Nothing is known of it."""
    facts = RequestFacts("/v1/audio/speech", Endpoint.OTHER, Dialect.OPENAI)
    assert decide(facts, None, CLASSES).name == "standard"


def test_a_rule_goes_before_everything() -> None:
    """Before structure, header and model."""
    facts = request("/v1/embeddings", {"x-prelude-class": "fast"}, input="x")
    decision = decide(facts, None, CLASSES, rule=("batch", "deep"), trust_header=True)
    assert (decision.name, decision.reason) == ("deep", "rule:batch")


@pytest.mark.parametrize(
    ("asked", "trusted", "name", "reason"),
    [
        ("deep", False, "deep", "header"),
        ("fast", False, "standard", "model"),
        ("oneshot", False, "standard", "model"),
        ("fast", True, "fast", "header"),
        ("Deep ", False, "deep", "header"),
        ("nonsense", True, "standard", "model"),
    ],
)
def test_a_header_may_lower_and_if_trusted_decide(asked: str, trusted: bool, name: str, reason: str) -> None:
    """Unknown names are ignored."""
    facts = request(headers={"x-prelude-class": asked})
    decision = decide(facts, forecast(0.1, 0.8), CLASSES, trust_header=trusted)
    assert (decision.name, decision.reason) == (name, reason)


def test_a_header_may_lower_a_oneshot_but_trust_does_not_undo_structure() -> None:
    """Structure goes before a trusted header; asking for less is always fine."""
    facts = request("/v1/embeddings", {"x-prelude-class": "deep"}, input="x")
    assert decide(facts, None, CLASSES).name == "deep"
    facts = request("/v1/completions", {"x-prelude-class": "oneshot"}, max_tokens=1)
    assert decide(facts, None, CLASSES, trust_header=True).reason == "structure"


def test_max_tokens_bounds_from_above() -> None:
    """A deep forecast cut at 50 tokens is fast."""
    decision = decide(request(max_tokens=50), forecast(0.0, 0.1, 2000), CLASSES)
    assert decision.name == "fast"
    assert decision.expected_tokens == 50


def test_min_tokens_bounds_from_below() -> None:
    """An answer that must be long is not fast."""
    decision = decide(request(min_tokens=600), forecast(1.0, 0.0, 5), CLASSES)
    assert decision.name == "deep"
    assert decision.expected_tokens >= 600


def test_choices_multiply() -> None:
    """Twenty short answers are one long one."""
    decision = decide(request(n=20), forecast(1.0, 0.0, 50), CLASSES)
    assert decision.expected_tokens == 1000
    assert decision.name == "deep"


@pytest.mark.parametrize(("chars", "name"), [(100, "fast"), (8000, "standard"), (80_000, "deep")])
def test_a_heavy_prompt_moves_a_request_up(chars: int, name: str) -> None:
    """Prefill is work as well."""
    facts = request(messages=[{"role": "user", "content": "x" * chars}])
    assert decide(facts, forecast(1.0, 0.0), CLASSES).name == name


def test_without_a_model_max_tokens_still_tells() -> None:
    """A bound that keeps to a shorter class chooses it; else the default."""
    assert decide(request(max_tokens=30), None, CLASSES).name == "fast"
    decision = decide(request(), None, CLASSES)
    assert (decision.name, decision.reason) == ("standard", "default")


def test_classes_may_be_anything() -> None:
    """Two classes, other names and bounds, no oneshot."""
    classes = [ClassSpec("quick", 5, 200), ClassSpec("slow", 9)]
    assert decide(request(), forecast(0.5, 0.4), classes).name == "quick"
    assert decide(request("/v1/embeddings", input="x"), None, classes, default="slow").name == "slow"


def test_probabilities_are_interpolated_between_edges() -> None:
    """In ln(tokens); certain beyond the ends."""
    given = forecast(0.5, 0.3)
    assert probability_above(given, 64) == pytest.approx(0.5)
    assert 0.2 < probability_above(given, 181) < 0.5
    assert probability_above(given, 10**9) == 0.0
    assert sum(class_probabilities(given, CLASSES).values()) == pytest.approx(1.0)


def test_limits_keep_a_forecast_a_distribution() -> None:
    """However absurd they are."""
    for more in ({"max_tokens": 3}, {"max_tokens": 10, "min_tokens": 500}, {"n": 128, "max_tokens": 10**9}):
        whole = whole_request(forecast(0.3, 0.3), request(**more))
        assert whole.cdf[-1] == 1.0
        assert list(whole.cdf) == sorted(whole.cdf)
        assert list(whole.edges) == sorted(whole.edges)
        assert 0 < whole.quantile(0.1) <= whole.quantile(0.9) <= whole.edges[-1]
