from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from prelude_proxy.bench.driver import DriverOptions, Exchange, drive
from prelude_proxy.bench.fleet import free_ports
from prelude_proxy.bench.records import RequestRecord
from prelude_proxy.bench.wire import Target, Wire
from prelude_proxy.bench.workload import WorkItem, mix_plan

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Start = Callable[[Handler], Awaitable[Target]]

PLAN = mix_plan({"fast": 1.0}, 100, 0.3, 1)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


async def test_a_plan_is_sent_and_measured(engine_url: str) -> None:
    """Every request comes back whole, with its tokens counted and first token before the end."""
    seen: list[RequestRecord] = []
    result = await drive(Target("a", engine_url, Wire("demo")), PLAN, on_done=seen.append)
    assert len(result.records) == len(seen) == len(PLAN)
    for record in result.records:
        assert record.ok, record.error
        assert record.tokens == record.wanted_tokens
        assert record.ttft_s is not None
        assert 0 < record.ttft_s <= record.e2e_s
    assert result.makespan_s >= PLAN[-1].at_s
    assert result.gaps["fast"].counts.sum() > 0


async def test_a_rejection_is_a_record(engine_url: str) -> None:
    """A 503 is kept with its status and message, and stops nothing."""
    result = await drive(Target("a", engine_url, Wire("full")), PLAN[:3])
    assert [record.status for record in result.records] == [503] * 3
    assert "queue is full" in result.records[0].error


async def test_a_stream_without_terminator_is_not_ok(engine_url: str) -> None:
    """A clean end of file is no proof that the answer was whole."""
    result = await drive(Target("a", engine_url, Wire("cut")), PLAN[:1])
    assert not result.records[0].ok
    assert result.records[0].error == "stream ended without its terminator"


async def test_nobody_there() -> None:
    """A refused connection is a failed record, not an exception."""
    result = await drive(Target("a", f"http://127.0.0.1:{free_ports(1)[0]}"), PLAN[:2])
    assert [record.error for record in result.records] == ["ConnectionRefusedError"] * 2


@pytest.fixture
async def raw_server() -> AsyncIterator[Start]:
    """Starts a server that answers with whatever bytes a test wants."""
    servers: list[asyncio.Server] = []

    async def start(handler: Handler) -> Target:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        servers.append(server)
        return Target("raw", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")

    yield start
    for server in servers:
        server.close()
        await server.wait_closed()


async def read_request(reader: asyncio.StreamReader) -> None:
    """Reads one request to its end."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    await reader.readexactly(int(length.split(b":")[1]))


async def test_a_server_that_hangs_up_after_a_request_gets_a_new_connection(raw_server: Start) -> None:
    """A kept connection the server had closed is replaced, and no request is lost."""
    connections = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await read_request(reader)
        writer.write(HEAD + b"content-length: 28\r\n\r\ndata: {}\n\ndata: [DONE]\n\n    ")
        if connections == 1:  # dies on the second request, without a byte
            await read_request(reader)
            writer.transport.abort()
        else:
            await writer.drain()
            writer.close()

    plan = [WorkItem(0.0, "fast", 1, 1), WorkItem(0.1, "fast", 1, 1)]
    result = await drive(await raw_server(handler), plan)
    assert [record.ok for record in result.records] == [True, True]
    assert connections == 2


async def test_death_in_the_middle_is_not_retried(raw_server: Start) -> None:
    """Once bytes of an answer came, the request failed."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\ndata:\r\n")
        await writer.drain()
        writer.transport.abort()

    result = await drive(await raw_server(handler), PLAN[:1])
    assert result.records[0].error in {"ConnectionResetError", "ConnectionError"}


async def test_garbage_is_a_failed_record(raw_server: Start) -> None:
    """What is not HTTP ends the request, not the run."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"ICY 200 OK\r\n\r\n")
        writer.close()

    result = await drive(await raw_server(handler), PLAN[:1])
    assert "Http" in result.records[0].error


async def test_silence_times_out(raw_server: Start) -> None:
    """A request is given up after its time."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    result = await drive(await raw_server(handler), PLAN[:1], DriverOptions(timeout_s=0.05))
    assert result.records[0].error == "timeout"


async def test_requests_in_flight_are_bounded(raw_server: Start) -> None:
    """Above the bound requests wait in the client, and their wait counts."""
    open_now = most = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now, most
        await read_request(reader)
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0)
        open_now -= 1
        writer.write(HEAD + b"connection: close\r\n\r\ndata: [DONE]\n\n")
        writer.close()

    plan = [WorkItem(0.0, "fast", 1, 1) for _ in range(20)]
    result = await drive(await raw_server(handler), plan, DriverOptions(max_in_flight=2))
    assert all(record.ok for record in result.records)
    assert most <= 2


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 1000])
async def test_events_are_counted_however_the_stream_is_cut(size: int) -> None:
    """Any split of the bytes gives the same number of events and the same end."""
    loop = asyncio.get_running_loop()
    exchange = Exchange(loop)
    waiter = exchange._waiter = loop.create_future()
    body = b"".join(b'data: {"text":"data: \\n"}\n\n' for _ in range(20)) + b": keep-alive\n\ndata: [DONE]\n\n"
    stream = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    for start in range(0, len(stream), size):
        exchange.data_received(stream[start : start + size])
    assert waiter.done()
    assert exchange.events == 21
    assert exchange.tail.endswith(b"[DONE]\n\n")
