"""A small stand-in for this program's `engine` and `serve`, for tests of what drives them over real sockets.

standin.py engine --port N [--max-num-seqs N] …     an OpenAI-shaped server that serves N requests at a time
standin.py serve --port N --admin-port N --backend URL …     relays bytes to the first backend
standin.py die     writes a line and ends with 3
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web


def engine_app(max_num_seqs: int = 8, token_s: float = 0.001) -> web.Application:
    """Streams `target_len` tokens a request, first come first served, with usage and terminator."""
    slots = asyncio.Semaphore(max_num_seqs)

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body["model"] == "full":
            return web.json_response({"error": {"message": "queue is full"}}, status=503)
        tokens = body["vllm_xargs"]["target_len"]
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        async with slots:
            await response.prepare(request)
            for _ in range(tokens):
                await response.write(event({"choices": [{"delta": {"content": " a"}}]}))
                await asyncio.sleep(token_s)
            if body["model"] != "cut":
                await response.write(event({"choices": [], "usage": {"completion_tokens": tokens}}))
                await response.write(b"data: [DONE]\n\n")
        return response

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "demo"}]})

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text='vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_waiting 1.0\n')

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/health", health)
    app.router.add_get("/metrics", metrics)
    return app


def event(payload: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(payload)}\n\n".encode()


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copies bytes until the end."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def serve(options: argparse.Namespace) -> None:
    """A TCP relay to the first backend, and an admin port."""
    backend = urlsplit(options.backend[0])

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(backend.hostname, backend.port)
        await asyncio.gather(relay(reader, up_writer), relay(up_reader, writer))

    async def status(_: web.Request) -> web.Response:
        return web.json_response({"classes": [{"name": "fast", "queued": 1}]})

    admin = web.Application()
    admin.router.add_get("/readyz", status)
    admin.router.add_get("/status", status)
    await asyncio.start_server(connected, "127.0.0.1", options.port)
    await listen(admin, options.admin_port)


async def listen(app: web.Application, port: int) -> None:
    """Serves until it is stopped."""
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


async def main() -> None:
    """Reads the flags this program's real commands take."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("--port", type=int)
    parser.add_argument("--admin-port", type=int)
    parser.add_argument("--backend", action="append")
    parser.add_argument("--max-num-seqs", type=int, default=8)
    options, _ = parser.parse_known_args()
    if options.command == "die":
        sys.exit("no such model: 'x'")
    await (serve(options) if options.command == "serve" else listen(engine_app(options.max_num_seqs), options.port))


if __name__ == "__main__":
    asyncio.run(main())
