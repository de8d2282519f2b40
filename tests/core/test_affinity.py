"""What a pool remembers of where prompts and sessions were served."""

from __future__ import annotations

import pytest

from prelude_proxy.core.affinity import Affinity, AffinityPolicy, Ties
from prelude_proxy.core.domain import ClassSpec, Dialect, Endpoint, RequestFacts
from prelude_proxy.core.health import Health, HealthPolicy
from prelude_proxy.core.limits import BackendSlots, PoolSlots
from prelude_proxy.core.prefix import BLOCK_TOKENS
from prelude_proxy.core.window import Window

POOL = PoolSlots("p", [ClassSpec("standard", 0)])


def backend(index: int = 0) -> BackendSlots:
    return BackendSlots(index, f"b{index}", POOL, Window(initial=8, maximum=8, feed=1), Health(HealthPolicy()))


def held(affinity: Affinity, ties: Ties, *backends: BackendSlots) -> dict[str, int]:
    tokens = {each.name: affinity.tokens_held(ties, 10_000, each) for each in backends}
    return {name: count for name, count in tokens.items() if count}


def facts(headers=None, **payload) -> RequestFacts:
    return RequestFacts(
        "/v1/chat/completions", Endpoint.CHAT, Dialect.OPENAI, headers=headers or {}, payload=payload or None
    )


def test_what_was_dispatched_is_held():
    """As far as the chains agree, in tokens."""
    affinity, one, two = Affinity(AffinityPolicy()), backend(0), backend(1)
    assert affinity.dispatched(Ties((1, 2, 3)), 800, one) == 0
    assert affinity.dispatched(Ties((1, 7)), 600, two) == 0
    ties = Ties((1, 2, 3, 4))
    assert held(affinity, ties, one, two) == {"b0": BLOCK_TOKENS[2], "b1": BLOCK_TOKENS[0]}
    assert affinity.num_known(ties) == 3
    assert (affinity.holders_at(ties, 3), affinity.holders_at(ties, 1)) == ([one], [one, two])
    assert affinity.dispatched(ties, 1100, one) == BLOCK_TOKENS[2]
    assert (affinity.num_misses, affinity.num_moved, affinity.num_hits) == (1, 1, 1)
    assert affinity.saved_tokens == BLOCK_TOKENS[2]


def test_dense_text_counts_more_tokens():
    """A character of Chinese is some four of English; never more is held than the prompt has."""
    affinity, one = Affinity(AffinityPolicy()), backend()
    affinity.dispatched(Ties((1, 2), density=4.0), 2100, one)
    assert held(affinity, Ties((1, 2), density=4.0), one) == {"b0": 4 * BLOCK_TOKENS[1]}
    assert affinity.dispatched(Ties((1, 2), density=4.0), 2000, one) == 2000


def test_what_the_engine_must_have_thrown_out_is_held_no_more():
    """Once a backend was sent more other tokens than it remembers; asking again keeps a prompt."""
    affinity, one = Affinity(AffinityPolicy(cache_tokens=1000)), backend()
    affinity.dispatched(Ties((1,)), 300, one)
    affinity.dispatched(Ties((2,)), 300, one)
    affinity.dispatched(Ties((1,)), 300, one)
    affinity.dispatched(Ties((3,)), 980, one)
    assert held(affinity, Ties((2,)), one) == {}
    assert held(affinity, Ties((1,)), one) == {"b0": BLOCK_TOKENS[0]}
    assert affinity.dispatched(Ties((2,)), 300, one) == 0
    assert (affinity.num_misses, affinity.num_hits) == (4, 1)


def test_a_backend_that_started_anew_holds_nothing():
    """And learns anew; others keep what they hold."""
    affinity, one, two = Affinity(AffinityPolicy()), backend(0), backend(1)
    for each in (one, two):
        affinity.dispatched(Ties((1, 2)), 600, each)
    affinity.forget(one)
    assert held(affinity, Ties((1, 2)), one, two) == {"b1": BLOCK_TOKENS[1]}
    affinity.dispatched(Ties((1,)), 300, one)
    assert held(affinity, Ties((1, 2)), one, two) == {"b1": BLOCK_TOKENS[1], "b0": BLOCK_TOKENS[0]}


def test_memory_is_bounded():
    """Links, holders of a link and sessions: the least recently used go, and of a prompt its end goes first."""
    affinity, many = Affinity(AffinityPolicy(), max_links=10, max_sessions=3), [backend(index) for index in range(20)]
    affinity.dispatched(Ties((1, 2, 3, 4)), 1100, many[0])
    for number in range(8):
        affinity.dispatched(Ties((100 + number,), session=str(number)), 300, many[1])
    assert len(affinity) == 10
    assert affinity.num_sessions == 3
    assert affinity.home_of(Ties(session="4")) is None
    assert affinity.home_of(Ties(session="7")) is many[1]
    assert held(affinity, Ties((1, 2, 3, 4)), *many) == {"b0": BLOCK_TOKENS[1]}
    for each in many:
        affinity.dispatched(Ties((1,)), 300, each)
    found = held(affinity, Ties((1,)), *many)
    assert list(found) == [f"b{index}" for index in range(12, 20)]


def test_a_session_is_at_home_where_it_was_served_last():
    """Whatever its prompts look like."""
    affinity, one, two = Affinity(AffinityPolicy()), backend(0), backend(1)
    ties = Ties(session="s")
    assert affinity.home_of(ties) is None
    affinity.dispatched(ties, 10, one)
    assert affinity.home_of(ties) is one
    affinity.dispatched(ties, 10, two)
    assert affinity.home_of(ties) is two
    affinity.dispatched(ties, 10, two)
    assert (affinity.num_misses, affinity.num_moved, affinity.num_hits) == (1, 1, 1)


@pytest.mark.parametrize(
    ("headers", "payload", "session"),
    [
        ({"x-session-id": "h", "cookie": "sid=c"}, {"user": "f"}, "h"),
        ({"cookie": "a=b; sid=c ; d"}, {"user": "f"}, "c"),
        ({"cookie": "xsid=c"}, {"user": "f"}, "f"),
        ({"x-session-id": ""}, {"user": 3}, ""),
        ({"x-session-id": "h" * 999}, {}, "h" * 200),
    ],
)
def test_a_session_is_named_by_header_cookie_or_field(headers, payload, session):
    """In that order, and of its own tenant only; what is no text names nothing."""
    affinity = Affinity(AffinityPolicy(session_header="x-session-id", session_cookie="sid", session_field="user"))
    request = facts(headers, **payload)
    request.tenant = "acme"
    ties = affinity.ties_of(request)
    assert (ties.session if ties else "") == (f"acme\n{session}" if session else "")


def test_nothing_ties_a_request_when_nothing_is_asked_for():
    """No chain is computed and no header read that the policy does not name."""
    request = facts({"x-session-id": "s"}, messages=[{"role": "user", "content": "x" * 9999}])
    request.prompt_tokens = 2500
    assert Affinity(AffinityPolicy(prefix=False)).ties_of(request) is None
    assert Affinity(AffinityPolicy(prefix=True)).ties_of(request).prefix
