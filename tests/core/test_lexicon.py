"""The linear model over words."""

from __future__ import annotations

from math import sqrt

import pytest

from prelude_proxy.core.lexicon import Lexicon


def test_score_adds_known_words_over_the_root_of_all() -> None:
    """Unknown words dilute, they do not count."""
    lexicon = Lexicon({b"write": 1.0, b"code": 0.5})
    assert lexicon.score({b"write", b"code", b"now"}) == pytest.approx(1.5 / sqrt(4))


def test_no_words_score_nothing() -> None:
    """An empty prompt has a score."""
    assert Lexicon({b"a": 1.0}).score(set()) == 0.0
