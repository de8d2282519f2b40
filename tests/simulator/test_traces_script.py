"""`bench/traces` at its smallest, so that it cannot rot: every policy, and figures that follow from the trace."""

from __future__ import annotations

from ..scripts import run_bench


def test_every_policy_is_compared_on_a_trace(tmp_path):
    """A line for each; on an engine with room for all, nobody is late and no tenant is worse off."""
    trace = tmp_path / "trace.csv"
    rows = [f"{index * 0.5},{100 + index % 7},{8 + index % 5},tenant-{index % 2}\n" for index in range(80)]
    trace.write_text("t_s,input_tokens,output_tokens,tenant\n" + "".join(rows))
    printed = run_bench("traces", str(trace), "--tiny", "--loads", "0.2", timeout_s=120.0)
    lines = [line for line in printed.splitlines() if line.startswith("│")]
    assert [line.split("│")[2].split()[0][:7] for line in lines] == [
        "fcfs", "least-r", "round-r", "prelude", "prelude", "srpt-or",
    ]  # fmt: skip
    for line in lines:
        assert line.count("100.0 %") == 2  # of all requests, and of the tenant that fares worst
        assert "1.000" in line  # Jain's index over two tenants that fare alike
