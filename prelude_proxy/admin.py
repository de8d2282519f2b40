"""The admin port: `/metrics`, `/healthz`, `/readyz`, `/status`. Reads live state, changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import orjson
from aiohttp import web
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from prelude_proxy import __version__
from prelude_proxy.core.health import BreakerState
from prelude_proxy.core.limits import BackendSlots
from prelude_proxy.core.tally import Counter
from prelude_proxy.dispatcher import Dispatcher
from prelude_proxy.judge import Judge
from prelude_proxy.metrics import Metrics, counter, gauge
from prelude_proxy.poller import Poller

_BREAKER_VALUES = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


class Admin:
    """What operators, probes and Prometheus see."""

    def __init__(
        self,
        *,
        metrics: Metrics,
        dispatcher: Dispatcher,
        judge: Judge,
        pollers: Mapping[str, Poller],
        is_draining: Callable[[], bool],
        started_at: float,
    ) -> None:
        self._metrics = metrics
        self._dispatcher = dispatcher
        self._judge = judge
        self._pollers = pollers
        self._is_draining = is_draining
        self._started_at = started_at
        metrics.add_collector(self._gauges)

    def application(self) -> web.Application:
        """The routes of the admin port."""
        app = web.Application()
        app.router.add_get("/metrics", self._serve_metrics)
        app.router.add_get("/healthz", self._serve_alive)
        app.router.add_get("/readyz", self._serve_ready)
        app.router.add_get("/status", self._serve_status)
        return app

    def is_ready(self) -> bool:
        """Some backend is up (be it full at the moment) and the proxy is not draining."""
        now = self._dispatcher.now()
        return not self._is_draining() and any(backend.health.is_up(now) for backend in self._backends())

    def status(self) -> dict[str, Any]:
        """The state of everything that decides, as plain data."""
        admission = self._dispatcher.admission
        now = self._dispatcher.now()
        classifier = self._judge.classifier
        return {
            "version": __version__,
            "uptime_s": round(now - self._started_at, 1),
            "ready": self.is_ready(),
            "draining": self._is_draining(),
            "queue": {"held": admission.num_held, "bytes": admission.num_held_bytes},
            "classes": {
                spec.name: {
                    "priority": spec.priority,
                    "max_output_tokens": spec.max_output_tokens,
                    "held": admission.num_held_of(c),
                    "inflight": sum(len(backend.permits[c]) for backend in self._backends()),
                }
                for c, spec in enumerate(self._judge.classes)
            },
            "pools": {
                pool.name: [self._describe(backend, now) for backend in pool.backends] for pool in admission.pools
            },
            "classifier": asdict(classifier.statistics()) if classifier is not None else None,
            "journal": asdict(self._judge.journal.statistics()) if self._judge.journal is not None else None,
        }

    def _describe(self, backend: BackendSlots, now: float) -> dict[str, Any]:
        view = self._pollers[backend.name].view
        names = [spec.name for spec in self._judge.classes]
        return {
            "name": backend.name,
            "available": backend.available,
            "reachable": backend.health.reachable,
            "breaker": backend.health.breaker(now),
            "window": backend.window.size,
            "engine_limit": backend.window.limit,
            "inflight": {name: len(permits) for name, permits in zip(names, backend.permits, strict=True)},
            "reserves": dict(zip(names, backend.reserves, strict=True)),
            "outstanding_work_tokens": backend.outstanding_work,
            "prefill_tokens": backend.pending_prefill_tokens,
            "prefill_tokens_per_s": _rounded(backend.prefill_speed.tokens_per_s),
            "telemetry": asdict(view.sample) | {"age_s": _age(view.sampled_at, now)},
            "models": sorted(backend.models or ()),
            "last_error": view.last_error,
        }

    def _classifier_gauges(self) -> Iterable[Metric]:
        classifier = self._judge.classifier
        if classifier is None:
            return
        known = classifier.statistics()
        yield gauge("classifier_keys", "Keys the online prior remembers.", (), [((), known.num_keys)])
        records = [("live", known.calibration)]
        if known.shadow is not None:
            records.append(("shadow", known.shadow.calibration))
            yield gauge(
                "shadow_disagreements",
                "Requests the shadow model would have put into another class.",
                (),
                [((), known.shadow.num_disagreed)],
            )
        for name, text, attribute in (
            ("classifier_accuracy", "Share of answers whose class was right, forgotten slowly.", "accuracy"),
            ("classifier_calibration_error", "Expected calibration error, forgotten slowly.", "calibration_error"),
            (
                "classifier_drift",
                "How far recent errors have moved from the long run, in standard errors; 4 and more is an alarm.",
                "drift",
            ),
        ):
            rows = [((model,), float(getattr(calibration, attribute) or 0.0)) for model, calibration in records]
            yield gauge(name, text, ("model",), rows)

    def _backends(self) -> list[BackendSlots]:
        return [backend for pool in self._dispatcher.admission.pools for backend in pool.backends]

    def _gauges(self) -> Iterable[Metric]:
        admission = self._dispatcher.admission
        names = [spec.name for spec in self._judge.classes]
        backends = self._backends()
        now = self._dispatcher.now()
        yield gauge(
            "queue_depth",
            "Requests held.",
            ("class",),
            [((name,), admission.num_held_of(c)) for c, name in enumerate(names)],
        )
        yield gauge("queue_bytes", "Body bytes of requests held.", (), [((), admission.num_held_bytes)])
        inflight = GaugeMetricFamily(
            "prelude_proxy_inflight", "Requests at a backend, by the class they count for.", labels=("class", "backend")
        )
        for backend in backends:
            for name, permits in zip(names, backend.permits, strict=True):
                inflight.add_metric((name, backend.name), len(permits))
        yield inflight
        windows = [((backend.name,), backend.window.size) for backend in backends]
        yield gauge("window", "Requests a backend may hold.", ("backend",), windows)
        yield gauge(
            "prefill_tokens",
            "Prompt tokens at a backend whose first token is outstanding.",
            ("backend",),
            [((backend.name,), backend.pending_prefill_tokens) for backend in backends],
        )
        yield gauge(
            "prefill_budget_tokens",
            "Prefill tokens at which the first paced class waits while more urgent work is there; once it is known.",
            ("backend",),
            [
                ((backend.name,), round(least))
                for backend in backends
                if (least := min(map(backend.prefill_budget, range(len(names))))) < math.inf
            ],
        )
        yield from self._affinity()
        up = [((backend.name,), backend.available) for backend in backends]
        yield gauge("backend_up", "1 when it may get work.", ("backend",), up)
        yield gauge(
            "breaker_state",
            "Circuit breaker: 0 closed, 1 half open, 2 open.",
            ("backend",),
            [((b.name,), _BREAKER_VALUES[b.health.breaker(now)]) for b in backends],
        )
        yield from self._classifier_gauges()
        ages = [((b.name,), _age(self._pollers[b.name].view.sampled_at, now)) for b in backends]
        yield gauge(
            "telemetry_age_seconds",
            "Age of the last telemetry sample.",
            ("backend",),
            [(labels, age) for labels, age in ages if age is not None],
        )

    def _affinity(self) -> Iterable[Metric]:
        dispatches: Counter = {}
        saved: Counter = {}
        for pool in self._dispatcher.admission.pools:
            if (affinity := pool.affinity) is not None:
                dispatches[pool.name, "hit"] = affinity.num_hits
                dispatches[pool.name, "moved"] = affinity.num_moved
                dispatches[pool.name, "miss"] = affinity.num_misses
                saved[pool.name,] = affinity.saved_tokens
        yield counter(
            "affinity",
            "Dispatches of requests with prefix or session: where it is known (hit), elsewhere (moved), unseen (miss).",
            ("pool", "outcome"),
            dispatches,
        )
        yield counter("affinity_saved_tokens", "Prompt tokens that prefix caches should spare.", ("pool",), saved)

    async def _serve_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.page(), headers={"content-type": "text/plain; version=0.0.4"})

    async def _serve_alive(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _serve_ready(self, _: web.Request) -> web.Response:
        if self.is_ready():
            return web.Response(text="ready\n")
        return web.Response(status=503, text="draining\n" if self._is_draining() else "no backend is available\n")

    async def _serve_status(self, _: web.Request) -> web.Response:
        body = orjson.dumps(self.status(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE, default=str)
        return web.Response(body=body, content_type="application/json")


def _rounded(value: float | None) -> int | None:
    return None if value is None else round(value)


def _age(at: float | None, now: float) -> float | None:
    return None if at is None else round(now - at, 3)
