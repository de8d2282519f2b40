"""Whatever a client sends: a clear 4xx in its own dialect, and the connection stays usable or ends cleanly."""

from __future__ import annotations

import pytest
from scripted import chat, soon

PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages", "tgi": "/generate"}

GOOD = {
    "openai": b'{"model":"tiny","messages":[{"role":"user","content":"x"}]}',
    "anthropic": b'{"model":"tiny","max_tokens":5,"messages":[{"role":"user","content":"x"}]}',
    "tgi": b'{"inputs":"x"}',
}

BAD = {
    "empty": b"",
    "not JSON": b"hello",
    "half JSON": b'{"model":"tiny","messages":[{"role":"us',
    "a list": b"[1,2]",
    "a number": b"7",
    "null": b"null",
    "bad UTF-8": b'{"model":"tiny","inputs":"\xff\xfe","messages":[{"role":"user","content":"\xc3\x28"}]}',
    "lone surrogate": b'{"model":"tiny","inputs":"\\ud800","messages":[{"role":"user","content":"\\ud800"}]}',
    "absurd nesting": b'{"model":"tiny","inputs":"x","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "model is a number": b'{"model":7,"inputs":"x","messages":[{"role":"user","content":"x"}]}',
    "stream is a word": b'{"model":"tiny","stream":"yes","inputs":"x","messages":[{"role":"user","content":"x"}]}',
    "prompt is missing": b'{"model":"tiny"}',
}


def assert_error(answer, dialect: str, status: int) -> str:
    """The body is an error as `dialect` says it; its message."""
    assert answer.status == status
    assert answer.header("content-type").startswith("application/json")
    body = answer.json()
    if dialect == "openai":
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert body["error"]["code"] == status
        return body["error"]["message"]
    if dialect == "anthropic":
        assert body["type"] == "error"
        assert set(body["error"]) == {"type", "message"}
        return body["error"]["message"]
    assert set(body) == {"error", "error_type"}
    return body["error"]


@pytest.mark.parametrize("dialect", PATHS)
async def test_bad_bodies_get_a_400_and_leave_the_connection_usable(proxy, backend, dialect):
    """Each mistake is answered in the caller's dialect, nothing reaches the backend, the next request is served."""
    client = await proxy.client()
    for name, body in BAD.items():
        await client.request("POST", PATHS[dialect], body)
        message = assert_error(await client.answer(), dialect, 400)
        assert message, name
    assert not backend.requests
    await client.request("POST", PATHS[dialect], GOOD[dialect])
    await (await backend.next()).reply()
    assert (await client.answer()).status == 200
    outcomes = [record["outcome"] for record in await proxy.finished(len(BAD) + 1)]
    assert outcomes == ["bad_request"] * len(BAD) + ["ok"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "tiny", "messages": "hi"}, "messages"),
        ({"model": "tiny", "messages": []}, "messages"),
        ({"model": "tiny", "messages": ["hi"]}, "messages[0]"),
        ({"model": ["tiny"], "messages": [{"role": "user", "content": "x"}]}, "model"),
        (chat(max_tokens="many"), "max_tokens"),
        (chat(max_tokens=-1), "max_tokens"),
        (chat(max_tokens=1.5), "max_tokens"),
        (chat(n=True), "n"),
        (chat(stream=1), "stream"),
    ],
)
async def test_wrong_types_name_the_field(proxy, backend, body, param):
    """A field of the wrong type that is acted on gives 400 with `param`."""
    answer = await proxy.post(body)
    assert_error(answer, "openai", 400)
    assert answer.json()["error"]["param"] == param
    assert not backend.requests


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_missing_model_is_a_400_that_names_the_known_ones(proxy, backend, dialect):
    """Without a model nothing can be routed; the answer says which there are."""
    answer = await proxy.post(b'{"messages":[{"role":"user","content":"x"}]}', path=PATHS[dialect])
    assert "tiny" in assert_error(answer, dialect, 400)
    assert not backend.requests


@pytest.mark.parametrize("dialect", PATHS)
async def test_unknown_model_is_a_404_that_names_the_known_ones(proxy, backend, dialect):
    """A model nobody serves gives 404 with the names that work."""
    body = {"model": "gpt-9", "inputs": "x", "messages": [{"role": "user", "content": "x"}]}
    answer = await proxy.post(body, path=PATHS[dialect])
    message = assert_error(answer, dialect, 404)
    assert "gpt-9" in message
    assert "tiny" in message
    assert not backend.requests


@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_body_over_the_limit_is_a_413(make_proxy, backend, dialect, framing):
    """10 MB where 64 KiB are allowed: 413 in the dialect, though the client sends all of it before it reads."""
    proxy = await make_proxy(backend, limits={"max_body_bytes": 65536})
    client = await proxy.client()
    head = b"POST %s HTTP/1.1\r\nhost: x\r\n" % PATHS[dialect].encode()
    size = 10 * 2**20
    try:
        if framing == "length":
            await soon(client.send(head + b"content-length: %d\r\n\r\n" % size + b"x" * size))
        else:
            await soon(client.send(head + b"transfer-encoding: chunked\r\n\r\n"))
            for _ in range(160):
                await soon(client.send(b"10000\r\n" + b"x" * 65536 + b"\r\n"))
            await soon(client.send(b"0\r\n\r\n"))
    except ConnectionError:
        pass  # the proxy need not read 10 MB; it has answered
    answer = await client.answer()
    assert "65536" in assert_error(answer, dialect, 413)
    assert not backend.requests
    assert (await proxy.finished())[0]["status"] == 413
    assert (await proxy.ask("GET", "/health")).status == 200


async def test_body_of_exactly_the_limit_is_served(make_proxy, backend):
    """The limit is the largest body that is allowed."""
    body = b'{"model":"tiny","messages":[{"role":"user","content":"x"}]}'
    proxy = await make_proxy(backend, limits={"max_body_bytes": len(body)})
    client = await proxy.client()
    await client.request("POST", "/v1/chat/completions", body)
    await (await backend.next()).reply()
    assert (await client.answer()).status == 200
    await client.request("POST", "/v1/chat/completions", body + b" ")
    assert (await client.answer()).status == 413


async def test_truncated_body_ends_the_connection_quietly(proxy, backend):
    """A client that announces more than it sends and leaves is a 499 in the log, nothing else."""
    client = await proxy.client()
    await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n{")
    client.writer.write_eof()
    assert await client.ended() == b""
    [record] = await proxy.finished()
    assert (record["status"], record["outcome"]) == (499, "client_gone")
    assert not backend.requests


async def test_body_that_never_comes_is_a_408(make_proxy, backend):
    """A body must arrive within `timeouts.body_s`; then the connection is closed."""
    proxy = await make_proxy(backend, timeouts={"body_s": 0.05})
    client = await proxy.client()
    await client.send(b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n{")
    assert_error(await client.answer(), "tgi", 408)
    assert await client.ended() == b""
    assert not backend.requests


async def test_connection_without_a_request_is_closed(make_proxy, backend):
    """Half a head, or none, does not hold a connection for ever (slowloris)."""
    proxy = await make_proxy(backend, timeouts={"header_s": 0.08})
    silent, slow = await proxy.client(), await proxy.client()
    await slow.send(b"POST /v1/chat/completions HTTP/1.1\r\nx-slow: ")
    assert await silent.ended() == b""
    assert await slow.ended() == b""


async def test_broken_chunked_body_is_a_400(proxy, backend):
    """A chunk size that is none is the client's fault."""
    client = await proxy.client()
    await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\nx\r\n")
    answer = await client.answer()
    assert answer.status == 400
    await client.ended()
    assert not backend.requests


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello",
        b"GET\r\n\r\n",
        b"hello there\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header: \x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nx-long: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=["tls", "no path", "no method", "bad length", "smuggling", "raw byte", "nul", "long header", "long path"],
)
async def test_what_is_not_http_is_a_400_and_the_end_of_the_connection(proxy, backend, nonsense):
    """Garbage gets a JSON 400 and a closed connection; the proxy goes on."""
    client = await proxy.client()
    await client.send(nonsense)
    answer = await client.answer()
    assert answer.status == (431 if len(nonsense) > 100_000 else 400)
    assert "error" in answer.json()
    await client.ended()
    assert (await proxy.ask("GET", "/health")).status == 200
    assert not backend.requests


async def test_compressed_body_is_a_415(proxy, backend):
    """A body that cannot be read cannot be classified; it is refused, not guessed at."""
    answer = await proxy.post(b"\x1f\x8b\x08", ("content-encoding", "gzip"))
    assert_error(answer, "openai", 415)
    assert not backend.requests


async def test_headers_that_are_not_utf8_do_not_break_the_log(proxy, backend):
    """A tenant or request id of odd bytes is served and recorded like any other."""
    client = await proxy.client()
    body = GOOD["openai"]
    for _ in range(2):
        await client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-tenant-id: \xff\xfe\r\nx-request-id: \xff\r\n"
            b"x-prelude-class: \xff\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )
        await (await backend.next()).reply()
        assert (await client.answer()).status == 200
    records = await proxy.finished(2)
    assert [record["outcome"] for record in records] == ["ok", "ok"]
    assert (await proxy.admin("/metrics")).status == 200
    assert (await proxy.admin("/status")).status == 200


@pytest.mark.parametrize("header", ["x-prelude-deadline-ms", "x-llm-d-slo-ttft-ms"])
@pytest.mark.parametrize("value", ["soon", "nan", "-5", "1e999", "", "0x10", "\xff\xfe"])
async def test_odd_deadlines_are_a_400_in_the_dialect(proxy, backend, header, value):
    """A deadline that is no time is named, never guessed at; the connection goes on."""
    client = await proxy.client()
    for dialect, path in PATHS.items():
        body = GOOD[dialect]
        await client.send(
            b"POST %s HTTP/1.1\r\nhost: x\r\n%s: %s\r\ncontent-length: %d\r\n\r\n%s"
            % (path.encode(), header.encode(), value.encode("latin-1"), len(body), body)
        )
        assert header in assert_error(await client.answer(), dialect, 400)
    assert not backend.requests
    assert [record["outcome"] for record in await proxy.finished(3)] == ["bad_request"] * 3


async def test_wrong_api_key_is_a_401_in_the_dialect(make_proxy, backend):
    """With an API key set nobody else is served; `/health` stays open."""
    proxy = await make_proxy(backend, api_key="right")
    for dialect, path in PATHS.items():
        answer = await proxy.post(GOOD[dialect], ("authorization", "Bearer wrong"), path=path)
        assert_error(answer, dialect, 401)
    assert not backend.requests
    client = await proxy.client()
    await client.request("POST", "/v1/chat/completions", chat(), [("authorization", "Bearer right")])
    await (await backend.next()).reply()
    assert (await client.answer()).status == 200
    assert (await proxy.ask("GET", "/health")).status == 200
