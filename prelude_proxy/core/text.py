"""A bounded look at a prompt: what the features may read of a text, however long it is, in any script.

Everything after `Glimpse` costs the same for 2,000 characters and for 2,000,000: the first `HEAD_CHARS` and the last
`TAIL_CHARS` are read, of the rest only the length is known. Training rows are cut in their middle, so both see the
same.
"""

from __future__ import annotations

import re
from typing import Final

HEAD_CHARS: Final = 1000
TAIL_CHARS: Final = 400
MAX_WORDS: Final = 400
"""Words that are read: a window full of one-letter words is bounded too."""


def _script_of(byte: int) -> str:
    """The mark a UTF-8 byte of a non-ASCII character counts as: its lead byte tells the script, the rest nothing."""
    ranges = (
        (0xC0, "c"),  # continuation bytes
        (0xE2, "y"),  # accented Latin, Greek, Cyrillic, Hebrew, Arabic, Indic, Thai
        (0xE3, "s"),  # typographic marks, arrows, mathematical operators
        (0xF0, "k"),  # CJK, Hangul
        (0x100, "s"),  # emoji and other astral characters
    )
    return next(mark for limit, mark in ranges if byte < limit)


def _mark_table() -> bytes:
    """One class mark for each byte of a UTF-8 text."""
    marks = {ord(char): "a" for char in "abcdefghijklmnopqrstuvwxyz"}
    marks |= {ord(char): "A" for char in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
    marks |= {ord(char): "0" for char in "0123456789"}
    marks |= {ord(char): "=" for char in "=+*/^\\$<>%~&@"}
    marks |= {ord(char): "{" for char in "{}[]"}
    marks |= {ord(char): "(" for char in "()"}
    marks |= {ord(char): '"' for char in "\"'"}
    marks |= {ord(char): char for char in "\n?:.,`|#_-!;"}
    return "".join(marks.get(byte, " " if byte < 0x80 else _script_of(byte)) for byte in range(256)).encode()


def _word_table() -> bytes:
    """Lower-case letters and digits stay, ASCII punctuation separates, other scripts stay as they are."""
    keep = b"abcdefghijklmnopqrstuvwxyz0123456789"
    table = bytearray(byte if byte in keep or byte >= 0x80 else 0x20 for byte in range(256))
    for upper in b"ABCDEFGHIJKLMNOPQRSTUVWXYZ":
        table[upper] = upper + 32
    return bytes(table)


MARKS: Final = _mark_table()
WORDS: Final = _word_table()
_WIDE: Final = re.compile("[\u2e80-\u9fff\uac00-\ud7af]")


class Glimpse:
    """The part of a text that is read, and how long the whole was."""

    __slots__ = ("data", "distinct", "head", "marks", "num_chars", "tail", "words")

    def __init__(self, num_chars: int, head: str, tail: str, data: bytes, words: list[bytes]) -> None:
        self.num_chars = num_chars
        self.head = head
        self.tail = tail
        """Empty when the head already is the whole text."""
        self.data = data
        """Head and tail in UTF-8."""
        self.marks = data.translate(MARKS)
        """One class mark per UTF-8 byte of head and tail; count them."""
        self.words = words
        """Lower-case words in order; scripts that write without spaces give one word a character."""
        self.distinct = set(words)


def glimpse(text: str) -> Glimpse:
    """Read the head and tail windows of `text`."""
    num_chars = len(text)
    if num_chars <= HEAD_CHARS + TAIL_CHARS:
        head, tail, window = text, "", text
    else:
        head, tail = text[:HEAD_CHARS], text[-TAIL_CHARS:]
        window = head + "\n" + tail
    data = window.encode("utf-8", "replace")
    words = data.translate(WORDS).split()
    if len(data) > len(window) + 8:
        wide = _WIDE.findall(window)
        if wide:
            words += [char.encode() for char in wide]
    if len(words) > MAX_WORDS:
        words = words[:MAX_WORDS]
    return Glimpse(num_chars, head, tail, data, words)
