"""The data port: HTTP/1.1 from clients, whole requests in, answers out as they come.

As lean as `upstream.py` and built on the same parser (llhttp through httptools, strict mode): one `asyncio.Protocol` a
connection, one task a request, one sweep for all time limits, no per-chunk task switches. The handler is called with a
complete request, since nothing can be decided before the body is there; the bound on its size is enforced while it
arrives. A client that closes its connection cancels the task: that is how its work upstream ends.

HTTP as understood here: keep-alive and pipelining (answered in turn), `Expect: 100-continue`, chunked bodies, HTTP/1.0.
`Upgrade` is never accepted: such a request is served as if it had not asked (RFC 9110 §7.8 allows that).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

import httptools

from prelude_proxy.core.dialects import error_body
from prelude_proxy.core.domain import Dialect
from prelude_proxy.errors import ClientError

log = logging.getLogger("prelude_proxy.downstream")

_SWEEP_S = 1.0
_WRITE_HIGH_BYTES = 256 * 1024
_JOIN_BYTES = 64 * 1024
_MAX_QUEUED = 8
_MAX_QUEUED_BYTES = 256 * 1024
_LINGER_S = 2.0
_SETTLE_S = 0.05
"""Between the end of listening and the closing of idle connections: requests on their way are read first."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS_LINES = {status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus}
_BODILESS = frozenset({204, 304})

RawHeaders = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class DownstreamLimits:
    """Bounds on what a client may send, and for how long it may be silent."""

    max_body_bytes: int = 8 * 2**20
    max_head_bytes: int = 64 * 1024
    max_connections: int = 65536
    header_s: float = 30.0
    """For the head of a request, from its first byte or the connection's start."""
    body_s: float = 60.0
    keepalive_s: float = 75.0
    """Between two requests."""
    stalled_s: float = 120.0
    """For a client to take what is written to it."""


class Request:
    """One whole request, and the way to answer it."""

    __slots__ = (
        "_body",
        "_connection",
        "error",
        "headers",
        "keep_alive",
        "method",
        "path",
        "raw_headers",
        "target",
        "version",
    )

    def __init__(
        self, connection: _Connection, method: str, target: bytes, raw_headers: list[tuple[bytes, bytes]], version: str
    ) -> None:
        if target[:1] != b"/" and b"://" in target:  # a client that takes us for a forward proxy names the whole URL
            target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
        self._connection = connection
        self._body = b""
        self.method = method
        self.target = target
        """Path and query, as they came."""
        self.path = target.partition(b"?")[0].decode("latin-1")
        self.raw_headers = raw_headers
        self.version = version
        self.keep_alive = True
        self.error: ClientError | ConnectionError | None = None
        headers: dict[str, str] = {}
        for name, value in raw_headers:
            headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
        self.headers = headers
        """First value of each, names in lower case."""

    @property
    def peer(self) -> str | None:
        """Address of the client."""
        return self._connection.peer

    def body(self) -> bytes:
        """The whole body.

        Raises:
            ClientError: it was too long, came too slowly, or is in a coding that is not understood.
            ConnectionError: the client left before it was complete.
        """
        if self.error is not None:
            raise self.error
        return self._body

    @property
    def num_bytes(self) -> int:
        """Length of the body."""
        return len(self._body)

    def set_body(self, body: bytes) -> None:
        """Called once by the connection when the body is complete."""
        self._body = body

    def respond(self, status: int, headers: RawHeaders, body: bytes) -> None:
        """A whole answer at once."""
        self.begin(status, headers, length=len(body))
        self._connection.write_body(b"" if self.method == "HEAD" else body, is_last=True)

    def begin(self, status: int, headers: RawHeaders, *, length: int | None) -> None:
        """Status and headers; they leave with the first bytes of the body, or with `flush_head`.

        `length` is that of the body; None if it is not known: then it is chunked, or ends with the connection for
        HTTP/1.0.
        """
        self._connection.write_head(self, status, headers, length)

    def write(self, chunk: bytes, *, is_last: bool = False) -> bool:
        """The next piece of the body; returns whether more may be written now (see `wait_writable`)."""
        return self._connection.write_body(chunk, is_last=is_last)

    async def wait_writable(self) -> None:
        """Wait until a slow client has taken enough of what was written."""
        await self._connection.wait_writable()

    @property
    def is_writable(self) -> bool:
        """Whether the client has taken enough of what was written for more to be."""
        return self._connection.is_writable

    def on_writable(self, call: Callable[[], None] | None) -> None:
        """Call this when a slow client has caught up."""
        self._connection.writable_callback = call

    def end(self) -> None:
        """The body is complete."""
        self._connection.write_body(b"", is_last=True)

    def abort(self) -> None:
        """Cut the connection, so that what was sent cannot pass for a whole answer."""
        self._connection.abort()


class _Connection:
    """One client connection: an `asyncio.Protocol`, but for the base class, which a compiled class cannot have."""

    __slots__ = (
        "_body_bytes",
        "_chunked_out",
        "_descriptor",
        "_head_bytes",
        "_header_list",
        "_limits",
        "_lingering",
        "_loop",
        "_parser",
        "_pending_head",
        "_pieces",
        "_queue",
        "_reading",
        "_request",
        "_serving",
        "_url",
        "_writer_waiter",
        "closing",
        "is_writable",
        "num_requests",
        "peer",
        "server",
        "since",
        "task",
        "transport",
        "writable_callback",
    )

    def __init__(self, server: Server) -> None:
        self.server = server
        self._loop = server.loop
        self._limits = server.limits
        self._parser = httptools.HttpRequestParser(self)
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._url = b""
        self._header_list: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._request: Request | None = None
        """The one whose body is arriving."""
        self._pieces: list[bytes] = []
        self._body_bytes = 0
        self._queue: deque[Request] = deque()
        self._serving: Request | None = None
        self.task: asyncio.Task[None] | None = None
        self._pending_head: bytes | None = None
        self._chunked_out = False
        self._descriptor = -1
        self._reading = True
        self.is_writable = True
        self._writer_waiter: asyncio.Future[None] | None = None
        self.writable_callback: Callable[[], None] | None = None
        self.closing = False
        self._lingering = False
        self.num_requests = 0
        self.peer: str | None = None
        self.since = server.loop.time()
        """When the phase it is in began."""

    # --- the transport's side -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's transports are no subclass
        self.transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else None
        self._descriptor = transport.get_extra_info("socket").fileno()
        self.server.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closing = True
        self.server.closed(self)
        self._queue.clear()
        request, self._request = self._request, None
        if self.task is not None:
            self.task.cancel()
        elif request is not None:
            request.error = ConnectionResetError("the client left before its body was complete")
            self._serve(request)  # so that it is on record
        if self._writer_waiter is not None and not self._writer_waiter.done():
            self._writer_waiter.set_exception(ConnectionResetError("the client has gone"))

    def data_received(self, data: bytes) -> None:
        if self.closing or self._lingering:
            return
        if self._request is None:
            if self._head_bytes == 0 and self._serving is None:
                self.since = self._loop.time()
            self._head_bytes += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            self._refuse(400, f"This is not HTTP/1.1: {error}")
        else:
            if self._request is None and self._head_bytes > self._limits.max_head_bytes:
                self._refuse(431, f"The head of the request is longer than {self._limits.max_head_bytes} bytes.")

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._parser.get_method() == b"CONNECT":
                self._refuse(405, "This is no tunnel.")
                return
            # the parser takes what follows, a body too, for another protocol: read the request anew as one that
            # does not ask
            head = b"".join(
                b"%b: %b\r\n" % (name, _without_upgrade(value) if name.lower() == b"connection" else value)
                for name, value in self._header_list
                if name.lower() not in {b"upgrade", b"http2-settings"}
            )
            line = b"%b %b HTTP/1.1\r\n" % (self._parser.get_method(), self._url)
            self._parser = httptools.HttpRequestParser(self)
            self._parse(b"%b%b\r\n%b" % (line, head, data[upgrade.args[0] :]))

    def eof_received(self) -> bool:
        return False  # a client that closes its side has gone: so do all real ones, and work for nobody costs most

    def pause_writing(self) -> None:
        self.is_writable = False
        self.since = self._loop.time()

    def resume_writing(self) -> None:
        self.is_writable = True
        if self._writer_waiter is not None and not self._writer_waiter.done():
            self._writer_waiter.set_result(None)
        if self.writable_callback is not None:
            self.writable_callback()

    # --- the parser's side --------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._url = b""
        self._header_list = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._request is None:  # else it is a trailer: those do not travel
            self._header_list.append((name, value))

    def on_headers_complete(self) -> None:
        if self._parser.should_upgrade():
            return
        is_long = self._head_bytes > self._limits.max_head_bytes
        self._head_bytes = 0
        self._body_bytes = 0
        self._pieces = []
        self.since = self._loop.time()
        request = Request(
            self,
            self._parser.get_method().decode("ascii"),
            self._url,
            self._header_list,
            self._parser.get_http_version(),
        )
        request.keep_alive = self._parser.should_keep_alive() and request.version == "1.1"
        self._request = request
        headers = request.headers
        if is_long and sum(len(name) + len(value) for name, value in self._header_list) > self._limits.max_head_bytes:
            self._reject_body(ClientError("the head of the request is too long", status=431))
        elif headers.get("content-encoding", "identity") != "identity":
            self._reject_body(ClientError("compressed request bodies are not supported", status=415))
        elif int(headers.get("content-length") or 0) > self._limits.max_body_bytes:
            self._reject_body(self._too_large())
        elif headers.get("expect", "").lower() == "100-continue" and self._serving is None:
            self.transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        if self._request is None or self._request.error is not None:
            return
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.max_body_bytes:
            self._reject_body(self._too_large())
        else:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        request, self._request = self._request, None
        if request is None:
            return
        if request.error is None:
            pieces = self._pieces
            request.set_body(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            self._pieces = []
            self._enqueue(request)

    # --- requests in turn ---------------------------------------------------------------------------------------------

    def _reject_body(self, error: ClientError) -> None:
        """Serve the error now, read no further: the rest of the body is not worth waiting for."""
        request = self._request
        assert request is not None
        request.error = error
        request.keep_alive = False
        self._pieces = []
        self._enqueue(request)

    def _too_large(self) -> ClientError:
        limit = self._limits.max_body_bytes
        return ClientError(f"the body is longer than {limit} bytes", status=413, kind="request_too_large")

    def _enqueue(self, request: Request) -> None:
        self.num_requests += 1
        if self._serving is None:
            self._serve(request)
        else:
            self._queue.append(request)
            if len(self._queue) >= _MAX_QUEUED or sum(r.num_bytes for r in self._queue) > _MAX_QUEUED_BYTES:
                self._pause_reading()

    def _serve(self, request: Request) -> None:
        self._serving = request
        self.task = task = self._loop.create_task(self.server.handler(request))
        task.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[None]) -> None:
        request, self._serving, self.task = self._serving, None, None
        self.writable_callback = None
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ConnectionError):
            log.error("serving a request failed", exc_info=error)
        if error is not None or task.cancelled() or self.closing:
            self.abort()
            return
        assert request is not None
        if self._pending_head is not None:
            self._flush_head()
        if self._request is request or self._lingering:
            self._linger()
        elif not request.keep_alive or self.server.is_closing:
            self.close()
        elif self._queue:
            self._serve(self._queue.popleft())
            self._resume_reading()
        else:
            self.since = self._loop.time()
            self._resume_reading()

    # --- answers ------------------------------------------------------------------------------------------------------

    def write_head(self, request: Request, status: int, headers: RawHeaders, length: int | None) -> None:
        line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status
        parts = [line]
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
        self._chunked_out = False
        if length is not None:
            parts.append(b"content-length: %d\r\n" % length)
        elif request.method != "HEAD" and status not in _BODILESS:
            if request.version == "1.1":
                self._chunked_out = True
                parts.append(b"transfer-encoding: chunked\r\n")
            else:
                request.keep_alive = False
        if not request.keep_alive or self.server.is_closing:
            request.keep_alive = False
            parts.append(b"connection: close\r\n")
        parts.append(b"\r\n")
        self._pending_head = b"".join(parts)

    def write_body(self, chunk: bytes, *, is_last: bool) -> bool:
        if self.closing:
            raise ConnectionResetError("the client has gone")
        head, self._pending_head = self._pending_head or b"", None
        pieces: tuple[bytes, ...]
        if not self._chunked_out:
            pieces = (head, chunk)
        elif not chunk:
            pieces = (head, b"0\r\n\r\n" if is_last else b"")
        else:
            pieces = (b"%b%x\r\n" % (head, len(chunk)), chunk, b"\r\n0\r\n\r\n" if is_last else b"\r\n")
        if len(chunk) > _JOIN_BYTES:
            self.transport.writelines(pieces)
        else:
            self._write(b"".join(pieces))
        return self.is_writable

    def _write(self, data: bytes) -> None:
        """At once if nothing waits to be written before it: a transport keeps it until the next turn of the loop.

        That is one poll less for each piece of a stream. The descriptor is used only as long as the transport owns it.
        """
        transport = self.transport
        if data and not (transport.is_closing() or transport.get_write_buffer_size()):
            try:
                num_written = os.write(self._descriptor, data)
            except OSError:  # full or broken: the transport waits for it, or finds out in its own way
                num_written = 0
            data = data[num_written:]
        if data:
            transport.write(data)

    async def wait_writable(self) -> None:
        if self.is_writable or self.closing:
            return
        self._writer_waiter = self._loop.create_future()
        try:
            await self._writer_waiter
        finally:
            self._writer_waiter = None

    def abort(self) -> None:
        self.closing = True
        self.transport.abort()

    def close(self) -> None:
        """Close after what was written has left."""
        self.closing = True
        self.transport.close()

    def _linger(self) -> None:
        """Close, but let the client finish sending: closing on unread bytes resets the connection under our answer."""
        self._lingering = True
        self.since = self._loop.time()
        self.transport.write_eof()

    def check_time(self, now: float) -> None:
        """Close when the phase under way has lasted too long."""
        waited = now - self.since
        limits = self._limits
        if self._lingering and self._serving is None:
            if waited > _LINGER_S:
                self.abort()
        elif not self.is_writable:
            if waited > limits.stalled_s:
                self.abort()
        elif self._serving is not None:
            return  # how long an answer takes is for the journey to bound
        elif self._request is not None:
            if waited > limits.body_s:
                self._reject_body(ClientError(f"the body did not arrive within {limits.body_s:g} s", status=408))
        elif self._head_bytes or not self.num_requests:
            if waited > limits.header_s:
                self.close()
        elif waited > limits.keepalive_s:
            self.close()

    @property
    def is_serving(self) -> bool:
        """Whether a request is being handled."""
        return self._serving is not None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being answered and nothing of a request has arrived."""
        return not (self._serving or self._request or self._head_bytes)

    def _flush_head(self) -> None:
        head, self._pending_head = self._pending_head or b"", None
        self.transport.write(head)

    def _refuse(self, status: int, message: str) -> None:
        """Answer what cannot be parsed, unless an answer is under way, and close."""
        if self._serving is None and not self._queue:
            body = error_body(Dialect.OPENAI, status, message)
            line = _STATUS_LINES[status]
            self.transport.write(
                b"%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
                % (line, len(body), body)
            )
            self._linger()
        elif self._serving is not None:
            self._serving.keep_alive = False
            self._queue.clear()
            self._lingering = True  # what follows is not looked at, but it is still noticed when the client leaves

    def _pause_reading(self) -> None:
        if self._reading and not self.closing:
            self._reading = False
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self._reading and not self.closing:
            self._reading = True
            self.transport.resume_reading()


class Server:
    """Accepts clients and calls `handler` with each request; what it raises (but for cancellation) cuts the client."""

    def __init__(self, handler: Callable[[Request], Any], limits: DownstreamLimits) -> None:
        self.handler = handler
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.is_closing = False
        self._connections: set[_Connection] = set()
        self._server: Any = None  # uvloop's is no `asyncio.Server`
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self, host: str, port: int, backlog: int) -> int:
        """Listen; returns the port.

        Raises:
            OSError: the address cannot be used.
        """
        self._server = await self.loop.create_server(self._accept, host, port, backlog=backlog)
        self._sweeper = self.loop.call_later(_SWEEP_S, self._sweep)
        number: int = self._server.sockets[0].getsockname()[1]
        return number

    def _accept(self) -> Any:
        return _Connection(self)

    @property
    def connections(self) -> list[_Connection]:
        """Clients connected now."""
        return list(self._connections)

    def num_serving(self) -> int:
        """Requests being handled."""
        return sum(connection.is_serving for connection in self._connections)

    def stop_listening(self) -> None:
        """Accept nothing new; idle connections close, the others after their answer."""
        self.is_closing = True
        if self._server is not None:
            self._server.close()
        self.loop.call_later(_SETTLE_S, self._close_idle)

    def _close_idle(self) -> None:
        for connection in list(self._connections):
            if connection.is_idle:
                connection.close()

    async def close(self) -> None:
        """Cut what is left and wait until its tasks have ended."""
        self.stop_listening()
        if self._sweeper is not None:
            self._sweeper.cancel()
        tasks = [connection.task for connection in self._connections if connection.task is not None]
        for connection in list(self._connections):
            connection.abort()
        await asyncio.gather(*tasks, return_exceptions=True)

    def opened(self, connection: _Connection) -> None:
        """A client connected."""
        if len(self._connections) >= self.limits.max_connections or self.is_closing:
            connection.abort()
        self._connections.add(connection)

    def closed(self, connection: _Connection) -> None:
        """A client is gone."""
        self._connections.discard(connection)

    def _sweep(self) -> None:
        now = self.loop.time()
        for connection in list(self._connections):
            connection.check_time(now)
        self._sweeper = self.loop.call_later(_SWEEP_S, self._sweep)


def _without_upgrade(connection: bytes) -> bytes:
    """The value of a `connection` header that does not ask for an upgrade."""
    return b",".join(token for token in connection.split(b",") if token.strip().lower() != b"upgrade")
