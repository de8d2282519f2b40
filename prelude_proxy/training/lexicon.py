"""Fits the lexicon: ridge regression of ln(tokens) on the words of a prompt and the pairs at its ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import sqrt

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import lsqr

from prelude_proxy.core.lexicon import scale

Floats = NDArray[np.float64]

RIDGE = 1.0
MAX_LEXICON = 30_000
_MIN_PROMPTS = 4
"""Different prompts a term must occur in."""


class WordMatrix:
    """Prompts by terms, rows scaled as `Lexicon.score` scales them. Rows with the very same prompt share one."""

    def __init__(self, prompts: Sequence[tuple[bytes, ...]], groups: Sequence[str]) -> None:
        first: dict[int, int] = {}
        self._prompt_of = np.array([first.setdefault(id(terms), len(first)) for terms in prompts])
        distinct: list[tuple[bytes, ...]] = []
        seen: dict[str, int] = {}
        for row, place in enumerate(self._prompt_of):
            if place == len(distinct):
                distinct.append(prompts[row])
            seen.setdefault(groups[row], place)
        counts: Counter[bytes] = Counter()
        for place in seen.values():
            counts.update(set(distinct[place]))
        self.terms: list[bytes] = [term for term, count in counts.items() if count >= _MIN_PROMPTS]
        self._matrix = self._encode(distinct)

    def _encode(self, prompts: list[tuple[bytes, ...]]) -> sp.csr_matrix:
        index = {term: place for place, term in enumerate(self.terms)}
        indices: list[int] = []
        starts = [0]
        values: list[float] = []
        for terms in prompts:
            ids = [index[term] for term in terms if term in index]
            indices += ids
            values += [1.0 / scale(len(terms))] * len(ids)
            starts.append(len(indices))
        return sp.csr_matrix((values, indices, starts), shape=(len(prompts), len(self.terms)), dtype=np.float32)

    def fit(self, target: Floats, weight: Floats, rows: NDArray[np.bool_]) -> Floats:
        """Weights of the terms from the chosen rows; the target's mean is left to the trees."""
        size = self._matrix.shape[0]
        total = np.bincount(self._prompt_of[rows], weight[rows], minlength=size)
        summed = np.bincount(self._prompt_of[rows], weight[rows] * target[rows], minlength=size)
        used = np.flatnonzero(total)
        average = summed[used] / total[used]
        mean = float(summed.sum() / total.sum())
        root = np.sqrt(total[used])
        scaled = (sp.diags(root) @ self._matrix[used]).tocsr()
        solution: Floats = lsqr(scaled, root * (average - mean), damp=sqrt(RIDGE), iter_lim=60)[0]
        return solution

    def score(self, weights: Floats) -> Floats:
        """The lexicon's score of every row."""
        scores: Floats = (self._matrix @ weights)[self._prompt_of]
        return scores

    def largest(self, weights: Floats) -> dict[bytes, float]:
        """The terms with the largest weights, as the model keeps them."""
        order = np.argsort(-np.abs(weights))[:MAX_LEXICON]
        return {self.terms[index]: float(f"{weights[index]:.5g}") for index in order}
