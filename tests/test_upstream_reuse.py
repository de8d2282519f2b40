"""Connections to an engine are reused as long as both sides want it."""

from __future__ import annotations

import asyncio

import pytest

from prelude_proxy.upstream import Upstream, UpstreamTimeouts

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 1),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 1),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", 3),
    ],
    ids=["length", "chunked", "close"],
)
async def test_one_connection_serves_requests_in_turn(answer, expected):
    """Three requests one after the other: one connection, unless the engine closes it."""
    serving: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        while await reader.read(1000):
            writer.write(answer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    upstream = Upstream(f"http://127.0.0.1:{port}", UpstreamTimeouts(), asyncio.get_running_loop())
    for _ in range(3):
        response = await upstream.send(REQUEST)
        assert await response.read_all(100) == b"ok"
    assert len(serving) == expected
    assert upstream.num_busy == 0
    upstream.close()
    server.close()
    await asyncio.gather(*serving)
