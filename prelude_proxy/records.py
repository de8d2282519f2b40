"""An access record as a line: `key=value` fields, odd values as JSON strings, times in UTC."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import orjson


def fields_as_text(record: Mapping[str, Any]) -> str:
    """The fields that have a value, in order, but for `ts`."""
    fields = []
    for key, value in record.items():
        if value is None or key == "ts":
            continue
        if isinstance(value, str):
            shown = _shown(value)
        elif isinstance(value, float):
            shown = f"{value:.1f}"
        elif isinstance(value, bool):
            shown = "True" if value else "False"
        elif isinstance(value, int):
            shown = str(value)
        else:
            shown = _shown(str(value))
        fields.append(f"{key}={shown}")
    return " ".join(fields)


def _shown(text: str) -> str:
    """As it is when nobody could mistake it, else quoted."""
    is_odd = " " in text or '"' in text or "=" in text or not text.isprintable()
    return one_line(text) if is_odd else text


def one_line(value: object) -> str:
    """One line of JSON, whatever is in it: one odd record must not take the others with it."""
    try:
        return orjson.dumps(value, default=str).decode()
    except TypeError:  # a text that is not valid Unicode
        return json.dumps(value, default=str)


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC, to the millisecond."""
    whole = int(seconds // 1)
    return f"{_second(whole)}.{int((seconds - whole) * 1e3):03d}Z"


@lru_cache(maxsize=64)
def _second(whole: int) -> str:
    return datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")
