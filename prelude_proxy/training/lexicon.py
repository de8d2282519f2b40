"""Fits the lexicon: ridge regression of ln(tokens) on the distinct words of a prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import sqrt

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import lsqr

Floats = NDArray[np.float64]

RIDGE = 1.0
MAX_LEXICON = 20_000
_MIN_PROMPTS = 4
"""Different prompts a word must occur in."""


class WordMatrix:
    """Prompts by words, rows scaled as `Lexicon.score` scales them. Rows with the very same prompt share one."""

    def __init__(self, prompts: Sequence[frozenset[bytes]], groups: Sequence[str]) -> None:
        first: dict[int, int] = {}
        self._prompt_of = np.array([first.setdefault(id(words), len(first)) for words in prompts])
        distinct: list[frozenset[bytes]] = []
        seen: dict[str, int] = {}
        for row, place in enumerate(self._prompt_of):
            if place == len(distinct):
                distinct.append(prompts[row])
            seen.setdefault(groups[row], place)
        counts: Counter[bytes] = Counter()
        for place in seen.values():
            counts.update(distinct[place])
        self.words: list[bytes] = [word for word, count in counts.items() if count >= _MIN_PROMPTS]
        self._matrix = self._encode(distinct)

    def _encode(self, prompts: list[frozenset[bytes]]) -> sp.csr_matrix:
        index = {word: place for place, word in enumerate(self.words)}
        indices: list[int] = []
        starts = [0]
        values: list[float] = []
        for words in prompts:
            ids = [index[word] for word in words if word in index]
            indices += ids
            values += [1.0 / sqrt(len(words) + 1)] * len(ids)
            starts.append(len(indices))
        return sp.csr_matrix((values, indices, starts), shape=(len(prompts), len(self.words)), dtype=np.float32)

    def fit(self, target: Floats, weight: Floats, rows: NDArray[np.bool_]) -> Floats:
        """Weights of the words from the chosen rows; the target's mean is left to the trees."""
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
        """The words with the largest weights, as the model keeps them."""
        order = np.argsort(-np.abs(weights))[:MAX_LEXICON]
        return {self.words[index]: float(f"{weights[index]:.5g}") for index in order}
