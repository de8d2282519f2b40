#!/usr/bin/env python3
"""An OpenAI-shaped backend at close to no cost, so that what is measured in front of it is the proxy.

  bench/stub_backend.py PORT [TOKENS [GAP_MS [ADDRESSES [METRICS_PAGE]]]]

Not a model of an engine: it answers at once, or sends TOKENS server-sent events GAP_MS apart. It listens on ADDRESSES
addresses of the loopback network, each of which may pass for a backend of its own (`address`). Its metrics are vLLM's
by name and always zero, or the given page as it is; `/scrapes` says how often they were asked for.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

import uvloop

MODEL = "stub"
_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)
_STREAM = re.compile(rb'"stream":\s*true')
_DONE = b"data: [DONE]\n\n"
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def address(number: int) -> str:
    """Address of backend `number`, from 0."""
    return f"127.0.{number // 250}.{number % 250 + 1}"


def _plain(body: bytes, kind: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%s" % (kind, len(body), body)


def _chunk(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    event = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice]}
    data = f"data: {json.dumps(event)}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


_USAGE = {"prompt_tokens": 12, "completion_tokens": 40, "total_tokens": 52}
_MESSAGE = {"index": 0, "message": {"role": "assistant", "content": "hello " * 40}, "finish_reason": "stop"}
_ANSWER = _plain(
    json.dumps(
        {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [_MESSAGE],
         "usage": _USAGE}
    ).encode()
)  # fmt: skip
_MODELS = _plain(
    json.dumps(
        {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "x", "root": MODEL,
                                     "max_model_len": 8192}]}
    ).encode()
)  # fmt: skip
_ZEROES = b"".join(
    b'# TYPE %s gauge\n%s{engine="0",model_name="stub"} 0.0\n' % (name, name)
    for name in (b"vllm:num_requests_running", b"vllm:num_requests_waiting", b"vllm:kv_cache_usage_perc")
)


class Settings:
    """What all connections share."""

    def __init__(self, tokens: int, gap_s: float, metrics: bytes) -> None:
        self.chunks = [_chunk(f" tok{index}") for index in range(tokens)]
        self.gap_s = gap_s
        self.metrics = _plain(metrics, b"text/plain")
        self.num_scrapes = 0


class Stub(asyncio.Protocol):
    """One connection; requests one after the other, as keep-alive clients send them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._buffer = bytearray()
        self._needed = 0
        self._stream: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def connection_lost(self, _: Exception | None) -> None:
        if self._stream is not None:
            self._stream.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= self._needed and (request := self._next_request()) is not None:
            self._answer(*request)

    def _next_request(self) -> tuple[bytes, bytes] | None:
        """Head and body of the next whole request."""
        split = self._buffer.find(b"\r\n\r\n")
        if split < 0:
            return None
        head, start = bytes(self._buffer[:split]), split + 4
        length = _LENGTH.search(head)
        if length is None and b"chunked" in head.lower():
            end = self._buffer.find(b"0\r\n\r\n", start) + 5
            if end < 5:
                return None
        else:
            end = start + (int(length[1]) if length else 0)
        self._needed = end
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[start:end])
        del self._buffer[:end]
        self._needed = 0
        return head, body

    def _answer(self, head: bytes, body: bytes) -> None:
        path = head.split(b" ", 2)[1]
        if path.startswith(b"/v1/models"):
            self._transport.write(_MODELS)
        elif path == b"/metrics":
            self._settings.num_scrapes += 1
            self._transport.write(self._settings.metrics)
        elif path == b"/scrapes":
            self._transport.write(_plain(b"%d" % self._settings.num_scrapes))
        elif not path.startswith(b"/v1/"):
            self._transport.write(_plain(b"{}"))
        elif _STREAM.search(body):
            self._stream = asyncio.ensure_future(self._send_stream())
        else:
            self._transport.write(_ANSWER)

    async def _send_stream(self) -> None:
        self._transport.write(_STREAM_HEAD)
        for chunk in self._settings.chunks:
            self._transport.write(chunk)
            await asyncio.sleep(self._settings.gap_s)
        self._transport.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(_DONE), _DONE))


async def main(port: int, tokens: int, gap_ms: float, addresses: int, metrics: bytes) -> None:
    """Serves until it is killed."""
    settings = Settings(tokens, gap_ms / 1e3, metrics)
    hosts = [address(number) for number in range(addresses)]
    server = await asyncio.get_running_loop().create_server(lambda: Stub(settings), hosts, port, backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    given = dict(enumerate(sys.argv[1:]))
    page = Path(given[4]).read_bytes() if 4 in given else _ZEROES
    uvloop.run(main(int(given[0]), int(given.get(1, 64)), float(given.get(2, 5.0)), int(given.get(3, 1)), page))
