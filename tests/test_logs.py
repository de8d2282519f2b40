"""Logs: one line a record, valid JSON whatever is in it, off the hot path, bounded."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys

import orjson
import pytest

from prelude_proxy.logs import AccessLog, configure_logging

RECORD = {"ts": 0.5, "id": "r", "path": "/v1/x", "status": 200, "queue_ms": 1.25, "error": None}


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def restored_logging():
    """The root logger as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.getLogger("aiohttp.access").disabled = False


async def test_json_records(stream):
    """A JSON record has every field and a time stamp in ISO 8601, UTC."""
    access = AccessLog(asyncio.get_running_loop(), "json", stream)
    access.write(RECORD)
    access.flush()
    assert orjson.loads(stream.getvalue()) == {**RECORD, "ts": "1970-01-01T00:00:00.500Z"}


async def test_text_records(stream):
    """A text record leaves out what is not there and quotes what would be ambiguous."""
    access = AccessLog(asyncio.get_running_loop(), "text", stream)
    access.write({**RECORD, "model": "a b", "tenant": 'x="y"'})
    access.flush()
    assert stream.getvalue() == (
        '1970-01-01T00:00:00.500Z access id=r path=/v1/x status=200 queue_ms=1.2 model="a b" tenant="x=\\"y\\""\n'
    )


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("odd", ["line\nbreak", "\x1b[31mred", "\udcff", "nul\x00", "\u2028", "é😀", "x" * 10_000])
async def test_no_text_can_break_a_line_or_lose_its_neighbours(stream, form, odd):
    """Whatever a client got into a field: one line each, no control character, and the records around it are there."""
    access = AccessLog(asyncio.get_running_loop(), form, stream)
    for path in ("/before", odd, "/after"):
        access.write({**RECORD, "path": path})
    access.flush()
    lines = stream.getvalue().encode("utf-8").decode().split("\n")
    assert len(lines) == 4
    assert all(char.isprintable() or char == "\n" for char in stream.getvalue() if char != "\u2028")
    if form == "json":
        assert [json.loads(line)["path"] for line in lines[:3]] == ["/before", odd, "/after"]


async def test_records_are_written_soon_without_a_flush(stream, monkeypatch):
    """A timer writes what is buffered; a second write does not start a second timer."""
    monkeypatch.setattr("prelude_proxy.logs._FLUSH_S", 0.005)
    access = AccessLog(asyncio.get_running_loop(), "json", stream)
    access.write(RECORD)
    access.write(RECORD)
    assert stream.getvalue() == ""
    async with asyncio.timeout(2):
        while stream.getvalue().count("\n") < 2:  # noqa: ASYNC110  nobody announces it
            await asyncio.sleep(0.002)
    access.flush()
    assert stream.getvalue().count("\n") == 2


async def test_buffer_is_bounded_and_says_what_was_lost(stream, monkeypatch):
    """When writing cannot keep up, records are counted as dropped rather than kept for ever."""
    monkeypatch.setattr("prelude_proxy.logs._MAX_BUFFERED", 3)
    access = AccessLog(asyncio.get_running_loop(), "json", stream)
    for _ in range(5):
        access.write(RECORD)
    assert access.num_dropped == 2
    access.flush()
    assert stream.getvalue().count("\n") == 3
    access.write(RECORD)
    access.flush()
    assert stream.getvalue().count("\n") == 4


@pytest.mark.usefixtures("restored_logging")
def test_json_log_with_an_exception(capsys, monkeypatch):
    """Ordinary records are JSON too, a traceback included, on one line."""
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    configure_logging("info", "json")
    log = logging.getLogger("x.y")
    log.debug("not shown")
    try:
        raise ValueError("boom")
    except ValueError:
        log.exception("failed with %s", "\udcff")
    [line] = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    assert (record["level"], record["logger"]) == ("error", "x.y")
    assert "ValueError: boom" in record["exception"]
    assert record["ts"].endswith("Z")


@pytest.mark.usefixtures("restored_logging")
def test_text_log(capsys):
    """The text form has level, logger and message."""
    configure_logging("warning", "text")
    logging.getLogger("a").info("no")
    logging.getLogger("a").warning("yes")
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("WARNING a: yes")
