"""The bounded look at a prompt."""

from __future__ import annotations

from prelude_proxy.core.text import HEAD_CHARS, MAX_WORDS, TAIL_CHARS, glimpse


def test_a_short_text_is_read_whole() -> None:
    """Head is the text, words are lower-case without punctuation, marks count classes of characters."""
    seen = glimpse("Hello, World? 42\n`x`")
    assert seen.head == "Hello, World? 42\n`x`"
    assert seen.tail == ""
    assert seen.words == [b"hello", b"world", b"42", b"x"]
    assert seen.marks.count(b"A") == 2
    assert seen.marks.count(b"0") == 2
    assert seen.marks.count(b"`") == 2
    assert seen.marks.count(b"?") == 1


def test_a_long_text_is_read_at_both_ends_only() -> None:
    """What lies between head and tail changes nothing but the length."""
    first = glimpse("a" * HEAD_CHARS + "b" * 5000 + "c" * TAIL_CHARS)
    other = glimpse("a" * HEAD_CHARS + " " * 5000 + "c" * TAIL_CHARS)
    for name in ("num_chars", "head", "tail", "data", "marks", "words", "distinct"):
        assert getattr(first, name) == getattr(other, name), name


def test_words_are_bounded() -> None:
    """A window full of one-letter words is not read to its end."""
    assert len(glimpse("a " * 700).words) <= MAX_WORDS


def test_scripts_without_spaces_give_a_word_a_character() -> None:
    """Chinese text is read by character, besides as a run."""
    words = glimpse("生成一个密码").words
    assert "密".encode() in words
    assert "码".encode() in words


def test_scripts_are_told_apart_by_their_marks() -> None:
    """East Asian scripts, other scripts, and symbols leave different marks, one for each character."""
    for text, mark in (("漢한", b"k"), ("Жعé", b"y"), ("😀“", b"s")):
        assert glimpse(text).marks.count(mark) == 2 + (mark == b"y")
