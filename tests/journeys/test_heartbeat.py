"""Held streams that show signs of life: 200 and comments after a while, then the answer, or an error event."""

from __future__ import annotations

import asyncio

import pytest
from scripted import chat, soon

PATH = "/v1/chat/completions"
COMMENT = b": keep-alive\n\n"
AFTER_S = 0.05


@pytest.fixture
async def proxy(make_proxy, backend):
    """One slot; streams of class `deep` show signs of life after 50 ms."""
    classes = {"deep": {"keepalive_after_s": AFTER_S}, "standard": {}}
    return await make_proxy(backend, window=1, admission={"trust_class_header": True}, classes=classes)


async def ask(proxy, klass: str = "deep", path: str = PATH, **body):
    client = await proxy.client()
    await client.request("POST", path, chat(**{"stream": True, **body}), [("x-prelude-class", klass)])
    return client


async def occupied(proxy, backend):
    """The one slot is taken; the exchange that has it."""
    await ask(proxy, "standard")
    return await backend.next()


@pytest.mark.both_loops
async def test_comments_while_held_then_the_answer(proxy, backend):
    """Status and head once, comments, then every byte of the engine's stream, ended as it ends."""
    first = await occupied(proxy, backend)
    client = await ask(proxy)
    head = await client.head()
    assert head.status == 200
    assert head.header("content-type").startswith("text/event-stream")
    assert head.header("x-prelude-class") == "deep"
    assert head.header("x-request-id")
    assert [await client.chunk() for _ in range(3)] == [COMMENT] * 3
    assert proxy.num_held == 1
    await first.reply()
    exchange = await backend.next()
    await exchange.start()
    await exchange.token("one")
    await exchange.token("two")
    await exchange.end()
    body = (await soon(client.rest())).replace(COMMENT, b"")
    assert body.startswith(b"data: ")
    assert b"one" in body
    assert b"two" in body
    assert body.endswith(b"data: [DONE]\n\n")
    records = {record["class"]: record for record in await proxy.finished(2)}
    assert (records["deep"]["outcome"], records["deep"]["status"]) == ("ok", 200)
    await proxy.idle()


async def test_comments_while_the_engine_prefills(proxy, backend):
    """An engine that sends its head long before its first token is waited for in the same way."""
    client = await ask(proxy)
    exchange = await backend.next()
    await exchange.start()
    assert (await client.head()).status == 200
    assert await client.chunk() == COMMENT
    await exchange.token("one")
    await exchange.end()
    body = await soon(client.rest())
    assert COMMENT not in body[body.index(b"data:") :]
    await proxy.idle()


async def test_an_answer_in_time_is_left_alone(proxy, backend):
    """Head and status are the engine's own; a whole answer never gets comments."""
    client = await ask(proxy)
    exchange = await backend.next()
    await exchange.reply(400, b'{"error": "no"}')
    assert (await client.answer()).status == 400
    client = await ask(proxy, stream=False)
    exchange = await backend.next()
    await asyncio.sleep(3 * AFTER_S)
    await exchange.reply(200, b'{"whole": true}')
    assert (await client.answer()).json() == {"whole": True}
    await proxy.idle()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b'{"error":{"message":"too long","code":400}}', b'data: {"error":{"message":"too long","code":400}}\n\n'),
        (b"<html>\nno</html>", b'data: {"error":{"message":"<html>\\nno</html>"'),
    ],
)
async def test_an_engine_that_refuses_after_the_head_is_an_error_event(proxy, backend, said, expected):
    """In its own words where they fit into an event; the access log has the engine's status."""
    first = await occupied(proxy, backend)
    client = await ask(proxy)
    assert (await client.head()).status == 200
    await first.reply()
    await (await backend.next()).reply(400, said)
    body = (await soon(client.rest())).replace(COMMENT, b"")
    assert body.startswith(expected)
    assert body.endswith(b"data: [DONE]\n\n")
    record = next(each for each in await proxy.finished(2) if each["class"] == "deep")
    assert (record["outcome"], record["status"]) == ("upstream_4xx", 400)
    await proxy.idle()


async def test_one_that_is_held_too_long_is_an_error_event(make_proxy, backend):
    """In the caller's dialect, with the stream's end."""
    classes = {"deep": {"keepalive_after_s": AFTER_S, "queue_timeout_s": 0.3}}
    proxy = await make_proxy(backend, window=1, admission={"trust_class_header": True}, classes=classes)
    await occupied(proxy, backend)
    client = await ask(proxy)
    assert (await client.head()).status == 200
    body = (await soon(client.rest())).replace(COMMENT, b"")
    assert b'"code":429' in body
    assert body.endswith(b"data: [DONE]\n\n")
    anthropic = await ask(proxy, path="/v1/messages", max_tokens=5000)
    assert (await anthropic.head()).status == 200
    body = (await soon(anthropic.rest())).replace(COMMENT, b"")
    assert body.startswith(b"event: error\ndata: ")


async def test_an_engine_that_dies_before_its_first_token_is_an_error_event(proxy, backend):
    """The same outcome as without comments, said where it still can be."""
    client = await ask(proxy)
    exchange = await backend.next()
    assert (await client.head()).status == 200
    exchange.reset()
    body = (await soon(client.rest())).replace(COMMENT, b"")
    assert b'"code":502' in body
    [record] = await proxy.finished()
    assert record["outcome"] == "upstream_reset"
    await proxy.idle()


async def test_a_whole_answer_that_breaks_before_any_comment_is_an_honest_error(make_proxy, backend):
    """No head has gone out yet, so the status can still tell."""
    classes = {"deep": {"keepalive_after_s": 60.0}}
    proxy = await make_proxy(backend, window=1, admission={"trust_class_header": True}, classes=classes)
    client = await ask(proxy)
    exchange = await backend.next()
    await exchange.write(b"HTTP/1.1 500 Oh\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n")
    await asyncio.sleep(0.05)
    exchange.close()
    assert (await client.answer()).status == 502
    await proxy.idle()


async def test_a_client_that_leaves_between_comments(proxy, backend):
    """Its ticket is cancelled, nothing beats on, and who waits behind it gets the slot."""
    first = await occupied(proxy, backend)
    client = await ask(proxy)
    await client.head()
    await client.chunk()
    client.leave()
    await proxy.held(0)
    await first.reply()
    await proxy.idle()
    assert {record["outcome"] for record in await proxy.finished(2)} == {"ok", "client_gone"}
