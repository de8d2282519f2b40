"""The outbound client alone, against servers that a test plays byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from prelude_proxy.errors import (
    UpstreamConnectError,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamStaleError,
    UpstreamTimeoutError,
)
from prelude_proxy.upstream import Upstream, UpstreamTimeouts

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Peer:
    """A server whose connections a test takes one by one."""

    def __init__(self) -> None:
        self.connections: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self.writers: list[asyncio.StreamWriter] = []
        self.url = ""

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        self.connections.put_nowait((reader, writer))

    async def next(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The next connection."""
        async with asyncio.timeout(5):
            return await self.connections.get()


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    """A listening peer."""
    opened = Peer()
    server = await asyncio.start_server(opened.accept, "127.0.0.1", 0)
    opened.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield opened
    server.close()
    for writer in opened.writers:
        writer.transport.abort()
    await asyncio.sleep(0)


@pytest.fixture
async def make_upstream(peer, monkeypatch) -> AsyncIterator[Callable[..., Upstream]]:
    """Clients of `peer`, with the given limits; swept often."""
    monkeypatch.setattr("prelude_proxy.upstream._SWEEP_S", 0.01)
    made: list[Upstream] = []

    def make(url: str = "", **limits: float) -> Upstream:
        upstream = Upstream(url or peer.url, UpstreamTimeouts(**limits), asyncio.get_running_loop())
        made.append(upstream)
        return upstream

    yield make
    for upstream in made:
        upstream.close()


async def exchange(peer: Peer, upstream: Upstream, answer: bytes, *, is_head: bool = False):
    """Send one request that gets `answer`; the response and the peer's end."""
    sending = asyncio.ensure_future(upstream.send(REQUEST, is_head=is_head))
    reader, writer = await peer.next()
    await reader.readuntil(b"\r\n\r\n")
    writer.write(answer)
    async with asyncio.timeout(5):
        return await sending, reader, writer


async def test_sends_what_it_is_given(peer, make_upstream):
    """Head and body go out as they are, joined or not."""
    upstream = make_upstream()
    for body in (b"small", b"x" * 300_000):
        sending = asyncio.ensure_future(upstream.send(REQUEST, body, fresh=True))
        reader, writer = await peer.next()
        assert await reader.readexactly(len(REQUEST) + len(body)) == REQUEST + body
        writer.write(OK)
        response = await sending
        assert await response.read_all(100) == b"ok"


async def test_reads_in_pieces_and_knows_the_end(peer, make_upstream):
    """`read` gives what has arrived, then more, then nothing."""
    response, _, writer = await exchange(
        peer, make_upstream(), b"HTTP/1.1 206 Partial\r\nX-A: 1\r\ncontent-length: 6\r\n\r\nabc"
    )
    assert (response.status, response.header(b"x-a"), response.header(b"x-b")) == (206, b"1", None)
    assert await response.read() == b"abc"
    assert not response.is_complete
    writer.write(b"def")
    assert await response.read() == b"def"
    assert await response.read() == b""
    assert response.is_complete


async def test_peek_leaves_everything_to_be_read(peer, make_upstream):
    """What was looked at is read again, whole and in order, also beyond what was looked at."""
    body = bytes(range(256)) * 400
    response, _, _ = await exchange(
        peer, make_upstream(), b"HTTP/1.1 503 No\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    )
    seen = await response.peek(1000)
    assert body.startswith(seen)
    assert len(seen) >= 1000
    assert await response.read_all(len(body)) == body


async def test_read_all_is_bounded(peer, make_upstream):
    """A longer body than allowed is an error, and the connection is closed."""
    response, reader, writer = await exchange(
        peer, make_upstream(), b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n" + b"x" * 2000
    )
    with pytest.raises(UpstreamProtocolError, match="longer than 1000"):
        await response.read_all(1000)
    assert await reader.read() == b""
    writer.close()


async def test_abort_closes_the_connection(peer, make_upstream):
    """Aborting an unfinished answer closes its connection; aborting a finished one does not."""
    upstream = make_upstream()
    response, reader, _ = await exchange(peer, upstream, b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nabc")
    response.abort()
    assert await reader.read() == b""
    assert upstream.num_busy == 0
    response, reader, writer = await exchange(peer, upstream, OK)
    assert await response.read() == b"ok"
    response.abort()
    sending = asyncio.ensure_future(upstream.send(REQUEST))
    await reader.readuntil(b"\r\n\r\n")  # on the same connection
    writer.write(OK)
    await sending


async def test_cancelling_a_send_closes_the_connection(peer, make_upstream):
    """Whoever stops waiting for the head leaves no connection behind."""
    upstream = make_upstream()
    sending = asyncio.ensure_future(upstream.send(REQUEST))
    reader, _ = await peer.next()
    await reader.readuntil(b"\r\n\r\n")
    sending.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await sending
    assert await reader.read() == b""
    assert upstream.num_busy == 0


async def test_refused_connection(make_upstream):
    """Nothing was sent: the error says so."""
    upstream = make_upstream("http://127.0.0.1:1")
    with pytest.raises(UpstreamConnectError) as refused:
        await upstream.send(REQUEST)
    assert not refused.value.sent


async def test_unknown_host(make_upstream):
    """A name that does not resolve is a failure to connect."""
    with pytest.raises(UpstreamConnectError):
        await make_upstream("http://no-such-host.invalid:80").send(REQUEST)


async def test_no_tls_at_the_other_end(peer, make_upstream):
    """A plain port behind an https URL is a failure to connect, too."""
    upstream = make_upstream(peer.url.replace("http://", "https://"), connect_s=2.0)
    sending = asyncio.ensure_future(upstream.send(REQUEST))
    _, writer = await peer.next()
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()
    with pytest.raises(UpstreamConnectError):
        await sending


@pytest.mark.parametrize(
    ("limits", "answer", "phase"),
    [
        ({"first_byte_s": 0.03}, b"", "answer"),
        ({"first_byte_s": 0.03}, b"HTTP/1.1 200", "answer"),
        ({"idle_s": 0.03}, b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", "continue"),
    ],
)
async def test_time_limits_by_phase(peer, make_upstream, limits, answer, phase):
    """No head in time, a head that never ends, a body that stops: each ends in a time-out that names the phase."""
    upstream = make_upstream(**limits)
    sending = asyncio.ensure_future(upstream.send(REQUEST))
    reader, writer = await peer.next()
    await reader.readuntil(b"\r\n\r\n")
    writer.write(answer)
    with pytest.raises(UpstreamTimeoutError, match=phase):  # noqa: PT012  either may be the one
        response = await sending
        await response.read()
    assert await reader.read() == b""
    assert upstream.num_busy == 0


async def test_an_exchange_is_over_within_its_time_whatever_progress_it_makes(peer, make_upstream):
    """An answer that trickles on is cut off; the next exchange has all its time again."""
    upstream = make_upstream()
    sending = asyncio.ensure_future(upstream.send(REQUEST, within_s=0.1))
    reader, writer = await peer.next()
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n")

    async def trickle() -> None:
        while True:
            writer.write(b".")
            await asyncio.sleep(0.01)

    trickling = asyncio.create_task(trickle())
    with pytest.raises(UpstreamTimeoutError, match="did not end its answer"):
        await (await sending).read_all(10**6)
    trickling.cancel()
    assert await reader.read() == b""
    response, *_ = await exchange(peer, upstream, OK)
    await asyncio.sleep(0.15)
    assert await response.read() == b"ok"


async def test_closed_before_an_answer_is_stale_only_on_a_used_connection(peer, make_upstream):
    """On a fresh connection work may have begun; on a reused one the server had closed it before our request."""
    upstream = make_upstream()
    sending = asyncio.ensure_future(upstream.send(REQUEST))
    reader, writer = await peer.next()
    await reader.readuntil(b"\r\n\r\n")
    writer.close()
    with pytest.raises(UpstreamError) as fresh:
        await sending
    assert not isinstance(fresh.value, UpstreamStaleError)
    response, reader, writer = await exchange(peer, upstream, OK)
    await response.read()
    sending = asyncio.ensure_future(upstream.send(REQUEST))
    await reader.readuntil(b"\r\n\r\n")
    writer.close()
    with pytest.raises(UpstreamStaleError):
        await sending


async def test_partial_answer_on_a_reused_connection_is_not_stale(peer, make_upstream):
    """One byte of an answer means that the server was at work."""
    upstream = make_upstream()
    response, reader, writer = await exchange(peer, upstream, OK)
    await response.read()
    sending = asyncio.ensure_future(upstream.send(REQUEST))
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 2")
    await writer.drain()
    writer.close()
    with pytest.raises(UpstreamError) as broken:
        await sending
    assert not isinstance(broken.value, UpstreamStaleError)


async def test_idle_connection_is_closed_before_the_engine_does(peer, make_upstream):
    """After `keepalive_s` an idle connection is closed by us and the next request opens another."""
    upstream = make_upstream(keepalive_s=0.03)
    response, reader, _ = await exchange(peer, upstream, OK)
    await response.read()
    assert await reader.read() == b""
    response, _, _ = await exchange(peer, upstream, OK)
    assert await response.read() == b"ok"


async def test_words_nobody_asked_for_close_the_connection(peer, make_upstream):
    """What arrives on an idle connection must not become the next answer."""
    upstream = make_upstream()
    response, reader, writer = await exchange(peer, upstream, OK)
    await response.read()
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
    assert await reader.read() == b""
    response, _, _ = await exchange(peer, upstream, OK)
    assert await response.read() == b"ok"


async def test_head_answer_has_no_body(peer, make_upstream):
    """The length of a HEAD's answer is about a body that does not come."""
    response, _, _ = await exchange(
        peer, make_upstream(), b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n", is_head=True
    )
    assert await response.read() == b""
    assert response.is_complete


async def test_reading_pauses_when_nobody_reads(peer, make_upstream):
    """Pending bytes are bounded; reading goes on when they were taken."""
    response, _, writer = await exchange(peer, make_upstream(), b"HTTP/1.1 200 OK\r\ncontent-length: 20000000\r\n\r\n")
    connection = response._connection

    async def pour() -> None:
        for _ in range(200):
            writer.write(b"x" * 100_000)
            await writer.drain()

    pouring = asyncio.ensure_future(pour())
    async with asyncio.timeout(5):
        while not connection._paused:  # noqa: ASYNC110  nobody announces it
            await asyncio.sleep(0.001)
    assert response.num_pending < 2**20
    size = 0
    while piece := await response.read():
        size += len(piece)
    await pouring
    assert size == 20_000_000


async def test_close_ends_what_is_under_way(peer, make_upstream):
    """Closing the client fails the reader at once and cancels its sweep."""
    upstream = make_upstream()
    response, reader, _ = await exchange(peer, upstream, b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n")
    upstream.close()
    with pytest.raises(UpstreamError, match="by the proxy"):
        await response.read()
    assert await reader.read() == b""
    assert upstream.num_busy == 0


async def test_url_parts():
    """Authority, base path and default ports come from the URL; credentials never go into `host`."""
    loop = asyncio.get_running_loop()
    upstream = Upstream("http://user:pw@engine.local/base/", UpstreamTimeouts(), loop)
    assert upstream.authority == b"engine.local"
    assert upstream.base_path == b"/base"
    assert upstream._port == 80
    assert Upstream("https://engine.local", UpstreamTimeouts(), loop)._port == 443
    assert Upstream("http://[::1]:8000", UpstreamTimeouts(), loop)._host == "::1"
