"""Telemetry that hangs, is absent, lies or grows stale never stops dispatch and never opens the flood-gates."""

from __future__ import annotations

import asyncio

import pytest
from scripted import chat, eventually, soon, vllm_page

PATH = "/v1/chat/completions"


async def served(proxy, count: int) -> None:
    answers = await soon(asyncio.gather(*(proxy.post(chat()) for _ in range(count))))
    assert [answer.status for answer in answers] == [200] * count
    await proxy.idle()


async def quickly(exchange) -> None:
    await asyncio.sleep(0.002)
    await exchange.reply(body=b"{}")


@pytest.mark.parametrize("fault", ["absent", "hangs", "garbage", "empty", "zeros", "negative"])
async def test_bad_telemetry_never_stops_dispatch(make_proxy, make_backend, fault):
    """Whatever /metrics does, 60 requests at once are all served, in a bounded number at a time."""
    pages = {
        "garbage": b"\xff\x00 not metrics {\n" * 100,
        "empty": b"",
        "zeros": vllm_page(running=0, waiting=0, kv=0.0),
        "negative": vllm_page(running=-3, waiting=-1, kv=-1.0),
    }
    backend = await make_backend(quickly, metrics=pages.get(fault))
    if fault == "hangs":
        backend.hangs = {b"/metrics"}
    proxy = await make_proxy(backend, kind="vllm", window=0, telemetry={"timeout_s": 0.05, "stale_after_s": 0.1})
    await served(proxy, 60)
    await served(proxy, 60)


async def test_hung_metrics_delay_no_other_backend(make_proxy, make_backend):
    """Scrapes of one backend go on while another's hang."""
    good = await make_backend(quickly, metrics=vllm_page(running=0, waiting=0))
    hung = await make_backend(quickly, hangs={b"/metrics"})
    proxy = await make_proxy(good, hung, kind="vllm", telemetry={"timeout_s": 5})
    before = good.num_scrapes
    await eventually(lambda: good.num_scrapes >= before + 5)
    await served(proxy, 10)


@pytest.mark.parametrize("fault", ["absent", "hangs"])
async def test_stale_telemetry_keeps_the_window(make_proxy, make_backend, fault):
    """When /metrics goes away after it said much was possible, the last window stays and work goes on without it."""
    backend = await make_backend(quickly, metrics=vllm_page(running=2, waiting=0))
    proxy = await make_proxy(backend, kind="vllm", window=0, telemetry={"stale_after_s": 0.1, "timeout_s": 0.05})
    await eventually(lambda: backend.num_scrapes > 2)
    if fault == "hangs":
        backend.hangs = {b"/metrics"}
    backend.metrics = None
    engine = proxy.app.engines[backend.name]
    await eventually(lambda: not engine.has_telemetry)
    window = engine.slots.window.size
    assert window >= 1
    await served(proxy, 40)


async def test_burst_between_two_scrapes_does_not_flood_one_engine(make_proxy, make_backend):
    """The own ledger decides: a burst within one scrape interval never exceeds the window nor piles on one engine."""
    backends = [await make_backend(metrics=vllm_page(running=0, waiting=0)) for _ in range(2)]
    proxy = await make_proxy(*backends, kind="vllm", window=4, telemetry={"interval_s": 30, "stale_after_s": 60})
    clients = await asyncio.gather(*(proxy.client() for _ in range(40)))
    await asyncio.gather(*(client.request("POST", PATH, chat()) for client in clients))
    await proxy.held(32)
    await eventually(lambda: sum(len(backend.requests) for backend in backends) == 8)
    assert [len(backend.requests) for backend in backends] == [4, 4]


async def test_window_is_never_exceeded(make_proxy, make_backend):
    """Under a storm of arrivals, departures and finishes no backend ever holds more than its window."""
    most = {"now": 0, "ever": 0}

    async def counted(exchange) -> None:
        most["now"] += 1
        most["ever"] = max(most["ever"], most["now"])
        await asyncio.sleep(0.003)
        most["now"] -= 1
        await exchange.reply()

    backend = await make_backend(counted)
    proxy = await make_proxy(backend, window=5)
    leavers = [await proxy.client() for _ in range(20)]
    for client in leavers:
        await client.request("POST", PATH, chat())
    rush = asyncio.gather(*(proxy.post(chat()) for _ in range(60)))
    for client in leavers[::2]:
        client.leave()
    await soon(rush)
    await proxy.idle()
    assert most["ever"] <= 5 + 10  # a request whose client left may still be winding down at the backend
    slots = proxy.app.engines[backend.name].slots
    assert slots.num_in_use == 0
    assert slots.outstanding_work == 0


async def test_saturated_engine_shrinks_its_window(make_proxy, make_backend):
    """An engine that reports a queue of its own gets no more until that is gone."""
    backend = await make_backend(metrics=vllm_page(running=3, waiting=0))
    proxy = await make_proxy(backend, kind="vllm", window=0, admission={"initial_window": 8})
    clients = [await proxy.client() for _ in range(12)]
    for client in clients:
        await client.request("POST", PATH, chat())
    await eventually(lambda: len(backend.requests) >= 8)
    backend.metrics = vllm_page(running=3, waiting=5)
    slots = proxy.app.engines[backend.name].slots
    await eventually(lambda: slots.window.size <= 4)
