from hypothesis import given
from hypothesis import strategies as st

from prelude_proxy.engine.blocks import DecodeBlocks

requests = st.lists(st.integers(min_value=-50, max_value=400), max_size=12)


def brute_force(starts: list[int], step: int, size: int) -> int:
    return sum(-(-(start + step) // size) for start in starts)


@given(requests, st.integers(50, 400), st.integers(1, 33))
def test_used_equals_the_sum_over_requests(starts, step, size):
    """The closed form counts the very blocks that a look at each request would."""
    ledger = DecodeBlocks(size)
    for start in starts:
        ledger.add(start)
    assert ledger.used(step) == brute_force(starts, step, size)


@given(requests.filter(bool), st.integers(50, 400), st.integers(1, 33), st.integers(0, 300), st.integers(0, 60))
def test_max_steps_is_the_last_that_fits(starts, step, size, most, spare):
    """The stretch ends exactly where the next step would need a block too many."""
    ledger = DecodeBlocks(size)
    for start in starts:
        ledger.add(start)
    blocks = ledger.used(step) + spare
    steps = ledger.max_steps(step, most, blocks)
    assert ledger.used(step + steps) <= blocks
    assert steps == most or ledger.used(step + steps + 1) > blocks


@given(requests.filter(bool), st.integers(50, 400))
def test_a_removed_request_leaves_nothing(starts, step):
    """What leaves frees all its blocks."""
    ledger = DecodeBlocks(16)
    for start in starts:
        ledger.add(start)
    for start in starts:
        ledger.remove(start)
    assert (ledger.count, ledger.tokens(step), ledger.used(step)) == (0, 0, 0)
