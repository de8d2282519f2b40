"""Time limits per phase: 504 before the answer, an error event in it, and none of them touches a long generation."""

from __future__ import annotations

import asyncio
import json

import pytest
from scripted import chat, eventually, soon

PATH = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def _sweep_often(monkeypatch):
    """Limits are checked by a sweep a few times a second; the tests are in more of a hurry."""
    monkeypatch.setattr("prelude_proxy.upstream._SWEEP_S", 0.02)


async def test_connect_timeout_is_a_504_or_held(make_proxy, backend):
    """A backend whose network drops packets is a connect failure: tried again, not waited for."""
    proxy = await make_proxy(backend, timeouts={"connect_s": 0.05}, classes={"standard": {"queue_timeout_s": 0.3}})
    proxy.app.engines[backend.name].upstream._host = "192.0.2.1"
    answer = await soon(proxy.post(chat()), 3)
    assert answer.status in {429, 502, 503, 504}
    await proxy.idle()
    assert (await proxy.finished())[0]["attempts"] >= 2


async def test_no_first_byte_is_a_504(make_proxy, backend):
    """A backend that stopped (SIGSTOP) before it answered: 504 in the dialect, its connection closed, no retry."""
    proxy = await make_proxy(backend, timeouts={"first_byte_s": 0.1})
    client = await proxy.client()
    await client.request("POST", "/generate", {"inputs": "x"})
    exchange = await backend.next()
    answer = await client.answer()
    assert answer.status == 504
    assert answer.json()["error_type"] == "timeout"
    await exchange.aborted()
    await proxy.idle()
    assert (await proxy.finished())[0]["outcome"] == "upstream_timeout"
    assert len(backend.requests) == 1


async def test_silence_in_a_stream_is_an_error_event(make_proxy, backend):
    """A backend that stops in the middle of a stream ends it with an error event."""
    proxy = await make_proxy(backend, timeouts={"idle_s": 0.1})
    client = await proxy.client()
    await client.request("POST", PATH, chat(stream=True))
    exchange = await backend.next()
    await exchange.start()
    await exchange.token()
    events = (await client.answer()).body.decode().split("\n\n")
    assert json.loads(events[-3].removeprefix("data: "))["error"]["code"] == 504
    assert events[-2] == "data: [DONE]"
    await exchange.aborted()
    await proxy.idle()


async def test_a_stream_that_goes_on_is_never_cut(make_proxy, backend):
    """No total limits a generation: it lasts several times every limit and ends well."""
    proxy = await make_proxy(
        backend, timeouts={"idle_s": 0.5, "first_byte_s": 0.5}, classes={"standard": {"queue_timeout_s": 0.1}}
    )
    client = await proxy.client()
    await client.request("POST", PATH, chat(stream=True), [("x-prelude-deadline-ms", "50")])
    exchange = await backend.next()
    await exchange.start()
    for _ in range(40):
        await exchange.token()
        await asyncio.sleep(0.05)
    await exchange.end()
    assert (await client.answer()).body.endswith(b"data: [DONE]\n\n")
    assert (await proxy.finished())[0]["outcome"] == "ok"


async def test_queue_deadline_never_kills_dispatched_work(make_proxy, backend):
    """A deadline is about being held; a request that was dispatched in time may take as long as it needs."""
    proxy = await make_proxy(backend, window=1)
    client = await proxy.client()
    await client.request("POST", PATH, chat(), [("x-prelude-deadline-ms", "30")])
    exchange = await backend.next()
    waiting = await proxy.client()
    await waiting.request("POST", PATH, chat(), [("x-prelude-deadline-ms", "60")])
    answer = await waiting.answer()  # the deadline of both is over by now
    assert answer.status == 429
    assert answer.header("x-prelude-dropped-reason") == "rejected-ttl-expired"
    assert int(answer.header("retry-after")) >= 1
    await exchange.reply()
    assert (await client.answer()).status == 200


async def test_slow_client_is_not_the_backends_silence(make_proxy, backend):
    """While the client does not read, the backend is not timed: it is we who are not reading."""
    proxy = await make_proxy(backend, timeouts={"idle_s": 0.1})
    client = await proxy.client()
    await client.request("POST", PATH, chat(stream=True))
    exchange = await backend.next()
    await exchange.start()
    piece = b"data: " + b"x" * 65536 + b"\n\n"
    written = asyncio.ensure_future(_write_many(exchange, piece, 200))
    connection = next(iter(proxy.app.engines[backend.name].upstream._busy))
    await eventually(lambda: connection._paused)
    await asyncio.sleep(0.4)
    assert connection.exchange is not None
    body = (await client.answer()).body
    await written
    assert body.endswith(b"data: [DONE]\n\n")
    assert len(body) == 200 * len(piece) + len(b"data: [DONE]\n\n")


async def _write_many(exchange, piece: bytes, count: int) -> None:
    for _ in range(count):
        await exchange.chunk(piece)
    await exchange.end()


async def test_hung_backend_is_taken_out_and_comes_back(make_proxy, backend):
    """A backend whose /health hangs is down after a few probes; when it answers again it is up."""
    proxy = await make_proxy(backend, telemetry={"health_timeout_s": 0.03})
    slots = proxy.app.engines[backend.name].slots
    backend.hangs = {b"/health"}
    await eventually(lambda: not slots.available)
    client = await proxy.client()
    await client.request("POST", PATH, chat())
    await proxy.held(1)
    backend.hangs = set()
    await (await backend.next()).reply()
    assert (await client.answer()).status == 200
