"""HTTP around the engine: vLLM's, TGI's or SGLang's routes, answers, errors and metrics."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import web

from prelude_proxy.core.domain import Dialect, Endpoint, EngineKind, RequestFacts
from prelude_proxy.core.parse import dialect_of, parse_request
from prelude_proxy.engine.answer import Answer
from prelude_proxy.engine.exposition import render_metrics
from prelude_proxy.engine.intake import Work, read_work
from prelude_proxy.engine.model import EngineConfig, EngineProfile
from prelude_proxy.engine.scheduler import Engine
from prelude_proxy.engine.service import EngineService
from prelude_proxy.engine.wire import ChatWire, CompletionWire, TgiWire, Wire
from prelude_proxy.errors import ClientError

KEEPALIVE_S = 5.0
"""vLLM's HTTP server closes an idle connection after this long."""
MAX_BODY_BYTES = 64 * 2**20
_VERSIONS = {EngineKind.VLLM: "0.32.0", EngineKind.TGI: "3.3.7", EngineKind.SGLANG: "0.5.0"}
_BUSY = (
    "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance."
)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """One embedded engine: which engine it plays, its limits and its quirks."""

    kind: EngineKind
    engine: EngineConfig
    profile: EngineProfile
    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free port."""
    served_model_name: str = "tiny"
    seed: int = 0
    """Seed of the answers' lengths where the request does not tell them."""
    prefix_cache: bool = True
    gauge_lag_s: float = 0.0
    """Gauges read 0 for this long after the start (a real vLLM: about 18 s)."""
    startup_s: float = 0.0
    """Nothing listens for this long (loading weights)."""


class EngineServer:
    """Routes and handlers of one embedded engine."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._service: EngineService | None = None
        self._ids = itertools.count(1)
        self._started_s = 0.0
        self._port = config.port

    @property
    def url(self) -> str:
        """Where it listens, once it does."""
        return f"http://{self._config.host}:{self._port}"

    async def run(self, *, started: Callable[[str], None] | None = None) -> None:
        """Serve until cancelled; `started` is called with the URL once it listens."""
        config = self._config
        await asyncio.sleep(config.startup_s)
        engine = Engine(config.engine, config.profile, prefix_cache=config.prefix_cache)
        self._service = service = EngineService(engine, time.monotonic)
        self._started_s = time.monotonic()
        runner = web.AppRunner(
            self._application(),
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=KEEPALIVE_S,
            shutdown_timeout=0.1,
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, config.host, config.port, backlog=4096)
            await site.start()
            self._port = runner.addresses[0][1]
            if started is not None:
                started(self.url)
            await service.run()
        finally:
            await runner.cleanup()

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors_in_dialect])
        routes: dict[str, _Handler] = {
            "/v1/chat/completions": self._generate,
            "/v1/completions": self._generate,
        }
        pages: dict[str, _Handler] = {
            "/v1/models": self._models,
            "/health": self._health,
            "/ping": self._health,
            "/metrics": self._metrics,
        }
        if self._config.kind is EngineKind.TGI:
            routes |= dict.fromkeys(("/", "/generate", "/generate_stream"), self._generate)
            pages |= {"/info": self._info}
        else:
            pages |= {"/version": self._version, "/load": self._load}
        for path, handler in routes.items():
            application.router.add_post(path, handler)
        for path, handler in pages.items():
            application.router.add_get(path, handler)
        return application

    # --- generation ---------------------------------------------------------------------------------------------------

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        service = self._running_service()
        answer, is_stream = self._open(request.path, await request.read(), request)
        await asyncio.sleep(self._config.profile.frontend_s)
        try:
            if not service.submit(answer.sequences):
                return self._overloaded(request.path)
        except ValueError as error:
            raise ClientError(str(error), kind="BadRequestError") from None
        try:
            return await (_stream(request, answer) if is_stream else _whole(answer))
        finally:
            service.abort(answer.sequences)  # of those that have not ended: the client left

    def _open(self, path: str, body: bytes, request: web.Request) -> tuple[Answer, bool]:
        headers = {name.lower(): value for name, value in request.headers.items()}
        facts = parse_request(path, body, headers)
        config = self._config
        if config.kind is not EngineKind.TGI and facts.model not in {None, config.served_model_name}:
            raise ClientError(
                f"The model `{facts.model}` does not exist. Valid aliases: {config.served_model_name}.",
                status=404,
                param="model",
                kind="NotFoundError",
            )
        work = read_work(facts, config.kind, config.engine, seed=config.seed, hash_prefix=config.prefix_cache)
        answer = Answer(self._wire(facts, work), work.prompt_tokens, asyncio.get_running_loop().create_future())
        for sequence, reason in zip(work.sequences, work.reasons, strict=True):
            answer.add_choice(sequence, reason=reason, first_word=work.first_word)
        return answer, facts.stream

    def _wire(self, facts: RequestFacts, work: Work) -> Wire:
        payload: dict[str, Any] = dict(facts.payload or {})
        if facts.endpoint is Endpoint.GENERATE:
            parameters = payload.get("parameters") or {}
            details = parameters.get("details") is True
            return TgiWire(prompt_tokens=work.prompt_tokens, details=details, as_list=facts.path == "/")
        options = payload.get("stream_options")
        include_usage = isinstance(options, dict) and options.get("include_usage") is True
        is_chat = facts.endpoint is Endpoint.CHAT
        answer_id = f"{'chatcmpl' if is_chat else 'cmpl'}-{self._port:05d}{next(self._ids):011x}"
        wire = ChatWire if is_chat else CompletionWire
        return wire(answer_id, self._config.served_model_name, include_usage=include_usage)

    def _overloaded(self, path: str) -> web.Response:
        """TGI answers 429, vLLM and SGLang 503 without `retry-after`: hold it, or try elsewhere."""
        if self._config.kind is EngineKind.TGI:
            if dialect_of(path) is Dialect.TGI:
                return _json({"error": "Model is overloaded", "error_type": "overloaded"}, status=429)
            return _json({"error": {"message": "Model is overloaded", "http_status_code": 429}}, status=429)
        error = {"message": _BUSY, "type": "Service Unavailable", "param": None, "code": 503}
        return _json({"error": error}, status=503)

    # --- pages --------------------------------------------------------------------------------------------------------

    async def _models(self, request: web.Request) -> web.Response:
        del request
        name = self._config.served_model_name
        owner = "vllm" if self._config.kind is EngineKind.VLLM else name
        card = {
            "id": name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": owner,
            "root": name,
            "parent": None,
            "max_model_len": self._config.engine.max_model_len,
        }
        return _json({"object": "list", "data": [card]})

    async def _health(self, request: web.Request) -> web.Response:
        del request
        return web.Response()

    async def _version(self, request: web.Request) -> web.Response:
        del request
        return _json({"version": _VERSIONS[self._config.kind]})

    async def _load(self, request: web.Request) -> web.Response:
        del request
        stats = self._running_service().stats()
        return _json({"server_load": stats.num_running + stats.num_waiting})

    async def _info(self, request: web.Request) -> web.Response:
        del request
        engine = self._config.engine
        return _json(
            {
                "model_id": self._config.served_model_name,
                "model_sha": None,
                "model_pipeline_tag": "text-generation",
                "max_concurrent_requests": engine.max_num_queued_reqs,
                "max_best_of": 2,
                "max_stop_sequences": 4,
                "max_input_tokens": engine.max_model_len - 1,
                "max_total_tokens": engine.max_model_len,
                "validation_workers": 2,
                "max_client_batch_size": 4,
                "router": "text-generation-router",
                "version": _VERSIONS[EngineKind.TGI],
                "sha": None,
                "docker_label": None,
            }
        )

    async def _metrics(self, request: web.Request) -> web.Response:
        del request
        config = self._config
        lag = time.monotonic() - self._started_s < config.gauge_lag_s
        page = render_metrics(
            config.kind, self._running_service().stats(), config.engine, config.served_model_name, gauges_lag=lag
        )
        return web.Response(text=page, content_type="text/plain", charset="utf-8")

    def _running_service(self) -> EngineService:
        assert self._service is not None, "requests arrive only after run() has made it"
        return self._service


async def _stream(request: web.Request, answer: Answer) -> web.StreamResponse:
    """Head at once, as the engines send it, though the first token may be long in coming."""
    response = web.StreamResponse(headers={"content-type": answer.wire.stream_type})
    response.enable_chunked_encoding()
    writer = await response.prepare(request)
    if writer is None or request.transport is None:
        return response  # the client left already
    writer.send_headers()
    answer.stream_to(request.transport)
    await answer.done
    if closing := answer.closing():
        answer.write(closing)
    await response.write_eof()
    return response


async def _whole(answer: Answer) -> web.Response:
    await answer.done
    return web.Response(body=answer.whole(), content_type="application/json")


@web.middleware
async def _errors_in_dialect(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ClientError as error:
        if dialect_of(request.path) is Dialect.TGI:
            return _json({"error": str(error), "error_type": "validation"}, status=422)
        body = {"message": str(error), "type": error.kind, "param": error.param, "code": error.status}
        return _json({"error": body}, status=error.status)
    except web.HTTPNotFound:
        return _json({"detail": "Not Found"}, status=404)  # also what /v1/embeddings gives for a generative model
    except web.HTTPMethodNotAllowed:
        return _json({"detail": "Method Not Allowed"}, status=405)


def _json(value: object, status: int = 200) -> web.Response:
    return web.json_response(value, status=status)


def tgi_config(config: EngineConfig) -> EngineConfig:
    """`config` with what is different in TGI: output reserved at admission, 128 concurrent requests unless set."""
    limit = 128 if config.max_num_queued_reqs is None else config.max_num_queued_reqs
    return replace(config, reserve_output=True, max_num_queued_reqs=limit)
