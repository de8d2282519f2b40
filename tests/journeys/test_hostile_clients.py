"""Clients that flood, dawdle, smuggle or change their mind: bounded, in step, and without effect on others."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from scripted import chat, eventually, soon

PATH = "/v1/chat/completions"
BODY = b'{"model":"tiny","messages":[{"role":"user","content":"x"}]}'


async def test_request_trailers_are_not_forwarded(proxy, backend):
    """Trailer fields of a chunked request body do not become headers."""
    client = await proxy.client()
    await client.send(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        b"%x\r\n%s\r\n0\r\nx-late: 1\r\nauthorization: Bearer evil\r\n\r\n" % (len(BODY), BODY)
    )
    exchange = await backend.next()
    assert exchange.request.body == BODY
    assert exchange.request.header(b"x-late") is None
    assert exchange.request.header(b"authorization") is None
    await exchange.reply()
    assert (await client.answer()).status == 200


@pytest.mark.parametrize("cut", [0, 30, 120, None])
async def test_body_of_a_declined_upgrade_arrives(proxy, backend, cut):
    """A POST that offers h2c (curl --http2) is served whole, however its bytes are split, and the next one too."""
    client = await proxy.client()
    data = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: Upgrade, HTTP2-Settings, x-hop\r\n"
        b"upgrade: h2c\r\nhttp2-settings: AAMAAABk\r\nx-hop: 1\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)
    )
    head_size = len(data) - len(BODY)
    at = head_size if cut is None else cut
    for piece in (data[:at], data[at : head_size + 10], data[head_size + 10 :] if at <= head_size + 10 else b""):
        if piece:
            await client.send(piece)
            await asyncio.sleep(0.005)
    exchange = await backend.next()
    assert exchange.request.body == BODY
    assert not {name.lower() for name, _ in exchange.request.headers} & {b"upgrade", b"http2-settings", b"x-hop"}
    await exchange.reply()
    assert (await client.answer()).status == 200
    await client.request("POST", PATH, chat())
    await (await backend.next()).reply()
    assert (await client.answer()).status == 200


async def test_many_pipelined_requests_in_one_piece(proxy):
    """A hundred requests in one packet get a hundred answers in their order."""
    client = await proxy.client()
    await client.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n" * 50)
    for _ in range(50):
        assert (await client.answer()).body == b""
        assert b"tiny" in (await client.answer()).body


@pytest.mark.parametrize("flood", ["head", "body", "requests"])
async def test_flood_behind_a_held_request_is_bounded(make_proxy, backend, flood):
    """While a client's request is held, what it sends after it is not piled up without bound."""
    proxy = await make_proxy(backend, window=1, limits={"max_body_bytes": 2**20})
    running = await proxy.client()
    await running.request("POST", PATH, chat())
    exchange = await backend.next()
    client = await proxy.client()
    await client.request("POST", PATH, chat("held"))
    await proxy.held(1)
    pieces = {
        "head": [b"POST / HTTP/1.1\r\n", *[b"x-%d: " % i + b"a" * 8000 + b"\r\n" for i in range(4000)]],
        "body": [b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 900000\r\n\r\n" + b"x" * 900_000] * 40,
        "requests": [b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 1000] * 1000,
    }[flood]
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(0.3):
            for piece in pieces:
                await client.send(piece)
    kept = sum(
        sum(r.num_bytes for r in c._queue) + sum(map(len, c._pieces)) + sum(len(v) for _, v in c._header_list)
        for c in proxy.app._server.connections
    )
    assert kept < 2 * 2**20
    assert (await soon(proxy.ask("GET", "/health"), 1)).status == 200
    await exchange.reply()
    await (await backend.next()).reply(body=b"served")
    assert (await client.answer()).body == b"served"


async def test_client_that_never_reads_is_cut(make_proxy, backend, monkeypatch):
    """A client that takes nothing for too long loses its connection, and the engine's slot is free again."""
    proxy = await make_proxy(backend)
    proxy.app._server.limits = type(proxy.app._server.limits)(stalled_s=0.2)
    monkeypatch.setattr("prelude_proxy.downstream._SWEEP_S", 0.05)
    client = await proxy.client()
    await client.request("POST", PATH, chat(stream=True))
    exchange = await backend.next()
    await exchange.start()

    async def pour() -> None:
        while True:
            await exchange.chunk(b"data: " + b"x" * 65_000 + b"\n\n")

    pouring = asyncio.ensure_future(pour())
    await eventually(pouring.done)
    assert isinstance(pouring.exception(), ConnectionError)
    exchange.close()
    await proxy.idle()


async def test_answer_before_the_body_is_read(proxy, backend):
    """A backend that answers before it has taken the whole body gets its answer through."""
    backend.script = None
    client = await proxy.client()
    await client.request("POST", "/v1/other", b"x" * 300_000)
    exchange = await backend.next()
    await exchange.reply(413, b"too much for me", headers=[("connection", "close")])
    answer = await client.answer()
    assert (answer.status, answer.body) == (413, b"too much for me")


@pytest.mark.parametrize(
    "smuggle",
    [
        b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
        b"transfer-encoding: identity, chunked\r\ntransfer-encoding: x\r\n\r\n0\r\n\r\n",
        b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        b"content-length: +5\r\n\r\nhello",
        b"content-length: 5 5\r\n\r\nhello",
        b"content-length: 0x5\r\n\r\nhello",
    ],
)
async def test_ambiguous_framing_is_refused(proxy, backend, smuggle):
    """A request whose end two parsers could see differently is refused and its connection closed."""
    client = await proxy.client()
    await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + smuggle)
    assert (await client.answer()).status == 400
    await client.ended()
    assert not backend.requests


async def test_header_injection_through_our_own_headers_is_impossible(proxy, backend):
    """What a client puts into an id or a class never breaks out of its header."""
    client = await proxy.client()
    await client.request("POST", PATH, chat(), [("x-request-id", "a%0d%0ax-evil: 1"), ("x-prelude-class", "deep")])
    exchange = await backend.next()
    assert exchange.request.header(b"x-evil") is None
    await exchange.reply()
    answer = await client.answer()
    assert answer.header("x-evil") is None
    assert answer.status == 200


async def test_connection_churn_leaves_nothing(proxy, backend):
    """Hundreds of connections that come, ask half a question and go leave no connection and no task behind."""
    before = len(asyncio.all_tasks())
    for index in range(200):
        client = await proxy.client()
        if index % 3:
            await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"[:index])
        client.leave()
    await eventually(lambda: not proxy.app._server.connections)
    await proxy.idle()
    await eventually(lambda: len(asyncio.all_tasks()) <= before + 8)
    assert not backend.requests


async def test_keepalive_connection_serves_many(proxy, backend):
    """One connection, fifty requests of every kind in turn: each gets its own answer."""
    client = await proxy.client()
    for index in range(10):
        await client.request("POST", PATH, chat(f"{index}"))
        exchange = await backend.next()
        await exchange.reply(body=f"{index}".encode())
        assert (await client.answer()).body == f"{index}".encode()
        await client.request("POST", PATH, chat(stream=True))
        exchange = await backend.next()
        await exchange.start()
        await exchange.token()
        await exchange.end()
        assert (await client.answer()).body.endswith(b"[DONE]\n\n")
        await client.request("POST", PATH, b"nonsense")
        assert (await client.answer()).status == 400
        await client.request("GET", "/v1/models")
        assert (await client.answer()).status == 200
        await client.request("HEAD", "/version")
        await (await backend.next()).write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")
        assert (await client.answer(has_body=False)).status == 200
    await proxy.idle()
