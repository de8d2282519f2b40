"""Access records as text: readable, one line each, whatever a client sent."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prelude_proxy.records import fields_as_text, timestamp


def test_fields_stand_in_order_without_those_that_have_no_value() -> None:
    """Floats to one digit, `ts` left to whoever writes the line."""
    record = {"ts": 1.5, "id": "a1", "status": 200, "error": None, "queue_ms": 3.14159, "stream": True}
    assert fields_as_text(record) == "id=a1 status=200 queue_ms=3.1 stream=True"


@pytest.mark.parametrize("odd", ["two words", 'a"b', "a=b", "line\nbreak", "\x1b[2J"])
def test_odd_values_are_quoted(odd: str) -> None:
    """A client cannot forge a field or a line."""
    text = fields_as_text({"model": odd})
    assert text.isprintable()
    assert orjson.loads(text.removeprefix("model=")) == odd


def test_text_that_is_not_unicode_still_makes_a_line() -> None:
    """A lone surrogate from a header."""
    assert fields_as_text({"model": "a\udc80 b"}) == 'model="a\\udc80 b"'


@given(st.floats(0, 4e9))
def test_times_are_cut_to_the_millisecond(seconds: float) -> None:
    """And say the same as the standard library's."""
    text = timestamp(seconds)
    assert text.endswith("Z")
    parsed = datetime.fromisoformat(text)
    assert parsed.tzinfo == UTC
    assert -1e-5 <= seconds - parsed.timestamp() < 1.001e-3
