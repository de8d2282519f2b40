"""The journey of a request, top to bottom: `Proxy.handle`.

read (bounded) → parse → classify → admit (may hold, reject, expire) → send → relay → one record of how it ended.

What is retried is visible here and only here: outcomes that the table in `core.outcome` marks retryable, before the
first byte reached the client, within a budget, with the original arrival time. A client that leaves is an outcome at
every stage (`CancelledError` from the server), never a fault of the backend.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from prelude_proxy.core.admission import DropReason
from prelude_proxy.core.catalog import Catalog
from prelude_proxy.core.deadlines import patience_of
from prelude_proxy.core.dialects import error_body
from prelude_proxy.core.domain import Endpoint, EngineKind, RequestFacts
from prelude_proxy.core.headers import end_to_end, request_head
from prelude_proxy.core.limits import BackendSlots, Route
from prelude_proxy.core.outcome import Outcome
from prelude_proxy.core.parse import dialect_of, endpoint_of, parse_request
from prelude_proxy.core.queues import Ticket
from prelude_proxy.core.rates import DecayingRate
from prelude_proxy.core.sse import StreamObserver, error_event, find_usage
from prelude_proxy.dispatcher import Dispatcher, Slot
from prelude_proxy.downstream import Request
from prelude_proxy.errors import (
    ClientError,
    ShedError,
    UpstreamConnectError,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamStaleError,
    UpstreamTimeoutError,
)
from prelude_proxy.exchange import Engine, Exchange
from prelude_proxy.heartbeat import Heartbeat
from prelude_proxy.intake import Callers, request_id_of
from prelude_proxy.judge import Judge
from prelude_proxy.pacing import Pacer
from prelude_proxy.relay import Relay
from prelude_proxy.upstream import RawHeaders, Response

log = logging.getLogger("prelude_proxy")

_BUSY_BODY_BYTES = 64 * 1024
_NO_ROUTE = b'{"detail":"Not Found"}'
"""What vLLM's web framework answers on a path the model has no task for."""
_JSON = (b"content-type", b"application/json")
# vLLM --max-num-queued-reqs, SGLang --max-queued-requests and gateways between us and them word it differently
_BUSY_WORDS = (b"busy", b"queue", b"overload", b"too many", b"capacity")


class Recorder(Protocol):
    """Takes the finished exchange: metrics, access log."""

    def finished(self, exchange: Exchange) -> None:
        """One call a request, whatever happened to it."""
        ...

    def retried(self, exchange: Exchange, reason: Outcome) -> None:
        """Another attempt is about to be made."""
        ...

    def promoted(self, exchange: Exchange, klass: int) -> None:
        """The stream outgrew its class."""
        ...


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """The few numbers the journey itself needs."""

    promotions: tuple[tuple[int, int] | None, ...]
    """By class: (output tokens beyond which a stream no longer belongs to it, the class it then belongs to)."""
    max_attempts: int = 3
    retry_budget: float = 0.2
    show_backend: bool = True
    show_timing: bool = True
    log_prompts: bool = False


class Proxy:
    """Carries requests from clients to engines."""

    def __init__(
        self,
        settings: ProxySettings,
        *,
        catalog: Catalog,
        judge: Judge,
        dispatcher: Dispatcher,
        engines: Mapping[str, Engine],
        callers: Callers,
        recorder: Recorder,
        local: Mapping[tuple[str, str], Callable[[Request], None]],
        pacers: Sequence[Pacer | None],
    ) -> None:
        """`engines` by backend name, `local` by (method, path) what the proxy answers itself, `pacers` by class."""
        self._settings = settings
        self._catalog = catalog
        self._judge = judge
        self._dispatcher = dispatcher
        self._engines = engines
        self._callers = callers
        self._recorder = recorder
        self._local = local
        self._ids = iter(range(1, 2**63))
        self._pacers = pacers
        self._requests = DecayingRate()
        self._retries = DecayingRate()

    # --- the journey --------------------------------------------------------------------------------------------------

    async def handle(self, request: Request) -> None:
        """Serve one request, whatever it is."""
        local = self._local.get((request.method, request.path))
        if local is not None:
            local(request)
            return
        exchange = self._open(request)
        try:
            body = request.body()
            exchange.request_bytes = len(body)
            route = self._understand(request, exchange, body)
            await self._serve(request, exchange, route, body)
        except ClientError as error:
            exchange.outcome = Outcome.RULE_REJECTED if error.kind == "rule" else Outcome.BAD_REQUEST
            self._refuse(request, exchange, error.status, error, kind=error.kind, param=error.param)
        except ShedError as error:
            reason = DropReason(error.reason)
            exchange.outcome = _SHED_OUTCOMES[reason]
            headers = [
                (b"retry-after", b"%d" % error.retry_after_s),
                (b"x-prelude-dropped-reason", reason.word.encode()),
            ]
            self._refuse(request, exchange, error.status, error, headers=headers)
        except UpstreamError as error:
            self._refuse(request, exchange, error.status, error)
        except (asyncio.CancelledError, ConnectionError):  # it left, or was found gone when we wrote
            exchange.outcome, exchange.status = Outcome.CLIENT_GONE, 499
            raise
        except Exception:
            log.exception("request %s failed inside the proxy", exchange.id)
            exchange.outcome = Outcome.INTERNAL
            self._refuse(request, exchange, 500, RuntimeError("internal error of the proxy"))
        finally:
            self._close(exchange)

    def _understand(self, request: Request, exchange: Exchange, body: bytes) -> Route:
        """Parse and classify; returns the route. Afterwards only facts are kept, not the decoded body.

        Raises:
            ClientError: it cannot be served as it stands.
        """
        began = time.perf_counter()
        if request.method == "CONNECT":
            raise ClientError("this proxy is not a tunnel", status=405)
        tenant = self._callers.authenticate(request.headers)
        endpoint = endpoint_of(request.path)
        if endpoint is Endpoint.OTHER or request.method != "POST":
            exchange.facts = facts = RequestFacts(
                request.path, Endpoint.OTHER, exchange.dialect, tenant=tenant.name, headers=request.headers
            )
        else:
            exchange.facts = facts = parse_request(request.path, body, request.headers, tenant.name)
            facts.may_raise_class = tenant.may_raise_class
            exchange.dialect = facts.dialect
        if self._settings.log_prompts:
            exchange.prompt = body.decode("utf-8", "replace")
        verdict, exchange.observation = self._judge.judge(facts, exchange.arrival)
        exchange.verdict = self._judge.placed(verdict, self._dispatcher.admission.num_held_of)
        needs_name = facts.endpoint not in {Endpoint.OTHER, Endpoint.GENERATE}
        route = self._catalog.resolve(facts.model, verdict.pool, needs_name=needs_name)
        if route.pool.affinity is not None and len(route.backends) > 1:
            exchange.ties = route.pool.affinity.ties_of(facts)
        facts.forget_payload()
        exchange.classify_s = time.perf_counter() - began
        return route

    async def _serve(self, request: Request, exchange: Exchange, route: Route, body: bytes) -> None:
        """Admit, send, relay; once more elsewhere where that is safe."""
        assert exchange.verdict is not None
        self._requests.add(exchange.arrival)
        if request.method in {"GET", "HEAD"}:
            await self._pass_through(request, exchange, route)
            return
        ticket = self._ticket(request, exchange, route, len(body))
        exchange.heartbeat = self._heartbeat(request, exchange)
        while True:
            exchange.num_attempts += 1
            try:
                async with self._dispatcher.admit(ticket) as slot:
                    await self._attempt(request, exchange, slot, body)
                    return
            except UpstreamError:
                if not self._may_retry(exchange):
                    raise
                self._recorder.retried(exchange, exchange.outcome)
            ticket = self._again(ticket)
            exchange.backend, exchange.dispatched_at = None, 0.0

    async def _attempt(self, request: Request, exchange: Exchange, slot: Slot, body: bytes) -> None:
        """One try on the backend that the permit names."""
        engine = self._engines[slot.permit.backend.name]
        exchange.dispatched_at = now = self._dispatcher.now()
        exchange.held_s = now - exchange.ready_at
        exchange.backend = engine.slots.name
        exchange.outcome = Outcome.CLIENT_GONE  # until it is otherwise: a client may leave at any await below
        if exchange.observation is not None and exchange.lesson is None:
            exchange.lesson = self._judge.dispatched(exchange.observation, now)
        try:
            response = await self._send(request, exchange, engine, body, slot.permit.klass)
            try:
                if await self._is_busy(engine, response):
                    raise EngineBusyError("the engine's own queue is full", sent=True)
                await self._check_route(exchange, response)
                await self._relay(request, exchange, engine, response, slot)
            finally:
                response.abort()
        except UpstreamError as error:
            exchange.outcome = _outcome_of(error)
            exchange.error = str(error)
            raise
        finally:
            slot.outcome = exchange.outcome

    async def _relay(
        self, request: Request, exchange: Exchange, engine: Engine, response: Response, slot: Slot | None
    ) -> None:
        """Head and body of the answer to the client, byte for byte, while the observer counts tokens."""
        assert exchange.facts is not None
        exchange.status = response.status
        is_stream = response.status == 200 and b"text/event-stream" in (response.header(b"content-type") or b"")
        exchange.is_streamed = is_stream
        if exchange.heartbeat is not None and await self._ends_heartbeat(request, exchange, response):
            return
        if exchange.heartbeat is None or not exchange.heartbeat.has_begun:
            length = response.header(b"content-length")
            headers = [field for field in end_to_end(response.headers) if field[0].lower() != b"content-length"]
            headers += self._own_headers(exchange)
            request.begin(response.status, headers, length=int(length) if length else None)
        observer = StreamObserver(exchange.facts.endpoint) if is_stream else None
        relay = Relay(self, request, exchange, engine=engine, slot=slot, observer=observer)
        request.on_writable(response.resume)
        try:
            await response.relay(relay)
        except UpstreamError as error:
            if not exchange.response_bytes:
                raise  # the head is not sent before the first piece: this can still become an honest error
            relay.flush()
            self._break_off(request, exchange, observer, error)
            exchange.error = str(error)
            exchange.outcome = Outcome.STREAM_BROKEN
            return
        finally:
            relay.forget()
        exchange.output_tokens = observer.output_tokens if observer else find_usage(relay.tail)
        exchange.outcome = _outcome_of_status(response.status)

    # --- stages -------------------------------------------------------------------------------------------------------

    def _open(self, request: Request) -> Exchange:
        return Exchange(
            request_id_of(request.headers),
            method=request.method,
            path=request.path,
            arrival=self._dispatcher.now(),
            started_at=time.time(),
            dialect=dialect_of(request.path),
            peer=request.peer,
        )

    def _close(self, exchange: Exchange) -> None:
        exchange.finished_at = self._dispatcher.now()
        if exchange.heartbeat is not None:
            exchange.heartbeat.stop()
        if exchange.ready_at and not exchange.dispatched_at:
            exchange.held_s = exchange.finished_at - exchange.ready_at
        if exchange.lesson is not None:
            facts, tokens = exchange.facts, exchange.output_tokens or 0
            assert facts is not None
            self._judge.ended(
                exchange.lesson,
                tokens if exchange.outcome is Outcome.OK else 0,
                censored=facts.max_tokens is not None and tokens >= facts.max_tokens * facts.num_choices,
                class_name=exchange.class_name,
                now=exchange.finished_at,
                ts=exchange.started_at,
            )
        self._recorder.finished(exchange)

    def _ticket(self, request: Request, exchange: Exchange, route: Route, num_bytes: int) -> Ticket:
        verdict, facts = exchange.verdict, exchange.facts
        assert verdict is not None
        assert facts is not None
        exchange.ready_at = now = self._dispatcher.now()
        patience = patience_of(self._judge.classes[verdict.klass], request.headers, exchange.arrival, now)
        return Ticket(
            next(self._ids),
            route,
            verdict.klass,
            arrival=exchange.arrival,
            deadline=patience.deadline,
            due=patience.due,
            sheds=patience.sheds,
            tenant=self._callers.line_of(facts.tenant),
            expected_tokens=round(verdict.classification.expected_tokens),
            prompt_tokens=facts.prompt_tokens,
            num_bytes=num_bytes,
            streams=facts.stream,
            planned=verdict.planned,
            ties=exchange.ties,
        )

    def _again(self, ticket: Ticket) -> Ticket:
        return Ticket(
            next(self._ids),
            ticket.route,
            ticket.klass,
            arrival=ticket.arrival,
            deadline=ticket.deadline,
            due=ticket.due,
            sheds=ticket.sheds,
            tenant=ticket.tenant,
            expected_tokens=ticket.expected_tokens,
            prompt_tokens=ticket.prompt_tokens,
            num_bytes=ticket.num_bytes,
            is_retry=True,
            streams=ticket.streams,
            planned=ticket.planned,
            ties=ticket.ties,
        )

    async def _send(
        self, request: Request, exchange: Exchange, engine: Engine, body: bytes, klass: int | None
    ) -> Response:
        """Send; a pooled connection that turns out closed is replaced by a fresh one, once."""
        replaced = {b"x-request-id": exchange.id.encode(), **engine.extra_headers}
        if klass is not None and engine.class_headers:
            replaced.update(engine.class_headers[klass])
        has_body = bool(body) or request.method not in {"GET", "HEAD", "DELETE", "OPTIONS"}
        head = request_head(
            request.method,
            engine.upstream.base_path + request.target,
            request.raw_headers,
            authority=engine.upstream.authority,
            body_length=len(body) if has_body else None,
            replaced=replaced,
        )
        is_head = request.method == "HEAD"
        try:
            return await engine.upstream.send(head, body, is_head=is_head)
        except UpstreamStaleError:
            return await engine.upstream.send(head, body, is_head=is_head, fresh=True)

    async def _is_busy(self, engine: Engine, response: Response) -> bool:
        """Whether this is the engine's own admission control: full, not ill. Any other answer stays readable."""
        if engine.kind is EngineKind.TGI:
            return response.status == 429
        if response.status != 503:
            return False
        text = (await response.peek(_BUSY_BODY_BYTES)).lower()
        return any(word in text for word in _BUSY_WORDS)

    async def _check_route(self, exchange: Exchange, response: Response) -> None:
        """An engine has only the routes its model can serve, and says of the others no more than "Not Found".

        Raises:
            ClientError: 404, in words.
        """
        facts = exchange.facts
        if response.status != 404 or facts is None or facts.endpoint is Endpoint.OTHER:
            return
        if await response.peek(len(_NO_ROUTE) + 1) == _NO_ROUTE:
            exchange.outcome = Outcome.UPSTREAM_4XX
            raise ClientError(
                f"The model `{facts.model}` does not offer {facts.path}: its engine has no such route.",
                status=404,
                param="model",
                kind="not_found_error",
            )

    async def _pass_through(self, request: Request, exchange: Exchange, route: Route) -> None:
        """A GET does no work worth a slot: any available backend, no admission."""
        now = self._dispatcher.now()
        up = [backend for backend in route.backends if backend.health.is_up(now)]
        if not up:
            raise ShedError(
                "No backend is up at the moment.", status=503, reason=DropReason.NO_ENDPOINTS, retry_after_s=5
            )
        engine = self._engines[min(up, key=BackendSlots.load).name]
        exchange.num_attempts = 1
        exchange.backend = engine.slots.name
        exchange.dispatched_at = now
        try:
            response = await self._send(request, exchange, engine, b"", None)
        except UpstreamError as error:
            exchange.outcome = _outcome_of(error)
            raise
        try:
            await self._relay(request, exchange, engine, response, None)
        finally:
            response.abort()

    def _heartbeat(self, request: Request, exchange: Exchange) -> Heartbeat | None:
        assert exchange.verdict is not None
        assert exchange.facts is not None
        after_s = self._judge.classes[exchange.verdict.klass].keepalive_after_s
        if after_s is None or not exchange.facts.stream:
            return None
        headers = [(b"x-request-id", exchange.id.encode()), (b"x-prelude-class", exchange.class_name.encode())]
        return Heartbeat(request, headers, after_s, asyncio.get_running_loop())

    async def _ends_heartbeat(self, request: Request, exchange: Exchange, response: Response) -> bool:
        """The engine answers; returns whether its answer is on its way already.

        With the head gone, anything but a stream can only be said as an error event.

        Raises:
            UpstreamError: the engine broke off.
        """
        assert exchange.heartbeat is not None
        if exchange.is_streamed:
            await response.peek(1)  # an engine sends its head long before its first token
        exchange.heartbeat.stop()
        if exchange.is_streamed or not exchange.heartbeat.has_begun:
            return False
        said = await response.read_all(_BUSY_BODY_BYTES)
        exchange.outcome = _outcome_of_status(response.status)
        if b"\n" in said or not said.startswith(b"{"):
            said = error_body(exchange.dialect, response.status, said.decode("utf-8", "replace"))
        request.write(error_event(exchange.dialect, said), is_last=True)
        return True

    def _own_headers(self, exchange: Exchange) -> RawHeaders:
        headers = [(b"x-request-id", exchange.id.encode())]
        if exchange.verdict is not None:
            headers.append((b"x-prelude-class", exchange.class_name.encode()))
        if exchange.num_attempts:
            headers.append((b"x-prelude-attempts", b"%d" % exchange.num_attempts))
        if exchange.backend and self._settings.show_backend:
            headers.append((b"x-prelude-backend", exchange.backend.encode()))
        if exchange.dispatched_at and self._settings.show_timing:
            held_ms, upstream_ms = exchange.held_s * 1e3, (self._dispatcher.now() - exchange.dispatched_at) * 1e3
            headers.append((b"x-prelude-queue-ms", b"%.1f" % held_ms))
            timing = b"classify;dur=%.2f, queue;dur=%.1f, upstream;dur=%.1f"
            headers.append((b"server-timing", timing % (exchange.classify_s * 1e3, held_ms, upstream_ms)))
        return headers

    def saw_events(self, exchange: Exchange, num_events: int, engine: Engine, slot: Slot | None) -> float:
        """So many events of a stream have gone by; returns at how many it must be looked at again.

        The first one is told, and a stream that has outgrown its class is re-charged: a wrong guess must not eat
        another class's slots.
        """
        if slot is None:
            return math.inf
        permit = slot.permit
        if not exchange.first_token_at:
            exchange.first_token_at = self._dispatcher.now()
            self._dispatcher.first_token(permit, has_telemetry=engine.has_telemetry)
        step = self._settings.promotions[permit.klass]
        while step is not None and num_events > step[0]:
            self._recorder.promoted(exchange, step[1])
            exchange.promoted_to = step[1]
            self._dispatcher.recharge(permit, step[1])
            if exchange.lesson is not None:
                self._judge.outgrown(exchange.lesson, step[0] + 1, self._dispatcher.now())
            step = self._settings.promotions[step[1]]
        return math.inf if step is None else step[0] + 1

    def pacer_of(self, slot: Slot | None) -> Pacer | None:
        """What spaces the pieces of a stream now: that of the class its slot is charged to, while somebody waits."""
        if slot is None or not self._dispatcher.admission.num_held:
            return None
        return self._pacers[slot.permit.klass]

    def _break_off(
        self, request: Request, exchange: Exchange, observer: StreamObserver | None, error: UpstreamError
    ) -> None:
        """The answer had begun: say so inside a stream; otherwise cut the connection: it must not pass for whole."""
        if observer is None:
            request.abort()
            return
        body = error_body(exchange.dialect, error.status, str(error))
        gap = b"" if observer.is_between_events else b"\n\n"
        request.write(gap + error_event(exchange.dialect, body), is_last=True)

    def _refuse(
        self,
        request: Request,
        exchange: Exchange,
        status: int,
        error: Exception,
        *,
        kind: str | None = None,
        param: str | None = None,
        headers: RawHeaders | None = None,
    ) -> None:
        """An error answer in the caller's dialect."""
        exchange.status = status
        exchange.error = str(error)
        if exchange.facts is not None:
            exchange.facts.forget_payload()
        body = error_body(exchange.dialect, status, str(error), kind=kind, param=param)
        if exchange.heartbeat is not None and exchange.heartbeat.has_begun:
            request.write(error_event(exchange.dialect, body), is_last=True)
            return
        request.respond(status, [_JSON, *self._own_headers(exchange), *(headers or ())], body)

    def _may_retry(self, exchange: Exchange) -> bool:
        """Nothing has reached the client (else no error would come here), and outcome, count and budget allow it.

        A refused connection or a full engine did no work: such a request is simply held again, as long as its class may
        be held, while admission keeps the backend suspended.
        """
        meaning = exchange.outcome.value
        if meaning.free_retry or not meaning.retryable:
            return meaning.free_retry
        now = self._dispatcher.now()
        allowed = self._settings.retry_budget * self._requests.per_second(now) + 1.0
        if exchange.num_attempts >= self._settings.max_attempts or self._retries.per_second(now) > allowed:
            return False
        self._retries.add(now)
        return True


class EngineBusyError(UpstreamError):
    """The engine's own admission control refused."""

    status = 503


_SHED_OUTCOMES = {
    DropReason.SATURATED: Outcome.REJECTED_SATURATED,
    DropReason.TTL_EXPIRED: Outcome.EXPIRED,
    DropReason.UNMEETABLE: Outcome.UNMEETABLE,
    DropReason.NO_ENDPOINTS: Outcome.NO_ENDPOINTS,
    DropReason.SHUTTING_DOWN: Outcome.SHUTTING_DOWN,
}


def _outcome_of(error: UpstreamError) -> Outcome:
    if isinstance(error, EngineBusyError):
        return Outcome.ENGINE_BUSY
    if isinstance(error, UpstreamConnectError):
        return Outcome.CONNECT_FAILED
    if isinstance(error, UpstreamTimeoutError):
        return Outcome.UPSTREAM_TIMEOUT
    if isinstance(error, UpstreamStaleError):
        return Outcome.STALE_CONNECTION
    return Outcome.UPSTREAM_PROTOCOL if isinstance(error, UpstreamProtocolError) else Outcome.UPSTREAM_RESET


def _outcome_of_status(status: int) -> Outcome:
    if status < 400:
        return Outcome.OK
    return Outcome.UPSTREAM_4XX if status < 500 else Outcome.UPSTREAM_5XX
