"""A linear model over words and word pairs: one number that says how long prompts with these words get answered.

The trees read it as a feature. Two dict look-ups a word, no hashing of our own, no vectoriser.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise, repeat
from math import sqrt


@dataclass(frozen=True, slots=True)
class Lexicon:
    """Weights in ln(tokens) of words, and of pairs of neighbours."""

    words: Mapping[bytes, float]
    pairs: Mapping[tuple[bytes, bytes], float]

    def score(self, words: list[bytes], distinct: set[bytes]) -> float:
        """Sum of the weights of all `distinct` words and of every pair of neighbours, over the root of their number."""
        if not words:
            return 0.0
        total = sum(map(self.words.get, distinct, _ZEROS)) + sum(map(self.pairs.get, pairwise(words), _ZEROS))
        return total / sqrt(len(distinct) + len(words))


_ZEROS = repeat(0.0)
