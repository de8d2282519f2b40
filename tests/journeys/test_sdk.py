"""The official `openai` client against the proxy and an embedded engine: what users run, not what we think they do."""

from __future__ import annotations

import asyncio
import threading

import openai
import pytest
from scripted import eventually, soon

MESSAGES = [{"role": "user", "content": "Say something."}]
LENGTH = {"vllm_xargs": {"target_len": 8}}


@pytest.fixture
async def fleet(make_proxy, make_engine):
    """A proxy in front of two embedded engines."""
    urls = [await make_engine(), await make_engine()]
    proxy = await make_proxy(wait=False, pools=[{"backends": [{"url": url} for url in urls]}])
    await proxy.up()
    return proxy


@pytest.fixture
async def client(fleet):
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{fleet.port}/v1", api_key="k", max_retries=0) as opened:
        yield opened


async def test_chat(client):
    """A plain chat completion with usage."""
    answer = await client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=50, extra_body=LENGTH)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens == 8


async def test_chat_stream(client, fleet):
    """A streamed one with usage at the end, several at once."""

    async def one() -> tuple[int, int]:
        stream = await client.chat.completions.create(
            model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}, extra_body=LENGTH
        )
        pieces, usage = 0, None
        async for event in stream:
            pieces += bool(event.choices and event.choices[0].delta.content)
            usage = event.usage or usage
        return pieces, usage.completion_tokens

    results = await soon(asyncio.gather(*(one() for _ in range(10))))
    assert {tokens for _, tokens in results} == {8}
    assert all(pieces >= 1 for pieces, _ in results)
    await fleet.idle()


async def test_completions(client):
    """The older API, streamed and not."""
    answer = await client.completions.create(model="tiny", prompt="Once", max_tokens=5)
    assert answer.choices[0].text
    stream = await client.completions.create(model="tiny", prompt="Once", max_tokens=5, stream=True)
    assert [event async for event in stream]


async def test_models(client):
    """The SDK's own listing."""
    assert [model.id async for model in client.models.list()] == ["tiny"]


async def test_embeddings_of_a_generative_model_are_the_engines_clear_error(client):
    """What the engine does not offer stays the engine's 404."""
    with pytest.raises(openai.NotFoundError):
        await client.embeddings.create(model="tiny", input="x")


async def test_leaving_a_stream_aborts_it(client, fleet):
    """Closing a stream early frees its slot at once."""
    stream = await client.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, max_tokens=8000, extra_body={"vllm_xargs": {"target_len": 8000}}
    )
    async for _ in stream:
        break
    await stream.close()
    await fleet.idle()


async def test_error_classes(client, make_proxy, backend):
    """Each refusal raises the SDK's class for it, with our message."""
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        await client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        await client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=-1)
    proxy = await make_proxy(
        backend, api_key="right", window=1, classes={"standard": {"queue_size": 0}}, limits={"max_body_bytes": 2000}
    )
    url = f"http://127.0.0.1:{proxy.port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.chat.completions.create(model="tiny", messages=MESSAGES)
    async with openai.AsyncOpenAI(base_url=url, api_key="right", max_retries=0) as friend:
        with pytest.raises(openai.APIStatusError) as too_large:
            await friend.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * 3000}])
        assert too_large.value.status_code == 413
        first = asyncio.ensure_future(friend.chat.completions.create(model="tiny", messages=MESSAGES))
        exchange = await backend.next()
        with pytest.raises(openai.RateLimitError) as limited:
            await friend.chat.completions.create(model="tiny", messages=MESSAGES)
        assert limited.value.response.headers["retry-after"].isdigit()
        await exchange.reply(500, b'{"error":{"message":"boom"}}')
        with pytest.raises(openai.InternalServerError):
            await first


async def test_broken_stream_raises(proxy, backend):
    """A stream that breaks is an exception for the user of the SDK, not a short answer."""
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{proxy.port}/v1", api_key="k") as client:
        asking = asyncio.ensure_future(client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True))
        exchange = await backend.next()
        await exchange.start()
        await exchange.token("one")
        stream = await asking
        exchange.close()
        seen = []
        with pytest.raises(openai.APIError):  # noqa: PT012
            async for event in stream:
                seen.append(event.choices[0].delta.content)  # noqa: PERF401  what came before the error counts
        assert seen == ["one"]


async def test_sdk_retries_after_a_shed(make_proxy, backend):
    """The SDK's own retry honours our `retry-after` and succeeds."""
    proxy = await make_proxy(backend, window=1, classes={"standard": {"queue_size": 0}})
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{proxy.port}/v1", api_key="k", max_retries=3) as client:
        first = asyncio.ensure_future(client.chat.completions.create(model="tiny", messages=MESSAGES))
        exchange = await backend.next()
        second = asyncio.ensure_future(client.chat.completions.create(model="tiny", messages=MESSAGES))
        await proxy.finished(1)  # the second was shed
        body = b'{"id":"1","object":"chat.completion","created":1,"model":"tiny","choices":[]}'
        await exchange.reply(body=body)
        await first
        await (await backend.next()).reply(body=body)
        await second


def ask_in_thread(port: int, results: list) -> None:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0) as client:
        answer = client.chat.completions.create(model="tiny", messages=MESSAGES, extra_body=LENGTH)
        results.append(answer.usage.completion_tokens)
        stream = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True, extra_body=LENGTH)
        results.append(sum(1 for event in stream if event.choices))


async def test_sync_client(fleet):
    """The synchronous client, in a thread as in an ordinary script, streamed and not."""
    results: list[int] = []
    thread = threading.Thread(target=ask_in_thread, args=(fleet.port, results))
    thread.start()
    await eventually(lambda: not thread.is_alive())
    assert results[0] == 8
    assert results[1] > 1
