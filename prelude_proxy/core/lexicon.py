"""A linear model over words: one number that says how long prompts with these words get answered.

The trees read it as a feature. One dict look-up a distinct word, no hashing of our own, no vectoriser. Pairs of
neighbouring words are read at the two ends of a prompt only, where the instruction mostly stands: all of them rank
little better and cost three times as much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise, repeat
from math import sqrt
from typing import Final

EDGE_WORDS: Final = 13
"""Words at either end of a prompt that are read in pairs."""
Pair = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Lexicon:
    """Weights of words and of pairs of words, in ln(tokens)."""

    words: Mapping[bytes, float]
    pairs: Mapping[Pair, float]

    @classmethod
    def of(cls, weights: Mapping[bytes, float]) -> Lexicon:
        """From weights of `terms`."""
        words: dict[bytes, float] = {}
        pairs: dict[Pair, float] = {}
        for term, weight in weights.items():
            first, space, second = term.partition(b" ")
            if space:
                pairs[first, second] = weight
            else:
                words[term] = weight
        return cls(words, pairs)

    def score(self, words: list[bytes], distinct: set[bytes]) -> float:
        """Sum of the weights over the root of the number of terms (an l2-normalised bag of terms).

        Args:
            words: of the prompt, in order.
            distinct: the same as a set.
        """
        ends = _ends(words)
        pairs = zip(ends, ends[1:], strict=False)  # noqa: RUF007 - uses one tuple again and again, pairwise makes many
        total = sum(map(self.words.get, distinct, _ZEROS), 0.0) + sum(map(self.pairs.get, pairs, _ZEROS), 0.0)
        return total / scale(len(distinct) + max(len(ends) - 1, 0))


_ZEROS: Final = repeat(0.0)


def scale(num_terms: int) -> float:
    """What the sum over a bag of that many terms is divided by; one more than they are, for the empty bag."""
    return sqrt(num_terms + 1)


def _ends(words: list[bytes]) -> list[bytes]:
    """A prompt's end and start, closed to a ring by an empty word."""
    if len(words) <= 2 * EDGE_WORDS:
        return [*words, b"", words[0]] if words else []
    return [*words[-EDGE_WORDS:], b"", *words[:EDGE_WORDS]]


def edge_pairs(words: list[bytes]) -> list[Pair]:
    """Neighbours at the start and the end of a prompt; the first word's left and the last one's right is empty."""
    return list(pairwise(_ends(words)))


def terms(words: list[bytes], distinct: set[bytes]) -> list[bytes]:
    """What `Lexicon.score` adds up, a pair as its words with a space between."""
    return [*distinct, *map(b" ".join, edge_pairs(words))]
