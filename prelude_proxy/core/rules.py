"""The operator's rules: first match wins, before any prediction. Pure matching over `RequestFacts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from prelude_proxy.core.domain import RequestFacts

Bounds = tuple[int | None, int | None]


@dataclass(frozen=True, slots=True)
class Condition:
    """What must hold; None and empty match anything. Texts are shell patterns."""

    path: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    tenant: str | None = None
    model: str | None = None
    prompt_tokens: Bounds | None = None
    max_tokens: Bounds | None = None
    stream: bool | None = None
    tools: bool | None = None
    json_schema: bool | None = None
    reasoning: bool | None = None

    def matches(self, facts: RequestFacts) -> bool:
        """Whether all of it holds for `facts`."""
        return (
            _text(self.path, facts.path)
            and _text(self.tenant, facts.tenant)
            and _text(self.model, facts.model)
            and _flag(self.stream, facts.stream)
            and _flag(self.tools, facts.has_tools)
            and _flag(self.json_schema, facts.has_json_schema)
            and (self.reasoning is None or facts.reasoning is self.reasoning)
            and _within(self.prompt_tokens, facts.prompt_tokens)
            and _within(self.max_tokens, facts.max_tokens)
            and all(_text(pattern, facts.headers.get(name)) for name, pattern in self.headers.items())
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition and what follows from it."""

    name: str
    condition: Condition
    class_name: str | None = None
    pool: str | None = None
    reject: str | None = None
    status: int = 403


def first_match(rules: Sequence[Rule], facts: RequestFacts) -> Rule | None:
    """The rule that decides about `facts`, if any."""
    for rule in rules:
        if rule.condition.matches(facts):
            return rule
    return None


def _text(pattern: str | None, value: str | None) -> bool:
    return pattern is None or (value is not None and fnmatchcase(value, pattern))


def _flag(wanted: bool | None, value: bool) -> bool:
    return wanted is None or wanted is value


def _within(bounds: Bounds | None, value: int | None) -> bool:
    if bounds is None:
        return True
    low, high = bounds
    return value is not None and (low is None or value >= low) and (high is None or value <= high)
