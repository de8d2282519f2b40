"""The stream observer: any split of the same bytes gives the same counts."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prelude_proxy.core.domain import Dialect, Endpoint
from prelude_proxy.core.sse import StreamObserver, error_event, find_usage

CHAT = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
    b": keep-alive\n\n"
    b'data: {"choices":[{"delta":{"content":"say \\ndata: twice"}}]}\n\n'
    b'data: {"choices":[{"delta":{"content":" data:"}}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"total_tokens":19,"completion_tokens":12}}\n\n'
    b"data: [DONE]\n\n"
)


@given(st.lists(st.integers(0, len(CHAT)), max_size=12))
def test_any_split_gives_the_same_result(cuts):
    """Events, usage and terminator do not depend on how the bytes were cut."""
    observer = StreamObserver(Endpoint.CHAT)
    edges = [0, *sorted(cuts), len(CHAT)]
    for start, end in itertools.pairwise(edges):
        observer.feed(CHAT[start:end])
    assert observer.num_events == 5
    assert observer.output_tokens == 12
    assert observer.has_terminator(Dialect.OPENAI)


def test_without_usage_tokens_are_counted_by_events():
    """Role chunk and [DONE] carry no token."""
    observer = StreamObserver(Endpoint.CHAT)
    observer.feed(b'data: {"role"}\n\n' + b'data: {"content"}\n\n' * 5 + b"data: [DONE]\n\n")
    assert observer.output_tokens == 5


def test_a_stream_that_stops_short_has_no_terminator():
    """Clean EOF without [DONE] is a broken stream."""
    observer = StreamObserver(Endpoint.CHAT)
    observer.feed(b'data: {"content": "a"}\n\n')
    assert not observer.has_terminator(Dialect.OPENAI)


def test_tgi_streams_end_with_the_generated_text():
    """TGI has no [DONE]; its last event carries text and details."""
    observer = StreamObserver(Endpoint.GENERATE)
    observer.feed(b'data:{"token":{"id":1,"text":"a"},"generated_text":null,"details":null}\n\n')
    assert not observer.has_terminator(Dialect.TGI)
    observer.feed(b'data:{"token":{"id":2},"generated_text":"ab","details":{"generated_tokens":2}}\n\n')
    assert observer.has_terminator(Dialect.TGI)
    assert observer.output_tokens == 2


def test_anthropic_streams_end_with_message_stop():
    """Events are counted by their data lines."""
    observer = StreamObserver(Endpoint.MESSAGES)
    observer.feed(b'event: message_delta\ndata: {"usage":{"output_tokens":41}}\n\n')
    observer.feed(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
    assert observer.has_terminator(Dialect.ANTHROPIC)
    assert observer.output_tokens == 41


def test_memory_is_bounded_by_the_tail():
    """A long stream leaves no more than its last four kilobytes behind, whatever the size of its pieces."""
    for size in (1, 200, 2047, 2048, 5000):
        observer = StreamObserver(Endpoint.COMPLETIONS)
        for _ in range(1000):
            observer.feed(b"data: " + b"x" * size + b"\n\n")
            assert sum(map(len, observer._recent)) <= 4096
        assert observer.num_events == 1000
        observer.feed(b'data: {"usage":{"completion_tokens":7}}\n\ndata: [DONE]\n\n')
        assert observer.has_terminator(Dialect.OPENAI)
        assert observer.output_tokens == 7


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        (Dialect.OPENAI, b'data: {"e":1}\n\ndata: [DONE]\n\n'),
        (Dialect.ANTHROPIC, b'event: error\ndata: {"e":1}\n\n'),
        (Dialect.TGI, b'data:{"e":1}\n\n'),
    ],
)
def test_a_broken_stream_ends_with_an_error_in_the_callers_dialect(dialect, expected):
    """Each dialect's own way to fail inside a stream."""
    assert error_event(dialect, b'{"e":1}') == expected


def test_usage_is_the_last_that_is_given():
    """Continuous usage statistics repeat it; the last one counts."""
    body = b'{"usage":{"prompt_tokens": 5,"completion_tokens":1}} {"usage":{"completion_tokens" : 9}}'
    assert find_usage(body) == 9
    assert find_usage(b"{}") is None
