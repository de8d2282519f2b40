"""What travels upstream and back."""

from __future__ import annotations

from prelude_proxy.core.headers import end_to_end, request_head


def head(headers, **fields):
    defaults = {"authority": b"engine:8000", "body_length": 2, "replaced": {}}
    return request_head("POST", b"/v1/x?y=1", headers, **{**defaults, **fields})


def test_end_to_end_headers_travel_as_they_came():
    """Names keep their spelling and order, repeated headers stay repeated."""
    result = head([(b"X-One", b"1"), (b"x-two", b"a"), (b"X-Two", b"b")])
    assert result.startswith(b"POST /v1/x?y=1 HTTP/1.1\r\nhost: engine:8000\r\nX-One: 1\r\nx-two: a\r\nX-Two: b\r\n")
    assert result.endswith(b"content-length: 2\r\n\r\n")


def test_hop_by_hop_headers_and_those_named_in_connection_stay():
    """RFC 9110 §7.6.1."""
    result = head(
        [
            (b"Connection", b"keep-alive, X-Secret"),
            (b"Keep-Alive", b"5"),
            (b"Transfer-Encoding", b"chunked"),
            (b"Upgrade", b"h2c"),
            (b"x-secret", b"1"),
            (b"Host", b"proxy"),
            (b"Content-Length", b"99"),
            (b"Expect", b"100-continue"),
            (b"Accept-Encoding", b"gzip"),
        ]
    ).lower()
    for gone in (b"x-secret", b"chunked", b"h2c", b"proxy", b"99", b"100-continue", b"gzip", b"keep-alive"):
        assert gone not in result


def test_replaced_headers_win_over_the_clients():
    """The backend's key goes out, the client's does not."""
    result = head([(b"Authorization", b"Bearer client")], replaced={b"authorization": b"Bearer pool"})
    assert b"client" not in result
    assert result.count(b"Bearer pool") == 1


def test_answers_lose_only_what_belongs_to_the_connection():
    """Everything else reaches the client."""
    headers = [(b"Content-Type", b"a"), (b"Connection", b"close, x-hop"), (b"X-Hop", b"1"), (b"Set-Cookie", b"a")]
    assert end_to_end(headers) == [(b"Content-Type", b"a"), (b"Set-Cookie", b"a")]
