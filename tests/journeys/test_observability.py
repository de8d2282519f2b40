"""What an operator sees: one record a request, metrics of the documented names with counts that add up, /status."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime

from scripted import chat, eventually, soon, vllm_page

PATH = "/v1/chat/completions"

COUNTERS = ("requests", "admit", "retries", "promotions", "upstream_aborts")
HISTOGRAMS = (
    "ttft_seconds",
    "itl_seconds",
    "request_duration_seconds",
    "queue_wait_seconds",
    "classification_seconds",
    "predicted_tokens",
    "actual_tokens",
    "overhead_seconds",
)
GAUGES = ("queue_depth", "queue_bytes", "inflight", "window", "backend_up", "breaker_state", "telemetry_age_seconds")


async def stream_answer(exchange, tokens: int) -> None:
    await exchange.start()
    for _ in range(tokens):
        await exchange.token("tok")
    usage = json.dumps({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": tokens}})
    await exchange.chunk(f"data: {usage}\n\n".encode())
    await exchange.end()


async def test_all_documented_metrics_are_there(make_proxy, backend):
    """Every name of the conventions is on the page, even before anything happened, in the type it should have."""
    backend.metrics = vllm_page(running=0, waiting=0)
    proxy = await make_proxy(backend, kind="vllm")
    await eventually(lambda: backend.num_scrapes >= 2)
    page = (await proxy.admin("/metrics")).body.decode()
    for name in COUNTERS:
        assert f"# TYPE prelude_proxy_{name}_total counter" in page, name
    for name in HISTOGRAMS:
        assert f"# TYPE prelude_proxy_{name} histogram" in page, name
    for name in GAUGES:
        assert f"# TYPE prelude_proxy_{name} gauge" in page, name
    assert "vllm:" not in page
    metrics = await proxy.metrics()
    assert metrics[f'prelude_proxy_backend_up{{backend="{backend.name}"}}'] == 1
    assert metrics[f'prelude_proxy_window{{backend="{backend.name}"}}'] == 8
    assert metrics[f'prelude_proxy_breaker_state{{backend="{backend.name}"}}'] == 0
    assert 0 <= metrics[f'prelude_proxy_telemetry_age_seconds{{backend="{backend.name}"}}'] < 5


async def test_counts_add_up(proxy, backend):
    """Two streams, a plain answer, a bad request and an engine error: each counted once where it belongs."""
    for tokens in (5, 200):
        client = await proxy.client()
        await client.request("POST", PATH, chat(stream=True))
        await stream_answer(await backend.next(), tokens)
        await client.answer()
    client = await proxy.client()
    await client.request("POST", PATH, chat())
    await (await backend.next()).reply(body=b'{"usage":{"prompt_tokens":3,"completion_tokens":7}}')
    await client.answer()
    await client.request("POST", PATH, chat())
    await (await backend.next()).reply(500)
    await client.answer()
    await proxy.post(b"[]")
    metrics = await proxy.metrics()

    def total(outcome: str, name: str = backend.name, model: str = "tiny", klass: str = "standard") -> float:
        labels = f'backend="{name}",class="{klass}",model="{model}",outcome="{outcome}"'
        return metrics[f"prelude_proxy_requests_total{{{labels}}}"]

    assert total("ok") == 3
    assert total("upstream_5xx") == 1
    assert total("bad_request", "", "", "") == 1
    of_standard = '{class="standard"}'
    assert metrics['prelude_proxy_admit_total{class="standard",outcome="dispatched"}'] == 4
    assert metrics["prelude_proxy_ttft_seconds_count" + of_standard] == 2
    assert metrics["prelude_proxy_request_duration_seconds_count" + of_standard] == 3
    assert metrics["prelude_proxy_actual_tokens_sum" + of_standard] == 5 + 200 + 7
    assert metrics["prelude_proxy_actual_tokens_count" + of_standard] == 3
    assert metrics["prelude_proxy_itl_seconds_count" + of_standard] == 4 + 199
    assert metrics["prelude_proxy_queue_wait_seconds_count" + of_standard] == 4
    assert metrics[f'prelude_proxy_inflight{{backend="{backend.name}",class="standard"}}'] == 0
    assert not [name for name, value in metrics.items() if value < 0]


async def test_gets_count_as_requests_but_not_as_admissions(proxy, backend):
    """What passes without admission does not blur the figures of admission."""
    client = await proxy.client()
    await client.request("GET", "/version")
    await (await backend.next()).reply()
    await client.answer()
    metrics = await proxy.metrics()
    assert not [name for name in metrics if name.startswith("prelude_proxy_admit_total")]
    assert metrics['prelude_proxy_queue_wait_seconds_count{class="standard"}'] == 0


async def test_model_labels_are_capped(make_proxy, backend):
    """Names that come from clients cannot make series without bound."""
    proxy = await make_proxy(backend, limits={"max_label_values": 3})
    for index in range(8):
        await proxy.post(chat() | {"model": f"made-up-{index}"})
    metrics = await proxy.metrics()
    models = {name.split('model="')[1].split('"')[0] for name in metrics if name.startswith("prelude_proxy_requests_")}
    assert len(models) == 4
    assert "other" in models


async def test_access_records(proxy, backend):
    """One JSON record a request with what happened, and none of the prompt or the answer."""
    client = await proxy.client()
    secret = "the-secret-prompt"
    await client.request("POST", PATH, chat(secret, stream=True, user=secret), [("x-request-id", "r-1")])
    await stream_answer(await backend.next(), 5)
    await client.answer()
    await proxy.post(b'{"model":"tiny","messages":[{"role":"user","content":"the-secret-prompt')
    ok, bad = await proxy.finished(2)
    assert ok["id"] == "r-1"
    assert (ok["status"], ok["outcome"], ok["class"], ok["reason"]) == (200, "ok", "standard", "default")
    assert (ok["model"], ok["backend"], ok["attempts"], ok["stream"]) == ("tiny", backend.name, 1, True)
    assert (ok["output_tokens"], ok["method"], ok["path"]) == (5, "POST", PATH)
    assert ok["request_bytes"] == len(json.dumps(chat(secret, stream=True, user=secret)))
    assert ok["response_bytes"] > 100
    assert 0 <= ok["queue_ms"] <= ok["ttft_ms"] <= ok["duration_ms"]
    assert datetime.fromisoformat(ok["ts"]).tzinfo is not None
    assert (bad["status"], bad["outcome"]) == (400, "bad_request")
    assert bad["error"]
    text = json.dumps([ok, bad])
    assert secret not in text
    assert "tok" not in text.replace("tokens", "")


async def test_prompts_are_logged_only_when_asked_for(make_proxy, backend):
    """`logging.prompts` puts the body into the record."""
    proxy = await make_proxy(backend, logging={"prompts": True, "format": "json"})
    client = await proxy.client()
    await client.request("POST", PATH, chat("visible"))
    await (await backend.next()).reply()
    await client.answer()
    assert "visible" in (await proxy.finished())[0]["prompt"]


async def test_status_shows_what_decides(make_proxy, backend):
    """/status: queues, classes, permits, windows and backends as they are now."""
    backend.metrics = vllm_page(running=3, waiting=1, kv=0.25)
    proxy = await make_proxy(backend, kind="vllm", window=2)
    clients = [await proxy.client() for _ in range(5)]
    for client in clients:
        await client.request("POST", PATH, chat())
    await proxy.held(3)
    await eventually(lambda: backend.num_scrapes >= 2)
    status = (await proxy.admin("/status")).json()
    assert status["ready"] is True
    assert status["draining"] is False
    assert status["queue"]["held"] == 3
    assert status["queue"]["bytes"] > 0
    assert status["classes"]["standard"]["held"] == 3
    assert status["classes"]["standard"]["inflight"] == 2
    assert set(status["classes"]) == {"oneshot", "fast", "standard", "deep"}
    [view] = status["pools"]["default"]
    assert (view["name"], view["window"], view["breaker"], view["available"]) == (backend.name, 2, "closed", True)
    assert view["inflight"]["standard"] == 2
    assert view["telemetry"]["running"] == 3
    assert view["telemetry"]["waiting"] == 1
    assert view["models"] == ["tiny"]
    assert status["classifier"] is None


async def test_admin_pages_exist_and_others_do_not(proxy):
    """The admin port answers its own pages and nothing of the data port."""
    assert (await proxy.admin("/healthz")).body == b"ok\n"
    assert (await proxy.admin("/readyz")).status == 200
    assert (await proxy.admin("/metrics")).header("content-type").startswith("text/plain; version=")
    assert (await proxy.admin("/v1/chat/completions")).status == 404


async def test_liveness_answers_while_a_thousand_connections_wait(make_proxy, backend):
    """With 1,000 requests held, the probe and the metrics still answer at once."""
    proxy = await make_proxy(backend, window=1)
    clients = await asyncio.gather(*(proxy.client() for _ in range(1000)))
    await asyncio.gather(*(client.request("POST", PATH, chat()) for client in clients))
    await proxy.held(999)
    assert (await soon(proxy.admin("/healthz"), 1.0)).status == 200
    assert (await soon(proxy.admin("/metrics"), 1.0)).status == 200
    for client in clients:
        client.leave()
    await proxy.idle(5)
