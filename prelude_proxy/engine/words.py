"""The text the engine writes: common words, one a token, chosen so that they need no JSON escaping."""

from __future__ import annotations

_TEXT = (
    "the of and to in is that it was for on are as with his they at be this from have or by one had not but what all "
    "were when we there can an your which their said if do will each about how up out them then she many some so "
    "these would other into has more her two like him see time could no make than first been its who now people my"
)
_WORDS = tuple(f" {word}".encode() for word in _TEXT.split())


def text_bytes(start: int, first: int, last: int) -> bytes:
    """Tokens first … last − 1 of the text that begins at word `start`."""
    if last - first == 1:  # the usual case: one token a step
        return _WORDS[(start + first) % len(_WORDS)]
    return b"".join(_WORDS[(start + index) % len(_WORDS)] for index in range(first, last))
