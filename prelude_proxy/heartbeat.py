"""A held stream that shows signs of life: 200 and comments, for what stands between and cuts connections it finds idle.

By default nothing is sent before the engine answers, so that the status stays honest. A class may ask for the other
choice (`keepalive_after_s`): from then on whatever goes wrong can only be said inside the stream.
"""

from __future__ import annotations

import asyncio
from typing import Final

from prelude_proxy.downstream import RawHeaders, Request

_COMMENT: Final = b": keep-alive\n\n"
_HEADERS: Final = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))


class Heartbeat:
    """Answers a request with 200 and a comment after `after_s`, and with one more each time that passes."""

    def __init__(self, request: Request, headers: RawHeaders, after_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self._request = request
        self._headers = headers
        self._after_s = after_s
        self.has_begun = False
        """Status and head have gone out."""
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = loop.call_later(after_s, self._beat)

    def stop(self) -> None:
        """No more comments: the answer's own bytes follow, or none."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        request = self._request
        self._timer = self._loop.call_later(self._after_s, self._beat)
        if not self.has_begun:
            self.has_begun = True
            request.begin(200, (*_HEADERS, *self._headers), length=None)
        if request.is_writable:
            try:
                request.write(_COMMENT)
            except ConnectionError:  # it has gone: its task is about to learn that
                self.stop()
