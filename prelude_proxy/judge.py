"""Which class a request belongs to: the operator's rules, then structure, headers and the classifier's forecast."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from prelude_proxy.classifier import Classifier, Observation
from prelude_proxy.core.classify import decide, placed
from prelude_proxy.core.domain import GENERATING, Classification, ClassSpec, RequestFacts
from prelude_proxy.core.lessons import Lesson, Lessons
from prelude_proxy.core.rules import Rule, first_match
from prelude_proxy.errors import ClientError
from prelude_proxy.journal import Journal


class Verdict:
    """What was decided about a request before admission."""

    __slots__ = ("classification", "klass", "planned", "pool")

    def __init__(self, classification: Classification, index: Mapping[str, int], pool: str | None) -> None:
        """`index` numbers the classes by priority."""
        self.classification: Final = classification
        self.klass: Final = index[classification.name]
        """Index of the class, by priority."""
        self.planned: Final = index[classification.likeliest]
        """The same without the benefit of the doubt."""
        self.pool: Final = pool
        """Pool a rule chose."""


class Judge:
    """Joins rules and classifier, and tells classifier and journal how it turned out."""

    def __init__(
        self,
        classes: Sequence[ClassSpec],
        rules: Sequence[Rule],
        classifier: Classifier | None,
        default_class: str,
        *,
        learns: bool = True,
        journal: Journal | None = None,
    ) -> None:
        """`classes` by priority; without a `classifier` rules, structure and headers decide, else `default_class`."""
        self.classes = list(classes)
        self._index = {spec.name: index for index, spec in enumerate(self.classes)}
        self.rules = list(rules)
        """May be exchanged between two requests."""
        self.classifier = classifier
        self.journal = journal
        self._learns = learns
        self._lessons: Lessons[Observation] = Lessons()
        self._default = default_class

    def judge(self, facts: RequestFacts, now: float) -> tuple[Verdict, Observation | None]:
        """The verdict, and what `learn` wants to see again.

        Raises:
            ClientError: a rule rejects the request.
        """
        rule = first_match(self.rules, facts) if self.rules else None
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
        return Verdict(classification, self._index, rule.pool if rule else None), observation

    def placed(self, verdict: Verdict, num_held_of: Callable[[int], int]) -> Verdict:
        """The verdict in the light of how many are held by class: the doubtful go with the short while these few."""
        chosen = placed(verdict.classification, self._index, num_held_of)
        return verdict if chosen is verdict.classification else Verdict(chosen, self._index, verdict.pool)

    def dispatched(self, observation: Observation, now: float) -> Lesson[Observation]:
        """The request goes to an engine: from now on there is something to learn."""
        return self._lessons.open(observation, now)

    def outgrown(self, lesson: Lesson[Observation], output_tokens: int, now: float) -> None:
        """The answer under way has passed `output_tokens`."""
        self._teach(self._lessons.know(lesson, output_tokens, censored=True, now=now), now)

    def ended(
        self,
        lesson: Lesson[Observation],
        output_tokens: int,
        *,
        censored: bool,
        now: float,
        class_name: str = "",
        ts: float = 0.0,
    ) -> None:
        """The answer ended with `output_tokens` (at least, if `censored`; 0: nothing to learn). `ts` is wall time."""
        self._teach(self._lessons.know(lesson, output_tokens, censored=censored, now=now), now)
        if self.journal is not None and output_tokens:
            self.journal.record(lesson.subject, output_tokens, censored=censored, class_name=class_name, ts=ts)

    def _teach(self, lessons: list[Lesson[Observation]], now: float) -> None:
        if self.classifier is not None and self._learns:
            for lesson in lessons:
                self.classifier.learn(lesson.subject, lesson.output_tokens, censored=lesson.censored, now=now)

    def class_of_tokens(self, output_tokens: int) -> str:
        """The ladder class that an answer of this length belongs to."""
        for spec in self.classes:
            if spec.ladder and (spec.max_output_tokens is None or output_tokens <= spec.max_output_tokens):
                return spec.name
        return self._default
