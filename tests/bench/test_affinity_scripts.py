"""`bench/affinity` and `bench/affinity-cost` at their smallest, so that they cannot rot: no timing asserted."""

from __future__ import annotations

from ..scripts import run_bench


def test_affinity_is_compared_on_a_trace(tmp_path):
    """A row for each policy, and what one cache for all engines would spare."""
    rows = [f"{turn},{512 * (turn + 1)},8,{' '.join(str(9 * each + i) for i in range(turn + 1))}\n"
            for turn in range(4) for each in range(6)]  # fmt: skip
    trace = tmp_path / "trace.csv"
    trace.write_text("t_s,input_tokens,output_tokens,prefix_block_ids_512\n" + "".join(rows))
    printed = run_bench(
        "affinity", "--trace", str(trace), "--engines", "2", "--profile", "vllm-cpu-tiny", "--loads", "0.3"
    )
    for row in ("fcfs", "prelude, no affinity", "prelude, affinity 0.1"):
        assert row in printed
    # of turns of 1, 2, 3 and 4 blocks all but the last block were seen before
    assert "without end: 60.0 % prefix hits" in printed


def test_the_cost_of_affinity_is_measured():
    """Both tables, for two backends and more."""
    printed = run_bench("affinity-cost", "--tiny")
    assert "250,000 characters" in printed
    assert "tied, 40 links" in printed
