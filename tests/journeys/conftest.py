"""The proxy as it runs in production, on free ports, in the test's event loop; nothing is mocked."""

from __future__ import annotations

import asyncio
import copy
import io
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path

import orjson
import pytest
import uvloop

from prelude_proxy.app import App
from prelude_proxy.config import build_config
from prelude_proxy.core.domain import EngineKind
from prelude_proxy.engine.model import PROFILES, EngineConfig
from prelude_proxy.engine.server import EngineServer, ServerConfig, tgi_config

sys.path.insert(0, str(Path(__file__).parent))

from scripted import LIMIT_S, Answer, Backend, Client, Script, connected, eventually

_BASE = {
    "listen": {"host": "127.0.0.1", "port": 0},
    "admin": {"host": "127.0.0.1", "port": 0},
    "classifier": {"enabled": False},  # loading the trees takes longer than most of these tests
    "telemetry": {
        "interval_s": 0.03,
        "steady_interval_s": 0.09,
        "timeout_s": 0.2,
        "health_interval_s": 0.03,
        "health_timeout_s": 0.3,
        "discovery_interval_s": 0.1,
    },
    "timeouts": {"shutdown_grace_s": 0.2},
    "logging": {"format": "json"},
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "both_loops: run on uvloop and on asyncio's own loop")
    config.addinivalue_line("markers", "logs_errors: an ERROR in the log is expected")


def pytest_asyncio_loop_factories(config, item):
    """Production runs on uvloop; what depends on the loop runs on both."""
    factories = {"uvloop": uvloop.new_event_loop}
    if item.get_closest_marker("both_loops"):
        factories["asyncio"] = asyncio.new_event_loop
    return factories


@pytest.fixture(autouse=True)
def _no_crash_is_logged(request, caplog):
    """No journey may end in a traceback: not in the proxy, not in the server below it, not in the event loop."""
    caplog.set_level(logging.INFO)
    yield
    if not request.node.get_closest_marker("logs_errors"):
        crashes = [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR or r.exc_info]
        assert not crashes, [r.getMessage() for r in crashes]


class Proxy:
    """A running proxy and ways to look at it."""

    def __init__(self, app: App, stack: AsyncExitStack) -> None:
        self.app = app
        self.port = app.port
        self._stack = stack
        self._log = io.StringIO()
        if app._access_log is not None:
            app._access_log._stream = self._log

    async def client(self) -> Client:
        """A new connection, closed at the end of the test."""
        return await self._stack.enter_async_context(connected(self.port))

    async def ask(
        self, method: str, path: str, body: bytes | dict | None = None, headers: Iterable[tuple[str, str]] = ()
    ) -> Answer:
        """One request on a connection of its own."""
        async with connected(self.port) as client:
            await client.request(method, path, body, headers)
            return await client.answer(has_body=method != "HEAD")

    async def post(self, body: bytes | dict, *headers: tuple[str, str], path: str = "/v1/chat/completions") -> Answer:
        """One POST on a connection of its own."""
        return await self.ask("POST", path, body, headers)

    async def admin(self, path: str) -> Answer:
        """A page of the admin port."""
        async with connected(self.app.admin_port) as client:
            await client.request("GET", path)
            return await client.answer()

    async def metrics(self) -> dict[str, float]:
        """Sample (with labels as they are printed) → value."""
        page = (await self.admin("/metrics")).body.decode()
        lines = [line.rpartition(" ") for line in page.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    def records(self) -> list[dict]:
        """The access records so far."""
        assert self.app._access_log is not None
        self.app._access_log.flush()
        return [orjson.loads(line) for line in self._log.getvalue().splitlines()]

    async def finished(self, count: int = 1) -> list[dict]:
        """The access records, once there are `count`."""
        await eventually(lambda: len(self.records()) >= count)
        return self.records()

    @property
    def num_held(self) -> int:
        return self.app.dispatcher.admission.num_held

    async def held(self, count: int) -> None:
        """Return when exactly `count` requests are held."""
        await eventually(lambda: self.num_held == count)

    async def idle(self, limit_s: float = 1.0) -> None:
        """Return when nothing is held or out, and no backend connection is busy: no slot leaked."""
        admission = self.app.dispatcher.admission
        engines = self.app.engines.values()
        await eventually(
            lambda: (
                not (
                    admission.num_held
                    or admission.num_held_bytes
                    or self.app.num_in_flight()
                    or any(engine.upstream.num_busy for engine in engines)
                    or any(engine.slots.outstanding_work for engine in engines)
                )
            ),
            limit_s,
        )

    async def up(self, *backends: Backend, limit_s: float = LIMIT_S) -> None:
        """Return when these backends are available and their models known (any, if none is named)."""
        slots = {name: engine.slots for name, engine in self.app.engines.items()}
        wanted = [backend.name for backend in backends] or list(slots)
        lists_models = {backend.name: backend.models is not None for backend in backends}
        await eventually(
            lambda: all(
                slots[name].available and (slots[name].models is not None or not lists_models.get(name, True))
                for name in wanted
            ),
            limit_s,
        )


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """What a test opens is closed at its end, last first."""
    async with AsyncExitStack() as opened:
        yield opened


@pytest.fixture
def make_backend(stack) -> Callable[..., Awaitable[Backend]]:
    """Starts a scripted backend."""

    async def make(script: Script | None = None, **settings) -> Backend:
        backend = Backend(script, **settings)
        await backend.start()
        stack.push_async_callback(backend.stop)
        return backend

    return make


@pytest.fixture
async def backend(make_backend) -> Backend:
    """One scripted backend, played by the test."""
    return await make_backend()


@pytest.fixture
def make_proxy(stack) -> Callable[..., Awaitable[Proxy]]:
    """Starts a proxy: `make_proxy(backend, …, window=…, kind=…, section={…})`; waits until the backends are up."""

    async def make(*backends: Backend, window: int = 8, kind: str = "openai", wait: bool = True, **sections) -> Proxy:
        config = copy.deepcopy(_BASE)
        if "pools" not in sections:
            config["pools"] = [
                {"kind": kind, "backends": [{"url": b.url, **({"window": window} if window else {})} for b in backends]}
            ]
        api_key = sections.pop("api_key", None)
        for name, section in sections.items():
            config[name] = {**config.get(name, {}), **section} if isinstance(section, dict) else section
        app = App(build_config(config), api_key=api_key)
        await stack.enter_async_context(app.running())
        proxy = Proxy(app, stack)
        if wait:
            await proxy.up(*backends)
        return proxy

    return make


@pytest.fixture
async def proxy(make_proxy, backend) -> Proxy:
    """A proxy in front of `backend`."""
    return await make_proxy(backend)


@pytest.fixture
def make_engine(stack) -> Callable[..., Awaitable[str]]:
    """Starts an embedded engine; its URL."""

    async def make(kind: EngineKind = EngineKind.VLLM, **limits) -> str:
        engine = EngineConfig(**{"max_num_seqs": 16, **limits})
        engine = tgi_config(engine) if kind is EngineKind.TGI else engine
        ready = asyncio.get_running_loop().create_future()
        server = EngineServer(ServerConfig(kind=kind, engine=engine, profile=PROFILES["vllm-cpu-tiny"], port=0))
        task = asyncio.create_task(server.run(started=ready.set_result))

        async def stop() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        stack.push_async_callback(stop)
        return await ready

    return make
