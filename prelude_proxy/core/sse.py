r"""Watches a streamed answer go by: first event, number of events, exact usage if the engine gives it.

Nothing is decoded per chunk and nothing is kept but a short tail. It rests on one fact: JSON never holds a raw
newline, so `\ndata:` is the start of an event and nothing else. Any split of the same bytes gives the same result.
"""

from __future__ import annotations

import re
from typing import Final

from prelude_proxy.core.domain import Dialect, Endpoint

_MARK: Final = b"\ndata:"
_CARRY: Final = len(_MARK) - 1
_TAIL_BYTES: Final = 2048
_RECENT_BYTES: Final = 2 * _TAIL_BYTES
"""As much is kept before it is cut to the tail: so most pieces cost no copy of it."""
_DONE: Final = re.compile(rb"(?:\A|\n)data: ?\[DONE\]")
_RESPONSE_END: Final = re.compile(rb'(?:\nevent: ?|"type": ?")response\.(?:completed|incomplete|failed)\b')
_RESPONSE_END_BYTES: Final = 48
_MESSAGE_END: Final = re.compile(rb'(?:\A|\n)event: ?(?:message_stop|error)\b|"type": ?"message_stop"')
_USAGE: Final = re.compile(rb'"(?:completion_tokens|output_tokens|generated_tokens)"\s*:\s*(\d+)')

# events of a stream that carry no token: role chunk and [DONE] for chat, [DONE] for completions, …
_OVERHEAD: Final = {
    Endpoint.CHAT: 2,
    Endpoint.COMPLETIONS: 1,
    Endpoint.MESSAGES: 6,
    Endpoint.RESPONSES: 8,
    Endpoint.GENERATE: 0,
}


class StreamObserver:
    """Counts the events of one SSE body as its bytes pass."""

    __slots__ = ("_carry", "_endpoint", "_has_ended", "_overhead", "_recent", "_recent_bytes", "num_events")

    def __init__(self, endpoint: Endpoint) -> None:
        self.num_events = 0
        self._endpoint = endpoint
        self._has_ended = False
        self._overhead = _OVERHEAD.get(endpoint, 0)
        self._carry = b"\n"
        self._recent: list[bytes] = []
        self._recent_bytes = 0

    def feed(self, chunk: bytes) -> None:
        """See the next bytes."""
        window = self._carry + chunk
        self.num_events += window.count(_MARK)
        self._carry = window[-_CARRY:]
        if self._endpoint is Endpoint.RESPONSES and not self._has_ended:  # its last event may be longer than the tail
            start = self._tail[-_RESPONSE_END_BYTES:] or b"\n"
            self._has_ended = _RESPONSE_END.search(start + chunk) is not None
        self._recent.append(chunk)
        self._recent_bytes += len(chunk)
        if self._recent_bytes > _RECENT_BYTES:
            self._recent = [self._tail]
            self._recent_bytes = _TAIL_BYTES

    @property
    def _tail(self) -> bytes:
        """The last bytes seen; put together only when they are looked at."""
        return b"".join(self._recent)[-_TAIL_BYTES:]

    @property
    def estimated_tokens(self) -> int:
        """Tokens so far, from the number of events: exact where one event is one token, else a lower bound."""
        return max(0, self.num_events - self._overhead)

    @property
    def output_tokens(self) -> int:
        """Output tokens of the finished body: the engine's own count if it gave one, else the estimate."""
        exact = find_usage(self._tail)
        return exact if exact is not None else self.estimated_tokens

    @property
    def is_between_events(self) -> bool:
        """Whether the bytes so far end where an event ends."""
        return not self._tail or self._carry.endswith((b"\n\n", b"\n\r\n"))

    def has_terminator(self, dialect: Dialect) -> bool:
        """Whether the stream ended as its dialect says a stream ends; for unknown kinds of streams any end is one."""
        if self._endpoint not in _OVERHEAD:
            return True
        if dialect is Dialect.ANTHROPIC:
            return _MESSAGE_END.search(self._tail) is not None
        if dialect is Dialect.TGI:
            # only the last event has a text, the whole one, which may be longer than the tail
            last = self._tail.rpartition(_MARK)[2].rstrip()
            return last.endswith(b"}") and b'"generated_text":null' not in last
        return self._has_ended or _DONE.search(self._tail) is not None


def find_usage(body: bytes) -> int | None:
    """The last count of output tokens in a JSON body or the tail of a stream."""
    found = _USAGE.findall(body)
    return int(found[-1]) if found else None


def error_event(dialect: Dialect, error_body: bytes) -> bytes:
    """What ends a stream that broke after it began, in the caller's dialect; `error_body` is one line of JSON."""
    if dialect is Dialect.ANTHROPIC:
        return b"event: error\ndata: " + error_body + b"\n\n"
    if dialect is Dialect.TGI:
        return b"data:" + error_body + b"\n\n"
    return b"data: " + error_body + b"\n\ndata: [DONE]\n\n"
