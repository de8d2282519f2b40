"""Who decides a request's class, pool and patience: rules, the client's headers, its tenant; and what it is told."""

from __future__ import annotations

import asyncio

import pytest
from scripted import chat, eventually, soon

PATH = "/v1/chat/completions"


async def serve(proxy, backend, body, *headers, path=PATH):
    """Ask, have the backend say yes, and return what the client got and what the backend saw."""
    client = await proxy.client()
    await client.request("POST", path, body, headers)
    exchange = await backend.next()
    await exchange.reply()
    return await client.answer(), exchange.request


async def class_of(proxy, backend, body, *headers, path=PATH) -> str:
    return (await serve(proxy, backend, body, *headers, path=path))[0].header("x-prelude-class")


async def test_rules_decide_the_class(make_proxy, backend):
    """The first rule that matches sets the class, whatever else would have."""
    rules = [
        {"name": "night", "when": {"headers": {"x-job": "nightly-*"}}, "class": "deep"},
        {"name": "tools", "when": {"tools": True}, "class": "fast"},
        {"name": "big", "when": {"prompt_tokens": {"min": 500}}, "class": "deep"},
        {"name": "tiny-answers", "when": {"max_tokens": {"max": 8}}, "class": "fast"},
        {"name": "thinks", "when": {"reasoning": True}, "class": "deep"},
    ]
    proxy = await make_proxy(backend, rules=rules)
    assert await class_of(proxy, backend, chat()) == "standard"
    assert await class_of(proxy, backend, chat(tools=[{"type": "function"}]), ("X-Job", "nightly-7")) == "deep"
    assert await class_of(proxy, backend, chat(tools=[{"type": "function"}])) == "fast"
    assert await class_of(proxy, backend, chat("word " * 600)) == "deep"
    assert await class_of(proxy, backend, chat(max_tokens=8)) == "fast"
    assert await class_of(proxy, backend, chat(chat_template_kwargs={"enable_thinking": True})) == "deep"
    reasons = [record["reason"] for record in await proxy.finished(6)]
    assert reasons == ["default", "rule:night", "rule:tools", "rule:big", "rule:tiny-answers", "rule:thinks"]


async def test_the_doubtful_go_with_the_short_while_these_have_room(make_proxy, backend):
    """Served, counted and reported as `fast`, judged by what the forecast said; with many held it is `standard`."""
    rules = [{"name": "short", "when": {"headers": {"x-job": "short"}}, "class": "fast"}]
    proxy = await make_proxy(backend, window=1, rules=rules, classifier={"enabled": True})
    doubtful = chat("Who was Ada Lovelace?", max_tokens=2048)
    names = [spec.name for spec in proxy.app.judge.classes]
    clients = [await proxy.client() for _ in range(19)]
    for client in clients[:18]:
        await client.request("POST", PATH, chat(), [("x-job", "short")])
    await proxy.held(17)
    await clients[18].request("POST", PATH, doubtful)
    await proxy.held(18)
    assert proxy.app.dispatcher.admission.num_held_of(names.index("standard")) == 1
    for client in clients:
        client.leave()
    await proxy.idle()

    await backend.next()  # of those who left
    client = await proxy.client()
    await client.request("POST", PATH, doubtful)
    await (await backend.next()).reply(body=b'{"usage":{"prompt_tokens":9,"completion_tokens":7}}')
    assert (await client.answer()).header("x-prelude-class") == "fast"
    assert (await proxy.finished(20))[-1]["reason"] == "doubt"
    metrics = await proxy.metrics()
    assert metrics['prelude_proxy_classified_total{class="fast",reason="doubt"}'] == 1
    confused = [(name, count) for name, count in metrics.items() if "class_confusion" in name]
    assert confused == [('prelude_proxy_class_confusion_total{actual="fast",predicted="standard"}', 1)]


async def test_rules_decide_the_pool(make_proxy, make_backend):
    """A rule can send a request to another pool than its model's."""
    everyday, special = await make_backend(), await make_backend()
    proxy = await make_proxy(
        wait=False,
        pools=[
            {"name": "everyday", "kind": "openai", "backends": [{"url": everyday.url}]},
            {"name": "special", "kind": "openai", "models": ["none"], "backends": [{"url": special.url}]},
        ],
        rules=[{"name": "vip", "when": {"tenant": "vip"}, "pool": "special"}],
    )
    await proxy.up(everyday, special)
    await serve(proxy, everyday, chat())
    await serve(proxy, special, chat(), ("x-tenant-id", "vip"))
    assert (len(everyday.requests), len(special.requests)) == (1, 1)


@pytest.mark.parametrize(("path", "key"), [(PATH, "error"), ("/generate", "error"), ("/v1/messages", "error")])
async def test_rules_reject(make_proxy, backend, path, key):
    """A rule can refuse with its own message and status, in the caller's dialect."""
    rules = [{"name": "closed", "when": {"model": "t*"}, "reject": "not today", "status": 451}]
    proxy = await make_proxy(backend, rules=rules)
    answer = await proxy.post({**chat(), "inputs": "x"}, path=path)
    assert answer.status == 451
    assert "not today" in answer.body.decode()
    assert key in answer.json()
    assert not backend.requests
    assert (await proxy.finished())[0]["outcome"] == "rule_rejected"


async def test_structure_makes_oneshot(proxy, backend):
    """Embeddings, one token, fixed choices: certain from the request itself."""
    assert await class_of(proxy, backend, {"model": "tiny", "input": "x"}, path="/v1/embeddings") == "oneshot"
    assert await class_of(proxy, backend, chat(max_tokens=1)) == "oneshot"
    assert await class_of(proxy, backend, chat(guided_choice=["a", "b"])) == "oneshot"
    assert await class_of(proxy, backend, {"model": "tiny", "text_1": "a", "text_2": "b"}, path="/score") == "oneshot"


async def test_class_header_only_lowers(proxy, backend):
    """A client can ask to wait longer, never to go first; what is no class is ignored."""
    for asked, got in (("deep", "deep"), ("DEEP ", "deep"), ("fast", "standard"), ("oneshot", "standard"), ("x", None)):
        assert await class_of(proxy, backend, chat(), ("x-prelude-class", asked)) == (got or "standard")


async def test_trusted_class_header_decides(make_proxy, backend):
    """With `trust_class_header` it may also raise."""
    proxy = await make_proxy(backend, admission={"trust_class_header": True})
    assert await class_of(proxy, backend, chat(), ("x-prelude-class", "fast")) == "fast"


async def test_trust_can_be_a_tenants(make_proxy, backend, monkeypatch):
    """A tenant known by its key may raise its class, others may not; its name is in the record."""
    monkeypatch.setenv("KEY_OF_A", "secret-a")
    tenants = [{"name": "a", "api_key_env": "KEY_OF_A", "trust_class_header": True}]
    proxy = await make_proxy(backend, tenants=tenants)
    raised = ("x-prelude-class", "fast")
    assert await class_of(proxy, backend, chat(), raised, ("authorization", "Bearer secret-a")) == "fast"
    assert await class_of(proxy, backend, chat(), raised, ("authorization", "Bearer other")) == "standard"
    assert await class_of(proxy, backend, chat(), raised, ("x-tenant-id", "a")) == "standard"
    names = [record["tenant"] for record in await proxy.finished(3)]
    assert names[0] == "a"
    assert "other" not in names[1]


async def test_no_queue_means_now_or_never(make_proxy, backend):
    """With `x-prelude-no-queue` a request is served at once or turned away at once."""
    proxy = await make_proxy(backend, window=1)
    answer, _ = await serve(proxy, backend, chat(), ("x-prelude-no-queue", "1"))
    assert answer.status == 200
    busy = await proxy.client()
    await busy.request("POST", PATH, chat())
    await backend.next()
    refused = await soon(proxy.post(chat(), ("x-prelude-no-queue", "1")), 1)
    assert refused.status == 429
    assert refused.header("retry-after")
    patient = await proxy.client()
    await patient.request("POST", PATH, chat(), [("x-prelude-no-queue", "false")])
    await proxy.held(1)


async def test_deadline_bounds_the_wait(make_proxy, backend):
    """`x-prelude-deadline-ms` shortens the time held, and cannot lengthen it."""
    proxy = await make_proxy(backend, window=1, classes={"standard": {"queue_timeout_s": 0.15}})
    busy = await proxy.client()
    await busy.request("POST", PATH, chat())
    await backend.next()
    short, long = await asyncio.gather(
        proxy.post(chat(), ("x-prelude-deadline-ms", "40")), proxy.post(chat(), ("x-prelude-deadline-ms", "60000"))
    )
    for answer in (short, long):
        assert answer.status == 429
        assert answer.header("x-prelude-dropped-reason") == "rejected-ttl-expired"
    waits = sorted(record["queue_ms"] for record in await proxy.finished(2))
    assert 35 <= waits[0] < waits[1]
    assert waits[1] >= 145


async def test_priority_inside_the_queue(make_proxy, backend):
    """With one slot, the urgent class goes first though it came last."""
    proxy = await make_proxy(backend, window=1, admission={"trust_class_header": True})
    clients = [await proxy.client() for _ in range(4)]
    await clients[0].request("POST", PATH, chat("running"))
    running = await backend.next()
    for index, name in enumerate(("deep", "standard", "fast"), start=1):
        await clients[index].request("POST", PATH, chat(name), [("x-prelude-class", name)])
        await proxy.held(index)
    order = []
    await running.reply()
    for _ in range(3):
        exchange = await backend.next()
        order.append(next(name for name in ("deep", "standard", "fast") if name.encode() in exchange.request.body))
        await exchange.reply()
    assert order == ["fast", "standard", "deep"]


async def test_batch_class_does_not_starve(make_proxy, make_backend):
    """Under a steady stream of urgent work a deep request is served once it has aged."""

    async def slowly(exchange):
        await asyncio.sleep(0.01)
        await exchange.reply(200, b"deep" if b"deep" in exchange.request.body else b"fast")

    backend = await make_backend(slowly)
    proxy = await make_proxy(
        backend, window=1, admission={"trust_class_header": True}, classes={"deep": {"aging_s": 0.2}}
    )
    stop = asyncio.Event()

    async def flood() -> None:
        client = await proxy.client()
        while not stop.is_set():
            await client.request("POST", PATH, chat("fast"), [("x-prelude-class", "fast")])
            await client.answer()

    floods = [asyncio.ensure_future(flood()) for _ in range(4)]
    await proxy.held(3)
    answer = await soon(proxy.post(chat("deep"), ("x-prelude-class", "deep")), 3)
    stop.set()
    await soon(asyncio.gather(*floods))
    assert answer.status == 200
    assert float(answer.header("x-prelude-queue-ms")) >= 150


async def test_response_headers(proxy, backend):
    """The answer says its class, wait, backend, attempts and timing, and carries the client's request id."""
    answer, seen = await serve(proxy, backend, chat(), ("x-request-id", "abc-1"))
    assert answer.header("x-request-id") == "abc-1"
    assert seen.header(b"x-request-id") == b"abc-1"
    assert answer.header("x-prelude-class") == "standard"
    assert answer.header("x-prelude-backend") == backend.name
    assert answer.header("x-prelude-attempts") == "1"
    assert float(answer.header("x-prelude-queue-ms")) >= 0
    timing = answer.header("server-timing")
    assert [part.split(";")[0] for part in timing.split(", ")] == ["classify", "queue", "upstream"]
    answer, seen = await serve(proxy, backend, chat(), ("x-correlation-id", "corr"))
    assert answer.header("x-request-id") == "corr"
    answer, _ = await serve(proxy, backend, chat(), ("x-request-id", "has space"))
    assert len(answer.header("x-request-id")) == 32
    assert (await proxy.post(b"[]")).header("x-request-id")


async def test_response_headers_can_be_switched_off(make_proxy, backend):
    """Backend and timing can be kept from clients."""
    proxy = await make_proxy(backend, headers={"backend": False, "timing": False})
    answer, _ = await serve(proxy, backend, chat())
    names = {name.lower() for name, _ in answer.headers}
    assert not names & {b"x-prelude-backend", b"x-prelude-queue-ms", b"server-timing"}
    assert answer.header("x-prelude-class")


async def test_pool_key_replaces_the_clients(make_proxy, backend, monkeypatch):
    """With `api_key_env` the backend sees the pool's key and not the client's."""
    monkeypatch.setenv("POOL_KEY", "inner")
    pools = [{"kind": "openai", "api_key_env": "POOL_KEY", "backends": [{"url": backend.url}]}]
    proxy = await make_proxy(backend, pools=pools)
    _, seen = await serve(proxy, backend, chat(), ("authorization", "Bearer outer"), ("x-api-key", "outer"))
    assert [value for name, value in seen.headers if name.lower() == b"authorization"] == [b"Bearer inner"]


async def test_in_engine_priority_header(make_proxy, backend):
    """With `in_engine_priority` vLLM is told the class; the body stays as it was."""
    pools = [{"kind": "vllm", "in_engine_priority": True, "backends": [{"url": backend.url}]}]
    proxy = await make_proxy(backend, pools=pools)
    _, seen = await serve(proxy, backend, chat(), ("x-prelude-class", "deep"), ("X-Vllm-Priority", "-99"))
    assert [value for name, value in seen.headers if name.lower() == b"x-vllm-priority"] == [b"3"]


async def test_base_path_of_a_backend_is_kept(make_proxy, backend):
    """A backend URL with a path gets it before every path of a request."""
    pools = [{"kind": "openai", "backends": [{"url": backend.url + "/base"}]}]
    proxy = await make_proxy(wait=False, pools=pools)
    client = await proxy.client()
    slots = next(iter(proxy.app.engines.values())).slots
    await eventually(lambda: backend.requests)
    slots.health.probe_succeeded()
    proxy.app.dispatcher.changed(slots)
    await client.request("POST", PATH, chat())
    while (exchange := await backend.next()).request.method == b"GET":
        await exchange.reply(200, b"{}")
    assert exchange.request.target == b"/base" + PATH.encode()
    await exchange.reply()
    assert (await client.answer()).status == 200
