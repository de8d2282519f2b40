"""The engine's HTTP side, over real sockets."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import openai
import orjson
import pytest

from prelude_proxy.core.domain import EngineKind
from prelude_proxy.engine.model import EngineConfig, SchedulingPolicy
from prelude_proxy.engine.server import EngineServer, ServerConfig, tgi_config


@pytest.fixture
def serve(profile):
    """An engine that listens on a free port for the time of the block, and a client session for it."""

    @asynccontextmanager
    async def running(kind=EngineKind.VLLM, **limits):
        options = {name: limits.pop(name) for name in ("gauge_lag_s", "seed") if name in limits}
        engine = EngineConfig(**({"max_num_seqs": 4, "max_model_len": 4096} | limits))
        if kind is EngineKind.TGI:
            engine = tgi_config(engine)
        server = EngineServer(ServerConfig(kind=kind, engine=engine, profile=profile, port=0, **options))
        listening = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(server.run(started=listening.set_result))
        try:
            async with aiohttp.ClientSession(await listening) as client:
                yield client
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    return running


def chat(target_len: int, **more) -> dict:
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello there"}],
        "vllm_xargs": {"target_len": target_len},
        **more,
    }


def events_of(body: bytes) -> list:
    lines = [line[5:].strip() for line in body.split(b"\n\n") if line]
    return [line.decode() if line == b"[DONE]" else orjson.loads(line) for line in lines]


async def gauges(client) -> dict[str, float]:
    async with client.get("/metrics") as response:
        lines = [line for line in (await response.text()).splitlines() if not line.startswith("#")]
    return {line.split("{")[0].split(" ")[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


async def wait_until_running(client, count: int, name: str = "vllm:num_requests_running") -> None:
    while (await gauges(client))[name] != count:  # noqa: ASYNC110 - the gauge is behind HTTP
        await asyncio.sleep(0.005)


async def test_a_stream_has_role_tokens_reason_usage_and_done(serve):
    """Events in vLLM's order; usage is exact; the stop token writes no text."""
    body = chat(4, max_tokens=50, stream=True, stream_options={"include_usage": True})
    async with serve() as client, client.post("/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = events_of(await response.read())
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events[-1] == "[DONE]"
    assert events[-2]["usage"] == {"prompt_tokens": 7, "total_tokens": 11, "completion_tokens": 4}
    assert events[-3]["choices"][0]["finish_reason"] == "stop"
    assert events[-3]["choices"][0]["delta"] == {"content": ""}
    text = "".join(event["choices"][0]["delta"]["content"] for event in events[:-2])
    assert len(text.split()) == 3


async def test_the_whole_answer_is_the_stream_put_together(serve):
    """Streaming or not, the same request gives the same text and counts."""
    async with serve() as client:
        async with client.post("/v1/chat/completions", json=chat(20, stream=True)) as response:
            events = events_of(await response.read())
        async with client.post("/v1/chat/completions", json=chat(20)) as response:
            whole = await response.json()
    streamed = "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1])
    assert whole["choices"][0]["message"]["content"] == streamed
    assert whole["usage"]["completion_tokens"] == 20


async def test_max_tokens_cuts_with_reason_length(serve):
    """The bound wins over the true length, in completions too."""
    body = {"model": "tiny", "prompt": "Hello there", "max_tokens": 3, "vllm_xargs": {"target_len": 40}}
    async with serve() as client, client.post("/v1/completions", json=body) as response:
        answer = await response.json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == len(answer["choices"][0]["text"].split()) == 3


async def test_every_choice_is_decoded(serve):
    """`n` sequences run, and the usage counts them all."""
    async with serve() as client:
        async with client.post("/v1/chat/completions", json=chat(5, n=3)) as response:
            whole = await response.json()
        async with client.post("/v1/chat/completions", json=chat(5, n=3, stream=True)) as response:
            events = events_of(await response.read())
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert whole["usage"]["completion_tokens"] == 15
    ends = [event["choices"][0]["index"] for event in events[:-1] if event["choices"][0]["finish_reason"]]
    assert sorted(ends) == [0, 1, 2]


async def test_an_openai_client_can_talk_to_it(serve):
    """The official client reads stream, answer, model list and errors."""
    async with serve() as client:
        base_url = str(client._base_url / "v1")
        async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as official:
            models = [model.id async for model in await official.models.list()]
            messages = [{"role": "user", "content": "What is the capital of Peru?"}]
            stream = await official.chat.completions.create(model="tiny", messages=messages, stream=True)
            pieces = [chunk.choices[0].delta.content async for chunk in stream]
            with pytest.raises(openai.NotFoundError, match="does not exist"):
                await official.chat.completions.create(model="nope", messages=messages)
    assert models == ["tiny"]
    assert len(pieces) > 2


async def test_lengths_are_drawn_from_prompt_and_seed(serve):
    """Without a target the same prompt and seed give the same length, and a proof is longer than a translation."""

    async def length(client, prompt: str) -> int:
        body = {"model": "tiny", "prompt": prompt}
        async with client.post("/v1/completions", json=body) as response:
            return (await response.json())["usage"]["completion_tokens"]

    async with serve(seed=1) as one, serve(seed=1) as same:
        short, long = "Translate 'bread' to French.", "Prove step by step that the sum of two even numbers is even."
        assert await length(one, short) == await length(same, short)
        assert await length(one, short) < await length(one, long)


async def test_a_client_that_leaves_frees_its_slot(serve):
    """Closing the connection aborts the request: the one behind it runs."""
    async with serve(max_num_seqs=1) as client:
        leaver = asyncio.create_task(client.post("/v1/chat/completions", json=chat(4000)))
        await wait_until_running(client, 1)
        waiter = asyncio.create_task(client.post("/v1/chat/completions", json=chat(3)))
        leaver.cancel()
        async with await waiter as response:
            assert response.status == 200
            await response.read()
        await wait_until_running(client, 0)


async def test_a_client_that_leaves_mid_stream_frees_its_slot(serve):
    """The same when tokens are already flowing."""
    async with serve(max_num_seqs=1) as client:
        response = await client.post("/v1/chat/completions", json=chat(4000, stream=True))
        await response.content.readuntil(b"\n\n")
        response.close()
        await wait_until_running(client, 0)


async def test_the_head_of_a_stream_comes_before_its_first_token(serve):
    """As with the engines, 200 says only that the request is queued."""
    async with serve(max_num_seqs=1) as client:
        running = await client.post("/v1/chat/completions", json=chat(4000, stream=True))
        queued = await client.post("/v1/chat/completions", json=chat(5, stream=True))
        assert queued.status == 200
        assert (await gauges(client))["vllm:num_requests_waiting"] == 1
        running.close()
        assert (await queued.read()).endswith(b"data: [DONE]\n\n")


async def test_vllm_sheds_with_503_and_no_retry_after(serve):
    """Above max_num_queued_reqs: the engine's own error, counted."""
    async with serve(max_num_queued_reqs=1) as client:
        running = await client.post("/v1/chat/completions", json=chat(4000, stream=True))
        async with client.post("/v1/chat/completions", json=chat(3)) as response:
            assert response.status == 503
            assert "retry-after" not in response.headers
            assert (await response.json())["error"]["code"] == 503
        assert (await gauges(client))["vllm:admission_rejections_total"] == 0  # the last label set: tokens
        running.close()


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/v1/chat/completions", b'{"model": "tiny"', 400, "not valid JSON"),
        ("/v1/chat/completions", b'{"model": "tiny"}', 400, "messages"),
        ("/v1/completions", b'{"model": "tiny", "prompt": "x", "max_tokens": 0}', 400, "at least 1"),
        ("/v1/completions", b'{"model": "tiny", "prompt": "x", "max_tokens": 9000}', 400, "4096"),
        ("/v1/completions", b'{"model": "other", "prompt": "x"}', 404, "does not exist"),
        ("/v1/completions", b'{"model": "tiny", "prompt": "x", "priority": "high"}', 400, "priority"),
        ("/v1/embeddings", b'{"model": "tiny", "input": "x"}', 404, "Not Found"),
    ],
)
async def test_bad_requests_get_the_engines_errors(serve, path, body, status, error):
    """A 4xx that says why, in vLLM's shape; the route of embeddings does not exist on a generative model."""
    async with serve() as client, client.post(path, data=body) as response:
        assert response.status == status
        assert error in await response.text()


async def test_the_priority_header_wins_over_the_body(serve):
    """Lower is more urgent: the urgent one overtakes in the engine's queue."""
    async with serve(max_num_seqs=1, policy=SchedulingPolicy.PRIORITY) as client:
        running = await client.post("/v1/chat/completions", json=chat(4000, stream=True))
        ended: list[str] = []

        async def ask(name: str, priority: str) -> None:
            body = chat(30, priority=5)
            async with client.post(
                "/v1/chat/completions", json=body, headers={"X-Vllm-Priority": priority}
            ) as response:
                await response.read()
                ended.append(name)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ask("low", "7"))
            await wait_until_running(client, 1, "vllm:num_requests_waiting")
            tasks.create_task(ask("high", "-1"))
            await wait_until_running(client, 2, "vllm:num_requests_waiting")
            running.close()
    assert ended == ["high", "low"]


async def test_gauges_lag_after_the_start_and_counters_do_not(serve):
    """With a lag the gauges read 0 under load, as a real engine's do after a cold start."""
    async with serve(gauge_lag_s=60.0) as client:
        response = await client.post("/v1/chat/completions", json=chat(4000, stream=True))
        await response.content.readuntil(b"\n\n")
        values = await gauges(client)
        response.close()
    assert values["vllm:num_requests_running"] == 0
    assert values["vllm:generation_tokens_total"] > 0


async def test_tgi_streams_and_answers(serve):
    """`data:` without a space, no [DONE]; the last event carries text and count; `/` answers with a list."""
    body = {"inputs": "Hello there", "parameters": {"max_new_tokens": 9, "target_len": 4, "details": True}}
    async with serve(EngineKind.TGI) as client:
        async with client.post("/generate_stream", json=body) as response:
            raw = await response.read()
        async with client.post("/generate", json=body) as response:
            whole = await response.json()
        async with client.post("/", json=body) as response:
            listed = await response.json()
        async with client.get("/info") as response:
            info = await response.json()
    events = events_of(raw)
    assert raw.startswith(b'data:{"index":1,')
    assert [event["generated_text"] for event in events[:-1]] == [None] * 3
    assert events[-1]["generated_text"] == whole["generated_text"] == listed[0]["generated_text"]
    assert events[-1]["details"]["generated_tokens"] == whole["details"]["generated_tokens"] == 4
    assert info["max_concurrent_requests"] == 128


async def test_tgi_sheds_with_429_and_refuses_with_422(serve):
    """Overload and validation in TGI's own words; its gauges under its own names."""
    async with serve(EngineKind.TGI, max_num_queued_reqs=1) as client:
        body = {"inputs": "Hello", "parameters": {"max_new_tokens": 3000, "target_len": 3000}}
        running = await client.post("/generate_stream", json=body)
        await wait_until_running(client, 1, "tgi_batch_current_size")
        async with client.post("/generate", json=body) as response:
            assert response.status == 429
            assert await response.json() == {"error": "Model is overloaded", "error_type": "overloaded"}
        running.close()
        async with client.post("/generate", json={"inputs": "x", "parameters": {"max_new_tokens": 0}}) as response:
            assert response.status == 422
            assert (await response.json())["error_type"] == "validation"


async def test_tgi_and_sglang_speak_openai_too(serve):
    """Any model name is served by TGI; SGLang has vLLM's manners and its own metrics."""
    any_model = chat(3) | {"model": "whatever"}
    async with serve(EngineKind.TGI) as client, client.post("/v1/chat/completions", json=any_model) as response:
        assert (await response.json())["usage"]["completion_tokens"] == 3
    async with serve(EngineKind.SGLANG) as client:
        async with client.post("/v1/chat/completions", json=chat(3)) as response:
            assert response.status == 200
        assert "sglang:num_running_reqs" in await gauges(client)


async def test_a_stopped_process_does_not_rush(serve, profile):
    """After a stall of the event loop the engine goes on where it stood: no burst of the steps it missed."""
    async with serve() as client:
        response = await client.post("/v1/chat/completions", json=chat(3000, stream=True))
        await response.content.readuntil(b"\n\n")
        before = (await gauges(client))["vllm:generation_tokens_total"]
        time.sleep(1.0)  # noqa: ASYNC251 - the stall
        after = (await gauges(client))["vllm:generation_tokens_total"]
        response.close()
    assert after - before < 1.0 / profile.fixed_s / 2


async def test_pages_of_a_vllm(serve):
    """Version, health, ping and load answer as the real ones."""
    async with serve() as client:
        for path in ("/health", "/ping"):
            async with client.get(path) as response:
                assert (response.status, await response.read()) == (200, b"")
        async with client.get("/version") as response:
            assert "version" in await response.json()
        async with client.get("/load") as response:
            assert await response.json() == {"server_load": 0}


def test_tgi_reserves_output_and_bounds_concurrency():
    """TGI's defaults: no preemption, 128 concurrent requests unless set."""
    config = EngineConfig()
    assert tgi_config(config) == replace(config, reserve_output=True, max_num_queued_reqs=128)
    assert tgi_config(replace(config, max_num_queued_reqs=5)).max_num_queued_reqs == 5
