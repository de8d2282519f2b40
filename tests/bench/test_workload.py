from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prelude_proxy.bench import prompts, workload
from prelude_proxy.bench.workload import Limits, WorkItem

MIX = {"fast": 0.75, "standard": 0.0, "deep": 0.25}


def test_the_same_seed_gives_the_same_plan() -> None:
    """Two targets get the very same requests at the same times."""
    assert workload.mix_plan(MIX, 40, 5, 7) == workload.mix_plan(MIX, 40, 5, 7)
    assert workload.mix_plan(MIX, 40, 5, 7) != workload.mix_plan(MIX, 40, 5, 8)


def test_a_mix_has_the_rate_and_shares_asked_for() -> None:
    """Arrivals and classes come out within sampling error, and a class of weight 0 never."""
    plan = workload.mix_plan(MIX, 100, 60, 1)
    shares = Counter(item.klass for item in plan)
    assert 5600 < len(plan) < 6400
    assert 0.22 < shares["deep"] / len(plan) < 0.28
    assert shares["standard"] == 0


def test_a_true_length_belongs_to_its_class() -> None:
    """The length the engine is told is of the class the item is counted under."""
    for item in workload.mix_plan({"fast": 1, "standard": 1, "deep": 1}, 50, 10, 3):
        assert workload.class_of(item.output_tokens) == item.klass


@pytest.mark.parametrize(
    ("tokens", "path", "klass"),
    [
        (1, workload.CHAT_PATH, "oneshot"),
        (64, workload.CHAT_PATH, "fast"),
        (65, workload.CHAT_PATH, "standard"),
        (512, workload.CHAT_PATH, "standard"),
        (513, workload.CHAT_PATH, "deep"),
        (300, "/v1/embeddings", "oneshot"),
    ],
)
def test_class_bounds(tokens: int, path: str, klass: str) -> None:
    """A class ends at its bound, inclusive; what decodes nothing is `oneshot`."""
    assert workload.class_of(tokens, path) == klass


@given(st.floats(0.1, 1000), st.floats(0.01, 5), st.integers())
def test_arrivals_ascend_within_the_window(rate: float, seconds: float, seed: int) -> None:
    """Arrival times ascend and lie in the window."""
    times = list(workload.poisson_arrivals(rate, seconds, random.Random(seed)))
    assert times == sorted(times)
    assert all(0 <= at_s < seconds for at_s in times)


def test_scaling_keeps_the_mix_and_multiplies_the_rate() -> None:
    """Twice the scale is the same items in half the time, cut where asked."""
    plan = workload.mix_plan(MIX, 20, 10, 1)
    double = workload.rescaled(plan, 2.0)
    assert [item.klass for item in double] == [item.klass for item in plan]
    assert workload.mean_rate(double) == pytest.approx(2 * workload.mean_rate(plan))
    assert all(item.at_s < 1.0 for item in workload.rescaled(plan, 2.0, 1.0))
    with pytest.raises(ValueError, match="above 0"):
        workload.rescaled(plan, 0.0)


def test_tenants_share_by_weight() -> None:
    """A tenant of three times the weight gets about three times the requests."""
    plan = workload.with_tenants(workload.mix_plan(MIX, 100, 20, 1), {"a": 1, "b": 3}, 1)
    counts = Counter(item.tenant for item in plan)
    assert set(counts) == {"a", "b"}
    assert 2.5 < counts["b"] / counts["a"] < 3.6


def test_data_keeps_the_text_and_nothing_that_tells_the_length() -> None:
    """Of a recorded request only its text goes on, with tenant and path; its own limits do not."""
    row = {
        "request": {"model": "m", "messages": [{"role": "user", "content": "hi there"}], "max_tokens": 7},
        "headers": {"X-Tenant-Id": "t1", "x-session-id": "s"},
        "output_tokens": 5000,
    }
    (item,) = workload.data_items([row], Limits())
    assert item.content == {"messages": [{"role": "user", "content": "hi there"}]}
    assert (item.tenant, item.klass, item.output_tokens) == ("t1", "deep", 900)
    assert item.headers == (("x-session-id", "s"),)
    (whole,) = workload.data_items([row], Limits(), whole_body=True)
    assert whole.content == row["request"]


def test_data_leaves_out_prompts_beyond_the_limit() -> None:
    """A prompt the engine could not hold is not sent cut, it is not sent."""
    rows = [{"request": {"prompt": "word " * size}, "output_tokens": 5} for size in (10, 10_000)]
    (item,) = workload.data_items(rows, Limits(max_prompt_tokens=100))
    assert item.path == "/v1/completions"
    assert 10 <= item.prompt_tokens <= 20


def test_a_bad_row_is_named() -> None:
    """The message says which row lacks what."""
    with pytest.raises(ValueError, match=r"row 2: needs an object 'request'"):
        workload.data_items([{"request": {"prompt": "a"}, "output_tokens": 1}, {"output_tokens": 1}], Limits())


def test_data_is_drawn_by_class_or_in_its_own_mix() -> None:
    """With shares every class is drawn from its rows; without, all rows come before one comes again."""
    items = [WorkItem(0.0, klass, 1, 1, seed=n) for n, klass in enumerate(["fast", "fast", "deep"])]
    plan = workload.mix_plan({"deep": 1.0}, 50, 1, 1, workload.data_draw(items))
    assert {item.seed for item in plan} == {2}
    natural = workload.data_plan(items, 50, 1, 1)
    assert {item.seed for item in natural[:3]} == {0, 1, 2}
    with pytest.raises(ValueError, match="no request of class 'standard'"):
        workload.mix_plan({"standard": 1.0}, 50, 1, 1, workload.data_draw(items))


def test_sized_prompts_have_about_their_size_and_share_prefixes() -> None:
    """Text made for a trace is as long as the trace says, and equal block ids give an equal beginning."""
    one = prompts.sized_prompt("fast", 2000, (5, 6), random.Random(1))
    other = prompts.sized_prompt("deep", 2000, (5, 7), random.Random(2))
    assert 1800 < len(one) / 4 < 2200
    assert one[:2000] == other[:2000]
    assert one[2200:3000] != other[2200:3000]
    assert len(prompts.sized_prompt("fast", 3, (), random.Random(1))) < 120
