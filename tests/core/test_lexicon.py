"""The linear model over words."""

from __future__ import annotations

from math import sqrt

import pytest

from prelude_proxy.core.lexicon import EDGE_WORDS, Lexicon, edge_pairs, terms


def score(weights: dict[bytes, float], text: bytes) -> float:
    words = text.split()
    return Lexicon.of(weights).score(words, set(words))


def test_score_adds_known_words_over_the_root_of_all_terms() -> None:
    """Unknown words and pairs dilute, they do not count: three words, two pairs and two ends."""
    assert score({b"write": 1.0, b"code": 0.5}, b"write code now") == pytest.approx(1.5 / sqrt(8))


def test_pairs_count_by_their_order() -> None:
    """What two words say together, in this order; a prompt's first and last word are pairs with nothing."""
    weights = {b"code write": 1.0, b" write": 0.25, b"write ": 0.125}
    assert score(weights, b"code write") == pytest.approx(1.125 / sqrt(6))
    assert score(weights, b"write code") == pytest.approx(0.25 / sqrt(6))


def test_no_words_score_nothing() -> None:
    """An empty prompt has a score."""
    assert score({b"a": 1.0, b"a b": 1.0}, b"") == 0.0


def test_pairs_are_read_at_both_ends_and_their_number_is_bounded() -> None:
    """However long the prompt; a short one is read whole, and no pair twice."""
    words = [str(number).encode() for number in range(1000)]
    pairs = edge_pairs(words)
    assert {(b"", b"0"), (b"0", b"1"), (b"998", b"999"), (b"999", b"")} <= set(pairs)
    assert (b"500", b"501") not in pairs
    assert len(pairs) == len(set(pairs)) == 2 * EDGE_WORDS
    short = edge_pairs(words[: EDGE_WORDS + 2])
    assert len(short) == len(set(short)) == EDGE_WORDS + 3


def test_terms_are_what_is_scored() -> None:
    """Training and serving count the same."""
    words = b"tell me why and tell me how".split()
    weights = dict.fromkeys(terms(words, set(words)), 1.0)
    assert Lexicon.of(weights).score(words, set(words)) == pytest.approx(
        len(terms(words, set(words))) / sqrt(len(terms(words, set(words))) + 1)
    )
