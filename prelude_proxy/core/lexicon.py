"""A linear model over words and word pairs: one number that says how long prompts with these words get answered.

The trees read it as a feature. Two dict look-ups a word, no hashing of our own, no vectoriser.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise, repeat
from math import sqrt

MAX_TERMS = 400
"""Words of one prompt that count, so that a window full of one-letter words is bounded too."""


@dataclass(frozen=True, slots=True)
class Lexicon:
    """Weights in ln(tokens) of words, and of pairs of neighbours."""

    words: Mapping[bytes, float]
    pairs: Mapping[tuple[bytes, bytes], float]

    def score(self, words: list[bytes]) -> float:
        """Sum of the weights of the distinct terms over the root of their number (an l2-normalised bag of terms)."""
        if not words:
            return 0.0
        words = words[:MAX_TERMS]
        distinct = set(words)
        neighbours = set(pairwise(words))
        total = sum(map(self.words.get, distinct, repeat(0.0))) + sum(map(self.pairs.get, neighbours, repeat(0.0)))
        return total / sqrt(len(distinct) + len(neighbours))
