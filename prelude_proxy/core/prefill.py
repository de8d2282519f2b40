"""How fast an engine prefills, as its first tokens show it, and when a prefill that shows nothing is over.

A step of an engine takes the longer the more prompt tokens are in it, and prompts are prefilled one after the other: so
the prompt tokens at an engine whose first token is still outstanding stall every answer under way there, and make the
next request wait, for as long as they take. `limits.py` lets a paced class add to them only while they are fewer than a
*budget*: the tokens that the engine prefills in the time such a stall may last (`prefill_stall_s` of the class).

**Speed.** An engine takes prompts in the order they came, so one is served from the later of its own dispatch and the
first token of the one before it: tokens / seconds from then to its own first token. Least squares through the origin
over the last some twenty prompts, Σ tokens² / Σ tokens·seconds: a long prompt counts by the square of its length, so
that the step a short one has to ride in does not pass for slowness. A single time counts as no more than four times,
and no less than a quarter, of what the speed so far would say: neither a stall of the network nor a cached prompt turns
it.

Not counted: short prompts, those that may have waited for a place in the batch, and those that were overtaken.
"""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from prelude_proxy.core.limits import Permit

LEAST_BUDGET_TOKENS: Final = 512
"""No budget is smaller: the shortest chunk that engines are usually run with."""
LEAST_TOKENS: Final = 256
"""A shorter prompt is prefilled in no more time than a step takes anyway, and says little."""
_LEAST_PROMPTS: Final = 5
_KEPT_SHARE: Final = 0.95
_MOST_OFF: Final = 4.0
_LIKELY_TOKENS_PER_S: Final = 1000.0
"""Of an engine that has not shown its speed: a slow one."""
_SAFETY: Final = 2.0


class PrefillSpeed:
    """The prefill speed of one engine."""

    __slots__ = ("_last_at", "_last_serial", "_num", "_squares", "_weighted_s", "tokens_per_s")

    def __init__(self) -> None:
        self.tokens_per_s: float | None = None
        """None: not known yet."""
        self._num = 0
        self._squares = 0.0
        self._weighted_s = 0.0
        self._last_serial = 0
        self._last_at = 0.0

    def observe(self, tokens: int, serial: int, issued_at: float, *, is_telling: bool, now: float) -> bool:
        """The first token of a prompt of `tokens` came, the `serial`-th one sent there; whether the speed changed.

        `is_telling`: it is of `LEAST_TOKENS` or more, and the engine had a place in its batch for it.
        """
        if serial <= self._last_serial:
            return False
        taken_s = now - max(issued_at, self._last_at)
        self._last_serial, self._last_at = serial, now
        if not is_telling:
            return False
        if self.tokens_per_s is not None:
            usual_s = tokens / self.tokens_per_s
            taken_s = min(max(taken_s, usual_s / _MOST_OFF), usual_s * _MOST_OFF)
        self._num += 1
        self._squares = self._squares * _KEPT_SHARE + float(tokens) * tokens
        self._weighted_s = self._weighted_s * _KEPT_SHARE + tokens * taken_s
        if self._num < _LEAST_PROMPTS or self._weighted_s <= 0.0:
            return False
        self.tokens_per_s = self._squares / self._weighted_s
        return True

    def budget(self, stall_s: float | None) -> float:
        """Most prompt tokens that may be prefilled at a time, for a stall of `stall_s`; infinite when not known."""
        if stall_s is None or self.tokens_per_s is None:
            return math.inf
        return max(float(LEAST_BUDGET_TOKENS), self.tokens_per_s * stall_s)

    def presumed_s(self, tokens: int) -> float:
        """How long prefilling `tokens` takes at most, by all likelihood."""
        return _SAFETY * tokens / (self.tokens_per_s or _LIKELY_TOKENS_PER_S)


class UnseenPrefills:
    """Prompts of answers that are not streamed: their first token is not seen, so the end of their prefill is presumed.

    Otherwise such a prompt would use up the budget until its whole answer is there.
    """

    __slots__ = ("_due", "_serial")

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Permit]] = []
        self._serial = 0

    def add(self, permit: Permit, now: float) -> None:
        """`permit` went out now, as the last one of its backend."""
        backend = permit.backend
        self._serial += 1
        due = now + backend.prefill_speed.presumed_s(backend.pending_prefill_tokens)
        heapq.heappush(self._due, (due, self._serial, permit))

    def next_due(self) -> float | None:
        """When the next one is presumed to be over."""
        return self._due[0][0] if self._due else None

    def pop_due(self, now: float) -> Permit | None:
        """Take out one that is over; it may have ended altogether."""
        return heapq.heappop(self._due)[2] if self._due and self._due[0][0] <= now else None
