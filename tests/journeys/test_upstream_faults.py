"""Backends that refuse, die, lie or say no: what is retried, what is relayed, what is held, and whose fault it is."""

from __future__ import annotations

import asyncio
import json

import pytest
from scripted import Backend, chat, eventually, soon

from prelude_proxy.core.domain import EngineKind

PATH = "/v1/chat/completions"
VLLM_BUSY = json.dumps(
    {
        "error": {
            "message": "The engine is currently busy and cannot accept new requests. Please try again later or on a "
            "different instance.",
            "type": "ServiceUnavailableError",
            "param": None,
            "code": 503,
        }
    }
).encode()
TGI_BUSY = b'{"error":"Model is overloaded","error_type":"overloaded"}'


def breaker(proxy, backend) -> str:
    slots = proxy.app.engines[backend.name].slots
    return slots.health.breaker(proxy.app.dispatcher.now()).value


# --- connecting -------------------------------------------------------------------------------------------------------


async def test_refused_connection_is_retried_elsewhere(make_proxy, make_backend):
    """A backend that refuses connections costs the client nothing while another is there."""
    dying, living = await make_backend(), await make_backend()
    proxy = await make_proxy(dying, living, telemetry={"health_interval_s": 60})
    await dying.stop()
    for _ in range(4):
        client = await proxy.client()
        await client.request("POST", PATH, chat())
        await (await living.next()).reply()
        assert (await client.answer()).status == 200
    await proxy.idle()
    assert all(record["outcome"] == "ok" for record in await proxy.finished(4))


async def test_refused_by_the_only_backend_is_held_until_it_is_back(make_proxy, backend):
    """A restart of the only engine is bridged: the request waits and is served."""
    proxy = await make_proxy(backend)
    port = backend.port
    await backend.stop()
    client = await proxy.client()
    await client.request("POST", PATH, chat())
    await proxy.held(1)
    await backend.start(port)
    await (await backend.next()).reply()
    answer = await client.answer()
    assert answer.status == 200
    assert int(answer.header("x-prelude-attempts")) >= 2
    metrics = await proxy.metrics()
    assert metrics['prelude_proxy_retries_total{class="standard",reason="connect_failed"}'] >= 1


async def test_connection_closed_as_soon_as_it_is_made(make_proxy, make_backend):
    """A port in front of nothing that accepts and closes at once: 502, no hang, and it was asked once."""

    async def slam(exchange):
        exchange.close()

    backend = await make_backend(slam)
    proxy = await make_proxy(backend)
    answer = await proxy.post(chat())
    assert answer.status == 502
    assert answer.json()["error"]["code"] == 502
    assert len(backend.requests) == 1


# --- dying ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.both_loops
async def test_backend_dies_before_the_first_byte(make_proxy, make_backend, end):
    """Work may have begun: 502 to the client and no second attempt anywhere."""
    backends = [await make_backend(), await make_backend()]
    proxy = await make_proxy(*backends)
    client = await proxy.client()
    await client.request("POST", PATH, chat())
    first = await first_arrival(backends)
    getattr(first, end)()
    assert (await client.answer()).status == 502
    await proxy.idle()
    assert sum(len(backend.requests) for backend in backends) == 1
    assert (await proxy.finished())[0]["outcome"] == "upstream_reset"
    await client.request("POST", PATH, chat())  # the client's connection is none the worse
    await (await first_arrival(backends)).reply()
    assert (await client.answer()).status == 200


async def first_arrival(backends):
    """The exchange at whichever backend gets one."""
    takes = [asyncio.ensure_future(backend.next()) for backend in backends]
    done, waiting = await soon(asyncio.wait(takes, return_when=asyncio.FIRST_COMPLETED))
    for take in waiting:
        take.cancel()
    return done.pop().result()


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_backend_dies_mid_stream(proxy, backend, end):
    """The client gets what there was, then an error event and the terminator: never a clean end of a broken stream."""
    client = await proxy.client()
    await client.request("POST", PATH, chat(stream=True))
    exchange = await backend.next()
    await exchange.start()
    await exchange.token("one")
    head = await client.head()
    first = await client.chunk()
    getattr(exchange, end)()
    rest = await client.rest()
    assert head.status == 200
    assert b"one" in first
    events = [event for event in rest.decode().split("\n\n") if event]
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == 502
    [record] = await proxy.finished()
    assert record["outcome"] == "stream_broken"
    await proxy.idle()


async def test_backend_dies_in_the_middle_of_an_event(proxy, backend):
    """Half an event is ended before the error event begins, so that a parser sees both for what they are."""
    client = await proxy.client()
    await client.request("POST", PATH, chat(stream=True))
    exchange = await backend.next()
    await exchange.start()
    await exchange.chunk(b'data: {"choices":[{"delta":{"cont')
    await client.head()
    received = await client.chunk()
    exchange.close()
    received += await client.rest()
    events = [event for event in received.decode().split("\n\n") if event]
    assert events[0] == 'data: {"choices":[{"delta":{"cont'
    assert "error" in json.loads(events[1].removeprefix("data: "))
    assert events[2] == "data: [DONE]"


async def test_stream_that_ends_cleanly_without_its_terminator_is_broken(proxy, backend):
    """An engine that closes a stream properly but never said [DONE] has not finished it."""
    client = await proxy.client()
    await client.request("POST", PATH, chat(stream=True))
    exchange = await backend.next()
    await exchange.start()
    await exchange.token("[DONE]")  # as text it is no terminator
    await exchange.end(terminator=b"")
    body = (await client.answer()).body
    assert b'"error"' in body
    assert body.endswith(b"data: [DONE]\n\n")
    assert (await proxy.finished())[0]["outcome"] == "stream_broken"


async def test_anthropic_stream_breaks_in_its_dialect(proxy, backend):
    """For Anthropic's API a broken stream ends in `event: error`."""
    client = await proxy.client()
    body = {"model": "tiny", "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "x"}]}
    await client.request("POST", "/v1/messages", body)
    exchange = await backend.next()
    await exchange.start()
    await exchange.chunk(b'event: message_start\ndata: {"type":"message_start"}\n\n')
    exchange.close()
    events = (await client.answer()).body.decode().split("\n\n")
    name, data = events[1].split("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["type"] == "error"


async def test_tgi_stream_breaks_in_its_dialect(proxy, backend):
    """For TGI's API it ends in `data:{"error","error_type"}`, also when every event says that it has no details."""
    client = await proxy.client()
    await client.request("POST", "/generate_stream", {"inputs": "x"})
    exchange = await backend.next()
    await exchange.start()
    await exchange.chunk(b'data:{"index":1,"token":{"id":1,"text":"a"},"generated_text":null,"details":null}\n\n')
    exchange.close()
    events = (await client.answer()).body.decode().split("\n\n")
    assert set(json.loads(events[1].removeprefix("data:"))) == {"error", "error_type"}


@pytest.mark.parametrize("details", [b"null", b'{"generated_tokens":3,"finish_reason":"length"}'])
async def test_tgi_stream_with_a_long_text_is_whole(proxy, backend, details):
    """The last event repeats the whole text, however long; the stream is not taken for broken."""
    client = await proxy.client()
    await client.request("POST", "/generate_stream", {"inputs": "x"})
    exchange = await backend.next()
    await exchange.start()
    body = b'data:{"index":1,"token":{"id":1,"text":"a"},"generated_text":null,"details":null}\n\n'
    body += b'data:{"index":2,"token":{"id":2},"generated_text":"%s","details":%s}\n\n' % (b"long " * 2000, details)
    await exchange.chunk(body)
    await exchange.end(terminator=b"")
    assert (await client.answer()).body == body
    assert (await proxy.finished())[0]["outcome"] == "ok"


@pytest.mark.parametrize("last", ["completed", "incomplete", "failed"])
async def test_responses_stream_with_a_long_last_event_is_whole(proxy, backend, last):
    """The Responses API ends in an event that repeats the whole answer and has no [DONE]."""
    client = await proxy.client()
    await client.request("POST", "/v1/responses", {"model": "tiny", "input": "x", "stream": True})
    exchange = await backend.next()
    await exchange.start()
    body = b'event: response.created\ndata: {"type":"response.created"}\n\n'
    body += b'event: response.%s\ndata: {"response":{"text":"%s"}}\n\n' % (last.encode(), b"long " * 2000)
    for at in range(0, len(body), 11):
        await exchange.chunk(body[at : at + 11])
    await exchange.end(terminator=b"")
    assert (await client.answer()).body == body
    assert (await proxy.finished())[0]["outcome"] == "ok"


async def test_unknown_kind_of_stream_is_not_judged(proxy, backend):
    """How streams of other endpoints end is not known, so nothing is added to them."""
    client = await proxy.client()
    await client.request("POST", "/v1/audio/transcriptions", b"...")
    exchange = await backend.next()
    await exchange.start()
    await exchange.chunk(b'data: {"type":"transcript.text.done"}\n\n')
    await exchange.end(terminator=b"")
    assert (await client.answer()).body == b'data: {"type":"transcript.text.done"}\n\n'
    assert (await proxy.finished())[0]["outcome"] == "ok"


@pytest.mark.parametrize("framing", ["content-length: 100", "transfer-encoding: chunked"])
async def test_backend_dies_in_the_body_of_a_non_stream(proxy, backend, framing):
    """A cut answer cannot be unsaid; the client's connection is cut too, so that it does not pass for whole."""
    client = await proxy.client()
    await client.request("POST", PATH, chat())
    exchange = await backend.next()
    part = b'5\r\n{ "a"\r\n' if "chunked" in framing else b'{ "a"'
    await exchange.write(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode() + part)
    head = await client.head()
    exchange.close()
    assert head.status == 200
    assert not (await client.ended()).endswith(b"0\r\n\r\n")
    await proxy.idle()
    assert (await proxy.finished())[0]["outcome"] == "stream_broken"


async def test_answer_without_a_length_ends_with_the_connection(proxy, backend):
    """An HTTP/1.0-like answer, delimited by the end of the connection, is relayed whole."""
    client = await proxy.client()
    await client.request("POST", PATH, chat())
    exchange = await backend.next()
    await exchange.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nall of it")
    exchange.close()
    assert (await client.answer()).body == b"all of it"
    assert (await proxy.finished())[0]["outcome"] == "ok"


@pytest.mark.parametrize(
    "nonsense",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * 300_000,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
    ],
    ids=["garbage", "status", "length", "upgrade", "endless head", "chunk size"],
)
async def test_answer_that_is_not_http_is_a_502(proxy, backend, nonsense):
    """What a backend says that is not HTTP reaches nobody."""
    client = await proxy.client()
    await client.request("POST", PATH, chat())
    exchange = await backend.next()
    await exchange.write(nonsense)
    assert (await client.answer()).status == 502
    await exchange.aborted()
    await proxy.idle()


async def test_informational_answers_are_skipped(proxy, backend):
    """100 and 103 come before the answer and are not it."""
    client = await proxy.client()
    await client.request("POST", PATH, chat())
    exchange = await backend.next()
    await exchange.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
    await exchange.reply(body=b"real")
    answer = await client.answer()
    assert (answer.status, answer.body, answer.header("link")) == (200, b"real", None)


# --- pooled connections -----------------------------------------------------------------------------------------------


@pytest.mark.both_loops
async def test_stale_pooled_connection_is_replaced_once(proxy, backend):
    """The engine closes an idle connection just as we write on it: a fresh one is used and the client sees nothing."""
    client = await proxy.client()
    await client.request("POST", PATH, chat("first"))
    await (await backend.next()).reply()
    await client.answer()
    await client.request("POST", PATH, chat("second"))
    stale = await backend.next()  # on the pooled connection
    stale.reset()
    fresh = await backend.next()
    assert fresh.request.body == stale.request.body
    await fresh.reply()
    answer = await client.answer()
    assert answer.status == 200
    assert breaker(proxy, backend) == "closed"


async def test_connection_closed_while_idle_is_not_used(proxy, backend):
    """A pooled connection that the engine closed in the meantime is noticed before the next request."""
    client = await proxy.client()
    await client.request("POST", PATH, chat())
    exchange = await backend.next()
    await exchange.reply(headers=[("connection", "keep-alive")])
    await client.answer()
    exchange.writer.close()
    for _ in range(3):
        await client.request("POST", PATH, chat())
        await (await backend.next()).reply()
        assert (await client.answer()).status == 200
    assert len(backend.requests) == 4


async def test_connections_are_reused(proxy, backend):
    """Requests one after the other share one connection to the backend."""
    client = await proxy.client()
    used = set()
    for _ in range(5):
        await client.request("POST", PATH, chat())
        exchange = await backend.next()
        used.add(exchange.writer)
        await exchange.reply()
        await client.answer()
    assert len(used) == 1


# --- engines that say no ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "status", "body"),
    [
        ("vllm", 503, VLLM_BUSY),
        ("sglang", 503, b'{"error":{"message":"The request queue is full."}}'),
        ("tgi", 429, TGI_BUSY),
        ("openai", 503, b'{"error":{"message":"Server is overloaded"}}'),
    ],
)
async def test_full_engine_means_hold_and_try_again(make_proxy, backend, kind, status, body):
    """An engine's own admission control is a reason to wait, not an answer, and no illness."""
    proxy = await make_proxy(backend, kind=kind)
    client = await proxy.client()
    path, request = ("/generate", {"inputs": "x"}) if kind == "tgi" else (PATH, chat())
    await client.request("POST", path, request)
    for _ in range(6):  # more often than any retry limit: no work was done, nothing is lost by asking again
        await (await backend.next()).reply(status, body)
    await (await backend.next()).reply(200, b"served")
    answer = await client.answer()
    assert (answer.status, answer.body) == (200, b"served")
    assert answer.header("x-prelude-attempts") == "7"
    assert breaker(proxy, backend) == "closed"
    metrics = await proxy.metrics()
    assert metrics['prelude_proxy_retries_total{class="standard",reason="engine_busy"}'] == 6


async def test_full_engine_goes_elsewhere_first(make_proxy, make_backend):
    """With another backend there the refused request goes to it at once."""

    async def refuse(exchange):
        await exchange.reply(503, VLLM_BUSY)

    async def serve(exchange):
        await exchange.reply(200, b"served")

    full, free = await make_backend(refuse), await make_backend(serve)
    proxy = await make_proxy(full, free, kind="vllm")
    for _ in range(6):
        assert (await proxy.post(chat())).status == 200
    await proxy.idle()


async def test_storm_of_refusals_loses_nothing_and_stays_ready(make_proxy, make_backend):
    """A real engine that sheds (vLLM --max-num-queued-reqs) loses no request, and readiness does not flap."""
    calm = {"count": 0}

    async def mostly_full(exchange):
        calm["count"] += 1
        if calm["count"] % 3:
            await exchange.reply(503, VLLM_BUSY)
        else:
            await exchange.reply(200, b"served")

    backend = await make_backend(mostly_full)
    proxy = await make_proxy(backend, kind="vllm", window=0, admission={"cold_start_wait_s": 0})
    answers = asyncio.gather(*(proxy.post(chat(f"{i}")) for i in range(6)))
    while not answers.done():
        assert (await proxy.admin("/readyz")).status == 200
        assert (await proxy.ask("GET", "/health")).status == 200
        await asyncio.sleep(0.01)
    assert [answer.status for answer in await soon(answers)] == [200] * 6
    await proxy.idle()


async def test_embedded_engine_that_sheds_serves_all_in_the_end(make_proxy, make_engine):
    """The same against the real thing: 30 at once on an engine with room for two and no queue."""
    for kind, path in ((EngineKind.VLLM, PATH), (EngineKind.TGI, "/generate")):
        url = await make_engine(kind, max_num_seqs=2, max_num_queued_reqs=2)
        proxy = await make_proxy(wait=False, pools=[{"kind": kind.value, "backends": [{"url": url}]}])
        await proxy.up()
        body = chat(max_tokens=4) if kind is EngineKind.VLLM else {"inputs": "x", "parameters": {"max_new_tokens": 4}}
        answers = await soon(asyncio.gather(*(proxy.post(body, path=path) for _ in range(30))))
        assert [answer.status for answer in answers] == [200] * 30
        await proxy.idle()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (503, b'{"error":{"message":"Service Unavailable"}}'),
        (503, b""),
        (503, b"x" * 200_000),
        (500, b'{"error":{"message":"queue exploded"}}'),
        (504, b'{"error":"upstream"}'),
        (429, b'{"error":{"message":"rate limit"}}'),
    ],
)
async def test_other_errors_are_relayed_as_they_are_and_not_retried(make_proxy, backend, status, body):
    """A plain 5xx may have cost work; the client gets it byte for byte and decides."""
    proxy = await make_proxy(backend, kind="vllm")
    client = await proxy.client()
    await client.request("POST", PATH, chat())
    await (await backend.next()).reply(status, body, headers=[("retry-after", "7")])
    answer = await client.answer()
    assert (answer.status, answer.body) == (status, body)
    assert answer.header("retry-after") == "7"
    await proxy.idle()
    assert len(backend.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 422])
async def test_4xx_never_trips_the_breaker(make_proxy, make_backend, status):
    """A client's mistakes, however many, are never a backend's fault."""

    async def refuse(exchange):
        await exchange.reply(status, b'{"error":"yours"}')

    backend = await make_backend(refuse)
    proxy = await make_proxy(backend, health={"eject_after": 2})
    for _ in range(8):
        assert (await proxy.post(chat())).status == status
    assert breaker(proxy, backend) == "closed"


async def test_5xx_ejects_and_one_trial_re_admits(make_proxy, make_backend):
    """After enough failures in a row the backend gets nothing; later one request may try it, and a success heals."""
    sick = {"is": True}

    async def answer(exchange):
        await exchange.reply(500 if sick["is"] else 200)

    backend = await make_backend(answer)
    proxy = await make_proxy(backend, health={"eject_after": 3, "eject_s": 0.2})
    for _ in range(3):
        assert (await proxy.post(chat())).status == 500
    assert breaker(proxy, backend) == "open"
    sick["is"] = False
    assert (await proxy.post(chat())).status == 200  # held until the trial
    assert breaker(proxy, backend) == "closed"
    assert len(backend.requests) == 4


async def test_dead_backend_does_not_delay_the_others(make_proxy, make_backend):
    """One backend that accepts and never answers costs only the requests that it already has."""
    alive = await make_backend(lambda exchange: exchange.reply())
    dead = await make_backend()
    proxy = await make_proxy(alive, dead, telemetry={"health_timeout_s": 0.05})
    dead.hangs = {b"/health", b"/metrics", b"/v1/models"}
    stuck = [await proxy.client() for _ in range(4)]
    for client in stuck:
        await client.request("POST", PATH, chat())
    await eventually(lambda: dead.requests)
    slots = proxy.app.engines[dead.name].slots
    await eventually(lambda: not slots.available)
    for _ in range(10):
        assert (await soon(proxy.post(chat()), 1.0)).status == 200


async def test_retry_budget_bounds_an_outage(make_proxy, make_backend):
    """Stale connections cannot multiply traffic: attempts stay within the configured number."""
    backend: Backend = await make_backend()
    proxy = await make_proxy(backend, admission={"max_attempts": 2})
    client = await proxy.client()
    await client.request("POST", PATH, chat())
    await (await backend.next()).reply()
    await client.answer()
    await client.request("POST", PATH, chat())
    (await backend.next()).reset()  # pooled: replaced once
    (await backend.next()).reset()  # fresh: that was it
    assert (await client.answer()).status == 502
    assert len(backend.requests) == 3


async def test_an_endpoint_the_model_has_not_is_a_clear_404(proxy, backend):
    """An engine says only "Not Found" on the routes of other tasks; a caller is told what is missing."""
    client = await proxy.client()
    await client.request("POST", "/v1/embeddings", b'{"model":"tiny","input":"hi"}')
    exchange = await backend.next()
    await exchange.reply(404, b'{"detail":"Not Found"}')
    answer = await client.answer()
    assert answer.status == 404
    assert "does not offer /v1/embeddings" in answer.json()["error"]["message"]
    await proxy.idle()


async def test_another_404_of_the_engine_is_relayed_as_it_is(proxy, backend):
    """Its own words about a model stay its own."""
    body = b'{"error":{"message":"The model `x` does not exist.","type":"NotFoundError","param":"model","code":404}}'
    client = await proxy.client()
    await client.request("POST", PATH, chat())
    await (await backend.next()).reply(404, body)
    assert (await client.answer()).body == body
