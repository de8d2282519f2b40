"""Sends a plan to a target on time and records what each client would have seen.

Open loop: a request goes out when it is due, whatever the earlier ones do, and its latencies count from the moment it
was due (no coordinated omission). The client is a bare `asyncio.Protocol` over llhttp, because it runs on the very
cores of what it measures: a streamed token costs it a few microseconds. Not known here: when a token left the engine;
several that arrive in one read count as one gap.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import httptools

from prelude_proxy.bench.records import GapHistogram, RequestRecord, RunResult
from prelude_proxy.bench.wire import Target, encode
from prelude_proxy.bench.workload import WorkItem

_IDLE_REUSE_S = 2.0  # engines close an idle connection after 5 s: never race with that
_LEAD_IN_S = 0.05  # from now to the first arrival, so that it is not late
_TAIL_BYTES = 640  # enough for the last token, usage and terminator
_EVENT = b"\ndata:"
_USAGE = re.compile(rb'"(?:completion_tokens|generated_tokens|output_tokens)"\s*:\s*(\d+)')
_TERMINATORS = (b"data: [DONE]", b"data:[DONE]", b'"generated_text":"', b"message_stop", b"response.completed")
_IN_STREAM_ERROR = re.compile(rb'data: ?\{"error"')


@dataclass(slots=True)
class DriverOptions:
    """Bounds of a run."""

    timeout_s: float = 900.0
    """For one whole request."""
    max_in_flight: int = 10_000
    """Above it requests wait in the client; that wait is in their figures, as they count from when they were due."""


class Exchange(asyncio.Protocol):
    """One connection; at most one request at a time on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self.alive = False
        self.idle_since = 0.0
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.first_s = self.last_s = self._now = 0.0
        self.events = 0
        self.gaps_s: list[float] = []
        self.tail = b"\n"
        self.streamed = False
        self.received = False

    def send(self, request: bytes) -> asyncio.Future[None]:
        """Writes a request; the future ends with its response, or with the error that cut it."""
        if self._transport is None:
            raise ConnectionError("not connected")
        self._reset()
        self._waiter = self._loop.create_future()
        self._transport.write(request)
        return self._waiter

    def close(self) -> None:
        """Drops the connection; an engine aborts the request that was on it."""
        self.alive = False
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = transport  # type: ignore[assignment]  # a stream transport, as create_connection promises
        self.alive = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop: what is under way ends here, well only if the body was to end with the connection."""
        self.alive = False
        until_close = self.status and not ({b"content-length", b"transfer-encoding"} & self.headers.keys())
        self._finish(None if until_close else exc or ConnectionResetError("closed in the middle of an answer"))

    def data_received(self, data: bytes) -> None:
        """Called by the loop for every read."""
        self._now = self._loop.time()
        self.received = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._finish(error)
            self.close()

    def _finish(self, error: Exception | None) -> None:
        if self._waiter is None or self._waiter.done():
            return
        if error is None:
            self._waiter.set_result(None)
        else:
            self._waiter.set_exception(error)

    # --- llhttp

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self.status = self._parser.get_status_code()
        self.streamed = b"event-stream" in self.headers.get(b"content-type", b"")

    def on_body(self, body: bytes) -> None:
        """Called by the parser for each piece of the body; counts events, however they were cut."""
        seen = len(self.tail)
        joined = self.tail + body
        self.tail = joined[-_TAIL_BYTES:]
        events = joined.count(_EVENT, max(0, seen - len(_EVENT) + 1)) if self.streamed else 1
        if not events:
            return
        now = self._now
        if not self.events:
            self.first_s = now
        elif self.streamed and now > self.last_s:
            self.gaps_s.append(now - self.last_s)
        self.last_s = now
        self.events += events

    def on_message_complete(self) -> None:
        """Called by the parser at the end of the body."""
        self.idle_since = self._now
        if not self._parser.should_keep_alive():
            self.alive = False
        self._finish(None)


class Client:
    """Connections to one target, reused while fresh."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._loop = asyncio.get_running_loop()
        self._idle: list[Exchange] = []

    async def exchange(self, request: bytes, timeout_s: float) -> Exchange:
        """Sends `request` and waits for the whole answer.

        Raises:
            OSError, TimeoutError, httptools.HttpParserError: it did not come.
        """
        async with asyncio.timeout(timeout_s):
            fresh = False
            while True:
                connection = None if fresh else self._take_idle()
                fresh = connection is None
                connection = connection or await self._connect()
                try:
                    await connection.send(request)
                except ConnectionError:
                    if fresh or connection.received:
                        raise
                    fresh = True  # the server had closed it while idle: once more on a new one
                    continue
                except BaseException:
                    connection.close()
                    raise
                return connection

    def give_back(self, connection: Exchange) -> None:
        """Keeps a connection for the next request, if it can be used again."""
        if connection.alive:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Closes all idle connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _take_idle(self) -> Exchange | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.alive and self._loop.time() - connection.idle_since < _IDLE_REUSE_S:
                return connection
            connection.close()
        return None

    async def _connect(self) -> Exchange:
        host, port, secure = self._target.address
        _, connection = await self._loop.create_connection(
            partial(Exchange, self._loop), host, port, ssl=True if secure else None
        )
        return connection


async def drive(
    target: Target,
    plan: Sequence[WorkItem],
    options: DriverOptions | None = None,
    on_done: Callable[[RequestRecord], None] | None = None,
) -> RunResult:
    """Sends the whole plan and waits for the last answer. Failures are records, never exceptions."""
    options = options or DriverOptions()
    loop = asyncio.get_running_loop()
    client = Client(target)
    result = RunResult(target.name, [], {}, 0.0, plan[-1].at_s if plan else 0.0)
    room = asyncio.Semaphore(options.max_in_flight)
    start = loop.time() + _LEAD_IN_S

    async def one(item: WorkItem, request: bytes) -> None:
        result.max_late_s = max(result.max_late_s, loop.time() - start - item.at_s)
        try:
            record, gaps_s = await _one(client, item, request, start + item.at_s, options.timeout_s)
        finally:
            room.release()
        result.records.append(record)
        result.gaps.setdefault(item.klass, GapHistogram()).add(gaps_s)
        if on_done is not None:
            on_done(record)

    try:
        async with asyncio.TaskGroup() as tasks:
            for item in plan:
                request = encode(item, target)  # before it is due: making a long prompt must not make it late
                await room.acquire()
                await asyncio.sleep(start + item.at_s - loop.time())
                tasks.create_task(one(item, request))
    finally:
        client.close()
    result.makespan_s = loop.time() - start
    return result


async def _one(
    client: Client, item: WorkItem, request: bytes, due: float, timeout_s: float
) -> tuple[RequestRecord, list[float]]:
    loop = asyncio.get_running_loop()
    gaps_s: list[float] = []
    due = min(due, loop.time())  # the loop's timers are whole milliseconds and may be early
    record = RequestRecord(item.klass, item.at_s, item.prompt_tokens, item.output_tokens, item.tenant)
    try:
        exchange = await client.exchange(request, timeout_s)
    except TimeoutError:
        record.error = "timeout"
    except (OSError, httptools.HttpParserError) as error:
        record.error = type(error).__name__
    else:
        _read(exchange, record, due)
        gaps_s = exchange.gaps_s
        client.give_back(exchange)
    record.e2e_s = loop.time() - due
    return record, gaps_s


def _read(exchange: Exchange, record: RequestRecord, due: float) -> None:
    record.status = exchange.status
    tail = exchange.tail
    if exchange.status != 200:
        record.error = f"{exchange.status} {tail.strip()[-200:].decode('utf-8', 'replace')}"
        return
    if exchange.streamed and (_IN_STREAM_ERROR.search(tail) or not any(end in tail for end in _TERMINATORS)):
        record.error = "stream ended without its terminator"
        return
    record.ok = True
    if exchange.events:
        record.ttft_s = exchange.first_s - due
    usage = _USAGE.findall(tail)
    record.tokens = int(usage[-1]) if usage else max(0, exchange.events - 1) if exchange.streamed else 0
    if exchange.gaps_s:
        record.gap_mean_s = sum(exchange.gaps_s) / len(exchange.gaps_s)
        record.gap_max_s = max(exchange.gaps_s)
    record.served_as = exchange.headers.get(b"x-prelude-class", b"").decode() or None
    record.queue_s = float(exchange.headers.get(b"x-prelude-queue-ms", b"0")) / 1e3
