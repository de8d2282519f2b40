from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from prelude_proxy.bench import tables
from prelude_proxy.bench.records import GapHistogram, RequestRecord, RunResult
from prelude_proxy.bench.report import RunSummary, summarise


def summary(target: str, ttft_s: float) -> RunSummary:
    """A run of one fast request."""
    gaps = GapHistogram()
    gaps.add([0.01] * 9)
    done = RequestRecord("fast", 0.0, 5, 10, status=200, ok=True, ttft_s=ttft_s, e2e_s=2 * ttft_s, tokens=10)
    return summarise(RunResult(target, [done], {"fast": gaps}, 1.0, 1.0))


def rendered(table: object, width: int = 80) -> str:
    """The table as it prints on a terminal of this width."""
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.00042, "420 µs"), (0.0423, "42.3 ms"), (0.84, "840 ms"), (3.104, "3.10 s"), (0.0999, "100 ms")],
)
def test_durations_read_well(value: float | None, text: str) -> None:
    """Three digits and a fitting unit."""
    assert tables.seconds(value) == text


@pytest.mark.parametrize(
    ("base", "new", "text"),
    [(10.0, 0.1, "100×"), (3.0, 1.0, "3.0×"), (1.0, 1.05, "0.95×"), (None, 1.0, "–"), (1.0, 0.0, "–")],
)
def test_factors_read_well(base: float | None, new: float | None, text: str) -> None:
    """Large gains without decimals, parity with two."""
    assert tables.factor(base, new) == text


def test_tables_fit_a_narrow_terminal() -> None:
    """Nothing is cut at 80 columns."""
    pair = [summary("FCFS", 4.0), summary("class-aware", 0.04)]
    for table in (tables.class_table(pair), tables.total_table(pair), tables.comparison_table(*pair)):
        assert "…" not in rendered(table)


def test_the_comparison_shows_the_gain() -> None:
    """A hundred times quicker says so."""
    text = rendered(tables.comparison_table(summary("FCFS", 4.0), summary("class-aware", 0.04)))
    assert "4.00 s" in text
    assert "40.0 ms" in text
    assert "100×" in text


def test_a_busy_machine_is_admitted() -> None:
    """When the client itself was late the figures come with a warning."""
    quiet = summary("a", 0.1)
    assert tables.busy_note([quiet]) is None
    note = tables.busy_note([quiet, replace(quiet, max_late_s=1.25)])
    assert note is not None
    assert "1.25 s late" in note


def test_each_target_has_its_line() -> None:
    """Classes, measures and targets are all there."""
    text = rendered(tables.class_table([summary("one", 0.1), summary("two", 0.2)]))
    for word in ("fast (1)", "first token", "end to end", "token gap", "one", "two", "100.0 %"):
        assert word in text
