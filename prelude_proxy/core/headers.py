"""What travels and what does not: hop-by-hop headers, the head of the upstream request, headers of the answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""RFC 9110 §7.6.1, and the old `proxy-connection`."""

# set anew for each hop; `expect` was answered by us; identity so that a stream can be watched going by
_REQUEST_OWN: Final = HOP_BY_HOP | {b"host", b"content-length", b"expect", b"accept-encoding"}

RawHeaders = Iterable[tuple[bytes, bytes]]


def request_head(
    method: str,
    target: bytes,
    headers: RawHeaders,
    *,
    authority: bytes,
    body_length: int | None,
    replaced: Mapping[bytes, bytes],
) -> bytes:
    """Request line and headers as bytes, ending in the empty line.

    Args:
        method: HTTP method.
        target: path and query, as the client sent them.
        headers: the client's, in their order and spelling.
        authority: value of `host`.
        body_length: bytes of the body; None for a request without one.
        replaced: lower-case names that are set to this instead of the client's value.
    """
    dropped = {*_REQUEST_OWN, *replaced, *_named_in_connection(headers)}
    lines = [method.encode("ascii"), b" ", target, b" HTTP/1.1\r\nhost: ", authority, b"\r\n"]
    for name, value in headers:
        if name.lower() not in dropped:
            lines += (name, b": ", value, b"\r\n")
    for name, value in replaced.items():
        lines += (name, b": ", value, b"\r\n")
    lines.append(b"accept-encoding: identity\r\n")
    if body_length is not None:
        lines.append(b"content-length: %d\r\n" % body_length)
    lines.append(b"\r\n")
    return b"".join(lines)


def end_to_end(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    """The headers of an answer that belong to the answer and not to the connection it came on."""
    dropped = HOP_BY_HOP | _named_in_connection(headers)
    return [(name, value) for name, value in headers if name.lower() not in dropped]


def _named_in_connection(headers: RawHeaders) -> frozenset[bytes]:
    named: frozenset[bytes] = frozenset()
    for name, value in headers:
        if len(name) == 10 and name.lower() == b"connection":
            named |= {token.strip().lower() for token in value.split(b",")}
    return named
