"""What a forecast must beat, re-implemented and scored on the same rows by the same figures.

* constant: the class shares and the mean of the training rows;
* prompt length: boosted trees on the prompt's length alone;
* three-bucket rule: the reasoning switch (or a thinking model's name) says deep, tools say fast, all else standard,
  as routers without a model do it;
* lexical: nineteen surface features of the prompt and boosted trees, after "Clairvoyant" (arXiv 2606.07248), from its
  description;
* tenant history: class shares and mean ln(tokens) per tenant, then tenant and model, no prompt, learned online.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from prelude_proxy.core.conversation import read_conversation
from prelude_proxy.core.domain import RequestFacts
from prelude_proxy.core.modelname import describe_name
from prelude_proxy.training.dataset import Row
from prelude_proxy.training.evaluate import Forecasts
from prelude_proxy.training.metrics import true_classes

Floats = NDArray[np.float64]
_SHRINKAGE = 8.0
_CODE = re.compile(
    r"\b(?:code|function|python|java|script|class|algorithm|implement|program|sql|html)\b", re.IGNORECASE
)
_LIST = re.compile(r"\b(?:list|enumerate|steps|ways|examples)\b", re.IGNORECASE)
_EXPLAIN = re.compile(r"\b(?:explain|describe|discuss|why|how|analy[sz]e|compare)\b", re.IGNORECASE)
_WRITE = re.compile(r"\b(?:write|create|compose|generate|story|essay|poem|draft)\b", re.IGNORECASE)
_BRIEF = re.compile(r"\b(?:brief|briefly|short|concise|one word|yes or no|summari[sz]e)\b", re.IGNORECASE)
_LONG = re.compile(r"\b(?:detailed|detail|comprehensive|long|thorough|in depth|essay)\b", re.IGNORECASE)
_MATHS = re.compile(r"\b(?:calculate|solve|equation|sum|prove|integer|number)\b", re.IGNORECASE)
_QUESTION = re.compile(r"^\s*(?:what|who|when|where|which|is|are|do|does|can)\b", re.IGNORECASE)


def constant(train: Sequence[Row], test: Sequence[Row]) -> Forecasts:
    """The same for every request."""
    tokens = _tokens(train)
    shares = np.bincount(true_classes(tokens), minlength=3) / len(tokens)
    predicted = np.full(len(test), float(np.exp(np.log(tokens).mean())))
    return _forecasts(np.tile(shares, (len(test), 1)), predicted)


def prompt_length(train: Sequence[Row], test: Sequence[Row]) -> Forecasts:
    """Trees on one number."""
    return _boosted(
        np.array([[row.facts().prompt_chars] for row in train], dtype=np.float32),
        _tokens(train),
        np.array([[row.facts().prompt_chars] for row in test], dtype=np.float32),
        rounds=50,
    )


def three_bucket(train: Sequence[Row], test: Sequence[Row]) -> Forecasts:  # noqa: ARG001 - one shape for all
    """Reasoning is deep, tools are fast, all else is standard."""
    classes = np.array([_bucket(row.facts()) for row in test])
    return _forecasts(np.eye(3)[classes], np.array([40.0, 200.0, 1500.0])[classes])


def _bucket(facts: RequestFacts) -> int:
    thinks = describe_name(facts.model or "")[1] > 0
    if facts.reasoning or (facts.reasoning is None and thinks):
        return 2
    return 0 if facts.has_tools else 1


def lexical(train: Sequence[Row], test: Sequence[Row]) -> Forecasts:
    """Nineteen surface features and 300 rounds."""
    return _boosted(
        np.array([_lexical_features(row.facts()) for row in train], dtype=np.float32),
        _tokens(train),
        np.array([_lexical_features(row.facts()) for row in test], dtype=np.float32),
        rounds=300,
    )


def _lexical_features(facts: RequestFacts) -> list[float]:
    text = read_conversation(facts).text
    words = text.split()
    marks = (_CODE, _LIST, _EXPLAIN, _WRITE, _BRIEF, _LONG, _MATHS, _QUESTION)
    return [
        len(text),
        len(words),
        sum(map(len, words)) / (len(words) + 1),
        text.count(".") + text.count("!") + text.count("?"),
        text.count("\n"),
        text.count("?"),
        text.count(","),
        text.count(":"),
        text.count("```"),
        sum(char.isdigit() for char in text),
        sum(char.isupper() for char in text) / (len(text) + 1),
        *(len(mark.findall(text)) for mark in marks),
    ]


def tenant_history(test: Sequence[Row], label_delay: int = 50) -> Forecasts:
    """Tenant → tenant × model, each shrunk to the coarser; lengths known after `label_delay` rows."""
    counts: dict[tuple[str | None, ...], Floats] = defaultdict(lambda: np.zeros(3))
    sums: dict[tuple[str | None, ...], list[float]] = defaultdict(lambda: [0.0, 0.0])
    actual = _tokens(test)
    classes = true_classes(actual)
    keys: list[list[tuple[str | None, ...]]] = []
    probabilities, predicted = np.empty((len(test), 3)), np.empty(len(test))
    for index, row in enumerate(test):
        facts = row.facts()
        keys.append([(), (facts.tenant,), (facts.tenant, facts.model)])
        past = index - label_delay - 1
        if past >= 0:
            for key in keys[past]:
                counts[key][classes[past]] += 1
                sums[key][0] += 1
                sums[key][1] += float(np.log(max(actual[past], 1.0)))
        share, mean = np.full(3, 1 / 3), 5.0
        for key in keys[index]:
            share = (counts[key] + _SHRINKAGE * share) / (counts[key].sum() + _SHRINKAGE)
            mean = (sums[key][1] + _SHRINKAGE * mean) / (sums[key][0] + _SHRINKAGE)
        probabilities[index], predicted[index] = share, np.exp(mean)
    return _forecasts(probabilities, predicted)


def _tokens(rows: Sequence[Row]) -> Floats:
    return np.maximum(np.array([row.output_tokens for row in rows], dtype=np.float64), 1.0)


def _forecasts(probabilities: Floats, predicted: Floats) -> Forecasts:
    return Forecasts(probabilities, probabilities.argmax(axis=1), predicted)


def _boosted(train: NDArray[np.float32], tokens: Floats, test: NDArray[np.float32], rounds: int) -> Forecasts:
    common = {"max_depth": 6, "eta": 0.1, "tree_method": "hist", "nthread": 1, "seed": 7}
    labels = true_classes(tokens)
    classes = xgb.train(
        {**common, "objective": "multi:softprob", "num_class": 3}, xgb.DMatrix(train, label=labels), rounds
    )
    ranks = xgb.train({**common, "objective": "reg:squarederror"}, xgb.DMatrix(train, label=np.log(tokens)), rounds)
    matrix = xgb.DMatrix(test)
    return _forecasts(classes.predict(matrix).astype(np.float64), np.exp(ranks.predict(matrix).astype(np.float64)))
