"""One answer on its way from the engine's connection to the client's, byte for byte, watched as it goes by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prelude_proxy.core.sse import StreamObserver
from prelude_proxy.dispatcher import Slot
from prelude_proxy.downstream import Request
from prelude_proxy.errors import UpstreamError
from prelude_proxy.exchange import Engine, Exchange
from prelude_proxy.upstream import Response

if TYPE_CHECKING:
    from prelude_proxy.proxy import Proxy

_TAIL_BYTES: Final = 2048
_SHOWN_AT_ONCE: Final = 16
"""Events at the beginning of a stream that go on as they come, whatever its pace."""


class Relay:
    """Carries one answer from the engine's connection to the client's: called with each piece as it arrives."""

    __slots__ = (
        "_engine",
        "_exchange",
        "_look_at",
        "_observer",
        "_piece_at",
        "_proxy",
        "_request",
        "_response",
        "_slot",
        "tail",
    )

    def __init__(
        self,
        proxy: Proxy,
        request: Request,
        exchange: Exchange,
        response: Response,
        *,
        engine: Engine,
        slot: Slot | None,
        observer: StreamObserver | None,
    ) -> None:
        self._proxy = proxy
        self._request = request
        self._exchange = exchange
        self._response = response
        self._engine = engine
        self._slot = slot
        self._observer = observer
        self._look_at: float = 1
        """The number of events at which the proxy wants to know."""
        self._piece_at = 0.0
        self.tail = b""
        """Last bytes of an answer that is not a stream: its usage stands there."""

    def __call__(self, piece: bytes, is_last: bool) -> bool:
        """Send on `piece`; returns whether the client can take more.

        Raises:
            UpstreamError: a stream ended without its terminator.
        """
        exchange, observer = self._exchange, self._observer
        exchange.response_bytes += len(piece)
        if observer is None:
            self.tail = (self.tail + piece)[-_TAIL_BYTES:]
            return self._request.write(piece, is_last=is_last)
        before = observer.num_events
        observer.feed(piece)
        if observer.num_events >= self._look_at:
            self._look_at = self._proxy.saw_events(exchange, observer.num_events, self._engine, self._slot)
        if is_last and not observer.has_terminator(exchange.dialect):
            self._request.write(piece)
            raise UpstreamError("the stream ended without its terminator", sent=True)
        wants_more = self._request.write(piece, is_last=is_last)
        return wants_more and not (before >= _SHOWN_AT_ONCE and self._rests(observer.num_events - before))

    def _rests(self, num_events: int) -> bool:
        """Whether nothing is read for an interval, since so many events have come in less than that."""
        pacer = self._proxy.pacer_of(self._slot)
        if pacer is None:
            return False
        now = pacer.now()
        gap_s, self._piece_at = now - self._piece_at, now
        if num_events < 2 and gap_s > pacer.interval_s / 2:
            return False
        pacer.rest(self._resume)
        return True

    def _resume(self) -> None:
        if self._request.is_writable:
            self._response.resume()
