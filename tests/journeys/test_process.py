"""The command as an operator runs it: start, exit codes, signals, with and without a file, a classifier, a backend."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from scripted import Client, chat, connected, eventually, soon

PATH = "/v1/chat/completions"
_STARTED = re.compile(r"listening on http://[^:]+:(\d+) \(admin (\d+)\)")


@dataclass
class Served:
    """`prelude-proxy serve` in a process of its own."""

    process: asyncio.subprocess.Process
    port: int
    admin_port: int
    lines: list[str] = field(default_factory=list)

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    async def exit_code(self, limit_s: float = 10.0) -> int:
        return await soon(self.process.wait(), limit_s)

    async def admin(self, path: str) -> int:
        async with connected(self.admin_port) as client:
            await client.request("GET", path)
            return (await client.answer()).status


@asynccontextmanager
async def serving(*arguments: str, **environment: str):
    """A started proxy; killed at the end if it is still there."""
    command = [sys.executable, "-m", "prelude_proxy.cli", "serve", "--host", "127.0.0.1", "--port", "0"]
    process = await asyncio.create_subprocess_exec(
        *command, "--admin-port", "0", *arguments, stderr=asyncio.subprocess.PIPE, env={**os.environ, **environment}
    )
    served = Served(process, 0, 0)
    started = asyncio.get_running_loop().create_future()

    async def follow() -> None:
        assert process.stderr is not None
        async for raw in process.stderr:
            line = raw.decode()
            served.lines.append(line)
            if (match := _STARTED.search(line)) and not started.done():
                started.set_result((int(match[1]), int(match[2])))
        if not started.done():
            started.set_exception(RuntimeError("".join(served.lines)))

    following = asyncio.ensure_future(follow())
    try:
        served.port, served.admin_port = await soon(started, 30)
        yield served
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await following
        assert "Traceback" not in "".join(served.lines)


async def run(*arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and standard error of a `serve` that is not expected to start."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "prelude_proxy.cli", "serve", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    _, stderr = await soon(process.communicate(), 30)
    assert process.returncode is not None
    return process.returncode, stderr.decode()


async def wait_up(served: Served) -> None:
    async with asyncio.timeout(10):
        while await served.admin("/readyz") != 200:  # noqa: ASYNC110  it is in another process
            await asyncio.sleep(0.02)


async def wait_held(served: Served, count: int) -> None:
    async with asyncio.timeout(20), connected(served.admin_port) as client:
        held = None
        while held != count:
            await client.request("GET", "/status")
            held = (await client.answer()).json()["queue"]["held"]


async def ask(client: Client, text: str, **more) -> None:
    await client.request("POST", PATH, chat(text, **more))


async def test_sigterm_finishes_what_is_held_and_what_streams(backend, stack):
    """After SIGTERM /readyz is red and no new work is taken; held and streaming requests end well; exit code 0."""
    config = [f"--backend={backend.url}", "--no-classifier", "--backend-kind=openai", "--admission=class-aware"]
    async with serving(*config, "--shutdown-grace-period-secs=20") as served:
        await wait_up(served)
        async with connected(served.port) as streaming, connected(served.port) as idle, connected(served.port) as new:
            await idle.request("GET", "/health")
            await idle.answer()
            await new.send(b"POST /v1/chat/completions HTTP/1.1\r\n")  # on its way when the signal comes
            await ask(streaming, "streaming", stream=True)
            stream = await backend.next()
            await stream.start()
            await stream.token("before")
            await streaming.head()
            await streaming.chunk()
            clients = [await stack.enter_async_context(connected(served.port)) for _ in range(40)]
            for client in clients:
                await ask(client, "waiting")
            running = [await backend.next() for _ in range(15)]  # the window without telemetry is 16
            await wait_held(served, 25)
            served.signal()
            await eventually(lambda: any("draining" in line for line in served.lines))
            assert await served.admin("/readyz") == 503
            assert await served.admin("/healthz") == 200
            with pytest.raises(OSError):  # noqa: PT011
                await asyncio.open_connection("127.0.0.1", served.port)
            assert await idle.ended() == b"", "an idle connection is closed: its next request goes elsewhere"
            body = b'{"model":"tiny","messages":[{"role":"user","content":"late"}]}'
            await new.send(b"host: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
            late = await new.answer()
            assert (late.status, late.header("x-prelude-dropped-reason")) == (503, "rejected-shutting-down")
            assert late.header("connection") == "close"
            for exchange in running:
                await exchange.reply(body=b'"served"')
            for _ in range(25):
                await (await backend.next()).reply(body=b'"served"')
            for client in clients:
                assert (await client.answer()).status == 200
                client.leave()
            await stream.token("after")
            await stream.end()
            rest = await streaming.rest()
            assert b"after" in rest
            assert rest.endswith(b"data: [DONE]\n\n")
        assert await served.exit_code() == 0


async def test_second_signal_ends_the_grace_period(backend):
    """A second SIGTERM cuts what is left; a cut stream still says so, and the exit code is 0."""
    async with serving(f"--backend={backend.url}", "--no-classifier", "--backend-kind=openai") as served:
        await wait_up(served)
        async with connected(served.port) as client:
            await ask(client, "endless", stream=True)
            stream = await backend.next()
            await stream.start()
            await stream.token()
            await client.head()
            served.signal()
            await eventually(lambda: any("draining" in line for line in served.lines))
            assert served.process.returncode is None
            served.signal()
            body = await client.rest()
            assert b'"error"' in body
            assert body.endswith(b"data: [DONE]\n\n")
            await stream.aborted()
        assert await served.exit_code(3) == 0


async def test_grace_period_ends_by_itself(backend):
    """What does not finish within the grace period is cut; SIGINT is treated like SIGTERM."""
    flags = ["--no-classifier", "--backend-kind=openai", "--shutdown-grace-period-secs=0.2"]
    async with serving(f"--backend={backend.url}", *flags) as served:
        await wait_up(served)
        async with connected(served.port) as client:
            await ask(client, "endless")
            exchange = await backend.next()
            served.signal(signal.SIGINT)
            await exchange.aborted(3)
            assert (await client.answer()).status == 502
        assert await served.exit_code(3) == 0


async def test_retries_of_accepted_requests_survive_the_shutdown(make_proxy, backend):
    """A request that was let in and is held again because the engine is full is not turned away by the shutdown."""
    proxy = await make_proxy(backend, timeouts={"shutdown_grace_s": 10})
    client = await proxy.client()
    await ask(client, "accepted")
    exchange = await backend.next()
    proxy.app.dispatcher.admission.shut_down()
    await exchange.reply(503, b'{"error":{"message":"queue full"}}')
    await (await backend.next()).reply(body=b'"served"')
    assert (await client.answer()).status == 200


async def test_starts_without_a_backend_and_with_the_classifier():
    """With the shipped model and nobody to forward to it starts, is alive, not ready, and stops at once."""
    async with serving() as served:
        assert await served.admin("/healthz") == 200
        assert await served.admin("/readyz") == 503
        assert await served.admin("/status") == 200
        served.signal()
        assert await served.exit_code() == 0


async def test_bad_configuration_is_exit_code_2_with_the_reason(tmp_path):
    """A mistake stops the start with path and reason, no traceback, code 2."""
    path = tmp_path / "config.yaml"
    path.write_text("pools: [{backend: []}]")
    code, stderr = await run(f"--config={path}", "--port=0", "--admin-port=0")
    assert code == 2
    assert "pools[0].backend: unknown key; did you mean 'backends'?" in stderr
    assert "Traceback" not in stderr


async def test_taken_port_is_exit_code_2(backend):
    """So does a port that somebody has."""
    code, stderr = await run("--host=127.0.0.1", f"--port={backend.port}", "--admin-port=0", "--no-classifier")
    assert code == 2
    assert f"cannot listen on 127.0.0.1:{backend.port}" in stderr
    assert "Traceback" not in stderr


async def test_stopped_backend_hangs_nobody_but_its_own(make_backend, tmp_path):
    """A real process under SIGSTOP during connect, prefill and stream: its requests time out, others are served."""
    engine = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "prelude_proxy.engine", "--kind", "vllm", "--port", "0", "--profile", "llama8b-l4"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert engine.stdout is not None
    url = (await soon(engine.stdout.readline(), 30)).decode().split()[-1]
    other = await make_backend(lambda exchange: exchange.reply(200, b"other"))
    path = tmp_path / "config.yaml"
    path.write_text(
        f"""
pools: [{{backends: [{{url: "{url}"}}, {{url: "{other.url}", kind: openai}}]}}]
telemetry: {{health_interval_s: 0.05, health_timeout_s: 0.2}}
timeouts: {{first_byte_s: 0.6, idle_s: 0.6, connect_s: 0.5}}
classifier: {{enabled: false}}
rules: [{{name: mine, when: {{stream: true}}, class: deep}}]
"""
    )
    try:
        async with serving(f"--config={path}") as served:
            await wait_up(served)
            async with connected(served.port) as streaming:
                while True:  # until it goes to the engine, not to the other
                    await ask(streaming, "s", stream=True, max_tokens=4000, vllm_xargs={"target_len": 4000})
                    head = await streaming.head()
                    if head.header("content-type") != "application/json":
                        break
                    await streaming.reader.readexactly(int(head.header("content-length")))
                await streaming.chunk()
                engine.send_signal(signal.SIGSTOP)
                body = await streaming.rest()
                assert b'"code":504' in body
                for _ in range(5):
                    async with connected(served.port) as client:
                        await ask(client, "x")
                        assert (await soon(client.answer(), 2)).status in {200, 504}
                async with connected(served.port) as client:  # by now it is known to be down
                    await ask(client, "x")
                    assert (await soon(client.answer(), 2)).body == b"other"
                engine.send_signal(signal.SIGCONT)
    finally:
        engine.send_signal(signal.SIGCONT)
        engine.kill()
        await engine.wait()


async def test_drain_without_work_is_immediate():
    """An idle proxy, with idle keep-alive connections, stops at once."""
    async with serving("--no-classifier") as served, connected(served.port) as idle:
        await idle.request("GET", "/health")
        await idle.answer()
        served.signal()
        assert await served.exit_code(2) == 0
