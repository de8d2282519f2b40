"""Fitting the lexicon."""

from __future__ import annotations

import numpy as np
import pytest

from prelude_proxy.core.lexicon import Lexicon, terms
from prelude_proxy.training.lexicon import WordMatrix


def test_what_is_fitted_is_what_is_scored() -> None:
    """The same number for a prompt in training and in serving, words said twice included."""
    texts = [b"write a long long essay", b"answer yes or no", b"write a poem", b"answer in one word"] * 5
    split = [(*text.split(), str(number).encode()) for number, text in enumerate(texts)]
    prompts = [tuple(terms(list(words), set(words))) for words in split]
    matrix = WordMatrix(prompts, [str(number) for number in range(len(split))])
    target = np.array([6.0, 1.0, 5.0, 1.0] * 5)
    weights = matrix.fit(target, np.ones(len(split)), np.ones(len(split), dtype=bool))
    lexicon = Lexicon.of(matrix.largest(weights))
    served = [lexicon.score(list(words), set(words)) for words in split]
    assert served == pytest.approx(matrix.score(weights).tolist(), abs=1e-3)
    assert served[0] > served[1]
    assert (b"write", b"a") in lexicon.pairs
