#!/usr/bin/env python3
"""An OpenAI-shaped backend at close to no cost, so that what is measured in front of it is the proxy.

  bench/stub_backend.py PORT [TOKENS [GAP_MS]]

Not a model of an engine: it answers at once, or sends TOKENS server-sent events GAP_MS apart. Its metrics are vLLM's by
name and always zero.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys

import uvloop

MODEL = "stub"
_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)
_STREAM = re.compile(rb'"stream":\s*true')
_DONE = b"data: [DONE]\n\n"
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


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
_METRICS = _plain(
    b"".join(
        b'# TYPE %s gauge\n%s{engine="0",model_name="stub"} 0.0\n' % (name, name)
        for name in (b"vllm:num_requests_running", b"vllm:num_requests_waiting", b"vllm:kv_cache_usage_perc")
    ),
    b"text/plain",
)


class Stub(asyncio.Protocol):
    """One connection; requests one after the other, as keep-alive clients send them."""

    def __init__(self, tokens: int, gap_s: float) -> None:
        self._chunks = [_chunk(f" tok{index}") for index in range(tokens)]
        self._gap_s = gap_s
        self._buffer = b""
        self._stream: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def connection_lost(self, _: Exception | None) -> None:
        if self._stream is not None:
            self._stream.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (request := self._next_request()) is not None:
            self._answer(*request)

    def _next_request(self) -> tuple[bytes, bytes] | None:
        """Head and body of the next whole request."""
        split = self._buffer.find(b"\r\n\r\n")
        if split < 0:
            return None
        head, start = self._buffer[:split], split + 4
        length = _LENGTH.search(head)
        if length is None and b"chunked" in head.lower():
            end = self._buffer.find(b"0\r\n\r\n", start) + 5
            if end < 5:
                return None
        else:
            end = start + (int(length[1]) if length else 0)
        if len(self._buffer) < end:
            return None
        body, self._buffer = self._buffer[start:end], self._buffer[end:]
        return head, body

    def _answer(self, head: bytes, body: bytes) -> None:
        path = head.split(b" ", 2)[1]
        if path.startswith(b"/v1/models"):
            self._transport.write(_MODELS)
        elif path == b"/metrics":
            self._transport.write(_METRICS)
        elif not path.startswith(b"/v1/"):
            self._transport.write(_plain(b"{}"))
        elif _STREAM.search(body):
            self._stream = asyncio.ensure_future(self._send_stream())
        else:
            self._transport.write(_ANSWER)

    async def _send_stream(self) -> None:
        self._transport.write(_STREAM_HEAD)
        for chunk in self._chunks:
            self._transport.write(chunk)
            await asyncio.sleep(self._gap_s)
        self._transport.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(_DONE), _DONE))


async def main(port: int, tokens: int = 64, gap_ms: float = 5.0) -> None:
    """Serves until it is killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Stub(tokens, gap_ms / 1e3), "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), *(int(text) for text in sys.argv[2:3]), *(float(text) for text in sys.argv[3:4])))
