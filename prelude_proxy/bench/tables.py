"""Reports as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.table import Table

from prelude_proxy.bench.report import BUSY_S, ClassSummary, RunSummary, Spread, class_order

_DASH = "–"


def seconds(value: float | None) -> str:
    """A duration as people read it: `840 µs`, `42 ms`, `3.10 s`."""
    if value is None:
        return _DASH
    if value < 0.001:
        return f"{value * 1e6:.0f} µs"
    if value < 0.0995:
        return f"{value * 1e3:.1f} ms"
    return f"{value * 1e3:.0f} ms" if value < 0.9995 else f"{value:.2f} s"


def share(value: float | None) -> str:
    """A share in per cent."""
    return _DASH if value is None else f"{value * 100:.1f} %"


def factor(base: float | None, new: float | None) -> str:
    """How many times smaller `new` is than `base`."""
    if not base or not new:
        return _DASH
    ratio = base / new
    return f"{ratio:.0f}×" if ratio >= 9.95 else f"{ratio:.1f}×" if ratio >= 1.95 else f"{ratio:.2f}×"


def class_table(summaries: Sequence[RunSummary]) -> Table:
    """For each class and measure a line a target."""
    rounds = summaries[0].rounds if summaries else 0
    table = Table(title=f"Latency by class, median of {rounds} rounds" if rounds > 1 else "Latency by class")
    for header in ("class", "measure", "target"):
        table.add_column(header, overflow="fold")
    for header in ("p50", "p95", "p99", "in SLO"):
        table.add_column(header, justify="right", no_wrap=True)
    names = sorted({name for summary in summaries for name in summary.classes}, key=class_order)
    for name in names:
        having = [summary for summary in summaries if name in summary.classes]
        heading = f"{name} ({having[0].classes[name].sent:.0f})"
        for measure, pick in _MEASURES.items():
            for summary in having:
                figures = summary.classes[name]
                good = share(figures.goodput) if pick is _MEASURES["first token"] else ""
                table.add_row(heading, measure, summary.target, *_cells(pick(figures)), good)
                heading = ""
                measure = ""  # noqa: PLW2901  (named once a block)
        table.add_section()
    return table


_MEASURES: Mapping[str, Callable[[ClassSummary], Spread]] = {
    "first token": lambda summary: summary.ttft_s,
    "end to end": lambda summary: summary.e2e_s,
    "token gap": lambda summary: summary.itl_s,
}


def _cells(spread: Spread) -> list[str]:
    return [seconds(value) for value in (spread.p50, spread.p95, spread.p99)]


def total_table(summaries: Sequence[RunSummary]) -> Table:
    """A line for each target: throughput, losses, fairness between tenants."""
    table = Table(title="Totals")
    table.add_column("target", overflow="fold")
    for header in ("sent", "ok", "rejected", "failed", "tokens/s", "", "in SLO", "Jain", "took"):
        table.add_column(header, justify="right", no_wrap=True)
    base = summaries[0].tokens_per_s if summaries else 0.0
    for summary in summaries:
        table.add_row(
            summary.target,
            *(f"{count:.0f}" for count in (summary.sent, summary.ok, summary.rejected, summary.failed)),
            f"{summary.tokens_per_s:,.0f}",
            f"{summary.tokens_per_s / base:.2f}×" if base else _DASH,
            share(summary.goodput),
            _DASH if summary.jain_goodput is None else f"{summary.jain_goodput:.3f}",
            seconds(summary.makespan_s),
        )
    return table


def busy_note(summaries: Sequence[RunSummary]) -> str | None:
    """A warning when the client itself was late; None if it was not."""
    late_s = max((summary.max_late_s for summary in summaries), default=0.0)
    if late_s <= BUSY_S:
        return None
    return f"this machine was busy: requests left up to {seconds(late_s)} late, so take the figures with care"


def comparison_table(base: RunSummary, new: RunSummary) -> Table:
    """Two targets side by side: p50 and p99 of TTFT and end to end by class, and the second's gain."""
    table = Table(title=f"{base.target} against {new.target}")
    for header in ("class", "measure", ""):
        table.add_column(header, no_wrap=True)
    for header in (base.target, new.target):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("better", justify="right", style="bold", no_wrap=True)
    for name, before in base.classes.items():
        after = new.classes.get(name)
        if after is None:
            continue
        heading = f"{name} ({before.sent:.0f})"
        for measure in ("first token", "end to end"):
            pair = _MEASURES[measure](before), _MEASURES[measure](after)
            table.add_row(heading, measure, "p50", *_against(pair[0].p50, pair[1].p50))
            table.add_row("", "", "p99", *_against(pair[0].p99, pair[1].p99))
            heading = ""
        table.add_section()
    return table


def _against(before: float | None, after: float | None) -> list[str]:
    return [seconds(before), seconds(after), factor(before, after)]
