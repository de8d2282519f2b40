"""A stretch of engine steps that are alike, and how many of them fit in a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from prelude_proxy.engine.model import Sequence


@dataclass(slots=True)
class Plan:
    """`steps` like steps from `start_ns` on: the first takes `first_ns`, each further one `growth_ns` more."""

    start_ns: int
    first_ns: int
    growth_ns: int
    steps: int
    prefills: list[tuple[Sequence, int]] = field(default_factory=list)
    is_open: bool = True
    """Scheduling it changed nothing (no admission, no preemption), so before its start it may be dropped again."""

    def end_ns(self, steps: int) -> int:
        """When the first `steps` of them are over."""
        return self.start_ns + steps * self.first_ns + self.growth_ns * steps * (steps - 1) // 2

    def steps_until(self, until_ns: int) -> int:
        """How many of the steps end by `until_ns`: the largest j with j·first + growth·j(j−1)/2 ≤ the time there is."""
        spare = until_ns - self.start_ns
        if spare < self.first_ns:
            return 0
        if self.growth_ns == 0:
            return min(self.steps, spare // self.first_ns)
        linear = 2 * self.first_ns - self.growth_ns
        root = math.isqrt(linear * linear + 8 * self.growth_ns * spare)
        return min(self.steps, (root - linear) // (2 * self.growth_ns))
