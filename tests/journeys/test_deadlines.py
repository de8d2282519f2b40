"""Deadlines and orders inside a class, as clients and engines see them."""

from __future__ import annotations

import asyncio

import pytest
from scripted import chat, soon

PATH = "/v1/chat/completions"
DEADLINE = "x-prelude-deadline-ms"


async def order_at(proxy, backend, requests) -> list[str]:
    """Occupy the one slot, have `requests` (name, body, headers) held in turn; the names as the backend gets them."""
    running = await proxy.client()
    await running.request("POST", PATH, chat("running"))
    first = await backend.next()
    for count, (name, body, headers) in enumerate(requests, start=1):
        client = await proxy.client()
        await client.request("POST", PATH, {**chat(name), **body}, headers)
        await proxy.held(count)
    order = []
    await first.reply()
    for _ in requests:
        exchange = await backend.next()
        order.append(next(name for name, *_ in requests if b'"%s"' % name.encode() in exchange.request.body))
        await exchange.reply()
    return order


async def drain_slowly(proxy, backend, count: int, pause_s: float, body: dict, path: str) -> None:
    """Let the proxy see `count` held requests served, one every `pause_s` at best; one more runs and is left."""
    for _ in range(count + 1):
        client = await proxy.client()
        await client.request("POST", path, body)
    await proxy.held(count)
    for _ in range(count):
        exchange = await backend.next()
        await asyncio.sleep(pause_s)
        await exchange.reply()
    await backend.next()
    await proxy.held(0)


async def test_a_deadline_that_passes_while_held_sheds(make_proxy, backend):
    """It is answered 429 with the reason, counted as expired, and the engine never sees it."""
    proxy = await make_proxy(backend, window=1)
    running = await proxy.client()
    await running.request("POST", PATH, chat())
    await backend.next()
    answer = await soon(proxy.post(chat(stream=True), (DEADLINE, "50")))
    assert answer.status == 429
    assert answer.header("x-prelude-dropped-reason") == "rejected-ttl-expired"
    assert int(answer.header("retry-after")) >= 1
    assert answer.json()["error"]["code"] == 429
    assert (await proxy.finished())[0]["outcome"] == "expired"
    metrics = await proxy.metrics()
    assert metrics['prelude_proxy_admit_total{class="standard",outcome="expired"}'] == 1
    assert len(backend.requests) == 1


@pytest.mark.parametrize("path", [PATH, "/v1/messages", "/generate"])
async def test_a_deadline_that_cannot_be_met_is_refused_on_arrival(make_proxy, backend, path):
    """With a second of work before it, a request that is due in a fifth of one is not held at all."""
    proxy = await make_proxy(backend, window=1)
    body = {"inputs": "x"} if path == "/generate" else chat(max_tokens=300)
    await drain_slowly(proxy, backend, 6, 0.05, body, path)
    for count in range(1, 21):
        client = await proxy.client()
        await client.request("POST", path, body)
        await proxy.held(count)
    answer = await soon(proxy.post(body, (DEADLINE, "200"), path=path))
    assert answer.status == 429
    assert answer.header("x-prelude-dropped-reason") == "rejected-ttl-expired"
    assert int(answer.header("retry-after")) >= 1
    assert "deadline" in answer.body.decode()
    record = (await proxy.finished(7))[-1]
    assert record["outcome"] == "unmeetable"
    metrics = await proxy.metrics()
    assert metrics['prelude_proxy_admit_total{class="standard",outcome="unmeetable"}'] == 1
    assert proxy.num_held == 20


async def test_earliest_deadline_first_at_the_backend(make_proxy, backend):
    """A class ordered by deadline serves who is due first; who says nothing goes by the class's own wish."""
    proxy = await make_proxy(backend, window=1, classes={"standard": {"order": "deadline", "ttft_slo_ms": 20_000}})
    requests = [
        ("patient", {}, [(DEADLINE, "25000")]),
        ("silent", {}, []),
        ("hurried", {}, [(DEADLINE, "10000")]),
        ("wishing", {}, [("x-llm-d-slo-ttft-ms", "15000")]),
    ]
    assert await order_at(proxy, backend, requests) == ["hurried", "wishing", "silent", "patient"]


async def test_shortest_first_at_the_backend(make_proxy, backend):
    """The default of `standard`: fewest expected tokens first; `fcfs` is one line of configuration away."""
    requests = [("long", {"max_tokens": 400}, []), ("short", {"max_tokens": 70}, [])]
    proxy = await make_proxy(backend, window=1)
    assert await order_at(proxy, backend, requests) == ["short", "long"]


async def test_first_come_first_served_at_the_backend(make_proxy, backend):
    """With `order: fcfs` length does not matter."""
    requests = [("long", {"max_tokens": 400}, []), ("short", {"max_tokens": 70}, [])]
    proxy = await make_proxy(backend, window=1, classes={"standard": {"order": "fcfs"}})
    assert await order_at(proxy, backend, requests) == ["long", "short"]


@pytest.mark.parametrize("shed", [True, False])
async def test_an_slo_sheds_only_where_the_class_says_so(make_proxy, backend, shed):
    """`ttft_slo_ms` alone is a wish; with `shed` it is a deadline for every request of the class."""
    proxy = await make_proxy(backend, window=1, classes={"standard": {"ttft_slo_ms": 40, "shed": shed}})
    running = await proxy.client()
    await running.request("POST", PATH, chat())
    first = await backend.next()
    client = await proxy.client()
    await client.request("POST", PATH, chat())
    if shed:
        assert (await client.answer()).header("x-prelude-dropped-reason") == "rejected-ttl-expired"
        return
    await proxy.held(1)
    await asyncio.sleep(0.1)
    await first.reply()
    await (await backend.next()).reply()
    assert (await client.answer()).status == 200
