"""No engine is up: requests wait a bounded time for one, then get 503; the proxy itself stays up all along."""

from __future__ import annotations

import asyncio

import pytest
from scripted import Backend, chat, eventually, soon

PATH = "/v1/chat/completions"


async def absent_backend() -> Backend:
    """A backend at a port where nobody listens yet."""
    backend = Backend()
    await backend.start()
    await backend.stop()
    return backend


@pytest.mark.parametrize("configured", [False, True], ids=["no backend configured", "backend down"])
@pytest.mark.parametrize("path", [PATH, "/v1/messages", "/generate"])
async def test_503_with_retry_after_when_the_cold_start_wait_is_over(make_proxy, configured, path):
    """Held for `cold_start_wait_s`, then 503 in the dialect with `retry-after` and the reason."""
    backends = [await absent_backend()] if configured else []
    proxy = await make_proxy(*backends, wait=False, admission={"cold_start_wait_s": 0.1})
    answer = await soon(proxy.post({**chat(), "inputs": "x"}, path=path), 3)
    assert answer.status == 503
    assert int(answer.header("retry-after")) >= 1
    assert answer.header("x-prelude-dropped-reason") == "rejected-no-endpoints"
    assert "error" in answer.json()
    [record] = await proxy.finished()
    assert record["outcome"] == "no_endpoints"
    assert record["queue_ms"] >= 100
    await proxy.idle()


async def test_cold_start_wait_holds_for_later_requests_too(make_proxy):
    """The wait is each request's own: the second one gets all of it as well."""
    proxy = await make_proxy(await absent_backend(), wait=False, admission={"cold_start_wait_s": 0.1})
    await proxy.post(chat())
    await proxy.post(chat())
    assert all(record["queue_ms"] >= 95 for record in await proxy.finished(2))


@pytest.mark.both_loops
async def test_proxy_starts_without_a_backend_and_serves_as_soon_as_one_appears(make_proxy, stack):
    """A held request is served by the first backend that comes up; nothing has to be restarted."""
    backend = await absent_backend()
    proxy = await make_proxy(backend, wait=False, admission={"cold_start_wait_s": 30})
    assert (await proxy.admin("/healthz")).status == 200
    assert (await proxy.admin("/readyz")).status == 503
    assert (await proxy.ask("GET", "/health")).status == 503
    client = await proxy.client()
    await client.request("POST", PATH, chat())
    await proxy.held(1)
    stack.push_async_callback(backend.stop)
    await backend.start(backend.port)
    await (await backend.next()).reply()
    assert (await client.answer()).status == 200
    assert (await proxy.admin("/readyz")).status == 200
    assert (await proxy.ask("GET", "/health")).status == 200


async def test_last_backend_going_away_starts_the_wait(make_proxy, backend):
    """When the only backend dies under held requests, they wait for it and no longer than the bound."""
    proxy = await make_proxy(backend, window=1, admission={"cold_start_wait_s": 0.2}, health={"unhealthy_after": 1})
    first, second = await proxy.client(), await proxy.client()
    await first.request("POST", PATH, chat())
    await backend.next()
    await second.request("POST", PATH, chat())
    await proxy.held(1)
    await backend.stop()
    assert (await first.answer()).status == 502
    answer = await soon(second.answer(), 3)
    assert (answer.status, answer.header("x-prelude-dropped-reason")) == (503, "rejected-no-endpoints")


async def test_get_without_a_backend_is_a_503_at_once(make_proxy):
    """What is not admitted is not held either."""
    proxy = await make_proxy(await absent_backend(), wait=False)
    answer = await proxy.ask("GET", "/version")
    assert answer.status == 503
    assert answer.header("retry-after")


async def test_model_that_no_backend_of_its_pool_has_waits_for_one(make_proxy, backend):
    """A declared model whose only backend is down is a 503 after the wait, never a 404."""
    away = await absent_backend()
    proxy = await make_proxy(
        wait=False,
        admission={"cold_start_wait_s": 0.1},
        pools=[
            {"name": "a", "models": ["tiny"], "kind": "openai", "backends": [{"url": backend.url}]},
            {"name": "b", "models": ["big"], "kind": "openai", "backends": [{"url": away.url}]},
        ],
    )
    await proxy.up(backend)
    assert (await proxy.post(chat() | {"model": "big"})).status == 503
    client = await proxy.client()
    await client.request("POST", PATH, chat())
    await (await backend.next()).reply()
    assert (await client.answer()).status == 200


async def test_full_queue_is_a_429_with_retry_after(make_proxy, backend):
    """Beyond the bounds of its class a request is turned away at once, in count and in bytes."""
    proxy = await make_proxy(backend, window=1, classes={"standard": {"queue_size": 1}, "deep": {"queue_bytes": 200}})
    running, held = await proxy.client(), await proxy.client()
    await running.request("POST", PATH, chat())
    await backend.next()
    await held.request("POST", PATH, chat())
    await proxy.held(1)
    for refused in (
        await proxy.post(chat()),
        await proxy.post(chat("long " * 100), ("x-prelude-class", "deep")),
    ):
        assert refused.status == 429
        assert refused.header("x-prelude-dropped-reason") == "rejected-saturated"
        assert 1 <= int(refused.header("retry-after")) <= 60
    assert (await proxy.metrics())['prelude_proxy_admit_total{class="standard",outcome="rejected"}'] == 1


async def test_waiting_is_never_silent(make_proxy, backend):
    """Held requests show in the metrics while they are held, with their bytes."""
    proxy = await make_proxy(backend, window=1)
    clients = [await proxy.client() for _ in range(4)]
    for client in clients:
        await client.request("POST", PATH, chat())
    await proxy.held(3)
    metrics = await proxy.metrics()
    assert metrics['prelude_proxy_queue_depth{class="standard"}'] == 3
    assert metrics["prelude_proxy_queue_bytes"] == 3 * len(b'{"model": "tiny", "messages": []}') + 3 * 36
    assert metrics[f'prelude_proxy_inflight{{backend="{backend.name}",class="standard"}}'] == 1
    for _ in clients:
        await (await backend.next()).reply()
    for client in clients:
        assert (await client.answer()).status == 200
    metrics = await proxy.metrics()
    assert metrics['prelude_proxy_queue_depth{class="standard"}'] == 0
    assert metrics["prelude_proxy_queue_bytes"] == 0
    await eventually(lambda: not proxy.app.num_in_flight())
    await asyncio.sleep(0)
