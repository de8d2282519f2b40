"""Long streams: backpressure, promotion to the class they turn out to be, both event loops, the embedded engine."""

from __future__ import annotations

import asyncio
import json

import pytest
from scripted import chat, eventually, soon

from prelude_proxy.core.domain import EngineKind

PATH = "/v1/chat/completions"


@pytest.mark.both_loops
async def test_slow_reader_bounds_memory(proxy, backend):
    """A client that does not read stops the proxy from reading: 64 MB at the backend do not come to us."""
    client = await proxy.client()
    await client.request("POST", PATH, chat(stream=True))
    exchange = await backend.next()
    await exchange.start()
    sent = 0
    piece = b"data: " + b"x" * 65_000 + b"\n\n"
    try:
        async with asyncio.timeout(0.7):
            for _ in range(1000):
                await exchange.chunk(piece)
                sent += len(piece)
    except TimeoutError:
        pass
    assert sent < 24 * 2**20  # socket buffers on both sides, and what the proxy keeps
    engine = next(iter(proxy.app.engines.values()))
    connection = next(iter(engine.upstream._busy))
    assert connection._paused
    assert connection.exchange.num_pending < 2**20
    [handler] = [h for h in proxy.app._server.connections if h.transport is not None]
    assert handler.transport.get_write_buffer_size() < 2**20
    client.leave()
    await exchange.aborted(5)
    await proxy.idle()


async def test_slow_reader_does_not_slow_others(make_proxy, backend):
    """While one client does not read, another's stream flows."""
    proxy = await make_proxy(backend)
    slow, quick = await proxy.client(), await proxy.client()
    await slow.request("POST", PATH, chat(stream=True))
    stuck = await backend.next()
    await stuck.start()

    async def pour() -> None:
        while True:
            await stuck.chunk(b"data: " + b"x" * 65_000 + b"\n\n")

    pouring = asyncio.ensure_future(pour())
    connection = next(iter(proxy.app.engines[backend.name].upstream._busy))
    await eventually(lambda: connection._paused)
    await quick.request("POST", PATH, chat(stream=True))
    exchange = await backend.next()
    await exchange.start()
    for _ in range(20):
        await exchange.token()
    await exchange.end()
    assert (await soon(quick.answer(), 2)).body.count(b"data:") == 21
    pouring.cancel()
    slow.leave()


async def test_events_are_relayed_at_once(proxy, backend):
    """Each token reaches the client before the next one exists: nothing is buffered."""
    client = await proxy.client()
    await client.request("POST", PATH, chat(stream=True))
    exchange = await backend.next()
    await exchange.start()
    await exchange.token("zero")
    await soon(client.head(), 1)
    assert b"zero" in await client.chunk()
    for text in ("one", "two", "three"):
        await exchange.token(text)
        assert text.encode() in await client.chunk()
    await exchange.end()


DEEP = [("x-prelude-class", "deep")]


async def held_up(make_proxy, backend, interval_ms: float):
    """A proxy whose one slot is taken by a long stream beyond its beginning, the stream's client and its exchange."""
    classes = {"deep": {"stream_interval_ms": interval_ms}}
    proxy = await make_proxy(backend, window=1, admission={"trust_class_header": True}, classes=classes)
    client = await proxy.client()
    await client.request("POST", PATH, chat(stream=True), DEEP)
    exchange = await backend.next()
    await exchange.start()
    await exchange.token()
    assert (await client.head()).status == 200
    await client.chunk()
    for number in range(20):
        await exchange.token(f"t{number} ")
        assert f"t{number} ".encode() in await soon(client.chunk(), 1)
    return proxy, client, exchange


def relay_of(proxy):
    """What carries the one answer under way."""
    engine = next(iter(proxy.app.engines.values()))
    return next(iter(engine.upstream._busy)).exchange._sink


async def kept_back(make_proxy, backend, interval_ms: float):
    """As `held_up`, with another request held, and the stream so fast that a piece is kept back; its client as well."""
    proxy, client, exchange = await held_up(make_proxy, backend, interval_ms)
    waiting = await proxy.client()
    await waiting.request("POST", PATH, chat(), DEEP)
    await proxy.held(1)
    async with asyncio.timeout(5):
        while not relay_of(proxy)._kept:
            await exchange.token("fast ")
            await asyncio.sleep(0.001)
    return proxy, client, exchange, waiting


@pytest.mark.both_loops
async def test_a_long_stream_goes_on_in_larger_pieces_while_others_wait(make_proxy, backend):
    """What comes within the interval leaves as one piece, every byte of it."""
    proxy, client, exchange, waiting = await kept_back(make_proxy, backend, 1000.0)
    for number in range(5):
        await exchange.token(f"late{number} ")
    seen = b""
    while b"late" not in seen:
        seen = await client.chunk()
    assert [seen.count(b"late%d " % number) for number in range(5)] == [1] * 5
    await exchange.end()
    await client.rest()
    await (await backend.next()).reply()
    assert (await waiting.answer()).status == 200
    await proxy.idle()


async def test_the_end_of_a_long_stream_is_never_kept_back(make_proxy, backend):
    """It takes along what was, and the slot goes to who waits at once."""
    proxy, client, exchange, waiting = await kept_back(make_proxy, backend, 60_000.0)
    await exchange.token("late ")
    await exchange.end()
    body = await soon(client.rest(), 2)
    assert body.index(b"fast ") < body.index(b"late ")
    assert body.endswith(b"data: [DONE]\n\n")
    await (await backend.next()).reply()
    assert (await waiting.answer()).status == 200
    await proxy.idle()


async def test_a_long_stream_that_breaks_loses_nothing_that_was_kept(make_proxy, backend):
    """All that came goes before the error event."""
    proxy, client, exchange, waiting = await kept_back(make_proxy, backend, 60_000.0)
    relay = relay_of(proxy)
    num_kept = len(relay._kept)
    await exchange.token("late ")
    await eventually(lambda: len(relay._kept) > num_kept)
    exchange.reset()
    body = await soon(client.rest(), 2)
    assert body.index(b"late ") < body.index(b'"error"')
    waiting.leave()


async def test_a_long_stream_goes_on_token_by_token_while_nobody_waits(make_proxy, backend):
    """However fast it is."""
    proxy, client, exchange = await held_up(make_proxy, backend, 60_000.0)
    for number in range(20):
        await exchange.token(f"more{number} ")
        assert f"more{number} ".encode() in await soon(client.chunk(), 1)
    await exchange.end()
    assert (await soon(client.rest(), 1)).endswith(b"data: [DONE]\n\n")
    await proxy.idle()


async def test_a_client_that_leaves_while_pieces_are_kept_ends_the_work(make_proxy, backend):
    """And the slot goes to who waits."""
    proxy, client, exchange, waiting = await kept_back(make_proxy, backend, 60_000.0)
    client.leave()
    await exchange.aborted(1)
    await (await backend.next()).reply()
    assert (await waiting.answer()).status == 200
    await proxy.idle()


async def test_stream_that_outgrows_its_class_is_charged_to_the_next(make_proxy, backend):
    """A fast request that turns out long gives its slot of the fast class back; it is never cut."""
    classes = {
        "fast": {"max_output_tokens": 5, "ceiling": 1},
        "standard": {"max_output_tokens": 20},
    }
    proxy = await make_proxy(backend, window=4, admission={"trust_class_header": True}, classes=classes)
    fast = [("x-prelude-class", "fast")]
    first, second = await proxy.client(), await proxy.client()
    await first.request("POST", PATH, chat("first", stream=True), fast)
    stream = await backend.next()
    await stream.start()
    for _ in range(4):
        await stream.token()
    await second.request("POST", PATH, chat("second"), fast)
    await proxy.held(1)  # the one fast slot is taken
    for _ in range(4):
        await stream.token()
    following = await backend.next()  # freed by the promotion
    assert b"second" in following.request.body
    await following.reply()
    assert (await second.answer()).status == 200
    assert (await proxy.admin("/status")).json()["classes"]["standard"]["inflight"] == 1
    for _ in range(20):
        await stream.token()
    await stream.end()
    assert (await first.answer()).body.endswith(b"data: [DONE]\n\n")
    await proxy.idle()
    metrics = await proxy.metrics()
    assert metrics['prelude_proxy_promotions_total{from="fast",to="standard"}'] == 1
    assert metrics['prelude_proxy_promotions_total{from="standard",to="deep"}'] == 1


@pytest.mark.both_loops
@pytest.mark.parametrize("stream", [False, True])
async def test_embedded_vllm(make_proxy, make_engine, stream):
    """A whole journey to an engine with real scheduling: tokens, usage and telemetry."""
    url = await make_engine()
    proxy = await make_proxy(wait=False, pools=[{"backends": [{"url": url}]}])
    await proxy.up()
    body = chat(stream=stream, max_tokens=50, vllm_xargs={"target_len": 12}, stream_options={"include_usage": True})
    body = body if stream else {key: value for key, value in body.items() if key != "stream_options"}
    answers = await soon(asyncio.gather(*(proxy.post(body) for _ in range(20))))
    assert [answer.status for answer in answers] == [200] * 20
    if stream:
        assert all(answer.body.endswith(b"data: [DONE]\n\n") for answer in answers)
    else:
        assert all(answer.json()["usage"]["completion_tokens"] == 12 for answer in answers)
    assert {record["output_tokens"] for record in await proxy.finished(20)} == {12}
    await eventually(lambda: next(iter(proxy.app.pollers.values())).view.num_scrapes > 0)
    await proxy.idle()


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
async def test_embedded_tgi(make_proxy, make_engine, path):
    """TGI's own API, streamed and not, with the number of tokens it reports."""
    url = await make_engine(EngineKind.TGI)
    proxy = await make_proxy(wait=False, pools=[{"kind": "tgi", "backends": [{"url": url}]}])
    await proxy.up()
    body = {"inputs": "x", "parameters": {"max_new_tokens": 50, "target_len": 9, "details": True}}
    answer = await proxy.post(body, path=path)
    assert answer.status == 200
    if path == "/generate_stream":
        last = json.loads(answer.body.rstrip().rpartition(b"data:")[2])
        assert last["details"]["generated_tokens"] == 9
    [record] = await proxy.finished()
    assert (record["outcome"], record["class"]) == ("ok", "fast")
    assert record["output_tokens"] in {9, None} if path == "/" else record["output_tokens"] == 9


async def test_embedded_engine_aborts_when_the_client_leaves(make_proxy, make_engine):
    """The engine itself stops working on a request whose client left."""
    url = await make_engine(max_num_seqs=2)
    proxy = await make_proxy(wait=False, pools=[{"backends": [{"url": url, "window": 2}]}])
    await proxy.up()
    clients = [await proxy.client() for _ in range(4)]
    for client in clients:
        await client.request("POST", PATH, chat(stream=True, max_tokens=8000, vllm_xargs={"target_len": 8000}))
    for client in clients[:2]:
        await client.head()
        client.leave()
    await asyncio.gather(*(client.head() for client in clients[2:]))  # their turn has come
    view = next(iter(proxy.app.pollers.values())).view
    for client in clients[2:]:
        client.leave()
    await proxy.idle()
    await eventually(lambda: view.sample.running == 0 and view.sample.waiting == 0)
