"""What a client sends reaches the engine byte for byte, and the engine's answer the client."""

from __future__ import annotations

import hashlib

import pytest
from scripted import chat, value_of

ODD_BODIES = {
    "unknown fields": b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"vllm_xargs":{"a":[1,2]},"zz":null}',
    "odd spacing": b'\r\n {  "model"\t:"tiny" ,\n\n"messages" : [ {"role":"user","content":"x"} ]  }  \n',
    "duplicate keys": b'{"model":"x","model":"tiny","messages":[],"messages":[{"role":"user","content":"x"}]}',
    "unicode escapes": rb'{"model":"tiny","messages":[{"role":"user","content":"\u00e9\ud83d\ude00\u0000\/"}]}',
    "raw unicode": '{"model":"tiny","messages":[{"role":"user","content":"é😀 "}]}'.encode(),
    "number spellings": b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"temperature":1.0e+00,"seed":-0}',
    "big integers": b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"seed":12345678901234567890123}',
    "long": b'{"model":"tiny","messages":[{"role":"user","content":"' + b"word " * 60_000 + b'"}]}',
}


@pytest.mark.parametrize("name", ODD_BODIES)
async def test_request_body_is_untouched(proxy, backend, name):
    """The body arrives with the hash it was sent with, whatever it looks like."""
    body = ODD_BODIES[name]
    client = await proxy.client()
    await client.request("POST", "/v1/chat/completions", body)
    exchange = await backend.next()
    assert hashlib.sha256(exchange.request.body).digest() == hashlib.sha256(body).digest()
    await exchange.reply()
    assert (await client.answer()).status == 200


async def test_chunked_request_body_arrives_whole_and_with_its_length(proxy, backend):
    """A body sent in chunks is joined, not altered, and travels on with a content-length."""
    client = await proxy.client()
    await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    body = b'{"model":"tiny","messages":[{"role":"user","content":"in pieces"}]}'
    for at in range(0, len(body), 7):
        await client.send(b"%x\r\n%s\r\n" % (len(body[at : at + 7]), body[at : at + 7]))
    await client.send(b"0\r\n\r\n")
    exchange = await backend.next()
    assert exchange.request.body == body
    assert exchange.request.header(b"content-length") == str(len(body)).encode()
    assert exchange.request.header(b"transfer-encoding") is None
    await exchange.reply()
    assert (await client.answer()).status == 200


async def test_answer_body_is_untouched(proxy, backend):
    """A non-streamed answer keeps its bytes, its type and its length."""
    odd = b'{ "choices" : [ ],\n "x":"\\u00e9", "x": 1 }\n\n'
    client = await proxy.client()
    await client.request("POST", "/v1/chat/completions", chat())
    await (await backend.next()).reply(body=odd, headers=[("x-engine", "yes"), ("content-type", "application/json")])
    answer = await client.answer()
    assert answer.body == odd
    assert answer.header("content-length") == str(len(odd))
    assert answer.header("x-engine") == "yes"


async def test_streamed_bytes_are_untouched_however_they_are_split(proxy, backend):
    """Events cut in the middle of a line, a UTF-8 character or a usage field come out as they went in."""
    events = (
        'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
        ': a comment\n\ndata: {"choices":[{"delta":{"content":"é😀"}}]}\r\n\r\n'
        'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":17}}\n\ndata: [DONE]\n\n'
    ).encode()
    client = await proxy.client()
    await client.request("POST", "/v1/chat/completions", chat(stream=True))
    exchange = await backend.next()
    await exchange.start()
    for at in range(0, len(events), 5):
        await exchange.chunk(events[at : at + 5])
    await exchange.end(terminator=b"")
    answer = await client.answer()
    assert answer.body == events
    assert answer.header("content-type") == "text/event-stream"
    [record] = await proxy.finished()
    assert (record["output_tokens"], record["stream"], record["outcome"]) == (17, True, "ok")


async def test_hop_by_hop_headers_do_not_travel_upstream(proxy, backend):
    """Headers of the connection, and those it names, stay on the client's side; the others travel as they are."""
    own = [
        ("connection", "x-secret, keep-alive"),
        ("x-secret", "1"),
        ("keep-alive", "timeout=5"),
        ("te", "trailers"),
        ("upgrade", "h2c"),
        ("proxy-authorization", "Basic eA=="),
        ("proxy-connection", "keep-alive"),
    ]
    travels = [("X-Mixed-Case", "Kept"), ("authorization", "Bearer k"), ("x-twice", "1"), ("x-twice", "2")]
    client = await proxy.client()
    await client.request("POST", "/v1/chat/completions", chat(), [*own, *travels])
    exchange = await backend.next()
    await exchange.reply()
    names = {name.lower() for name, _ in exchange.request.headers}
    assert not names & {name.encode() for name, _ in own}
    for name, value in travels:
        assert (name.encode(), value.encode()) in exchange.request.headers
    assert exchange.request.header(b"host") == backend.name.encode()
    assert exchange.request.header(b"accept-encoding") == b"identity"
    assert exchange.request.header(b"x-request-id")
    assert (await client.answer()).status == 200


async def test_connection_headers_given_twice_are_all_heeded(proxy, backend):
    """Every `connection` header names headers that stay, not only the first."""
    headers = [("connection", "x-one"), ("connection", "x-two"), ("x-one", "1"), ("x-two", "2")]
    client = await proxy.client()
    await client.request("POST", "/v1/chat/completions", chat(), headers)
    exchange = await backend.next()
    await exchange.reply()
    assert exchange.request.header(b"x-one") is None
    assert exchange.request.header(b"x-two") is None
    assert (await client.answer()).status == 200


async def test_hop_by_hop_headers_do_not_travel_downstream(proxy, backend):
    """The backend's connection headers, and those they name, end at the proxy."""
    client = await proxy.client()
    await client.request("POST", "/v1/chat/completions", chat())
    hops = [("connection", "close, x-internal"), ("x-internal", "1"), ("keep-alive", "timeout=1"), ("x-kept", "1")]
    await (await backend.next()).reply(headers=hops)
    answer = await client.answer()
    names = {name.lower() for name, _ in answer.headers}
    assert not names & {b"x-internal", b"keep-alive"}
    assert value_of(answer.headers, b"x-kept") == b"1"
    await client.request("GET", "/health")  # the backend's "close" was about its own connection
    assert (await client.answer()).status == 200


async def test_path_and_query_travel_as_they_came(proxy, backend):
    """Percent-escapes, dots and an odd query in the target are not normalised."""
    client = await proxy.client()
    target = "/v1/x%2Fy/./a%20b%ff?q=%C3%A9&&r=+;#"
    await client.request("POST", target, b"{}")
    exchange = await backend.next()
    assert exchange.request.target == target.encode()
    await exchange.reply()
    assert (await client.answer()).status == 200


async def test_absolute_target_is_forwarded_in_origin_form(proxy, backend):
    """A client that speaks to us as to a forward proxy gets its path forwarded, not its URL."""
    client = await proxy.client()
    await client.request("POST", "http://proxy.example:80/v1/other?x=1", b"{}")
    exchange = await backend.next()
    assert exchange.request.target == b"/v1/other?x=1"
    await exchange.reply()
    assert (await client.answer()).status == 200


async def test_header_bytes_beyond_ascii_survive_both_ways(proxy, backend):
    """Header values reach the other side as the same bytes, UTF-8 or Latin-1."""
    client = await proxy.client()
    body = b'{"model":"tiny","messages":[{"role":"user","content":"x"}]}'
    await client.send(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-latin: caf\xe9\r\nx-utf: \xc3\xa9\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )
    exchange = await backend.next()
    assert exchange.request.header(b"x-latin") == b"caf\xe9"
    assert exchange.request.header(b"x-utf") == b"\xc3\xa9"
    await exchange.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-latin: caf\xe9\r\nx-utf: \xc3\xa9\r\n\r\n{}")
    exchange.finish()
    answer = await client.answer()
    assert value_of(answer.headers, b"x-utf") == b"\xc3\xa9"
    assert value_of(answer.headers, b"x-latin") == b"caf\xe9"


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ],
    ids=["length", "chunked"],
)
@pytest.mark.parametrize("surplus", [b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nx-evil: 1\r\n\r\nevil", b"evil"])
async def test_bytes_behind_an_answer_go_nowhere(proxy, backend, head, surplus):
    """Bytes behind the end of an answer become part neither of it nor of the next one; the connection is given up."""
    client = await proxy.client()
    await client.request("POST", "/v1/chat/completions", chat())
    exchange = await backend.next()
    await exchange.write(head + surplus)
    answer = await client.answer()
    assert (answer.status, answer.body, answer.header("x-evil")) == (200, b"{}", None)
    await exchange.aborted()
    await client.request("POST", "/v1/chat/completions", chat())
    await (await backend.next()).reply(body=b'"good"')
    assert (await client.answer()).body == b'"good"'


async def test_trailers_do_not_become_headers(proxy, backend):
    """Trailer fields of a chunked answer are dropped, even if the whole answer came in one piece."""
    client = await proxy.client()
    await client.request("POST", "/v1/chat/completions", chat())
    exchange = await backend.next()
    await exchange.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx-late: 1\r\n\r\n")
    exchange.finish()
    answer = await client.answer()
    assert answer.body == b"{}"
    assert answer.header("x-late") is None
    assert answer.header("content-length") is None
