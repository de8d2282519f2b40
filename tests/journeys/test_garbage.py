"""What a request takes is freed when it ends: nothing is left to the collector, whose pauses every client feels."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter

import pytest
from scripted import chat

PATH = "/v1/chat/completions"
NUM_REQUESTS = 20


async def served(proxy, exchange_of) -> None:
    for _ in range(NUM_REQUESTS):
        await exchange_of()
    await proxy.finished(NUM_REQUESTS)
    await proxy.idle()


@pytest.mark.parametrize("kind", ["whole", "stream", "held", "refused", "left"])
async def test_a_request_is_no_cyclic_garbage(make_proxy, backend, kind):
    """Answered, streamed, after having been held, turned away, or left by its client."""
    proxy = await make_proxy(backend, window=1)

    async def whole() -> None:
        async with asyncio.timeout(5):
            asking = asyncio.ensure_future(proxy.post(chat()))
            await (await backend.next()).reply()
            assert (await asking).status == 200

    async def stream() -> None:
        async with asyncio.timeout(5):
            asking = asyncio.ensure_future(proxy.post(chat(stream=True)))
            exchange = await backend.next()
            await exchange.start()
            for _ in range(3):
                await exchange.token()
            await exchange.end()
            assert (await asking).body.endswith(b"data: [DONE]\n\n")

    async def held() -> None:
        async with asyncio.timeout(5):
            asking = [asyncio.ensure_future(proxy.post(chat())) for _ in range(2)]
            first = await backend.next()
            await proxy.held(1)
            await first.reply()
            await (await backend.next()).reply()
            await asyncio.gather(*asking)

    async def refused() -> None:
        assert (await proxy.post({"messages": 1})).status == 400

    async def left() -> None:
        async with asyncio.timeout(5):
            first, second = await proxy.client(), await proxy.client()
            await first.request("POST", PATH, chat(stream=True))
            exchange = await backend.next()
            await second.request("POST", PATH, chat())
            await proxy.held(1)
            second.leave()
            await proxy.held(0)
            first.leave()
            await exchange.aborted(1)

    await served(proxy, locals()[kind])
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        await served(proxy, locals()[kind])
        gc.collect()
        left = Counter(type(each).__name__ for each in gc.garbage if type(each).__module__.startswith("prelude_proxy"))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    of_a_request = {name: count for name, count in left.items() if count >= NUM_REQUESTS and name != "_Connection"}
    assert not of_a_request
