"""A client that leaves: the upstream work is aborted within a second, the slot is back, nothing is leaked."""

from __future__ import annotations

import pytest
from scripted import chat, eventually

PATH = "/v1/chat/completions"


@pytest.mark.both_loops
async def test_client_leaves_while_held(make_proxy, backend):
    """A held request whose client left is forgotten: no slot, no bytes, never sent."""
    proxy = await make_proxy(backend, window=1)
    first, second = await proxy.client(), await proxy.client()
    await first.request("POST", PATH, chat("first"))
    running = await backend.next()
    await second.request("POST", PATH, chat("second"))
    await proxy.held(1)
    second.leave()
    await proxy.held(0)
    await running.reply()
    assert (await first.answer()).status == 200
    await proxy.idle()
    assert len(backend.requests) == 1
    gone = next(record for record in await proxy.finished(2) if record["outcome"] == "client_gone")
    assert (gone["status"], gone["backend"]) == (499, None)
    metrics = await proxy.metrics()
    assert not [name for name in metrics if name.startswith("prelude_proxy_upstream_aborts_total")]


@pytest.mark.both_loops
async def test_client_leaves_before_the_first_byte(proxy, backend):
    """The engine's connection is closed while it still prefills."""
    client = await proxy.client()
    await client.request("POST", PATH, chat(stream=True))
    exchange = await backend.next()
    client.leave()
    await exchange.aborted()
    await proxy.idle()
    [record] = await proxy.finished()
    assert (record["status"], record["outcome"]) == (499, "client_gone")
    assert (await proxy.metrics())['prelude_proxy_upstream_aborts_total{stage="prefill"}'] == 1


@pytest.mark.both_loops
async def test_client_leaves_between_head_and_first_token(proxy, backend):
    """The same once the engine has sent its head, as engines do before they prefill."""
    client = await proxy.client()
    await client.request("POST", PATH, chat(stream=True))
    exchange = await backend.next()
    await exchange.start()
    client.leave()
    await exchange.aborted()
    await proxy.idle()


@pytest.mark.both_loops
async def test_client_leaves_mid_stream(proxy, backend):
    """The engine's connection is closed in the middle of the stream."""
    client = await proxy.client()
    await client.request("POST", PATH, chat(stream=True))
    exchange = await backend.next()
    await exchange.start()
    await exchange.token()
    await client.head()
    assert b"data:" in await client.chunk()
    client.leave()
    await exchange.aborted()
    await proxy.idle()
    assert (await proxy.metrics())['prelude_proxy_upstream_aborts_total{stage="stream"}'] == 1


async def test_client_leaves_while_tokens_pour(proxy, backend):
    """Writing to a client that has just gone is no crash either."""
    client = await proxy.client()
    await client.request("POST", PATH, chat(stream=True))
    exchange = await backend.next()
    await exchange.start()
    await exchange.token()
    await client.head()
    client.leave()
    with pytest.raises(ConnectionError):  # noqa: PT012
        for _ in range(100_000):
            await exchange.token("x" * 100)
    exchange.close()
    await proxy.idle()
    assert (await proxy.finished())[0]["outcome"] == "client_gone"


@pytest.mark.both_loops
async def test_client_leaves_on_a_non_stream(proxy, backend):
    """A unary request is aborted as well: nobody will read its answer."""
    client = await proxy.client()
    await client.request("POST", PATH, chat())
    exchange = await backend.next()
    client.leave()
    await exchange.aborted()
    await proxy.idle()


async def test_client_leaves_in_the_body_of_a_non_stream(proxy, backend):
    """A long answer that nobody reads any more is cut at the backend."""
    client = await proxy.client()
    await client.request("POST", PATH, chat())
    exchange = await backend.next()
    await exchange.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nsome of it")
    await client.head()
    client.leave()
    await exchange.aborted()
    await proxy.idle()


async def test_client_leaves_while_connecting_to_the_backend(make_proxy, backend):
    """A connect under way is given up with its client."""
    proxy = await make_proxy(backend)
    upstream = next(iter(proxy.app.engines.values())).upstream
    upstream._host = "192.0.2.1"  # TEST-NET: no answer ever comes
    client = await proxy.client()
    await client.request("POST", PATH, chat())
    await eventually(lambda: proxy.app.num_in_flight() == 1)
    client.leave()
    await proxy.idle()


async def test_leaving_is_never_the_backends_fault(make_proxy, backend):
    """However many clients leave, the circuit breaker stays closed."""
    proxy = await make_proxy(backend, health={"eject_after": 2})
    for _ in range(5):
        client = await proxy.client()
        await client.request("POST", PATH, chat())
        exchange = await backend.next()
        client.leave()
        await exchange.aborted()
        await proxy.idle()
    status = (await proxy.admin("/status")).json()
    assert status["pools"]["default"][0]["breaker"] == "closed"
    assert status["pools"]["default"][0]["available"]


async def test_freed_slot_goes_to_the_next(make_proxy, backend):
    """When the client in the only slot leaves, the one held behind it is served."""
    proxy = await make_proxy(backend, window=1)
    first, second = await proxy.client(), await proxy.client()
    await first.request("POST", PATH, chat("first", stream=True))
    running = await backend.next()
    await second.request("POST", PATH, chat("second"))
    await proxy.held(1)
    first.leave()
    await running.aborted()
    following = await backend.next()
    assert b"second" in following.request.body
    await following.reply()
    assert (await second.answer()).status == 200
    await proxy.idle()


async def test_many_leaving_at_once_leak_nothing(make_proxy, backend):
    """Held, running and streaming clients that all leave in one moment leave nothing behind."""
    proxy = await make_proxy(backend, window=4)
    clients = [await proxy.client() for _ in range(40)]
    for index, client in enumerate(clients):
        await client.request("POST", PATH, chat(stream=index % 2 == 0))
    exchanges = [await backend.next() for _ in range(4)]
    await exchanges[0].start()
    await exchanges[0].token()
    await proxy.held(36)
    for client in clients:
        client.leave()
    await proxy.idle()
    assert {record["outcome"] for record in await proxy.finished(40)} == {"client_gone"}
    client = await proxy.client()
    await client.request("POST", PATH, chat("after"))
    while b"after" not in (exchange := await backend.next()).request.body:
        pass
    await exchange.reply()
    assert (await client.answer()).status == 200
