"""The only outbound data-path client: HTTP/1.1 over pooled connections, bytes in and out untouched.

Lean on purpose: one `asyncio.Protocol` a connection around llhttp (httptools), no redirects, cookies, decompression or
per-chunk timers. Time limits are checked by one sweep for all connections. A connection goes back to the pool only
after a complete, keep-alive answer; in every other case it is closed, which is how an engine learns to abort the work.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

from prelude_proxy.errors import (
    UpstreamConnectError,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamStaleError,
    UpstreamTimeoutError,
)

_SWEEP_S = 0.25
_SLOW_SWEEP_S = 1.0
"""Often enough where all limits are seconds: hundreds of backends each have a timer."""
_PAUSE_BYTES = 256 * 1024
_MAX_HEAD_BYTES = 256 * 1024
_JOIN_BYTES = 64 * 1024

RawHeaders = list[tuple[bytes, bytes]]

Sink = Callable[[bytes, bool], bool]
"""Takes the next piece of a body and whether it is the last; returns whether it wants more now."""


@dataclass(frozen=True, slots=True)
class UpstreamTimeouts:
    """Seconds allowed per phase."""

    connect_s: float = 5.0
    first_byte_s: float = 600.0
    idle_s: float = 120.0
    keepalive_s: float = 4.0


class Response:
    """One exchange: the answer to one request, filled by its connection, read by the journey.

    Read it to the end or `abort` it; nothing else frees the connection.
    """

    __slots__ = (
        "_connection",
        "_error",
        "_failure",
        "_loop",
        "_pending",
        "_sink",
        "_waiter",
        "headers",
        "is_complete",
        "num_pending",
        "status",
    )

    def __init__(self, connection: _Connection, loop: asyncio.AbstractEventLoop) -> None:
        self._connection: _Connection | None = connection
        self._loop = loop
        self._pending: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._error: UpstreamError | None = None
        self._failure: Exception | None = None
        self._sink: Sink | None = None
        self.status = 0
        """0 until the head has arrived."""
        self.headers: RawHeaders = []
        self.num_pending = 0
        """Bytes arrived and not read yet."""
        self.is_complete = False
        """The whole body has arrived (not: has been read)."""

    def header(self, name: bytes) -> bytes | None:
        """First value of a header; `name` in lower case."""
        for key, value in self.headers:
            if key.lower() == name:
                return value
        return None

    async def read(self) -> bytes:
        """The next bytes of the body, as much as has arrived; empty at its end.

        Raises:
            UpstreamError: the backend broke off, sent garbage, or was silent for too long.
        """
        while not self._pending:
            if self._error is not None:
                raise self._error
            if self.is_complete:
                return b""
            await self._wait()
        pending = self._pending
        self._pending = []
        self.num_pending = 0
        if self._connection is not None:
            self._connection.resume()
        return pending[0] if len(pending) == 1 else b"".join(pending)

    async def read_all(self, limit_bytes: int) -> bytes:
        """The rest of the body, as a whole.

        Raises:
            UpstreamError: as `read`, or it is longer than `limit_bytes`.
        """
        pieces: list[bytes] = []
        size = 0

        def take(piece: bytes, _is_last: bool) -> bool:
            nonlocal size
            pieces.append(piece)
            size += len(piece)
            if size > limit_bytes:
                raise UpstreamProtocolError(f"the answer is longer than {limit_bytes} bytes", sent=True)
            return True

        await self.relay(take)
        return b"".join(pieces)

    async def relay(self, sink: Sink) -> None:
        """Hand the rest of the body to `sink(piece, is_last)` as it arrives, with no task switch a piece.

        A sink that returns False wants no more for now; `resume` says that it does again.

        Raises:
            UpstreamError: as `read`; what `sink` raises.
        """
        self._sink = sink
        try:
            if self._pending or self.is_complete:
                self._deliver()
            while not self.is_complete and self._error is None:
                await self._wait()
        finally:
            self._sink = None  # it may hold us: what ends is freed at once, not by the collector
        if self._failure is not None:
            raise self._failure
        if self._error is not None:
            raise self._error

    def resume(self) -> None:
        """The sink takes more again."""
        if self._connection is not None:
            self._connection.resume()

    async def peek(self, limit_bytes: int) -> bytes:
        """The body as far as about `limit_bytes`; `read` returns it again.

        Raises:
            UpstreamError: as `read`.
        """
        pieces: list[bytes] = []
        size = 0
        while size < limit_bytes and (piece := await self.read()):
            pieces.append(piece)
            size += len(piece)
        self._pending[:0] = pieces
        self.num_pending += size
        return b"".join(pieces)

    def abort(self) -> None:
        """Close the connection unless the answer is complete: the engine stops working on it."""
        if self._connection is not None:
            self._connection.close()

    async def wait_head(self) -> None:
        """Return when status and headers are known.

        Raises:
            UpstreamError: they will not come.
        """
        try:
            while not self.status:
                if self._error is not None:
                    raise self._error
                await self._wait()
        except BaseException:
            self.abort()
            raise

    # --- filled by the connection -------------------------------------------------------------------------------------

    def add(self, body: bytes) -> None:
        """Bytes of the body arrived."""
        self._pending.append(body)
        self.num_pending += len(body)

    def end(self, error: UpstreamError | None) -> None:
        """No more will come; the connection is not ours any longer."""
        self._error = error
        self.is_complete = error is None
        self._connection = None
        if self._sink is not None and (self._pending or self.is_complete):
            self._deliver()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def wake(self) -> None:
        """Something arrived: hand it on, or let the reader look again."""
        if self._sink is not None:
            self._deliver()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _deliver(self) -> None:
        pending = self._pending
        if not (pending or self.is_complete) or self._failure is not None:
            return
        self._pending = []
        self.num_pending = 0
        assert self._sink is not None
        piece = pending[0] if len(pending) == 1 else b"".join(pending)
        try:
            wants_more = self._sink(piece, self.is_complete)
        except Exception as error:  # noqa: BLE001  whatever it is, it is the relaying task's to handle, not the loop's
            self._failure = error
            self.abort()
        else:
            if not wants_more and self._connection is not None:
                self._connection.pause()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


class _Connection:
    """One connection; at most one exchange on it at a time. A protocol without the base class, as in `downstream`."""

    __slots__ = (
        "_body_until_close",
        "_complete",
        "_has_surplus",
        "_is_head",
        "_keep_alive",
        "_loop",
        "_on_free",
        "_parser",
        "_paused",
        "_reused",
        "_seen_bytes",
        "_transport",
        "closed",
        "deadline",
        "exchange",
        "limit_s",
        "since",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, on_free: Callable[[_Connection], None]) -> None:
        self._loop = loop
        self._on_free = on_free
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._paused = False
        self._body_until_close = False
        self._complete = False
        self._has_surplus = False
        self._is_head = False
        self._keep_alive = False
        self._reused = False
        self._seen_bytes = 0
        self.exchange: Response | None = None
        self.closed = False
        self.since = loop.time()
        """When it last made progress."""
        self.limit_s = 0.0
        """How long it may make none."""
        self.deadline = math.inf
        """When the exchange must be over whatever progress it makes."""

    def begin(self, head: bytes, body: bytes, *, is_head: bool, limit_s: float, within_s: float) -> Response:
        """Write a request; the answer fills the returned exchange."""
        self._reused = self._seen_bytes > 0
        self._seen_bytes = 0
        self._body_until_close = False
        self._complete = False
        self._is_head = is_head
        self.since = self._loop.time()
        self.limit_s = limit_s
        self.deadline = self.since + within_s
        self.exchange = exchange = Response(self, self._loop)
        assert self._transport is not None
        if len(body) <= _JOIN_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        return exchange

    def pause(self) -> None:
        """The reader wants no more for now: let the backend wait too."""
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """The reader has taken what was there."""
        self.since = self._loop.time()
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def close(self, error: UpstreamError | None = None) -> None:
        """Close at once; an exchange under way ends with `error`."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()
        self._leave(error or UpstreamError("the connection was closed by the proxy", sent=True))

    def check_time(self, now: float) -> None:
        """Close if the phase under way has taken too long. Waiting for a slow client to read is not the backend's."""
        exchange = self.exchange
        if exchange is None:
            return
        if now > self.deadline:
            self.close(UpstreamTimeoutError("the backend did not end its answer in time", sent=True))
            return
        if now - self.since <= self.limit_s or exchange.num_pending or self._paused:
            return
        phase = "continue" if exchange.status else "answer"
        self.close(UpstreamTimeoutError(f"the backend did not {phase} within {self.limit_s:g} s", sent=True))

    def _leave(self, error: UpstreamError | None) -> None:
        """End the exchange, if any, and tell the pool."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.end(error)
            self._on_free(self)

    # --- the transport's side -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports are no subclass

    def data_received(self, data: bytes) -> None:
        self._seen_bytes += len(data)
        self.since = self._loop.time()
        exchange = self.exchange
        if exchange is None:
            self.close()  # nobody asked: whatever this is, it must not become the next request's answer
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.close(UpstreamProtocolError("the backend switched protocols", sent=True))
            return
        except httptools.HttpParserError as error:
            if self._complete:  # the answer is whole, what follows it is not ours
                self._has_surplus = True
                self._finish()
                return
            self.close(UpstreamProtocolError(f"the backend's answer is not HTTP/1.1: {error}", sent=True))
            return
        if self._complete:
            self._finish()
        elif exchange.status == 0 and self._seen_bytes > _MAX_HEAD_BYTES:
            self.close(UpstreamProtocolError("the head of the backend's answer is too long", sent=True))
        else:
            exchange.wake()
            if exchange.num_pending > _PAUSE_BYTES:
                self.pause()

    def eof_received(self) -> bool:
        return False  # the transport closes

    def pause_writing(self) -> None:
        """A request is written whole: nothing more is to come that could wait."""

    def resume_writing(self) -> None:
        """As `pause_writing`."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        exchange = self.exchange
        if exchange is None:
            return
        if exchange.status and self._body_until_close and exc is None:
            self._leave(None)
        elif exchange.status == 0 and self._seen_bytes == 0:
            kind = UpstreamStaleError if self._reused else UpstreamError
            self._leave(kind("the backend closed the connection without an answer", sent=True))
        else:
            self._leave(UpstreamError("the backend closed the connection within its answer", sent=True))

    def _finish(self) -> None:
        if self._is_head or self._has_surplus or not self._keep_alive:
            self.closed = True
            if self._transport is not None:
                self._transport.close()
        self._leave(None)

    # --- the parser's side --------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._has_surplus = self._complete  # bytes behind the answer: they must not become part of it, or of the next

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self.exchange is not None
        if not self.exchange.status:  # else it is a trailer
            self.exchange.headers.append((name, value))

    def on_headers_complete(self) -> None:
        exchange = self.exchange
        assert exchange is not None
        if self._has_surplus:
            return
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue, 103 Early Hints: the answer proper follows
            exchange.headers = []
            return
        exchange.status = status
        self._complete = self._is_head
        if not self._is_head and status not in {204, 304}:
            names = {name.lower() for name, _ in exchange.headers}
            self._body_until_close = not names & {b"content-length", b"transfer-encoding"}

    def on_body(self, body: bytes) -> None:
        assert self.exchange is not None
        if not self._has_surplus:
            self.exchange.add(body)

    def on_message_complete(self) -> None:
        if self.exchange is not None and self.exchange.status:
            self._complete = True
            self._keep_alive = self._parser.should_keep_alive()  # says so only here: the parser starts anew after this


class Upstream:
    """Connections to one backend."""

    def __init__(self, url: str, timeouts: UpstreamTimeouts, loop: asyncio.AbstractEventLoop) -> None:
        parts = urlsplit(url)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._tls else 80)
        self.authority = parts.netloc.rpartition("@")[2].encode()
        """Value of the `host` header."""
        self.base_path = parts.path.rstrip("/").encode()
        """What stands before every path."""
        self._timeouts = timeouts
        self._loop = loop
        self._idle: list[_Connection] = []
        self._busy: dict[_Connection, None] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        shortest_s = min(timeouts.first_byte_s, timeouts.idle_s, timeouts.keepalive_s)
        self._sweep_s = max(_SWEEP_S, min(_SLOW_SWEEP_S, shortest_s / 4))

    @property
    def num_busy(self) -> int:
        """Connections with a request on them."""
        return len(self._busy)

    async def send(
        self,
        head: bytes,
        body: bytes = b"",
        *,
        is_head: bool = False,
        fresh: bool = False,
        within_s: float = math.inf,
    ) -> Response:
        """Send one request; returns when the head of its answer is there.

        Args:
            head: request line and headers with the final empty line.
            body: sent as it is.
            is_head: the method is HEAD: no body follows whatever the headers say.
            fresh: do not reuse a connection (after a stale one).
            within_s: the whole exchange on its connection may take no longer (to the next sweep).

        Raises:
            UpstreamConnectError: no connection: nothing was sent.
            UpstreamStaleError: a reused connection was closed before a byte of the answer.
            UpstreamTimeoutError: the time of a phase is over.
            UpstreamError: anything else the backend did.
        """
        connection = None if fresh else self._take_idle()
        if connection is None:
            connection = await self._connect()
        self._busy[connection] = None
        self._arm()
        limit_s = self._timeouts.first_byte_s
        response = connection.begin(head, body, is_head=is_head, limit_s=limit_s, within_s=within_s)
        await response.wait_head()
        connection.limit_s = self._timeouts.idle_s
        return response

    def close(self) -> None:
        """Close everything, idle and busy."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in [*self._idle, *self._busy]:
            connection.close()
        self._idle.clear()

    async def _connect(self) -> _Connection:
        try:
            async with asyncio.timeout(self._timeouts.connect_s):
                connection: _Connection
                _, connection = await self._loop.create_connection(self._open, self._host, self._port, ssl=self._tls)
        except TimeoutError:
            raise UpstreamConnectError(f"no connection within {self._timeouts.connect_s:g} s") from None
        except OSError as error:
            raise UpstreamConnectError(f"cannot connect: {error.strerror or error}") from None
        if connection.closed:
            raise UpstreamConnectError("the connection was closed as soon as it was made")
        return connection

    def _open(self) -> Any:
        return _Connection(self._loop, self._on_free)

    def _take_idle(self) -> _Connection | None:
        now = self._loop.time()
        while self._idle:
            connection = self._idle.pop()  # the one used last: the others may grow old and go
            if not connection.closed and now - connection.since < self._timeouts.keepalive_s:
                return connection
            connection.close()
        return None

    def _on_free(self, connection: _Connection) -> None:
        self._busy.pop(connection, None)
        if not connection.closed:
            self._idle.append(connection)

    def _arm(self) -> None:
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self._sweep_s, self._sweep)

    def _sweep(self) -> None:
        """Time limits of busy connections, age of idle ones; runs only while there are any."""
        self._sweeper = None
        now = self._loop.time()
        for connection in list(self._busy):
            connection.check_time(now)
        idle, self._idle = self._idle, []
        for connection in idle:
            if not connection.closed and now - connection.since < self._timeouts.keepalive_s:
                self._idle.append(connection)
            else:
                connection.close()
        if self._busy or self._idle:
            self._arm()
