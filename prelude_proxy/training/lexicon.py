"""Fits the lexicon: ridge regression of ln(tokens) on the distinct words and word pairs of a prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import lsqr

from prelude_proxy.core.lexicon import MAX_TERMS

Term = Any
Floats = NDArray[np.float64]

RIDGE = 1.0
MAX_LEXICON = 20_000
_MIN_PROMPTS = 4
"""Different prompts a term must occur in."""


def terms_of(words: list[bytes]) -> list[Term]:
    """Distinct words, then distinct pairs of neighbours: what `Lexicon.score` adds up."""
    words = words[:MAX_TERMS]
    return [*set(words), *set(pairwise(words))]


class TermMatrix:
    """Prompts by terms, rows scaled as `Lexicon.score` scales them."""

    def __init__(self, prompts: Sequence[list[bytes]], groups: Sequence[str]) -> None:
        seen: dict[str, list[bytes]] = {}
        for words, group in zip(prompts, groups, strict=True):
            seen.setdefault(group, words)
        counts: Counter[Term] = Counter()
        for words in seen.values():
            counts.update(terms_of(words))
        self.terms: list[Term] = [term for term, count in counts.items() if count >= _MIN_PROMPTS]
        self._index = {term: index for index, term in enumerate(self.terms)}
        self.matrix = self._encode(prompts)

    def _encode(self, prompts: Sequence[list[bytes]]) -> sp.csr_matrix:
        indices: list[int] = []
        starts = [0]
        values: list[float] = []
        known: dict[int, tuple[list[int], float]] = {}
        for words in prompts:
            encoded = known.get(id(words))
            if encoded is None:
                terms = terms_of(words)
                ids = [self._index[term] for term in terms if term in self._index]
                encoded = known[id(words)] = (ids, 1.0 / sqrt(max(len(terms), 1)))
            indices += encoded[0]
            values += [encoded[1]] * len(encoded[0])
            starts.append(len(indices))
        return sp.csr_matrix((values, indices, starts), shape=(len(prompts), len(self.terms)), dtype=np.float32)

    def fit(self, target: Floats, weight: Floats, rows: NDArray[np.bool_]) -> Floats:
        """Weights of the terms from the chosen rows; the target's mean is left to the trees."""
        root = np.sqrt(weight[rows])
        mean = float((weight[rows] * target[rows]).sum() / weight[rows].sum())
        scaled = sp.diags(root) @ self.matrix[rows]
        solution: Floats = lsqr(scaled, root * (target[rows] - mean), damp=sqrt(RIDGE), iter_lim=60)[0]
        return solution

    def score(self, weights: Floats) -> Floats:
        """The lexicon's score of every prompt."""
        scores: Floats = self.matrix @ weights
        return scores

    def largest(self, weights: Floats) -> tuple[dict[bytes, float], dict[tuple[bytes, bytes], float]]:
        """The words and pairs with the largest weights, as the model keeps them."""
        words: dict[bytes, float] = {}
        pairs: dict[tuple[bytes, bytes], float] = {}
        for index in np.argsort(-np.abs(weights))[:MAX_LEXICON]:
            term = self.terms[index]
            (words if isinstance(term, bytes) else pairs)[term] = float(f"{weights[index]:.5g}")
        return words, pairs
