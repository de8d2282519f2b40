"""The data port against clients that write bytes: keep-alive, pipelining, bounds, time limits, leaving."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from prelude_proxy.downstream import DownstreamLimits, Request, Server
from prelude_proxy.errors import ClientError

Handler = Callable[[Request], Awaitable[None]]
GET = b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n"


async def echo(request: Request) -> None:
    """Answer with method, path and body, or with the error."""
    try:
        body = request.body()
    except ClientError as error:
        request.respond(error.status, (), str(error).encode())
    else:
        request.respond(200, (), request.method.encode() + b" " + request.target + b" " + body)


@asynccontextmanager
async def serving(handler: Handler = echo, **limits: float) -> AsyncIterator[tuple[Server, int]]:
    server = Server(handler, DownstreamLimits(**limits))
    port = await server.start("127.0.0.1", 0, 100)
    try:
        yield server, port
    finally:
        await server.close()


@asynccontextmanager
async def client(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        await asyncio.wait([asyncio.ensure_future(writer.wait_closed())])


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status, *lines = head.split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines if line)
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    return int(status.split()[1]), headers, body


async def talk(sent: bytes, num_answers: int = 1, handler: Handler = echo, **limits: float):
    async with serving(handler, **limits) as (_, port), client(port) as (reader, writer):
        writer.write(sent)
        answers = [await answer(reader) for _ in range(num_answers)]
        writer.write_eof()
        return answers, await reader.read()


async def test_requests_on_one_connection_are_answered_in_turn():
    """Pipelined requests, bodies with length and chunked, each answered in order."""
    sent = (
        GET
        + b"POST /a?b=1 HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc"
        + b"POST /c HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nxyz\r\n1\r\n!\r\n0\r\n\r\n"
    )
    answers, rest = await talk(sent, 3)
    assert [body for _, _, body in answers] == [b"GET /x ", b"POST /a?b=1 abc", b"POST /c xyz!"]
    assert rest == b""


async def test_any_split_of_a_request_is_the_same_request():
    """One byte at a time."""
    sent = b"POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello"
    async with serving() as (_, port), client(port) as (reader, writer):
        for byte in sent:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        assert (await answer(reader))[2] == b"POST /a hello"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nbad header\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 70_000, 431),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n63\r\n" + b"x" * 99, 413),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\nab", 415),
    ],
)
async def test_what_cannot_be_served_is_answered_and_the_connection_closed(sent, status):
    """Ambiguous lengths, garbage, too much: one clear answer, then the end; nothing read as a second request."""
    ((got, headers, _),), rest = await talk(sent + GET, max_body_bytes=50)
    assert got == status
    assert headers["connection"] == "close"
    assert rest == b""


async def test_expect_100_continue_is_answered_before_the_body():
    """The curl client waits for it with larger bodies."""
    async with serving() as (_, port), client(port) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"ok")
        assert (await answer(reader))[2] == b"POST / ok"


async def test_http_1_0_and_connection_close_end_the_connection():
    """No chunked coding for 1.0; the end of the body is the end of the connection."""

    async def stream(request: Request) -> None:
        request.begin(200, (), length=None)
        request.write(b"one ")
        request.write(b"two", is_last=True)

    async with serving(stream) as (_, port):
        async with client(port) as (reader, writer):
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            assert (await reader.read()).endswith(b"connection: close\r\n\r\none two")
        async with client(port) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            assert (await answer(reader))[2] == b"one two"
            assert await reader.read() == b""


async def test_head_has_the_headers_and_no_body():
    """The length that GET would have, nothing after the head."""
    async with serving() as (_, port), client(port) as (reader, writer):
        writer.write(b"HEAD /x HTTP/1.1\r\nhost: a\r\n\r\n" + GET)
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"content-length: 8" in head
        assert (await answer(reader))[2] == b"GET /x "


async def test_an_upgrade_is_not_accepted_and_costs_nothing():
    """RFC 9110 §7.8: served as if it had not asked, body and all (Java's client asks for h2c by default)."""
    sent = (
        b"POST /x HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n"
        b"content-length: 2\r\n\r\nok"
    )
    answers, _ = await talk(sent + GET, 2)
    assert [body for _, _, body in answers] == [b"POST /x ok", b"GET /x "]


async def test_a_client_that_leaves_cancels_its_request():
    """That is how work for nobody ends."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def forever(request: Request) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving(forever) as (server, port):
        async with client(port) as (_, writer):
            writer.write(GET)
            await began.wait()
            assert server.num_serving() == 1
        await asyncio.wait_for(ended.wait(), 1)


async def test_a_slow_reader_is_waited_for():
    """Writes past the buffer say so, and the handler may wait."""
    pauses = 0

    async def flood(request: Request) -> None:
        nonlocal pauses
        request.begin(200, (), length=None)
        for _ in range(200):
            if not request.write(b"x" * 65536):
                pauses += 1
                await request.wait_writable()
        request.end()

    async with serving(flood) as (_, port), client(port) as (reader, writer):
        writer.write(GET)
        await asyncio.sleep(0.1)
        status, _, body = await answer(reader)
        assert (status, len(body)) == (200, 200 * 65536)
    assert pauses > 0


async def test_a_handler_that_fails_cuts_the_connection(caplog):
    """Nothing that was sent can pass for a whole answer."""

    async def broken(request: Request) -> None:
        request.begin(200, (), length=10)
        request.write(b"half")
        raise RuntimeError("on purpose")

    async with serving(broken) as (_, port), client(port) as (reader, writer):
        writer.write(GET)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await answer(reader)
    assert "on purpose" in caplog.text


async def test_time_limits_close_silent_clients():
    """No head, half a head, half a body, nothing after an answer."""
    async with serving(header_s=0.1, body_s=0.1, keepalive_s=0.1) as (_, port):
        for sent in (b"", b"GET / HT", GET):
            async with client(port) as (reader, writer):
                writer.write(sent)
                await reader.read()
        async with client(port) as (reader, writer):
            writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf")
            assert (await answer(reader))[0] == 408
            assert await reader.read() == b""


async def test_closing_lets_answers_finish():
    """Idle connections close at once, the others say `connection: close` with their answer."""
    began, go = asyncio.Event(), asyncio.Event()

    async def later(request: Request) -> None:
        began.set()
        await go.wait()
        request.respond(200, (), b"done")

    async with serving(later) as (server, port), client(port) as idle, client(port) as busy:
        busy[1].write(GET)
        await began.wait()
        server.stop_listening()
        assert await idle[0].read() == b""
        go.set()
        _, headers, body = await answer(busy[0])
        assert (headers["connection"], body) == ("close", b"done")
        with pytest.raises(OSError, match=r".*"):
            await asyncio.open_connection("127.0.0.1", port)
