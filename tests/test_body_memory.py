"""What a large body takes while it is read: its pieces as they came, and the one copy that joins them."""

from __future__ import annotations

import asyncio
import socket
import tracemalloc

from prelude_proxy.downstream import DownstreamLimits, Request, Server

BODY_BYTES = 4 * 2**20


async def test_a_large_body_is_copied_once():
    """Pieces and whole side by side for a moment, no third copy; the handler finds the whole and nothing else."""
    seen: list[tuple[int, int]] = []

    async def handler(request: Request) -> None:
        seen.append(tracemalloc.get_traced_memory())
        assert len(request.body()) == BODY_BYTES
        request.respond(200, (), b"")

    server = Server(handler, DownstreamLimits())
    port = await server.start("127.0.0.1", 0, 10)
    sent = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % BODY_BYTES + b"x" * BODY_BYTES
    with socket.create_connection(("127.0.0.1", port)) as client:
        tracemalloc.start()
        try:
            await asyncio.to_thread(client.sendall, sent)
            await asyncio.to_thread(client.recv, 1)
        finally:
            tracemalloc.stop()
    await server.close()
    ((now, peak),) = seen
    assert BODY_BYTES <= now < 1.25 * BODY_BYTES
    assert peak < 2.5 * BODY_BYTES
