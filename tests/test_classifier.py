"""The classifier as the proxy runs it, with the shipped model."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from prelude_proxy.classifier import Classifier
from prelude_proxy.core.classify import decide
from prelude_proxy.core.domain import ClassSpec, RequestFacts
from prelude_proxy.core.length import LengthModel
from prelude_proxy.core.parse import parse_request
from prelude_proxy.errors import ConfigError
from prelude_proxy.modelfile import default_model_path, load_model, read_parts, write_parts

CLASSES = [
    ClassSpec("oneshot", 0, ladder=False),
    ClassSpec("fast", 1, 64),
    ClassSpec("standard", 2, 512),
    ClassSpec("deep", 3),
]


@pytest.fixture(scope="module")
def model() -> LengthModel:
    return load_model()


@pytest.fixture
def classifier(model: LengthModel) -> Classifier:
    return Classifier(model, CLASSES)


def ask(prompt: str, tenant: str | None = "t", **more: Any) -> RequestFacts:
    body = {"model": "qwen3-8b", "messages": [{"role": "user", "content": prompt}], **more}
    return parse_request("/v1/chat/completions", orjson.dumps(body), {}, tenant)


def test_the_shipped_model_is_small_and_orders_plain_cases(classifier: Classifier) -> None:
    """At most 3 MB; a proof by a thinking model is longer than a one-word answer."""
    assert default_model_path().stat().st_size < 3 * 2**20
    short, _ = classifier.classify(ask("Answer with one word: what is the capital of France?"))
    long, _ = classifier.classify(
        ask("Prove that there are infinitely many primes. Think step by step.", model="qwen3-30b-a3b-think")
    )
    assert short.expected_tokens * 3 < long.expected_tokens


def test_serving_imports_no_training_library() -> None:
    """xgboost, scikit-learn and scipy cost seconds and hundreds of megabytes."""
    code = (
        "import sys, prelude_proxy.classifier, prelude_proxy.journal, prelude_proxy.commands.classifier as c;"
        "from prelude_proxy.modelfile import load_model; load_model();"
        "print([n for n in ('xgboost', 'sklearn', 'scipy', 'matplotlib') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_it_learns_a_tenant_and_keeps_what_it_learned_over_a_reload(classifier: Classifier) -> None:
    """Forty answers of a few tokens make the next one fast, also under a new model file."""
    facts = ask("Describe the weather in detail.", tenant="terse")
    for _ in range(40):
        _, observation = classifier.classify(facts)
        classifier.learn(observation, 9)
    assert decide(facts, classifier.classify(facts)[0], CLASSES).name == "fast"
    classifier.reload()
    assert decide(facts, classifier.classify(facts)[0], CLASSES).name == "fast"


def test_choices_are_learned_apart(classifier: Classifier) -> None:
    """Eight answers of 9 tokens are no answer of 72."""
    facts = ask("Describe the weather in detail.", tenant="many", n=8)
    for _ in range(40):
        _, observation = classifier.classify(facts)
        classifier.learn(observation, 72)
    assert classifier.classify(facts)[0].expected_tokens < 25


def test_a_cut_off_answer_is_a_lower_bound(classifier: Classifier) -> None:
    """Learning 200 tokens as the end makes answers shorter than learning them as a cut does."""
    facts, other = ask("Write a novel.", tenant="a"), ask("Write a novel.", tenant="b")
    for _ in range(30):
        classifier.learn(classifier.classify(facts)[1], 200)
        classifier.learn(classifier.classify(other)[1], 200, censored=True)
    assert classifier.classify(other)[0].expected_tokens > classifier.classify(facts)[0].expected_tokens * 1.2
    assert classifier.statistics().calibration.num_censored == 30


def test_an_answer_without_tokens_teaches_nothing(classifier: Classifier) -> None:
    """An error before the first token is not a short answer."""
    _, observation = classifier.classify(ask("hi"))
    classifier.learn(observation, 0)
    assert classifier.statistics().calibration.num_learned == 0


def test_a_held_observation_is_small(classifier: Classifier) -> None:
    """All that a held request keeps of its classification."""
    _, observation = classifier.classify(ask("x" * 100_000))
    blend = observation.blend
    packed = sum(8 * len(each) + sys.getsizeof(each) for each in (blend.static, blend.blended))
    boxed = (observation, observation.values, blend, observation.keys, *observation.keys)
    assert packed + sum(map(sys.getsizeof, boxed)) <= 1024


def test_a_shadow_is_scored_and_decides_nothing(model: LengthModel, tmp_path: Path) -> None:
    """Its would-be decisions are counted beside those of the model in use."""
    parts = read_parts(default_model_path())
    path = tmp_path / "short.model"
    write_parts(path, type(parts)(**{**_fields(parts), "base": parts.base + _tilt(len(parts.base))}))
    alone, shadowed = Classifier(model, CLASSES), Classifier(model, CLASSES)
    shadowed.set_shadow(load_model(path))
    for index in range(20):
        facts = ask(f"Explain the history of the city number {index} in detail.")
        forecasts = []
        for each in (alone, shadowed):
            forecast, observation = each.classify(facts)
            each.learn(observation, 300)
            forecasts.append((forecast.cdf, forecast.expected_tokens))
        assert forecasts[0] == forecasts[1]
    shadow = shadowed.statistics().shadow
    assert shadow is not None
    assert shadow.calibration.num_learned == 20
    assert shadow.num_disagreed > 0
    assert alone.statistics().shadow is None
    shadowed.set_shadow(None)
    assert shadowed.statistics().shadow is None


def _tilt(size: int) -> Any:
    return np.linspace(12.0, -12.0, size, dtype=np.float32)


def _fields(parts: Any) -> dict[str, Any]:
    return {name: getattr(parts, name) for name in parts.__slots__}


def test_statistics_speak_of_what_was_learned(classifier: Classifier) -> None:
    """Counts, keys and the weights of the experts."""
    for index in range(10):
        _, observation = classifier.classify(ask(f"Say {index}"))
        classifier.learn(observation, 5)
    statistics = classifier.statistics()
    assert statistics.num_classified == 10
    assert statistics.calibration.num_learned == 10
    assert statistics.num_keys > 0
    assert sum(statistics.weights.values()) == pytest.approx(1.0)
    assert statistics.model.trained_rows > 1000


@pytest.mark.parametrize(
    "prompt",
    ["", "x" * 2**20, "\x00\x01\x02" * 1000, "😀" * 5000, "שלום مرحبا " * 1000, "a b " * 300_000, "\n" * 50_000],
    ids=["empty", "megabyte", "binary", "emoji", "right to left", "words", "lines"],
)
def test_any_prompt_gets_a_class(classifier: Classifier, prompt: str) -> None:
    """And a forecast that is a distribution."""
    facts = ask(prompt)
    forecast, observation = classifier.classify(facts)
    assert decide(facts, forecast, CLASSES).name in {"fast", "standard", "deep"}
    assert 0 < forecast.quantile(0.1) <= forecast.quantile(0.9)
    classifier.learn(observation, 10)


def test_what_is_no_model_is_refused_with_a_reason(tmp_path: Path) -> None:
    """Absent, damaged, and trained for other features; the model in use stays."""
    classifier = Classifier(load_model(), CLASSES)
    with pytest.raises(ConfigError, match="no model at"):
        classifier.reload(tmp_path / "absent.model")
    damaged = tmp_path / "damaged.model"
    damaged.write_bytes(default_model_path().read_bytes()[:5000])
    with pytest.raises(ConfigError, match="damaged"):
        classifier.reload(damaged)
    for change, reason in (
        ({"features_version": 0}, "features version"),
        ({"features": ["x"]}, "other features"),
        ({"edges": [1, 2]}, "other bins"),
        ({"format": 99}, "format 99"),
    ):
        other = tmp_path / "other.model"
        _rewrite(default_model_path(), other, change)
        with pytest.raises(ConfigError, match=reason):
            classifier.reload(other)
    assert classifier.model.info.name == "default"


def _rewrite(source: Path, target: Path, change: dict[str, Any]) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "manifest.json":
                data = orjson.dumps(orjson.loads(data) | change)
            new.writestr(name, data)
