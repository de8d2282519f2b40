"""Composition root: builds each object once, in the order of their dependence, runs them, and takes them down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import orjson
from aiohttp import web

from prelude_proxy.admin import Admin
from prelude_proxy.classifier import Classifier
from prelude_proxy.config import Admin as AdminConfig
from prelude_proxy.config import Backend, Config, Listen, Pool, read_secret
from prelude_proxy.core.admission import Admission, QueueBounds
from prelude_proxy.core.affinity import Affinity
from prelude_proxy.core.catalog import Catalog
from prelude_proxy.core.classify import promotions
from prelude_proxy.core.domain import ClassSpec, EngineKind
from prelude_proxy.core.health import Health, HealthPolicy
from prelude_proxy.core.limits import BackendSlots, PoolSlots
from prelude_proxy.core.routing import LeastOccupied, LeastRequests
from prelude_proxy.core.telemetry import has_telemetry
from prelude_proxy.core.window import Window
from prelude_proxy.dispatcher import Dispatcher
from prelude_proxy.downstream import DownstreamLimits, Request, Server
from prelude_proxy.errors import ConfigError
from prelude_proxy.exchange import Engine
from prelude_proxy.intake import Caller, Callers
from prelude_proxy.journal import Journal, JournalSettings
from prelude_proxy.judge import Judge
from prelude_proxy.logs import AccessLog
from prelude_proxy.metrics import Metrics
from prelude_proxy.modelfile import load_model
from prelude_proxy.pacing import Pacer
from prelude_proxy.poller import Poller, PollerSettings
from prelude_proxy.proxy import Proxy, ProxySettings
from prelude_proxy.recorder import Recorder
from prelude_proxy.reload import Reloader
from prelude_proxy.upstream import Upstream, UpstreamTimeouts

log = logging.getLogger("prelude_proxy")

_UNBOUNDED = 2**31 - 1
_CUT_S = 0.25
_JOURNAL_FILES = 8


class App:
    """One running proxy. `async with App(config) as app` serves; leaving drains and stops."""

    def __init__(
        self, config: Config, *, api_key: str | None = None, reread: Callable[[], Config] | None = None
    ) -> None:
        """Build what needs no event loop, so that a bad configuration fails before a port is opened.

        `reread` gives the configuration as it is now, for `reload`.

        Raises:
            ConfigError: a secret is missing or the model cannot be loaded.
        """
        self.config = config
        self.classes = config.class_specs()
        self._api_key = api_key
        self._tenants = {
            read_secret(tenant.api_key_env, where=f"tenants[{index}].api_key_env"): Caller(
                tenant.name, tenant.trust_class_header
            )
            for index, tenant in enumerate(config.tenants)
        }
        self._pool_keys = {
            pool.name: read_secret(pool.api_key_env, where=f"pools[{index}].api_key_env")
            for index, pool in enumerate(config.pools)
            if pool.api_key_env is not None
        }
        self.judge = Judge(
            self.classes,
            config.core_rules(),
            self._load_classifier(),
            config.classifier.default_class,
            learns=config.classifier.online,
            journal=self._open_journal(),
        )
        self.reloader = Reloader(config, self.judge, reread=reread, make_rules=Config.core_rules)
        self.metrics = Metrics([spec.name for spec in self.classes], max_label_values=config.limits.max_label_values)
        self.is_draining = False
        self._grace_over = asyncio.Event()
        self._controls: list[Upstream] = []
        self.port = 0
        self.admin_port = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[App]:
        """Open the ports and watch the backends; on leaving drain for the grace period, then stop."""
        loop = asyncio.get_running_loop()
        self._build(loop)
        watchers = [asyncio.create_task(poller.run()) for poller in self.pollers.values()]
        admin = await self._listen()
        watchers.append(asyncio.create_task(self.reloader.watch()))
        if self.judge.journal is not None:
            self.judge.journal.start()
        try:
            yield self
        finally:
            await self._drain()
            for engine in self.engines.values():  # streams cut here still end in an error event
                engine.upstream.close()
            for task in watchers:
                task.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
            await self._server.close()
            await admin.cleanup()
            self._stop()

    async def run_until_signal(self, started: Callable[[App], None]) -> None:
        """Serve until SIGTERM or SIGINT; a second signal ends the grace period."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, stop)
        reloads: set[asyncio.Task[bool]] = set()
        loop.add_signal_handler(signal.SIGHUP, lambda: reloads.add(asyncio.ensure_future(self.reloader.reload())))
        async with self.running():
            started(self)
            await stop.wait()
            log.info("draining: %d held, %d in flight", self.dispatcher.admission.num_held, self.num_in_flight())

    def num_in_flight(self) -> int:
        """Requests at backends."""
        return sum(backend.num_in_use for pool in self.dispatcher.admission.pools for backend in pool.backends)

    # --- building -----------------------------------------------------------------------------------------------------

    def _build(self, loop: asyncio.AbstractEventLoop) -> None:
        config = self.config
        pools = [
            PoolSlots(pool.name, self.classes, class_labels=pool.class_labels, beta=config.admission.reserve_beta)
            for pool in config.pools
        ]
        aware = config.admission.mode == "class-aware"
        for pool_slots, given in zip(pools, config.pools, strict=True):
            policy = given.routing.policy()
            if aware and policy.is_any:
                pool_slots.affinity = Affinity(policy)
        admission = Admission(
            pools,
            rng=random.Random(),
            bounds=QueueBounds(
                config.admission.max_queue_size, config.admission.max_queue_bytes, config.admission.cold_start_wait_s
            ),
            routing=LeastOccupied() if aware else LeastRequests(),
            tenant_weights={tenant.name: tenant.weight for tenant in config.tenants},
        )
        self.dispatcher = Dispatcher(admission, loop)
        self.catalog = Catalog(
            pools,
            models={pool.name: pool.models for pool in config.pools},
            aliases={pool.name: pool.aliases for pool in config.pools},
        )
        self.engines: dict[str, Engine] = {}
        self.pollers: dict[str, Poller] = {}
        for pool, slots in zip(config.pools, pools, strict=True):
            for backend in pool.backends:
                self._add_backend(pool, slots, backend, loop)
        access_log = AccessLog(loop, config.logging.format) if config.logging.access else None
        self._access_log = access_log
        self.recorder = Recorder(self.metrics, self.judge, access_log)
        self.admin = Admin(
            metrics=self.metrics,
            dispatcher=self.dispatcher,
            judge=self.judge,
            pollers=self.pollers,
            is_draining=lambda: self.is_draining,
            started_at=loop.time(),
        )
        self._pacers = [
            Pacer(spec.stream_interval_ms / 1e3, loop) if spec.stream_interval_ms else None for spec in self.classes
        ]
        self.proxy = Proxy(
            self._proxy_settings(),
            catalog=self.catalog,
            judge=self.judge,
            dispatcher=self.dispatcher,
            engines=self.engines,
            callers=Callers(
                tenants=self._tenants,
                api_key=self._api_key,
                trust_class_header=config.admission.trust_class_header,
                max_tenants=config.admission.max_tenants,
            ),
            recorder=self.recorder,
            local={("GET", "/health"): self._answer_health, ("GET", "/v1/models"): self._answer_models},
            pacers=self._pacers,
        )

    def _add_backend(self, pool: Pool, slots: PoolSlots, backend: Backend, loop: asyncio.AbstractEventLoop) -> None:
        config, kind = self.config, backend.kind or pool.kind
        aware = config.admission.mode == "class-aware"
        window = Window(
            initial=config.admission.initial_window,
            maximum=config.admission.max_window,
            feed=config.admission.feed,
            static=backend.window if aware else _UNBOUNDED,
        )
        policy = HealthPolicy(config.health.unhealthy_after, config.health.eject_after, config.health.eject_s)
        backend_slots = BackendSlots(
            len(self.engines),
            backend.display_name,
            slots,
            window,
            Health(policy),
            weight=backend.weight,
            labels=backend.labels,
            max_reserve=config.admission.max_reserve if aware else 0.0,
        )
        key = self._pool_keys.get(pool.name)
        engine = Engine(
            slots=backend_slots,
            upstream=Upstream(backend.url, self._upstream_timeouts(), loop),
            kind=kind,
            has_telemetry=has_telemetry(kind),
            extra_headers={b"authorization": b"Bearer " + key.encode()} if key else {},
            class_headers=priority_headers(self.classes, kind) if pool.in_engine_priority else (),
        )
        self.engines[backend_slots.name] = engine
        control = Upstream(backend.url, self._upstream_timeouts(), loop)
        self._controls.append(control)
        self.pollers[backend_slots.name] = Poller(
            engine, control, self._poller_settings(), dispatcher=self.dispatcher, catalog=self.catalog
        )
        self.dispatcher.admission.add_backend(backend_slots, loop.time())
        self.catalog.reattach(slots)

    def _load_classifier(self) -> Classifier | None:
        settings = self.config.classifier
        if not settings.enabled:
            return None
        classifier = Classifier(load_model(settings.model), self.classes, keeps_features=settings.journal is not None)
        if settings.shadow_model is not None:
            classifier.set_shadow(load_model(settings.shadow_model))
        return classifier

    def _open_journal(self) -> Journal | None:
        settings = self.config.classifier
        if settings.journal is None:
            return None
        per_file = max(1, settings.journal_max_bytes // _JOURNAL_FILES)
        try:
            return Journal(JournalSettings(settings.journal, max_file_bytes=per_file, max_files=_JOURNAL_FILES))
        except OSError as error:
            raise ConfigError(f"classifier.journal: {settings.journal}: {error.strerror}") from None

    def _upstream_timeouts(self) -> UpstreamTimeouts:
        times = self.config.timeouts
        return UpstreamTimeouts(times.connect_s, times.first_byte_s, times.idle_s, times.upstream_keepalive_s)

    def _poller_settings(self) -> PollerSettings:
        telemetry = self.config.telemetry
        return PollerSettings(
            telemetry.interval_s,
            telemetry.longest_interval_s,
            telemetry.timeout_s,
            telemetry.stale_after_s,
            telemetry.health_interval_s,
            telemetry.health_timeout_s,
            telemetry.discovery_interval_s,
        )

    def _proxy_settings(self) -> ProxySettings:
        config = self.config
        return ProxySettings(
            promotions=promotions(self.classes),
            max_attempts=config.admission.max_attempts,
            retry_budget=config.admission.retry_budget,
            show_backend=config.headers.backend,
            show_timing=config.headers.timing,
            log_prompts=config.logging.prompts,
        )

    # --- serving ------------------------------------------------------------------------------------------------------

    async def _listen(self) -> web.AppRunner:
        """Open both ports.

        Raises:
            ConfigError: an address cannot be used.
        """
        config, times = self.config, self.config.timeouts
        limits = DownstreamLimits(
            max_body_bytes=config.limits.max_body_bytes,
            max_connections=config.limits.max_connections,
            header_s=times.header_s,
            body_s=times.body_s,
            keepalive_s=times.keepalive_s,
            stalled_s=times.idle_s,
        )
        self._server = Server(self.proxy.handle, limits)
        admin = web.AppRunner(self.admin.application(), access_log=None, handle_signals=False, shutdown_timeout=_CUT_S)
        await admin.setup()
        where: Listen | AdminConfig = config.listen
        try:
            self.port = await self._server.start(where.host, where.port, config.listen.backlog)
            where = config.admin
            await web.TCPSite(admin, where.host, where.port).start()
        except OSError as error:
            await self._server.close()
            await admin.cleanup()
            raise ConfigError(f"cannot listen on {where.host}:{where.port}: {error.strerror or error}") from None
        self.admin_port = admin.addresses[0][1]
        return admin

    def _signalled(self, stop: asyncio.Event) -> None:
        if stop.is_set():
            self._grace_over.set()
        stop.set()

    async def _drain(self) -> None:
        """Red `/readyz`, no new connections, everything accepted finishes or the grace period ends."""
        self.is_draining = True
        self._server.stop_listening()
        self.dispatcher.admission.shut_down()
        deadline = asyncio.get_running_loop().time() + self.config.timeouts.shutdown_grace_s
        while not self._grace_over.is_set() and asyncio.get_running_loop().time() < deadline:
            if not self.dispatcher.admission.num_held and not self.num_in_flight() and not self._server.num_serving():
                return
            await asyncio.sleep(0.05)
        held, in_flight = self.dispatcher.admission.num_held, self.num_in_flight()
        log.warning("grace period over: %d held, %d in flight are cut", held, in_flight)

    def _stop(self) -> None:
        self.dispatcher.close()
        for pacer in self._pacers:
            if pacer is not None:
                pacer.close()
        for engine in self.engines.values():
            engine.upstream.close()
        for control in self._controls:
            control.close()
        if self.judge.journal is not None:
            self.judge.journal.close()
        if self._access_log is not None:
            self._access_log.flush()

    def _answer_health(self, request: Request) -> None:
        if self.admin.is_ready():
            request.respond(200, (), b"")
        else:
            request.respond(503, [(b"retry-after", b"5")], b"")

    def _answer_models(self, request: Request) -> None:
        listed: dict[str, Any] = {}
        for poller in self.pollers.values():
            for name, entry in poller.view.models.items():
                listed.setdefault(name, entry)
        for name in self.catalog.model_names():
            listed.setdefault(name, {"id": name, "object": "model", "created": 0, "owned_by": "prelude-proxy"})
        body = orjson.dumps({"object": "list", "data": list(listed.values())})
        request.respond(200, [(b"content-type", b"application/json")], body)


def priority_headers(classes: list[ClassSpec], kind: EngineKind) -> tuple[Mapping[bytes, bytes], ...]:
    """`X-Vllm-Priority` by class. Lower is more urgent for vLLM, higher for SGLang."""
    if kind not in {EngineKind.VLLM, EngineKind.SGLANG}:
        return ()
    sign = 1 if kind is EngineKind.VLLM else -1
    return tuple({b"x-vllm-priority": b"%d" % (sign * index)} for index in range(len(classes)))
