from __future__ import annotations

import json
from typing import Any

import pytest

from prelude_proxy.bench.wire import LABELS, Target, Wire, check_target, encode
from prelude_proxy.bench.workload import CLASSES, Limits, WorkItem, built_in_draw, mix_plan


def parts(request: bytes) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Request line, headers and decoded body."""
    head, _, body = request.partition(b"\r\n\r\n")
    line, *headers = head.decode().split("\r\n")
    return line, dict(header.split(": ", 1) for header in headers), json.loads(body)


def test_every_request_has_the_same_limit_and_only_the_engine_is_told() -> None:
    """`max_tokens` says nothing about the length; `vllm_xargs.target_len` says it all."""
    target = Target("a", "http://host:81/prefix")
    for item in mix_plan({"fast": 1, "deep": 1}, 20, 2, 1, built_in_draw(Limits())):
        line, headers, body = parts(encode(item, target))
        assert line == "POST /prefix/v1/chat/completions HTTP/1.1"
        assert headers["host"] == "host:81"
        assert int(headers["content-length"]) == len(encode(item, target).partition(b"\r\n\r\n")[2])
        assert not any("class" in name or "priority" in name for name in headers)
        assert body["max_tokens"] == 2048
        assert body["stream"] is True
        assert body["vllm_xargs"] == {"target_len": item.output_tokens}


def test_labels_tell_each_peer_in_its_own_header() -> None:
    """Every kind of label knows every class."""
    for kind, (header, _) in LABELS.items():
        for klass in CLASSES:
            item = WorkItem(0.0, klass, 10, 10)
            assert header in parts(encode(item, Target("a", "http://h:1", Wire(label=kind))))[1]


def test_tenant_key_and_headers_travel() -> None:
    """The item's tenant and headers and the target's key are sent."""
    item = WorkItem(0.0, "fast", 10, 10, tenant="t", headers=(("x-session-id", "s"),))
    headers = parts(encode(item, Target("a", "http://h:1", Wire(api_key="k"))))[1]
    assert (headers["x-tenant-id"], headers["x-session-id"]) == ("t", "s")
    assert headers["authorization"] == "Bearer k"


def test_exact_length_by_max_tokens() -> None:
    """For engines without the plug-in the length can be pinned by `max_tokens`, or left free."""
    item = WorkItem(0.0, "fast", 10, 33, content={"prompt": "x", "max_completion_tokens": 3}, path="/v1/completions")
    body = parts(encode(item, Target("a", "http://h:1", Wire(length="max-tokens"))))[2]
    assert (body["max_tokens"], body["ignore_eos"]) == (33, True)
    assert "vllm_xargs" not in body
    assert "max_completion_tokens" not in body
    free = parts(encode(item, Target("a", "http://h:1", Wire(length="free"))))[2]
    assert free["max_tokens"] == 2048
    assert "ignore_eos" not in free


def test_other_endpoints_are_sent_as_they_are() -> None:
    """TGI gets its own limit field; an embedding gets no sampling fields."""
    tgi = WorkItem(0.0, "fast", 10, 33, path="/generate_stream")
    assert parts(encode(tgi, Target("a", "http://h:1")))[2]["parameters"] == {"max_new_tokens": 2048}
    embedding = WorkItem(0.0, "oneshot", 10, 1, path="/v1/embeddings", content={"input": "x"})
    assert parts(encode(embedding, Target("a", "http://h:1", Wire("m"))))[2] == {"input": "x", "model": "m"}


def test_synthetic_text_depends_on_the_seed_alone() -> None:
    """A traced request is the same bytes for every target and every run."""
    item = WorkItem(0.0, "standard", 700, 100, seed=9)
    target = Target("a", "http://h:1")
    assert encode(item, target) == encode(item, target)
    assert 2600 < len(parts(encode(item, target))[2]["messages"][0]["content"]) < 3000


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("direct=http://h:1/", ("direct", "http://h:1")),
        ("http://h:1", ("h:1", "http://h:1")),
        ("https://h/path?x=1", ("h", "https://h/path?x=1")),
    ],
)
def test_targets_may_be_named(text: str, pair: tuple[str, str]) -> None:
    """Without a name a target goes by host and port."""
    assert check_target(text) == pair


@pytest.mark.parametrize("text", ["a=localhost:80", "ftp://h", "a=", "http://"])
def test_a_target_must_be_a_url(text: str) -> None:
    """The message shows what one looks like."""
    with pytest.raises(ValueError, match="is not a URL such as"):
        check_target(text)


def test_address() -> None:
    """Ports default by scheme."""
    assert Target("a", "http://h").address == ("h", 80, False)
    assert Target("a", "https://h:8443").address == ("h", 8443, True)
    assert Target("a", "https://h").address == ("h", 443, True)
