"""What stands for the classifier."""

from __future__ import annotations

from collections import Counter

import pytest

from prelude_proxy.bench.workload import WorkItem, mix_plan
from prelude_proxy.classifier import Classifier
from prelude_proxy.config import Config
from prelude_proxy.judge import Judge
from prelude_proxy.modelfile import load_model
from prelude_proxy.simulator.forecasters import Confused, Ladder, Noisy, Oracle, Real

CLASSES = Config.model_validate({"classes": {}}).class_specs()
LADDER = Ladder(CLASSES)


@pytest.mark.parametrize(
    ("output", "prompt", "name"),
    [(1, 10, "oneshot"), (64, 10, "fast"), (65, 10, "standard"), (513, 10, "deep"), (30, 5000, "standard")],
)
def test_the_oracle_knows_classes_by_output_and_prompt(output, prompt, name):
    """A heavy prompt moves a request one class up."""
    assert Oracle(LADDER).classify(WorkItem(0.0, "?", prompt, output), 0.0).name == name


def test_noise_is_log_normal_and_seeded():
    """Half of the guesses are too long; the same seed guesses the same."""
    item = WorkItem(0.0, "standard", 20, 200)
    guesses, again = ([Noisy.classify(noisy, item, 0.0).expected_tokens for _ in range(500)]
                      for noisy in (Noisy(LADDER, 1), Noisy(LADDER, 1)))  # fmt: skip
    assert guesses == again
    assert sum(guess > 200 for guess in guesses) == pytest.approx(250, abs=40)


def test_guesses_near_a_border_are_in_doubt():
    """A guess a little above the border may be short; one far above is not, nor one whose prompt is too long."""
    assert LADDER.perhaps(60.0, 0.6, 10) is None
    assert LADDER.perhaps(100.0, 0.6, 10) == "fast"
    assert LADDER.perhaps(110.0, 0.6, 10) is None
    assert LADDER.perhaps(100.0, 0.6, 5000) is None
    noisy = Noisy(LADDER, 1)
    given = [noisy.classify(WorkItem(0.0, "standard", 20, 90), 0.0) for _ in range(500)]
    doubtful = [each for each in given if each.perhaps is not None]
    assert all(64 < each.expected_tokens < 107 and each.name == "standard" for each in doubtful)
    assert len(doubtful) > 100


def test_a_confusion_matrix_is_drawn_from():
    """By the row of the true class; classes without a row are guessed right."""
    confused = Confused(LADDER, 1, {"fast": {"fast": 9, "deep": 1}}, {"deep": 800.0})
    names = Counter(confused.classify(WorkItem(0.0, "fast", 20, 30), 0.0).name for _ in range(1000))
    assert names["deep"] == pytest.approx(100, abs=35)
    assert confused.classify(WorkItem(0.0, "deep", 20, 800), 0.0).name == "deep"


def test_the_real_classifier_learns_the_plan():
    """Most of the built-in prompts are told apart after some answers."""
    real = Real(Judge(CLASSES, [], Classifier(load_model(), CLASSES), "standard"))
    plan = mix_plan({"fast": 0.75, "deep": 0.25}, 40.0, 15.0, seed=1)
    right = []
    for item in plan:
        right.append(real.classify(item, item.at_s).name == item.klass)
        real.dispatched(item, item.at_s)
        real.ended(item, item.at_s)
    assert sum(right[-200:]) > 180


def test_the_real_classifier_needs_prompts():
    """A trace has none."""
    real = Real(Judge(CLASSES, [], Classifier(load_model(), CLASSES), "standard"))
    with pytest.raises(ValueError, match="no prompts"):
        real.classify(WorkItem(0.0, "fast", 20, 30), 0.0)
