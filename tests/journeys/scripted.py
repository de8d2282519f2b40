"""Both ends of the proxy over raw TCP: a backend that a test plays byte by byte, and a client that sees every byte."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Headers = list[tuple[bytes, bytes]]

LIMIT_S = 10.0
"""Nothing in these tests takes this long; it turns a hang into a failure."""


async def soon(awaitable: Awaitable, limit_s: float = LIMIT_S):
    """The result of `awaitable`, or a failure instead of a hang."""
    async with asyncio.timeout(limit_s):
        return await awaitable


async def eventually(condition: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Return when `condition()` holds; for states that nobody announces."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110  nobody sets an event
            await asyncio.sleep(0.002)


def value_of(headers: Headers, name: bytes) -> bytes | None:
    return next((value for key, value in headers if key.lower() == name), None)


async def read_head(reader: asyncio.StreamReader) -> tuple[bytes, Headers]:
    """First line and headers of a message; `IncompleteReadError` at the end of the connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head[:-4].split(b"\r\n")
    pairs = (line.partition(b":") for line in lines)
    return first, [(name, value.strip()) for name, _, value in pairs]


async def read_chunk(reader: asyncio.StreamReader) -> bytes:
    """One chunk of a chunked body; empty: the last."""
    size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
    data = await reader.readexactly(size + 2)
    return data[:-2]


# --- the backend's side -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Request:
    """What arrived at a backend."""

    method: bytes
    target: bytes
    headers: Headers
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        return value_of(self.headers, name)


class Exchange:
    """One request at the backend and the means to answer it."""

    def __init__(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.request = request
        self.reader = reader
        self.writer = writer
        self.done = asyncio.get_running_loop().create_future()
        """True: the connection may be used again."""

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self, status: int = 200, body: bytes = b"{}", headers: Iterable[tuple[str, str]] = ()) -> None:
        """A whole answer with a length."""
        lines = [f"HTTP/1.1 {status} Whatever", f"content-length: {len(body)}"]
        names = {name.lower() for name, _ in headers}
        if "content-type" not in names:
            lines.append("content-type: application/json")
        lines += [f"{name}: {value}" for name, value in headers]
        await self.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.finish()

    async def start(self, *, content_type: str = "text/event-stream", status: int = 200) -> None:
        """Head of a chunked answer."""
        await self.write(
            f"HTTP/1.1 {status} OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
        )

    async def chunk(self, data: bytes) -> None:
        await self.write(b"%x\r\n%s\r\n" % (len(data), data))

    async def token(self, text: str = "a") -> None:
        """One chat event."""
        await self.chunk(b'data: {"choices":[{"delta":{"content":%s}}]}\n\n' % json.dumps(text).encode())

    async def end(self, *, terminator: bytes = b"data: [DONE]\n\n") -> None:
        """End of a chunked stream."""
        if terminator:
            await self.chunk(terminator)
        await self.write(b"0\r\n\r\n")
        self.finish()

    def finish(self) -> None:
        if not self.done.done():
            self.done.set_result(True)

    def close(self) -> None:
        """FIN."""
        self.writer.close()
        if not self.done.done():
            self.done.set_result(False)

    def reset(self) -> None:
        """RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        if not self.done.done():
            self.done.set_result(False)

    async def aborted(self, limit_s: float = 1.0) -> None:
        """Return when the proxy has closed this connection; an engine sees just that."""
        async with asyncio.timeout(limit_s):
            try:
                while await self.reader.read(65536):
                    pass
            except ConnectionError:
                pass
        if not self.done.done():
            self.done.set_result(False)


Script = Callable[[Exchange], Awaitable[None]]


@dataclass
class Backend:
    """A backend whose health, model list and metrics answer by themselves and whose data path a test plays.

    With a `script` it answers every request by it; else a test takes each from `next()`.
    """

    script: Script | None = None
    models: list[str] | None = field(default_factory=lambda: ["tiny"])
    health: int = 200
    metrics: bytes | None = None
    """Page of `/metrics`; None: 404."""
    hangs: set[bytes] = field(default_factory=set)
    """Control paths that never answer."""
    requests: list[Request] = field(default_factory=list)
    num_connections: int = 0
    num_scrapes: int = 0
    port: int = 0
    _queue: asyncio.Queue[Exchange] = field(default_factory=asyncio.Queue)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections and cut those there are."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def next(self, limit_s: float = LIMIT_S) -> Exchange:
        """The next request of the data path."""
        return await soon(self._queue.get(), limit_s)

    def num_unplayed(self) -> int:
        """Requests that arrived and that no test has taken."""
        return self._queue.qsize()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.num_connections += 1
        try:
            while await self._serve_one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        first, headers = await read_head(reader)
        method, target, _ = first.split(b" ")
        body = await reader.readexactly(int(value_of(headers, b"content-length") or 0))
        exchange = Exchange(Request(method, target, headers, body), reader, writer)
        if method == b"GET" and target in {b"/health", b"/metrics", b"/v1/models"}:
            await self._control(exchange)
        else:
            self.requests.append(exchange.request)
            if self.script is None:
                self._queue.put_nowait(exchange)
            else:
                await self.script(exchange)
        return await exchange.done

    async def _control(self, exchange: Exchange) -> None:
        target = exchange.request.target
        if target in self.hangs:
            await asyncio.Event().wait()
        if target == b"/health":
            await exchange.reply(self.health, b"")
        elif target == b"/metrics":
            self.num_scrapes += 1
            await exchange.reply(200 if self.metrics is not None else 404, self.metrics or b"")
        elif self.models is None:
            await exchange.reply(404, b'{"detail":"Not Found"}')
        else:
            listed = [{"id": name, "object": "model", "owned_by": "vllm"} for name in self.models]
            await exchange.reply(200, json.dumps({"object": "list", "data": listed}).encode())


def vllm_page(*, running: int, waiting: int, kv: float = 0.1) -> bytes:
    """The lines of vLLM's metrics that are read."""
    label = '{engine="0",model_name="tiny"}'
    return (
        f"vllm:num_requests_running{label} {running}.0\n"
        f"vllm:num_requests_waiting{label} {waiting}.0\n"
        f"vllm:kv_cache_usage_perc{label} {kv}\n"
        f"vllm:num_preemptions_total{label} 0.0\n"
    ).encode()


# --- the client's side ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Answer:
    """A whole response as a client got it."""

    status: int
    headers: Headers
    body: bytes
    version: bytes = b"HTTP/1.1"

    def header(self, name: str) -> str | None:
        value = value_of(self.headers, name.encode())
        return None if value is None else value.decode("latin-1")

    def json(self):
        return json.loads(self.body)


class Client:
    """One connection to the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | dict | None = None,
        headers: Iterable[tuple[str, str]] = (),
        version: str = "HTTP/1.1",
    ) -> None:
        """Send a request; the answer is read with `answer` or `head` and `chunk`."""
        body = json.dumps(body).encode() if isinstance(body, dict) else body
        lines = [f"{method} {path} {version}", "host: proxy", *(f"{name}: {value}" for name, value in headers)]
        if body is not None:
            lines += [f"content-length: {len(body)}", "content-type: application/json"]
        await self.send("\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + (body or b""))

    async def head(self) -> Answer:
        """Head of the next answer; its body stays to be read."""
        first, headers = await soon(read_head(self.reader))
        version, status, _ = first.split(b" ", 2)
        return Answer(int(status), headers, b"", version)

    async def chunk(self) -> bytes:
        """Next chunk of a chunked body; `IncompleteReadError` if it was cut."""
        return await soon(read_chunk(self.reader))

    async def answer(self, *, has_body: bool = True) -> Answer:
        """The next whole answer."""
        answer = await self.head()
        length = answer.header("content-length")
        if not has_body or answer.status in {204, 304}:
            return answer
        if length is not None:
            answer.body = await soon(self.reader.readexactly(int(length)))
        elif answer.header("transfer-encoding") == "chunked":
            answer.body = await self.rest()
        else:
            answer.body = await soon(self.reader.read())
        return answer

    async def rest(self) -> bytes:
        """All remaining chunks."""
        pieces = []
        while piece := await self.chunk():
            pieces.append(piece)
        return b"".join(pieces)

    async def ended(self) -> bytes:
        """What comes until the proxy closes the connection."""
        try:
            return await soon(self.reader.read())
        except ConnectionError:
            return b""

    def leave(self) -> None:
        """Go away without a word."""
        self.writer.transport.abort()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    """A client of `port`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


def chat(text: str = "hello", **more: object) -> dict:
    """Body of a chat request."""
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], **more}
