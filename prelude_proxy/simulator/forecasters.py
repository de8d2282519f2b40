"""What a policy with classes is told of a request's length: the truth, a noisy guess, or the real classifier's word."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Protocol

import orjson

from prelude_proxy.bench.workload import WorkItem
from prelude_proxy.classifier import Observation
from prelude_proxy.core.classify import DEFAULT_CUTOFFS, shorter_rung_of
from prelude_proxy.core.domain import Classification, ClassSpec
from prelude_proxy.core.lessons import Lesson
from prelude_proxy.core.parse import parse_request
from prelude_proxy.judge import Judge


class Forecaster(Protocol):
    """Stands for the classifier, and is told what the proxy's own is told."""

    def classify(self, item: WorkItem, now: float) -> Classification:
        """The class of a request and its expected output tokens."""
        ...

    def dispatched(self, item: WorkItem, now: float) -> None:
        """It goes to an engine."""
        ...

    def outgrown(self, item: WorkItem, output_tokens: int, now: float) -> None:
        """Its answer under way has passed `output_tokens`."""
        ...

    def ended(self, item: WorkItem, now: float) -> None:
        """Its answer has ended and its length is known."""
        ...


class _Unteachable:
    """Knows what it knows."""

    def dispatched(self, item: WorkItem, now: float) -> None:
        """Nothing to learn."""

    def outgrown(self, item: WorkItem, output_tokens: int, now: float) -> None:
        """Nothing to learn."""

    def ended(self, item: WorkItem, now: float) -> None:
        """Nothing to learn."""


class Ladder:
    """Classes by output tokens and prompt tokens, as the configuration bounds them."""

    def __init__(self, classes: Sequence[ClassSpec]) -> None:
        self._rungs = sorted((spec for spec in classes if spec.ladder), key=lambda spec: _bound(spec.max_output_tokens))
        self._oneshot = next((spec.name for spec in classes if not spec.ladder), None)

    def class_of(self, output_tokens: float, prompt_tokens: int, *, certain: bool = False) -> str:
        """The first class that both fit in. `certain`: one token may be taken as one step, known beforehand."""
        if certain and output_tokens <= 1 and self._oneshot is not None:
            return self._oneshot
        return self._rungs[self._rung(output_tokens, prompt_tokens)].name

    def perhaps(self, guess: float, sigma: float, prompt_tokens: int) -> str | None:
        """The shorter class that a length may keep to which is log-normal around `guess`, as the proxy sees it."""
        normal = NormalDist(math.log(guess), sigma)
        bounds = [_bound(spec.max_output_tokens) for spec in self._rungs]
        above = [1.0 - normal.cdf(math.log(bound)) if math.isfinite(bound) else 0.0 for bound in bounds]
        shorter = self._rung(0.0, prompt_tokens, start=shorter_rung_of(above, DEFAULT_CUTOFFS))
        return self._rungs[shorter].name if shorter < self._rung(guess, prompt_tokens) else None

    def _rung(self, output_tokens: float, prompt_tokens: int, start: int = 0) -> int:
        for index, spec in enumerate(self._rungs[start:], start):
            if output_tokens <= _bound(spec.max_output_tokens) and prompt_tokens <= _bound(spec.max_prompt_tokens):
                return index
        return len(self._rungs) - 1


class Oracle(_Unteachable):
    """Perfect classes and lengths."""

    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder

    def classify(self, item: WorkItem, now: float) -> Classification:
        """The truth."""
        name = self._ladder.class_of(item.output_tokens, item.prompt_tokens, certain=True)
        return Classification(name, "header", float(item.output_tokens))


class Noisy(_Unteachable):
    """A guess that is log-normal around the truth: ln(guess / truth) ~ N(0, σ²).

    Seen from the guess the truth is log-normal too, so the doubtful get the same benefit as from the proxy.

    σ = 0.6 puts about as many requests of the usual mixes into a wrong class as the shipped model does.
    """

    def __init__(self, ladder: Ladder, seed: int, sigma: float = 0.6) -> None:
        self._ladder = ladder
        self._rng = random.Random(f"{seed}/forecast")
        self._sigma = sigma

    def classify(self, item: WorkItem, now: float) -> Classification:
        """A draw."""
        guess = max(1.0, item.output_tokens * math.exp(self._rng.gauss(0.0, self._sigma)))
        name = self._ladder.class_of(guess, item.prompt_tokens)
        shorter = self._ladder.perhaps(guess, self._sigma, item.prompt_tokens)
        perhaps = Classification(shorter, "doubt", guess, likeliest=name) if shorter is not None else None
        return Classification(name, "model", guess, perhaps=perhaps)


class Confused(_Unteachable):
    """A guessed class by a confusion matrix: `matrix[true][guessed]` are weights; a length is its class's middle."""

    def __init__(
        self, ladder: Ladder, seed: int, matrix: Mapping[str, Mapping[str, float]], middles: Mapping[str, float]
    ) -> None:
        self._ladder = ladder
        self._rng = random.Random(f"{seed}/forecast")
        self._matrix = {true: (list(row), list(row.values())) for true, row in matrix.items()}
        self._middles = middles

    def classify(self, item: WorkItem, now: float) -> Classification:
        """A draw from the row of the true class."""
        true = self._ladder.class_of(item.output_tokens, item.prompt_tokens)
        names, weights = self._matrix.get(true, ([true], [1.0]))
        guessed = self._rng.choices(names, weights)[0]
        return Classification(guessed, "model", self._middles.get(guessed, float(item.output_tokens)))


class Real:
    """The proxy's own judge, model and online learning, on the prompts of the plan."""

    def __init__(self, judge: Judge, max_tokens: int = 2048) -> None:
        self._judge = judge
        self._max_tokens = max_tokens
        self._seen: dict[int, Observation] = {}
        self._lessons: dict[int, Lesson[Observation]] = {}

    def classify(self, item: WorkItem, now: float) -> Classification:
        """What the proxy would say.

        Raises:
            ValueError: the item has no prompt.
        """
        if item.content is None:
            raise ValueError("the workload has no prompts: the classifier has nothing to read")
        body = orjson.dumps({"model": "tiny", "max_tokens": self._max_tokens, **item.content})
        facts = parse_request(item.path, body, dict(item.headers), item.tenant)
        verdict, observation = self._judge.judge(facts, now)
        if observation is not None:
            self._seen[id(item)] = observation
        return verdict.classification

    def dispatched(self, item: WorkItem, now: float) -> None:
        """Opens its lesson, once."""
        observation = self._seen.pop(id(item), None)
        if observation is not None:
            self._lessons[id(item)] = self._judge.dispatched(observation, now)

    def outgrown(self, item: WorkItem, output_tokens: int, now: float) -> None:
        """A lower bound is known."""
        lesson = self._lessons.get(id(item))
        if lesson is not None:
            self._judge.outgrown(lesson, output_tokens, now)

    def ended(self, item: WorkItem, now: float) -> None:
        """The length is known."""
        lesson = self._lessons.pop(id(item), None)
        if lesson is not None:
            self._judge.ended(lesson, item.output_tokens, censored=False, now=now)


def _bound(value: int | None) -> float:
    return math.inf if value is None else float(value)
