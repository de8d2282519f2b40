"""How long models of each name write, from rows with names: a level, and how they differ from others on one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log1p, sqrt

from prelude_proxy.core.modelname import ModelHabit, normal_name

_SHRINKAGE = 20.0
_USUAL_SQUARE = 0.3
"""Mean squared difference between models on one prompt, about: what little evidence is shrunk to."""
_STEPS = 20.0
"""Values are rounded to one in so many. A fold's mean is a touch lower for leaving out the higher rows, and trees
would read a row's own answer from such differences."""


@dataclass(slots=True)
class _Sums:
    rows: int = 0
    level: float = 0.0
    compared: int = 0
    others: float = 0.0
    excess: float = 0.0
    others_squared: float = 0.0
    product: float = 0.0
    excess_squared: float = 0.0

    def compare(self, others: float, excess: float) -> None:
        """An answer was `excess` longer than the mean `others` of other models on the same prompt."""
        self.compared += 1
        self.others += others
        self.excess += excess
        self.others_squared += others * others
        self.product += others * excess
        self.excess_squared += excess * excess

    def habit(self, mean: float) -> ModelHabit:
        """Shrunk to the `mean` of all models, and to no difference from others."""
        known = self.compared + _SHRINKAGE
        count = max(self.compared, 1)
        variance = self.others_squared - self.others * self.others / count
        covariance = self.product - self.others * self.excess / count
        return ModelHabit(
            level=_rounded((self.level + _SHRINKAGE * mean) / (self.rows + _SHRINKAGE)),
            excess=_rounded(self.excess / known),
            support=_rounded(log1p(self.rows)),
            slope=_rounded(covariance / (variance + _SHRINKAGE)),
            spread=_rounded(sqrt((self.excess_squared + _SHRINKAGE * _USUAL_SQUARE) / known)),
        )


def fit_habits(
    models: Sequence[str], groups: Sequence[str], sources: Sequence[str], ln_tokens: Sequence[float]
) -> dict[str, ModelHabit]:
    """Habits by normalised model name."""
    prompts: dict[tuple[str, str], tuple[int, float]] = {}
    for source, group, value in zip(sources, groups, ln_tokens, strict=True):
        count, total = prompts.get((source, group), (0, 0.0))
        prompts[source, group] = count + 1, total + value
    sums: dict[str, _Sums] = {}
    for model, group, source, value in zip(models, groups, sources, ln_tokens, strict=True):
        entry = sums.setdefault(normal_name(model), _Sums())
        entry.rows += 1
        entry.level += value
        count, total = prompts[source, group]
        if count > 1:
            others = (total - value) / (count - 1)
            entry.compare(others, value - others)
    mean = sum(ln_tokens) / max(len(ln_tokens), 1)
    return {name: entry.habit(mean) for name, entry in sums.items()}


def _rounded(value: float) -> float:
    return round(value * _STEPS) / _STEPS
