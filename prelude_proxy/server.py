"""aiohttp's low-level server as a front door: bounded connections, no silent ones, no traceback for clients' faults."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from prelude_proxy.core.dialects import error_body
from prelude_proxy.core.domain import Dialect


class Server(web.Server):
    """Accepts connections of the data port."""

    def __init__(self, handler: Callable[[web.BaseRequest], Any], *, max_connections: int, **options: Any) -> None:
        """`options` are those of aiohttp's `RequestHandler`."""
        super().__init__(handler, **options)
        self._max_connections = max_connections
        self._opened_at: dict[RequestHandler, float] = {}

    def __call__(self) -> RequestHandler:
        """The protocol of a new connection."""
        return _Connection(self, loop=self._loop, **self._kwargs)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """A client connected; beyond the bound it is turned away."""
        if len(self._connections) >= self._max_connections:
            transport.abort()
        self._opened_at[handler] = self._loop.time()
        super().connection_made(handler, transport)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """A connection is gone."""
        self._opened_at.pop(handler, None)
        super().connection_lost(handler, exc)

    def close_silent(self, limit_s: float) -> None:
        """Abort connections older than `limit_s` on which no request has begun."""
        now = self._loop.time()
        for handler, opened_at in list(self._opened_at.items()):
            if handler._request_count:
                del self._opened_at[handler]
            elif now - opened_at > limit_s and handler.transport is not None:
                handler.transport.abort()

    def num_serving(self) -> int:
        """Connections with a request being handled."""
        return sum(handler._request_in_progress for handler in self._connections)


class _Connection(RequestHandler):
    """One client connection."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """A client that left or does not speak HTTP is no crash: the one gets silence, the other a 400 and its end."""
        if isinstance(exc, ConnectionError):
            raise exc
        if status >= 500 and not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        self.logger.debug("not HTTP from %s: %s", request.remote, message)
        first_line = (message or "malformed").partition("\n")[0]
        body = error_body(Dialect.OPENAI, status, f"the request is not valid HTTP: {first_line}")
        response = web.Response(status=status, body=body, content_type="application/json")
        response.force_close()
        return response
