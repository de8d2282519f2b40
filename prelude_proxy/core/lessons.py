"""The order in which answers are learned from: that of dispatch, not that of completion.

Short answers end first. Whoever learns from each answer as it ends has, in the first seconds of a new workload, only
ever seen short ones, takes every request for short, fills the engines with long ones and so sees no more ends at all.
So the lesson of an answer waits until every answer dispatched before it is known too: known to have ended, to have
failed, or to be longer than its class (a lower bound is a lesson as well). An answer of which nothing is heard holds
the others up for `patience_s` at most; its own lesson is then taken whenever it comes.

Learning costs about as much as forecasting, and a memory of some 200 answers is not better for 2,000 a second than for
200. So no more than `max_per_s` lessons are opened; which, is decided at dispatch, when nothing is known of the answer.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import Final, Generic, TypeVar

Subject = TypeVar("Subject")

PATIENCE_S: Final = 5.0
MAX_PER_S: Final = 200.0
_MAX_WAITING: Final = 65536


class _State(Enum):
    OPEN = auto()
    KNOWN = auto()
    TAKEN = auto()
    SKIPPED = auto()


class Lesson(Generic[Subject]):
    """What there is to learn from one answer, once it is known."""

    __slots__ = ("censored", "opened_at", "output_tokens", "state", "subject")

    def __init__(
        self,
        subject: Subject,
        opened_at: float,
        output_tokens: float = 0.0,
        censored: bool = False,
        state: _State = _State.OPEN,
    ) -> None:
        self.subject = subject
        self.opened_at = opened_at
        self.output_tokens = output_tokens
        """0: nothing is to be learned from it."""
        self.censored = censored
        self.state = state


class Lessons(Generic[Subject]):
    """Gives lessons back in the order in which they were opened."""

    def __init__(self, patience_s: float = PATIENCE_S, max_per_s: float = MAX_PER_S) -> None:
        self._patience_s = patience_s
        self._max_per_s = max_per_s
        self._allowance = max_per_s
        self._allowed_at = 0.0
        self._waiting: deque[Lesson[Subject]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def open(self, subject: Subject, now: float) -> Lesson[Subject]:
        """A request was dispatched; its lesson takes its place in the order, or will never be due."""
        lesson = Lesson(subject, now)
        elapsed_s, self._allowed_at = now - self._allowed_at, now
        self._allowance = min(self._max_per_s, self._allowance + elapsed_s * self._max_per_s)
        if self._allowance < 1.0:
            lesson.state = _State.SKIPPED
            return lesson
        self._allowance -= 1.0
        self._waiting.append(lesson)
        if len(self._waiting) > _MAX_WAITING:
            self._waiting.popleft().state = _State.TAKEN
        return lesson

    def know(
        self, lesson: Lesson[Subject], output_tokens: float, *, censored: bool, now: float
    ) -> list[Lesson[Subject]]:
        """The answer has `output_tokens` (at least, if `censored`); 0: it failed. Returns the lessons that are due."""
        if lesson.state is _State.SKIPPED:
            return self.due(now)
        if lesson.state is _State.TAKEN:  # its turn has passed: a second, better word on it, or a late one
            late = Lesson(lesson.subject, lesson.opened_at, output_tokens, censored, _State.TAKEN)
            return [*self.due(now), *([late] if output_tokens else [])]
        lesson.output_tokens, lesson.censored, lesson.state = output_tokens, censored, _State.KNOWN
        return self.due(now)

    def due(self, now: float) -> list[Lesson[Subject]]:
        """Lessons whose turn it is, first dispatched first."""
        due: list[Lesson[Subject]] = []
        waiting = self._waiting
        while waiting and (waiting[0].state is _State.KNOWN or now - waiting[0].opened_at > self._patience_s):
            lesson = waiting.popleft()
            if lesson.state is _State.KNOWN and lesson.output_tokens:
                due.append(lesson)
            lesson.state = _State.TAKEN
        return due
