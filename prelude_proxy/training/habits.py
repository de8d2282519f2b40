"""How long models of each name write, from rows with names: a level, and an excess over others on the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log1p

from prelude_proxy.core.modelname import ModelHabit, normal_name

_SHRINKAGE = 20.0


@dataclass(slots=True)
class _Sums:
    rows: int = 0
    level: float = 0.0
    compared: int = 0
    excess: float = 0.0


def fit_habits(
    models: Sequence[str], groups: Sequence[str], sources: Sequence[str], ln_tokens: Sequence[float]
) -> dict[str, ModelHabit]:
    """Habits by normalised model name, shrunk to the mean of all (level) and to none (excess)."""
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
            entry.compared += 1
            entry.excess += value - (total - value) / (count - 1)
    mean = sum(ln_tokens) / max(len(ln_tokens), 1)
    return {
        name: ModelHabit(
            level=(entry.level + _SHRINKAGE * mean) / (entry.rows + _SHRINKAGE),
            excess=entry.excess / (entry.compared + _SHRINKAGE),
            support=log1p(entry.rows),
        )
        for name, entry in sums.items()
    }
