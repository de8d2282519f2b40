"""What the data port offers beside generation: models, health, any other path; and HTTP's less common forms."""

from __future__ import annotations

import asyncio

import pytest
from scripted import chat, eventually, soon

PATH = "/v1/chat/completions"


async def test_models_are_the_union_of_all_backends(make_proxy, make_backend):
    """`GET /v1/models` lists what the backends list, their objects as they gave them, and configured names."""
    first = await make_backend(models=["a", "shared"])
    second = await make_backend(models=["b", "shared"])
    pool = {"kind": "openai", "aliases": {"best": "a"}, "backends": [{"url": first.url}, {"url": second.url}]}
    proxy = await make_proxy(first, second, pools=[pool, {"name": "more", "models": ["declared"]}])
    answer = await proxy.ask("GET", "/v1/models")
    body = answer.json()
    assert body["object"] == "list"
    assert sorted(model["id"] for model in body["data"]) == ["a", "b", "best", "declared", "shared"]
    assert next(model for model in body["data"] if model["id"] == "a")["owned_by"] == "vllm"


async def test_models_that_come_later_are_found(make_proxy, backend):
    """A model that a backend loads at run time (LoRA) is served after the next look."""
    proxy = await make_proxy(backend)
    assert (await proxy.post(chat() | {"model": "late"})).status == 404
    backend.models = ["tiny", "late"]
    await eventually(lambda: "late" in (proxy.app.engines[backend.name].slots.models or ()))
    client = await proxy.client()
    await client.request("POST", PATH, chat() | {"model": "late"})
    await (await backend.next()).reply()
    assert (await client.answer()).status == 200


async def test_requests_go_to_a_backend_that_has_the_model(make_proxy, make_backend):
    """In a pool of `*` the model decides among the backends."""
    one = await make_backend(lambda exchange: exchange.reply(200, b"one"), models=["a"])
    two = await make_backend(lambda exchange: exchange.reply(200, b"two"), models=["b"])
    proxy = await make_proxy(one, two)
    for _ in range(3):
        assert (await proxy.post(chat() | {"model": "a"})).body == b"one"
        assert (await proxy.post(chat() | {"model": "b"})).body == b"two"


async def test_other_gets_pass_without_admission(make_proxy, backend):
    """A GET of any other path is relayed at once, even when every slot is taken."""
    proxy = await make_proxy(backend, window=1)
    busy = await proxy.client()
    await busy.request("POST", PATH, chat())
    await backend.next()
    client = await proxy.client()
    await client.request("GET", "/version?x=1", headers=[("x-a", "b")])
    exchange = await backend.next()
    assert (exchange.request.method, exchange.request.target) == (b"GET", b"/version?x=1")
    assert exchange.request.header(b"x-a") == b"b"
    assert exchange.request.header(b"content-length") is None
    await exchange.reply(200, b'{"version":"1"}')
    assert (await client.answer()).json() == {"version": "1"}
    await client.request("GET", "/nothing")
    await (await backend.next()).reply(404, b'{"detail":"Not Found"}')
    assert (await client.answer()).status == 404


async def test_other_posts_are_admitted_as_standard(make_proxy, backend):
    """A POST of any other path is proxied as class `standard`, body untouched, JSON or not."""
    proxy = await make_proxy(backend, window=1)
    client = await proxy.client()
    body = b"--x\r\nnot json \xff\x00\r\n--x--"
    await client.request("POST", "/v1/audio/transcriptions", body)
    exchange = await backend.next()
    assert exchange.request.body == body
    waiting = await proxy.client()
    await waiting.request("POST", "/tokenize", b"{}")
    await proxy.held(1)
    await exchange.reply()
    answer = await client.answer()
    assert answer.header("x-prelude-class") == "standard"
    await (await backend.next()).reply()
    assert (await waiting.answer()).status == 200


@pytest.mark.parametrize("method", ["DELETE", "PUT", "PATCH", "OPTIONS"])
async def test_other_methods_travel(proxy, backend, method):
    """The method is the client's."""
    client = await proxy.client()
    await client.request(method, "/v1/load_lora_adapter", b"{}" if method in {"PUT", "PATCH"} else None)
    exchange = await backend.next()
    assert exchange.request.method == method.encode()
    await exchange.reply(204 if method == "DELETE" else 200, b"")
    assert (await client.answer()).status in {200, 204}


async def test_head_has_no_body(proxy, backend):
    """HEAD gets the headers, length included, and the connection stays in step."""
    client = await proxy.client()
    await client.request("HEAD", "/version")
    exchange = await backend.next()
    assert exchange.request.method == b"HEAD"
    await exchange.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\nx-a: 1\r\n\r\n")
    answer = await client.answer(has_body=False)
    assert (answer.status, answer.header("content-length"), answer.header("x-a")) == (200, "1000", "1")
    await client.request("GET", "/health")
    assert (await client.answer()).status == 200


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_without_a_body_keep_the_connection_in_step(proxy, backend, status):
    """204 and 304 have no body whatever the headers say."""
    client = await proxy.client()
    await client.request("GET", "/thing")
    await (await backend.next()).write(b"HTTP/1.1 %d X\r\netag: 1\r\n\r\n" % status)
    assert (await client.answer()).status == status
    await client.request("GET", "/health")
    assert (await client.answer()).status == 200


async def test_http10_client_gets_a_length_or_the_end(proxy, backend):
    """An HTTP/1.0 client never sees chunks: a stream ends with its connection."""
    client = await proxy.client()
    await client.request("POST", PATH, chat(stream=True), version="HTTP/1.0")
    exchange = await backend.next()
    await exchange.start()
    await exchange.token("old")
    await exchange.end()
    answer = await client.answer()
    assert answer.header("transfer-encoding") is None
    assert answer.body.startswith(b"data: {")
    assert answer.body.endswith(b"data: [DONE]\n\n")
    client = await proxy.client()
    await client.request("POST", PATH, chat(), version="HTTP/1.0")
    await (await backend.next()).reply(body=b"whole")
    assert (await client.answer()).body == b"whole"
    assert await client.ended() == b""


async def test_pipelined_requests_are_answered_in_order(proxy, backend):
    """Several requests sent at once on one connection get their own answers in their order."""
    client = await proxy.client()
    for text in ("one", "two", "three"):
        await client.request("POST", PATH, chat(text))
    for text in (b"one", b"two", b"three"):
        exchange = await backend.next()
        assert text in exchange.request.body
        await exchange.reply(body=text)
        assert (await client.answer()).body == text


@pytest.mark.both_loops
async def test_expect_100_continue(proxy, backend):
    """A client that waits for 100 before it sends its body (curl, large bodies) is not kept waiting."""
    body = b'{"model":"tiny","messages":[{"role":"user","content":"x"}]}'
    client = await proxy.client()
    await client.send(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n"
        % len(body)
    )
    assert await soon(client.reader.readuntil(b"\r\n\r\n")) == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.send(body)
    exchange = await backend.next()
    assert exchange.request.body == body
    assert exchange.request.header(b"expect") is None
    await exchange.reply()
    assert (await client.answer()).status == 200


async def test_expect_100_continue_is_refused_before_the_body(make_proxy, backend):
    """One that announces too much learns it before sending."""
    proxy = await make_proxy(backend, limits={"max_body_bytes": 10})
    client = await proxy.client()
    await client.send(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 11\r\n\r\n")
    assert (await client.answer()).status == 413


async def test_declined_upgrade_is_served_as_plain_http(proxy, backend):
    """A request that also offers WebSocket or h2c is served as what it is."""
    client = await proxy.client()
    headers = [("connection", "upgrade"), ("upgrade", "websocket")]
    await client.request("GET", "/version", headers=headers)
    exchange = await backend.next()
    assert exchange.request.header(b"upgrade") is None
    await exchange.reply(200, b"plain")
    assert (await client.answer()).body == b"plain"


async def test_connect_is_refused(proxy, backend):
    """The proxy is no tunnel."""
    client = await proxy.client()
    await client.send(b"CONNECT example.com:443 HTTP/1.1\r\nhost: example.com\r\n\r\n")
    assert 400 <= (await client.answer()).status < 500
    assert not backend.requests


async def test_connections_beyond_the_bound_are_turned_away(make_proxy, backend):
    """`limits.max_connections` holds; those inside keep working."""
    proxy = await make_proxy(backend, limits={"max_connections": 3})
    inside = [await proxy.client() for _ in range(3)]
    for client in inside:
        await client.request("GET", "/health")
        assert (await client.answer()).status == 200
    outside = await proxy.client()
    assert await outside.ended() == b""
    inside[0].leave()
    await eventually(lambda: len(proxy.app._server.connections) == 2)
    assert (await proxy.ask("GET", "/health")).status == 200
    await asyncio.sleep(0)
