"""Logs on standard error: ordinary records through `logging`, access records through a buffer, off the hot path."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping
from typing import IO, Any

from prelude_proxy.records import fields_as_text, one_line, timestamp

_FLUSH_S = 0.2
_MAX_BUFFERED = 10_000
_SLICE = 8
"""Records formatted in one go; requests that came meanwhile go before the next ones."""

Record = dict[str, Any]


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: Record = {
            "ts": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return one_line(fields)


def configure_logging(level: str, form: str) -> None:
    """Set up the root logger: `form` is `text` or `json`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JsonFormatter() if form == "json" else logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("aiohttp.access").disabled = True


class AccessLog:
    """One record a request. `write` only appends; formatting and I/O happen a few times a second."""

    def __init__(self, loop: asyncio.AbstractEventLoop, form: str, stream: IO[str] | None = None) -> None:
        self._loop = loop
        self._json = form == "json"
        self._stream = stream or sys.stderr
        self._buffer: list[Record] = []
        self._timer: asyncio.Handle | None = None
        self.num_dropped = 0
        """Records lost because the buffer was full: writing could not keep up."""

    def write(self, record: Record) -> None:
        """Take in one record; `ts` is seconds since the epoch."""
        if len(self._buffer) >= _MAX_BUFFERED:
            self.num_dropped += 1
            return
        self._buffer.append(record)
        if self._timer is None:
            self._timer = self._loop.call_later(_FLUSH_S, self._flush_slice)

    def flush(self) -> None:
        """Format and write what is buffered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        buffer, self._buffer = self._buffer, []
        self._emit(buffer)

    def _flush_slice(self) -> None:
        buffer = self._buffer
        self._buffer = buffer[_SLICE:]
        self._timer = self._loop.call_soon(self._flush_slice) if self._buffer else None
        self._emit(buffer[:_SLICE])

    def _emit(self, records: list[Record]) -> None:
        form = _as_json if self._json else _as_text
        self._stream.write("".join(form(record) for record in records))
        self._stream.flush()


def _as_json(record: Mapping[str, Any]) -> str:
    return one_line({**record, "ts": timestamp(record["ts"])}) + "\n"


def _as_text(record: Mapping[str, Any]) -> str:
    return f"{timestamp(record['ts'])} access {fields_as_text(record)}\n"
