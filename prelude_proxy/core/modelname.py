"""What a model's name tells: its size, whether it thinks aloud, and how long models of that name were seen to write."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import log1p
from typing import Final

NAME_FEATURES: Final = ("name_size", "name_thinks", "name_small", "name_instruct", "name_code", "name_base")

_SIZE: Final = re.compile(r"(?<![a-z0-9.])(\d{1,4}(?:\.\d{1,2})?)b(?![a-z0-9])")
_DATE: Final = re.compile(r"[-@:](?:20\d\d-?\d\d-?\d\d|\d\d-\d\d-\d\d|\d{4})(?=$|[-:])")
_NO_THINKING: Final = re.compile(r"no-?think|non-?(?:thinking|reasoning)|instant")
_THINKING: Final = re.compile(
    r"think|thk|reason|(?<![a-z0-9])(?:r1|r2|o1|o3|o4|z1|qwq|qvq)(?![a-z0-9])|gpt-oss|magistral|gpt-5"
)
_SMALL: Final = re.compile(r"mini|nano|small|tiny|lite|flash|haiku|micro")
_INSTRUCT: Final = re.compile(r"instruct|chat|-it(?![a-z])|assistant|turbo")
_CODE: Final = re.compile(r"code|coder|starcoder|devstral")
_BASE: Final = re.compile(r"davinci|base|pretrain|finetun|verification")
_MAX_NAME_CHARS: Final = 120


@dataclass(frozen=True, slots=True)
class ModelHabit:
    """How long answers under a model name were in the training data."""

    level: float
    """Mean ln(tokens), shrunk to the mean of all."""
    excess: float
    """Mean difference in ln(tokens) to other models on the same prompts, shrunk to 0."""
    support: float
    """ln(1 + rows seen)."""
    slope: float
    """By how much the excess grows per unit of ln(tokens) that others write on a prompt."""
    spread: float
    """Root mean square of the difference to others, in ln(tokens)."""

    def values(self) -> list[float]:
        """As features, in the order of `HABIT_FEATURES`."""
        return [self.level, self.excess, self.support, self.slope, self.spread]


HABIT_FEATURES: Final = ("habit_level", "habit_excess", "habit_support", "habit_slope", "habit_spread")
UNKNOWN_HABIT: Final = ModelHabit(-1.0, 0.0, 0.0, 0.0, 0.0)


def normal_name(name: str) -> str:
    """`name` without owner, letter case and release date: the key of habits."""
    name = name[-_MAX_NAME_CHARS:].lower().rsplit("/", 1)[-1]
    return _DATE.sub("", name)


def describe_name(name: str) -> list[float]:
    """The values of `NAME_FEATURES`. Unknown sizes are -1."""
    low = name[-_MAX_NAME_CHARS:].lower()
    size = _SIZE.search(low)
    thinks = -1.0 if _NO_THINKING.search(low) else float(bool(_THINKING.search(low)))
    return [
        log1p(float(size[1])) if size else -1.0,
        thinks,
        float(bool(_SMALL.search(low))),
        float(bool(_INSTRUCT.search(low))),
        float(bool(_CODE.search(low))),
        float(bool(_BASE.search(low))),
    ]
