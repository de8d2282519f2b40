from __future__ import annotations

import sys
from pathlib import Path

import pytest

from prelude_proxy.bench import plots
from prelude_proxy.bench.records import RequestRecord, RunResult, Sample


def run(target: str, ttft_s: float) -> RunResult:
    """Ten requests of two classes."""
    records = [
        RequestRecord(klass, n / 10, 5, 10, status=200, ok=True, ttft_s=ttft_s * (n + 1), e2e_s=ttft_s * (n + 2))
        for n in range(10)
        for klass in ("fast", "deep")
    ]
    return RunResult(target, records, {}, makespan_s=3.0, window_s=1.0)


def test_the_timeline_counts_who_waits() -> None:
    """A request waits from its arrival to its first token; all have left at the end."""
    series = plots.timeline([RequestRecord("fast", 1.0, 1, 1, ok=True, ttft_s=2.0, e2e_s=5.0)], 4.0, points=4)
    assert series == {"fast": [(0.0, 0), (1.0, 1), (2.0, 1), (3.0, 0), (4.0, 0)]}


def test_plots_are_written(tmp_path: Path) -> None:
    """Each plot is a PNG, also of runs in which nothing was answered."""
    pytest.importorskip("matplotlib")
    runs = {"FCFS": run("FCFS", 0.5), "class-aware": run("class-aware", 0.01)}
    plots.plot_comparison(runs, tmp_path / "new" / "demo.png", "title")
    plots.plot_ttft({name: [result] for name, result in runs.items()}, tmp_path / "ttft.png")
    lost = RunResult("lost", [RequestRecord("fast", 0.0, 1, 1, error="timeout")], {}, 1.0, 0.0)
    plots.plot_comparison({"lost": lost}, tmp_path / "lost.png")
    plots.plot_samples([Sample(0.0, {"a.waiting": 1.0})], {"waiting": {"a": "a.waiting"}}, tmp_path / "s.png")
    for name in ("new/demo.png", "ttft.png", "lost.png", "s.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_panels_are_found_by_their_meaning() -> None:
    """Values whose meaning is known are grouped; the rest is not plotted."""
    backend = "pools.default.10.0.0.1:80"
    values = {
        "e0.waiting": 1.0,
        "e1.waiting": 0.0,
        "classes.fast.held": 3.0,
        f"{backend}.window": 16.0,
        f"{backend}.telemetry.running": 2.0,
        "uptime": 4.0,
    }
    assert plots.sample_panels([Sample(0.0, values), Sample(1.0, {})]) == {
        "held here, by class": {"fast": "classes.fast.held"},
        "window, by backend": {"10.0.0.1:80": f"{backend}.window"},
        "running in the engine": {"10.0.0.1:80": f"{backend}.telemetry.running"},
        "waiting in the engine": {"e0": "e0.waiting"},
    }


def test_without_matplotlib_there_is_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plot is optional, and the message says how to get it."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(plots.PlotError, match=r"prelude-proxy\[plot\]"):
        plots.plot_comparison({"a": run("a", 0.1)}, tmp_path / "x.png")
