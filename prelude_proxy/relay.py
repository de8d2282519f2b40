"""One answer on its way from the engine's connection to the client's, byte for byte, watched as it goes by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prelude_proxy.core.sse import StreamObserver
from prelude_proxy.dispatcher import Slot
from prelude_proxy.downstream import Request
from prelude_proxy.errors import UpstreamError
from prelude_proxy.exchange import Engine, Exchange

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
        "_kept",
        "_look_at",
        "_observer",
        "_proxy",
        "_request",
        "_sent_at",
        "_slot",
        "tail",
    )

    def __init__(
        self,
        proxy: Proxy,
        request: Request,
        exchange: Exchange,
        *,
        engine: Engine,
        slot: Slot | None,
        observer: StreamObserver | None,
    ) -> None:
        self._proxy = proxy
        self._request = request
        self._exchange = exchange
        self._engine = engine
        self._slot = slot
        self._observer = observer
        self._look_at = 1.0
        """The number of events at which the proxy wants to know."""
        self._kept: list[bytes] = []
        """Pieces that go on together at the pacer's call."""
        self._sent_at = 0.0
        self.tail = b""
        """Last bytes of an answer that is not a stream: its usage stands there."""

    def __call__(self, piece: bytes, is_last: bool) -> bool:
        """Send on `piece`, now or with those that follow soon; returns whether the client can take more.

        Raises:
            UpstreamError: a stream ended without its terminator.
        """
        exchange, observer = self._exchange, self._observer
        exchange.response_bytes += len(piece)
        if observer is None:
            self.tail = (self.tail + piece)[-_TAIL_BYTES:]
            return self._request.write(piece, is_last=is_last)
        observer.feed(piece)
        num_events = observer.num_events
        if num_events >= self._look_at:
            self._look_at = self._proxy.saw_events(exchange, num_events, self._engine, self._slot)
        if self._kept or (num_events > _SHOWN_AT_ONCE and not is_last and self._begins_keeping()):
            self._kept.append(piece)
            if not is_last:
                return self._request.is_writable
            piece = self._taken()
        if is_last and not observer.has_terminator(exchange.dialect):
            self._request.write(piece)
            raise UpstreamError("the stream ended without its terminator", sent=True)
        return self._request.write(piece, is_last=is_last)

    def _begins_keeping(self) -> bool:
        """Whether a piece comes so soon after the last one that it is kept until the pacer, asked for that, calls."""
        pacer = self._proxy.pacer_of(self._slot)
        if pacer is None:
            return False
        now = pacer.now()
        gap_s, self._sent_at = now - self._sent_at, now
        if gap_s > pacer.interval_s / 2:
            return False
        pacer.call_later(self._send_kept)
        return True

    def _send_kept(self, now: float) -> None:
        self._sent_at = now
        try:
            self.flush()
        except ConnectionError:  # the client has gone: the task that relays is about to learn that
            self.forget()

    def flush(self) -> None:
        """Send on what was kept.

        Raises:
            ConnectionError: the client has gone.
        """
        if self._kept:
            self._request.write(self._taken())

    def forget(self) -> None:
        """Nothing more is to go out: the connection may serve another request by the time the pacer calls."""
        self._kept.clear()

    def _taken(self) -> bytes:
        kept, self._kept = self._kept, []
        return b"".join(kept)
