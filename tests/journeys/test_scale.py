"""Two thousand requests held while a thousand streams run, in one proxy process; and what a held request costs."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

import pytest
from scripted import Backend, Client, chat, connected, soon
from test_process import serving, wait_up

PATH = "/v1/chat/completions"
NUM_HELD = 2000
NUM_STREAMS = 1000
BODY_BYTES = 4096
BOUND_BYTES = 16 * 1024


@pytest.fixture(autouse=True)
def _many_files():
    """Each connection is a file on both of its sides, here both in this process or a child of it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4 * (NUM_HELD + NUM_STREAMS):
        pytest.skip("the system allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


async def connect(port: int, count: int) -> list[Client]:
    pairs = []
    while len(pairs) < count:
        more = min(200, count - len(pairs))
        pairs += await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(more)))
    return [Client(*pair) for pair in pairs]


async def held_now(served) -> int:
    async with connected(served.admin_port) as client:
        await client.request("GET", "/status")
        return (await client.answer()).json()["queue"]["held"]


@pytest.mark.timeout(90)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
async def test_two_thousand_held_and_a_thousand_streams(make_backend, tmp_path):
    """All are served, none fails, and a held request costs its body and at most 16 KiB."""
    one: Backend = await make_backend(models=["one"])
    many: Backend = await make_backend(models=["many"])
    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
pools:
  - {{name: one, models: [one], kind: openai, backends: [{{url: "{one.url}", window: 1}}]}}
  - {{name: many, models: [many], kind: openai, backends: [{{url: "{many.url}", window: {NUM_STREAMS}}}]}}
logging: {{access: false}}
"""
    )
    async with serving(f"--config={config}") as served:
        await wait_up(served)
        before = resident_bytes(served.process.pid)
        clients = await connect(served.port, NUM_HELD + 1)
        body = chat("x" * BODY_BYTES) | {"model": "one"}
        await clients[0].request("POST", PATH, body)
        first = await one.next()
        for client in clients[1:]:
            await client.request("POST", PATH, body)
        async with asyncio.timeout(20):
            while await held_now(served) < NUM_HELD:  # noqa: ASYNC110  it is in another process
                await asyncio.sleep(0.02)
        each = (resident_bytes(served.process.pid) - before) / NUM_HELD
        print(f"memory per held request: {each:.0f} bytes with a body of {BODY_BYTES}")  # noqa: T201  for the docs: pytest -s
        assert each <= BODY_BYTES + BOUND_BYTES

        streams = await connect(served.port, NUM_STREAMS)
        for client in streams:
            await client.request("POST", PATH, chat(stream=True) | {"model": "many"})
        exchanges = [await many.next() for _ in streams]
        for exchange in exchanges:
            await exchange.start()
            await exchange.token()
        assert await soon(served.admin("/healthz"), 1.0) == 200
        for client in streams:
            assert (await client.head()).status == 200  # all thousand have begun
        for exchange in exchanges:
            await exchange.token()
            await exchange.end()
        for client in streams:
            assert (await client.rest()).endswith(b"data: [DONE]\n\n")
            client.leave()

        one.script = lambda exchange: exchange.reply(body=b'"served"')
        await first.reply()
        while one.num_unplayed():
            await (await one.next()).reply()
        for client in clients:
            assert (await client.answer()).status == 200
            client.leave()
        served.signal()
        assert await served.exit_code() == 0
