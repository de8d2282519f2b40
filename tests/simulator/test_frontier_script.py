"""`bench/scheduling-frontier` at its smallest, so that it cannot rot."""

from __future__ import annotations

from ..scripts import run_bench


def test_the_frontier_is_printed_and_drawn(tmp_path):
    """Every β, and the two simpler front doors beside."""
    plot = tmp_path / "frontier.png"
    printed = run_bench("scheduling-frontier", "--seeds", "1", "--seconds", "3", "--betas", "0,1", "--plot", str(plot))
    for row in ("fast alone", "direct", "one queue", "deep ≤ 9/16"):
        assert row in printed
    assert plot.read_bytes().startswith(b"\x89PNG")
