"""The linear model over words and pairs."""

from __future__ import annotations

from math import sqrt

import pytest

from prelude_proxy.core.lexicon import Lexicon


def test_score_adds_words_once_and_pairs_each_time() -> None:
    """Distinct words and all pairs of neighbours, over the root of how many there are."""
    lexicon = Lexicon({b"write": 1.0, b"code": 0.5}, {(b"write", b"code"): 2.0})
    words = [b"write", b"code", b"write", b"code"]
    assert lexicon.score(words, set(words)) == pytest.approx((1.0 + 0.5 + 2.0 * 2) / sqrt(2 + 4))


def test_no_words_score_nothing() -> None:
    """An empty prompt has a score."""
    assert Lexicon({b"a": 1.0}, {}).score([], set()) == 0.0
