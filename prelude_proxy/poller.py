"""Telemetry scrapes, health probes and model discovery: a small task a backend, so that none can delay another."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from prelude_proxy.core.catalog import Catalog
from prelude_proxy.core.domain import EngineKind
from prelude_proxy.core.headers import request_head
from prelude_proxy.core.telemetry import Sample, has_telemetry, parse_metrics
from prelude_proxy.dispatcher import Dispatcher
from prelude_proxy.errors import UpstreamError
from prelude_proxy.exchange import Engine
from prelude_proxy.upstream import Upstream

log = logging.getLogger("prelude_proxy.poller")

_MAX_PAGE_BYTES = 8 * 2**20
_STEADY_SAMPLES = 8


@dataclass(frozen=True, slots=True)
class PollerSettings:
    """How often and how long; the same words as in the configuration."""

    interval_s: float
    steady_interval_s: float
    timeout_s: float
    stale_after_s: float
    health_interval_s: float
    health_timeout_s: float
    discovery_interval_s: float


@dataclass(slots=True)
class BackendView:
    """What the poller knows of one backend, for `/status` and `/v1/models`."""

    sample: Sample = field(default_factory=Sample)
    sampled_at: float | None = None
    """Event-loop clock of the last sample that held something."""
    last_error: str | None = None
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Model name → its object as the backend lists it."""
    num_scrapes: int = 0


class Poller:
    """Watches one backend."""

    def __init__(
        self,
        engine: Engine,
        control: Upstream,
        settings: PollerSettings,
        *,
        dispatcher: Dispatcher,
        catalog: Catalog,
    ) -> None:
        """`control`: connections of its own, so that scrapes never wait behind data."""
        self.view = BackendView()
        self._engine = engine
        self._control = control
        self._heads: dict[bytes, bytes] = {}
        self._settings = settings
        self._dispatcher = dispatcher
        self._catalog = catalog
        self._num_steady = 0
        self._scraped_at = -math.inf
        self._seen_window: tuple[int, int | None] | None = None

    async def run(self) -> None:
        """Probe, scrape and discover until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._every(lambda: self._settings.health_interval_s, self.probe))
            tasks.create_task(self._every(lambda: self._settings.discovery_interval_s, self.discover))
            if has_telemetry(self._engine.kind):
                tasks.create_task(self._every(self._scrape_pause_s, self.scrape_if_due))

    async def probe(self) -> None:
        """One health probe."""
        slots = self._engine.slots
        was_reachable = slots.health.reachable
        try:
            status, _ = await self._get(b"/health", self._settings.health_timeout_s)
            # a server without /health that answers is there all the same
            healthy = status < 500 or self._engine.kind is EngineKind.OPENAI
            reason = f"/health answered {status}"
        except UpstreamError as error:
            healthy, reason = False, str(error)
        self.view.last_error = None if healthy else reason
        change: Callable[[], None] = slots.health.probe_succeeded if healthy else slots.health.probe_failed
        self._dispatcher.changed(slots, change)
        if healthy and not was_reachable:
            log.info("backend %s is up", slots.name)
            await self.discover()
        elif was_reachable and not slots.health.reachable:
            log.warning("backend %s is down: %s", slots.name, reason)
            self._forget()

    async def scrape_if_due(self) -> None:
        """Scrape, or let this time pass: an engine makes its page with the CPU that serves, some 7 ms.

        A steady window can wait for its next scrape. Not while an engine fills whose limit is not known: what came
        first would have all of it before the next sample.
        """
        slots, settings = self._engine.slots, self._settings
        is_filling = 2 * slots.num_in_use > slots.window.size
        ends_s = self._dispatcher.now() - self._scraped_at + settings.interval_s / 2  # nearer now than the next time
        if not self._is_steady or self._has_limit or is_filling or ends_s >= settings.steady_interval_s:
            await self.scrape()

    def _scrape_pause_s(self) -> float:
        """Time to the next scrape, or, steady without a known limit, to the next look whether there must be one."""
        is_resting = self._is_steady and self._has_limit
        return self._settings.steady_interval_s if is_resting else self._settings.interval_s

    @property
    def _is_steady(self) -> bool:
        return self._num_steady >= _STEADY_SAMPLES

    @property
    def _has_limit(self) -> bool:
        return self._engine.slots.window.limit is not None

    async def scrape(self) -> None:
        """One telemetry scrape; a failed one changes nothing: the window stays where it is."""
        self._scraped_at = self._dispatcher.now()
        try:
            status, page = await self._get(b"/metrics", self._settings.timeout_s)
        except UpstreamError:
            pass
        else:
            self.view.num_scrapes += 1
            self._learn(parse_metrics(self._engine.kind, page) if status == 200 else Sample())
        self._engine.has_telemetry = self.is_fresh()

    def _learn(self, sample: Sample) -> None:
        if sample.is_empty:
            return
        before = self.view.sample.generation_tokens
        if before is not None and sample.generation_tokens is not None and sample.generation_tokens < before:
            self._forget()  # its counters began anew: so did it
        self.view.sample, self.view.sampled_at = sample, self._dispatcher.now()
        window = self._window()
        self._dispatcher.observe(self._engine.slots, sample)
        self._num_steady = self._num_steady + 1 if self._window() == window == self._seen_window else 0
        self._seen_window = self._window()

    async def discover(self) -> None:
        """Learn which models the backend serves; one that cannot say is taken to serve those of its pool."""
        if not self._engine.slots.health.reachable:
            return
        try:
            status, body = await self._get(b"/v1/models", self._settings.health_timeout_s)
        except UpstreamError:
            return
        models = _listed(body) if status == 200 else {}
        self.view.models = models
        if self._catalog.set_models(self._engine.slots, frozenset(models) or None):
            log.info("backend %s serves %s", self._engine.slots.name, ", ".join(models) or "models it does not list")
            self._dispatcher.changed(self._engine.slots)

    def _forget(self) -> None:
        """The engine's prefix cache is gone."""
        slots = self._engine.slots
        if slots.pool.affinity is not None:
            slots.pool.affinity.forget(slots)

    def _window(self) -> tuple[int, int | None]:
        window = self._engine.slots.window
        return window.size, window.limit

    def is_fresh(self) -> bool:
        """Whether telemetry is recent enough to be believed."""
        sampled_at = self.view.sampled_at
        return sampled_at is not None and self._dispatcher.now() - sampled_at <= self._settings.stale_after_s

    async def _get(self, path: bytes, timeout_s: float) -> tuple[int, bytes]:
        head = self._heads.get(path)
        if head is None:
            head = self._heads[path] = self._head(path)
        response = await self._control.send(head, within_s=timeout_s)
        try:
            return response.status, await response.read_all(_MAX_PAGE_BYTES)
        finally:
            response.abort()

    def _head(self, path: bytes) -> bytes:
        control = self._control
        return request_head(
            "GET",
            control.base_path + path,
            (),
            authority=control.authority,
            body_length=None,
            replaced=self._engine.extra_headers,
        )

    async def _every(self, pause_s: Callable[[], float], action: Callable[[], Any]) -> None:
        """Run `action` now and then every `pause_s()`, out of step with the other backends from the first pause on.

        Hundreds in step would keep the event loop, and with it every request, waiting for all their answers at once.
        """
        is_failing = False
        stretch = (0.5, 1.5)
        while True:
            began = self._dispatcher.now()
            try:
                await action()
                is_failing = False
            except Exception:  # one bad answer must not end the watch over a backend, nor fill the log
                if not is_failing:
                    log.exception("watching backend %s", self._engine.slots.name)
                is_failing = True
            wanted = pause_s() * random.uniform(*stretch)
            stretch = (0.95, 1.05)
            await asyncio.sleep(max(0.0, wanted - (self._dispatcher.now() - began)))


def _listed(body: bytes) -> dict[str, dict[str, Any]]:
    try:
        entries = orjson.loads(body)["data"]
        return {entry["id"]: entry for entry in entries if isinstance(entry["id"], str)}
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return {}
