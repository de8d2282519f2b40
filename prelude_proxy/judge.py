"""Which class a request belongs to: the operator's rules, then structure, headers and the classifier's forecast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prelude_proxy.classifier import Classifier, Observation
from prelude_proxy.core.classify import decide
from prelude_proxy.core.domain import GENERATING, Classification, ClassSpec, RequestFacts
from prelude_proxy.core.rules import Rule, first_match
from prelude_proxy.errors import ClientError


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided about a request before admission."""

    classification: Classification
    klass: int
    """Index of the class, by priority."""
    pool: str | None = None
    """Pool a rule chose."""


class Judge:
    """Joins rules and classifier; keeps no state of its own."""

    def __init__(
        self, classes: Sequence[ClassSpec], rules: Sequence[Rule], classifier: Classifier | None, default_class: str
    ) -> None:
        """`classes` by priority; without a `classifier` rules, structure and headers decide, else `default_class`."""
        self.classes = list(classes)
        self._index = {spec.name: index for index, spec in enumerate(self.classes)}
        self._rules = list(rules)
        self.classifier = classifier
        self._default = default_class

    def judge(self, facts: RequestFacts, now: float) -> tuple[Verdict, Observation | None]:
        """The verdict, and what `learn` wants to see again.

        Raises:
            ClientError: a rule rejects the request.
        """
        rule = first_match(self._rules, facts) if self._rules else None
        if rule is not None and rule.reject is not None:
            raise ClientError(rule.reject, status=rule.status, kind="rule")
        forecast = observation = None
        if self.classifier is not None and facts.endpoint in GENERATING:
            forecast, observation = self.classifier.classify(facts, now)
        classification = decide(
            facts,
            forecast,
            self.classes,
            rule=(rule.name, rule.class_name) if rule is not None and rule.class_name is not None else None,
            default=self._default,
            trust_header=facts.may_raise_class,
        )
        return Verdict(classification, self._index[classification.name], rule.pool if rule else None), observation

    def learn(self, observation: Observation, output_tokens: int, *, censored: bool, now: float) -> None:
        """The request behind `observation` produced `output_tokens` (at least, if `censored`)."""
        if self.classifier is not None:
            self.classifier.learn(observation, output_tokens, censored=censored, now=now)

    def class_of_tokens(self, output_tokens: int) -> str:
        """The ladder class that an answer of this length belongs to."""
        for spec in self.classes:
            if spec.ladder and (spec.max_output_tokens is None or output_tokens <= spec.max_output_tokens):
                return spec.name
        return self._default
