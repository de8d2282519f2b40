"""From a forecast to a class: structure, limits of the request, cost-weighted cut-offs, and what a header may say.

Precedence: a rule, then the request's structure, then a trusted header, then the model. A header that is not trusted
may only make a request wait longer: it can name a class with a numerically higher `priority`, nothing else.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log
from typing import Final

from prelude_proxy.core.domain import GENERATING, Classification, ClassSpec, Endpoint, Forecast, RequestFacts

CLASS_HEADER: Final = "x-prelude-class"
ONESHOT: Final = "oneshot"
_ONESHOT_TOKENS: Final = 1
_PROMPT_LOGPROBS_TOKENS: Final = 16
"""A request for prompt log-probabilities that decodes no more than this is a prefill with a tail."""


@dataclass(frozen=True, slots=True)
class Cutoffs:
    """How sure of an overflow one must be to put a request into the longer class.

    Calling a deep request standard hurts everyone behind it, calling a standard one deep hurts one: the deepest class
    has the lower cut-off. Calling a *short* one deep hurts that one most, for it then waits behind all others: what may
    well be short goes into the class before the deepest, where it is neither in the way of short work nor behind deep.
    """

    longer: float = 0.5
    """Between two classes that both have a bound above them: the likelier side."""
    deepest: float = 0.35
    """Into the last, unbounded class."""
    perhaps_shortest: float = 0.1
    """Probability of the shortest class from which on a request is not put into the deepest."""
    perhaps_shortest_learned: float = 0.05
    """The same where the forecast rests on answers of the same tenant, and is calibrated to them."""
    perhaps_shorter: float = 0.8
    """Like `longer`, while the shorter class has room: four wrong guesses are worth a right one, see `placed`."""


DEFAULT_CUTOFFS: Final = Cutoffs()


def structural_class(facts: RequestFacts) -> str | None:
    """`oneshot` when the request itself says that it takes one step; None when it must be forecast."""
    if facts.endpoint not in GENERATING:
        return None if facts.endpoint is Endpoint.OTHER else ONESHOT
    limit = facts.max_tokens
    if limit is not None and limit <= _ONESHOT_TOKENS:
        return ONESHOT
    if facts.has_fixed_choices:
        return ONESHOT
    if facts.wants_prompt_logprobs and limit is not None and limit <= _PROMPT_LOGPROBS_TOKENS:
        return ONESHOT
    return None


def probability_above(forecast: Forecast, tokens: float) -> float:
    """P(output > `tokens`), interpolated in ln(tokens) between the forecast's edges."""
    edges, cdf = forecast.edges, forecast.cdf
    index = bisect_left(edges, tokens)
    if index >= len(edges):
        return 0.0
    if edges[index] == tokens:
        return max(0.0, 1.0 - cdf[index])
    if index == 0:
        return 1.0 - cdf[0] * max(tokens, 0.0) / edges[0]
    low, high = edges[index - 1], edges[index]
    part = log(tokens / low) / log(high / low)
    return max(0.0, 1.0 - (cdf[index - 1] + part * (cdf[index] - cdf[index - 1])))


def whole_request(forecast: Forecast, facts: RequestFacts) -> Forecast:
    """The forecast for one answer made one for the request: within `min_tokens` and `max_tokens`, times the choices."""
    count = facts.num_choices
    limit, floor = facts.max_tokens, facts.min_tokens
    if limit is None and floor <= 0 and count == 1:
        return forecast
    top = float(forecast.edges[-1] if limit is None else max(limit, 1))
    low = min(float(floor), top)
    edges: list[float] = []
    cdf: list[float] = []
    for edge, below in zip(forecast.edges, forecast.cdf, strict=True):
        if edge < low:
            continue
        if edge >= top:
            break
        edges.append(edge * count)
        cdf.append(below)
    expected = min(max(forecast.expected_tokens, low), top)
    return Forecast((*edges, top * count), (*cdf, 1.0), expected * count, forecast.support)


def class_probabilities(forecast: Forecast, classes: Sequence[ClassSpec]) -> dict[str, float]:
    """P(class) by output tokens alone, for the classes that the classifier may choose."""
    ladder = ladder_of(classes)
    return dict(zip([spec.name for spec in ladder], shares_of(_overflows(forecast, ladder)), strict=True))


def _overflows(forecast: Forecast, ladder: Sequence[ClassSpec]) -> list[float]:
    """For each class of the ladder, the probability that the output passes its bound."""
    return [
        0.0 if spec.max_output_tokens is None else probability_above(forecast, spec.max_output_tokens)
        for spec in ladder
    ]


def shares_of(above: Sequence[float]) -> list[float]:
    """Probability of each class of the ladder, given for each that the output passes its bound."""
    shares = []
    remaining = 1.0
    for each in above:
        beyond = min(each, remaining)
        shares.append(remaining - beyond)
        remaining = beyond
    return shares


def ladder_of(classes: Sequence[ClassSpec]) -> list[ClassSpec]:
    """The classes the classifier may choose, shortest output first."""
    return sorted((spec for spec in classes if spec.ladder), key=_bound_of)


def _bound_of(spec: ClassSpec) -> float:
    return float("inf") if spec.max_output_tokens is None else float(spec.max_output_tokens)


def promotions(classes: Sequence[ClassSpec]) -> tuple[tuple[int, int] | None, ...]:
    """By class: (tokens beyond which a stream does not belong to it any more, the class it belongs to then)."""
    ladder = [index for index, spec in enumerate(classes) if spec.ladder]
    steps: list[tuple[int, int] | None] = [None] * len(classes)
    for rung, following in pairwise(ladder):
        bound = classes[rung].max_output_tokens
        if bound is not None:
            steps[rung] = (bound, following)
    return tuple(steps)


def decide(
    facts: RequestFacts,
    forecast: Forecast | None,
    classes: Sequence[ClassSpec],
    *,
    rule: tuple[str, str] | None = None,
    default: str = "standard",
    trust_header: bool = False,
    cutoffs: Cutoffs = DEFAULT_CUTOFFS,
) -> Classification:
    """The class of a request.

    Args:
        facts: what is known of the request; its payload is not read.
        forecast: of one answer, as the classifier gives it; None without a model.
        classes: all configured classes.
        rule: name of the rule that matched and the class it chose.
        default: class without forecast, structure or header; the last of the ladder when there is no such class.
        trust_header: whether `x-prelude-class` decides, or may only lower the priority.
        cutoffs: how sure one must be of a longer class.
    """
    specs = {spec.name: spec for spec in classes}
    whole = None if forecast is None else whole_request(forecast, facts)
    expected = _expected_tokens(facts, whole)
    perhaps: Classification | None = None
    if rule is not None and rule[1] in specs:
        return Classification(rule[1], f"rule:{rule[0]}", expected, 1.0, whole)
    asked = specs.get(facts.headers.get(CLASS_HEADER, "").strip().lower())
    structure = structural_class(facts)
    if structure in specs:
        name, reason, confidence = specs[structure].name, "structure", 1.0
        whole, expected = None, float(min(facts.max_tokens or 1, _PROMPT_LOGPROBS_TOKENS))
    elif asked is not None and trust_header:
        return Classification(asked.name, "header", expected, 1.0, whole)
    elif whole is not None and facts.endpoint in GENERATING and any(spec.ladder for spec in classes):
        (name, confidence), shorter = _by_forecast(facts, whole, classes, cutoffs)
        reason = "model"
        if shorter is not None:
            perhaps = Classification(shorter[0], "doubt", expected, shorter[1], whole, likeliest=name)
    else:
        name, confidence, reason = _by_default(facts, specs, default), 1.0, "default"
    if asked is not None and name in specs and asked.priority > specs[name].priority:
        name, reason, confidence = asked.name, "header", 1.0
    if asked is not None and perhaps is not None and asked.priority > specs[perhaps.name].priority:
        perhaps = None
    return Classification(name, reason, expected, confidence, whole, perhaps=perhaps)


def placed(given: Classification, index: Mapping[str, int], num_held_of: Callable[[int], int]) -> Classification:
    """`given`, or the shorter class it may well belong to while few are held there; `index` numbers the classes.

    A short request behind long work waits for seconds, and one in a hundred of them is the p99; a longer one among the
    short is charged to its own class as soon as it outgrows theirs. So the doubtful go with the short, until these have
    to wait for one another: a class that is full of guesses helps nobody.
    """
    shorter = given.perhaps
    return given if shorter is None or num_held_of(index[shorter.name]) > _MANY_HELD else shorter


_MANY_HELD: Final = 16
"""What a small engine runs at once. None is too few (a burst is soon over), hundreds too many, on large fleets too."""


def _by_forecast(
    facts: RequestFacts, forecast: Forecast, classes: Sequence[ClassSpec], cutoffs: Cutoffs
) -> tuple[tuple[str, float], tuple[str, float] | None]:
    """Shortest class whose bound the output will keep, surely enough; longer when the prompt alone is heavy.

    Then the shorter one whose bound it may keep, if there is one; each with its probability.
    """
    ladder = ladder_of(classes)
    above = _overflows(forecast, ladder)
    index, shorter = rung_of(above, cutoffs, forecast.support), shorter_rung_of(above, cutoffs)
    shares = shares_of(above)
    chosen, perhaps = _for_prompt(facts, ladder, index), _for_prompt(facts, ladder, shorter)
    likely = ladder[chosen].name, shares[index]
    return likely, (ladder[perhaps].name, shares[shorter]) if perhaps < chosen else None


def rung_of(above: Sequence[float], cutoffs: Cutoffs, support: float = 0.0) -> int:
    """Index in the ladder, given for each of its classes the probability that the output passes its bound.

    `support`: answers of the same tenant that the probabilities rest on.
    """
    last = len(above) - 1
    for index in range(last):
        if above[index] < (cutoffs.deepest if index + 1 == last else cutoffs.longer):
            return index
    perhaps = cutoffs.perhaps_shortest if support < _LEARNED else cutoffs.perhaps_shortest_learned
    return last - 1 if last > 1 and 1.0 - above[0] >= perhaps else last


def shorter_rung_of(above: Sequence[float], cutoffs: Cutoffs) -> int:
    """As `rung_of`, of the shortest class that it may well belong to; the last one if of none."""
    last = len(above) - 1
    for index in range(last - 1):  # not deep as standard: that is cut off elsewhere
        if above[index] < cutoffs.perhaps_shorter:
            return index
    return last


_LEARNED: Final = 20.0
"""Answers of a tenant after which a forecast counts as calibrated to it."""


def _for_prompt(facts: RequestFacts, ladder: Sequence[ClassSpec], index: int) -> int:
    """Prefill counts as work: a prompt over the class's bound goes one class up, and on."""
    while index + 1 < len(ladder):
        limit = ladder[index].max_prompt_tokens
        if limit is None or facts.prompt_tokens <= limit:
            break
        index += 1
    return index


def _by_default(facts: RequestFacts, specs: dict[str, ClassSpec], default: str) -> str:
    """The default class, or a shorter one that `max_tokens` is sure to keep to."""
    ladder = ladder_of(list(specs.values()))
    start = next((index for index, spec in enumerate(ladder) if spec.name == default), len(ladder) - 1)
    if facts.max_tokens is not None and facts.endpoint in GENERATING:
        most = facts.max_tokens * facts.num_choices
        start = min(start, next((i for i, spec in enumerate(ladder) if _bound_of(spec) >= most), start))
    if not ladder:
        return default if default in specs else next(iter(specs), default)
    return ladder[_for_prompt(facts, ladder, start)].name


_UNKNOWN_TOKENS: Final = 256.0
"""Output tokens of an answer nobody forecast: about the middle of `standard`."""


def _expected_tokens(facts: RequestFacts, forecast: Forecast | None) -> float:
    if facts.endpoint not in GENERATING:
        return 1.0
    if forecast is not None:
        return max(forecast.expected_tokens, 1.0)
    limit = float("inf") if facts.max_tokens is None else float(max(facts.max_tokens, 1))
    return min(max(_UNKNOWN_TOKENS, facts.min_tokens), limit) * facts.num_choices
