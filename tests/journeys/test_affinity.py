"""A conversation goes on where it began, a session stays where it was served, unless load or an outage moves it."""

from __future__ import annotations

import asyncio

import pytest
from scripted import Backend, chat, connected, eventually, soon

from prelude_proxy.core.domain import EngineKind

PATH = "/v1/chat/completions"
SYSTEM = {"role": "system", "content": "You are a careful assistant. " * 60}


def opening(topic: str) -> dict:
    """A first turn, long enough to be worth caching."""
    return {"model": "tiny", "messages": [{"role": "user", "content": f"Tell me of {topic}. " * 150}], "max_tokens": 2}


def continued(body: dict, answer: str = "Well. " * 100) -> dict:
    """The same conversation with an answer and a question more."""
    more = [{"role": "assistant", "content": answer}, {"role": "user", "content": "Go on."}]
    return {**body, "messages": [*body["messages"], *more]}


async def sent(proxy, body: dict, *headers, to: list[Backend]):
    """Send a request; its client, the exchange at the backend that got it, and that backend."""
    client = await proxy.client()
    before = [len(backend.requests) for backend in to]
    await client.request("POST", PATH, body, headers)
    await eventually(lambda: [len(backend.requests) for backend in to] != before)
    chosen = next(b for b, count in zip(to, before, strict=True) if len(b.requests) != count)
    return client, await chosen.next(), chosen


async def served(proxy, body: dict, *headers, to: list[Backend]) -> Backend:
    """The backend that served a whole request."""
    client, exchange, chosen = await sent(proxy, body, *headers, to=to)
    await exchange.reply()
    assert (await client.answer()).status == 200
    return chosen


def outcomes(metrics: dict[str, float]) -> dict[str, float]:
    name = 'prelude_proxy_affinity_total{{outcome="{}",pool="default"}}'
    return {outcome: metrics.get(name.format(outcome), -1.0) for outcome in ("hit", "moved", "miss")}


async def test_each_conversation_goes_on_where_it_began(make_proxy, make_backend):
    """Two conversations that began side by side on two backends, each long over when the next turn comes."""
    backends = [await make_backend(), await make_backend()]
    proxy = await make_proxy(*backends)
    (one, first, here), (other, second, there) = [
        await sent(proxy, opening(topic), to=backends) for topic in ("rivers", "violins")
    ]
    assert here is not there
    for client, exchange in ((one, first), (other, second)):
        await exchange.reply()
        await client.answer()
    await proxy.idle()
    for _ in range(2):
        assert await served(proxy, continued(opening("violins")), to=backends) is there
        assert await served(proxy, continued(opening("rivers")), to=backends) is here
    metrics = await proxy.metrics()
    assert outcomes(metrics) == {"hit": 4, "moved": 0, "miss": 2}
    assert metrics['prelude_proxy_affinity_saved_tokens_total{pool="default"}'] > 4 * 512


@pytest.mark.parametrize(
    ("routing", "headers", "body"),
    [
        ({}, (), opening("bread")),
        ({"prefix_affinity": False}, (("X-Session-Id", "s-1"),), chat("hi")),
        ({"session_header": None, "session_cookie": "sid"}, (("cookie", "a=1; sid=s-1"),), chat("hi")),
        ({"session_field": "user"}, (), chat("hi", user="s-1")),
    ],
    ids=["prefix", "header", "cookie", "field"],
)
async def test_load_moves_it_and_it_stays_there(make_proxy, make_backend, routing, headers, body):
    """One request more than elsewhere is borne; the next goes where there is room, and a session lives there then."""
    backends = [await make_backend(), await make_backend()]
    pool = {"kind": "openai", "routing": routing, "backends": [{"url": b.url, "window": 8} for b in backends]}
    proxy = await make_proxy(wait=False, pools=[pool])
    await proxy.up(*backends)
    home = await served(proxy, body, *headers, to=backends)
    streams = []
    for _ in range(3):
        client, exchange, chosen = await sent(proxy, {**body, "stream": True}, *headers, to=backends)
        await exchange.start()
        await exchange.token()
        await client.head()
        await client.chunk()
        streams.append((client, exchange, chosen))
    assert [chosen is home for _, _, chosen in streams] == [True, True, False]
    for client, exchange, _ in streams:
        await exchange.end()
        await client.rest()
    await proxy.idle()
    if headers or "user" in body:
        assert await served(proxy, body, *headers, to=backends) is not home


@pytest.mark.parametrize("headers", [(), (("x-session-id", "s-1"),)], ids=["prefix", "session"])
async def test_a_backend_that_is_gone_is_left_at_once(make_proxy, make_backend, headers):
    """Without an error for the client, and before any probe has told."""
    backends = [await make_backend(), await make_backend()]
    proxy = await make_proxy(*backends, telemetry={"health_interval_s": 30.0})
    home = await served(proxy, opening("windmills"), *headers, to=backends)
    other = next(backend for backend in backends if backend is not home)
    await home.stop()
    assert await served(proxy, continued(opening("windmills")), *headers, to=[other]) is other
    assert outcomes(await proxy.metrics())["moved"] == 1


async def test_a_restarted_engine_holds_nothing(make_proxy, make_backend):
    """Its token counter began anew, so its cache is cold, whatever it was sent before."""
    page = "vllm:num_requests_running{{}} 0.0\nvllm:num_requests_waiting{{}} 0.0\nvllm:generation_tokens_total{{}} {}\n"
    backends = [await make_backend(metrics=page.format(500.0).encode()) for _ in range(2)]
    proxy = await make_proxy(*backends, kind="vllm")
    await eventually(lambda: all(backend.num_scrapes for backend in backends))
    await served(proxy, opening("gardens"), to=backends)
    for backend in backends:
        backend.metrics = page.format(3.0).encode()
    views = [poller.view for poller in proxy.app.pollers.values()]
    await eventually(lambda: all(view.sample.generation_tokens == 3.0 for view in views))
    await served(proxy, opening("gardens"), to=backends)
    assert outcomes(await proxy.metrics()) == {"hit": 0, "moved": 0, "miss": 2}


async def test_nothing_is_tied_where_nothing_can_be(make_proxy, make_backend):
    """One backend, or mode `fcfs`: no chain is computed, nothing is remembered."""
    lone, pair = await make_backend(), [await make_backend(), await make_backend()]
    proxy = await make_proxy(lone)
    await served(proxy, opening("harbours"), to=[lone])
    assert outcomes(await proxy.metrics()) == {"hit": 0, "moved": 0, "miss": 0}
    plain = await make_proxy(*pair, admission={"mode": "fcfs"})
    await served(plain, opening("harbours"), to=pair)
    assert outcomes(await plain.metrics()) == {"hit": -1, "moved": -1, "miss": -1}


async def test_engines_prefill_a_conversation_once(make_proxy, make_engine):
    """Real turns on two embedded engines: from the second turn on most of the prompt comes from the engine's cache."""
    urls = [await make_engine(EngineKind.VLLM), await make_engine(EngineKind.VLLM)]
    pool = {"backends": [{"url": url, "window": 8} for url in urls]}
    proxy = await make_proxy(wait=False, pools=[pool])
    await proxy.up()

    bodies = [opening(topic) for topic in ("rivers", "violins", "bread", "windmills")]
    for body in bodies:
        body["messages"].insert(0, SYSTEM)
    answers = await asyncio.gather(*(soon(proxy.post(body)) for body in bodies))
    homes = [answer.header("x-prelude-backend") for answer in answers]
    assert len(set(homes)) == 2
    for _ in range(3):
        for index, home in enumerate(homes):
            said = answers[index].json()["choices"][0]["message"]["content"]
            bodies[index] = continued(bodies[index], said)
            answers[index] = await soon(proxy.post(bodies[index]))
            assert answers[index].header("x-prelude-backend") == home
    hits = queries = 0.0
    for url in urls:
        async with connected(int(url.rpartition(":")[2])) as client:
            await client.request("GET", "/metrics")
            for line in (await client.answer()).body.decode().splitlines():
                name, _, value = line.rpartition(" ")
                hits += float(value) if name.startswith("vllm:prefix_cache_hits_total") else 0.0
                queries += float(value) if name.startswith("vllm:prefix_cache_queries_total") else 0.0
    assert hits > 0.6 * queries
