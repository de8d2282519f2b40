"""Plots of a report: TTFT distributions by class, queues and windows over time. Needs `prelude-proxy[plot]`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prelude_proxy.bench.records import RequestRecord, RunResult, Sample
from prelude_proxy.bench.report import class_order
from prelude_proxy.bench.tables import seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOT_HINT = "no plot: matplotlib is not installed (pip install 'prelude-proxy[plot]')"
# Okabe-Ito, safe for colour-blind readers
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_CLASS_COLOURS: Mapping[str, str] = {
    "oneshot": "#CC79A7",
    "fast": "#009E73",
    "standard": "#E69F00",
    "deep": "#0072B2",
}
_GRID = "#d9d9d9"


class PlotError(Exception):
    """Plots cannot be made here; the message says what to install."""


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  (an optional dependency)
        from matplotlib.figure import Figure  # noqa: PLC0415  (an optional dependency)
    except ImportError:
        raise PlotError(PLOT_HINT) from None
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: no global state, no window system
    return figure, figure.subplots(rows, columns, squeeze=False)


def _dress(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(True, color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _log_seconds(value: float, _: object = None) -> str:
    if value < 0.001:
        return f"{value * 1e6:.0f} µs"
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:g} s"


def plot_ttft(runs: Mapping[str, Sequence[RunResult]], path: Path, title: str = "") -> None:
    """One panel a class: the share of requests whose first token came within t, for each target; all rounds pooled.

    Raises:
        PlotError: matplotlib is missing.
    """
    names = _classes(runs)
    figure, grid = _figure(1, max(1, len(names)), (5.2 * max(1, len(names)), 4.2))
    for axes, name in zip(grid[0], names, strict=False):
        _ttft_panel(axes, name, runs)
    _save(figure, path, title)


def _classes(runs: Mapping[str, Sequence[RunResult]]) -> list[str]:
    return sorted({r.klass for results in runs.values() for run in results for r in run.records}, key=class_order)


def _ttft_panel(axes: Axes, klass: str, runs: Mapping[str, Sequence[RunResult]]) -> None:
    for colour, (target, results) in zip(_COLOURS, runs.items(), strict=False):
        records = [r for run in results for r in run.records if r.klass == klass]
        _cdf(axes, records, target, colour)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_log_seconds)
    axes.set_ylim(0, 1.01)
    axes.axhline(0.99, color="#888888", linewidth=0.8, linestyle=":")
    axes.annotate("99 %", (0.005, 0.985), xycoords=("axes fraction", "data"), fontsize=8, color="#666666", va="top")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value * 100:.0f} %")
    _dress(axes, f"{klass}", "time to first token, from when it was due", "share of requests")
    if axes.get_legend_handles_labels()[0]:
        # below the axes: a curve may run through any corner inside
        axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(-0.02, -0.16), ncols=2)


def _cdf(axes: Axes, records: Sequence[RequestRecord], target: str, colour: str) -> None:
    times = sorted(max(r.ttft_s, 1e-4) for r in records if r.ok and r.ttft_s is not None)
    if not times:
        return
    shares = [(index + 1) / len(records) for index in range(len(times))]  # of all sent: lost ones keep it below 1
    p99_s = times[min(len(times) - 1, int(0.99 * len(times)))]
    label = f"{target} (p99 {seconds(p99_s)})"
    axes.step(times, shares, where="post", color=colour, linewidth=2, label=label)


def _save(figure: Figure, path: Path, title: str) -> None:
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


# --- over time --------------------------------------------------------------------------------------------------------


def timeline(records: Sequence[RequestRecord], until_s: float, points: int = 400) -> dict[str, list[tuple[float, int]]]:
    """How many requests of each class were waiting for their first token at evenly spaced times, from the records."""
    changes: dict[str, list[tuple[float, int]]] = {}
    for record in records:
        end_s = record.scheduled_s + (record.ttft_s if record.ttft_s is not None else record.e2e_s)
        changes.setdefault(record.klass, []).extend([(record.scheduled_s, 1), (end_s, -1)])
    series: dict[str, list[tuple[float, int]]] = {}
    for name, steps in changes.items():
        steps.sort()
        index = waiting = 0
        series[name] = []
        for point in range(points + 1):
            at_s = until_s * point / points
            while index < len(steps) and steps[index][0] <= at_s:
                waiting += steps[index][1]
                index += 1
            series[name].append((at_s, waiting))
    return series


def plot_comparison(runs: Mapping[str, RunResult], path: Path, title: str = "") -> None:
    """Above: TTFT distribution of each class; below: who was waiting for a first token over time, one panel a target.

    Raises:
        PlotError: matplotlib is missing.
    """
    names = _classes({target: [run] for target, run in runs.items()})
    columns = max(len(names), len(runs))
    figure, grid = _figure(2, columns, (5.4 * columns, 7.6))
    for axes, name in zip(grid[0], names, strict=False):
        _ttft_panel(axes, name, {target: [run] for target, run in runs.items()})
    for axes, run in zip(grid[1], runs.values(), strict=False):
        _waiting_panel(axes, run, max(r.makespan_s for r in runs.values()))
    top = max(axes.get_ylim()[1] for axes in grid[1][: len(runs)])
    for axes in grid[1][: len(runs)]:
        axes.set_ylim(0, top)
    for axes in [*grid[0][len(names) :], *grid[1][len(runs) :]]:
        axes.set_visible(False)
    _save(figure, path, title)


def _waiting_panel(axes: Axes, run: RunResult, until_s: float) -> None:
    series = timeline(run.records, until_s)
    names = sorted(series, key=class_order)
    times = [at_s for at_s, _ in series[names[0]]] if names else []
    stacks = [[count for _, count in series[name]] for name in names]
    if stacks:
        colours = [_CLASS_COLOURS.get(name, "#999999") for name in names]
        axes.stackplot(times, *stacks, labels=names, colors=colours, alpha=0.85, linewidth=0)
    axes.axvline(run.window_s, color="#555555", linewidth=0.8, linestyle=":")
    axes.annotate("arrivals end", (run.window_s, 0.97), xycoords=("data", "axes fraction"), fontsize=8, va="top",
                  xytext=(4, 0), textcoords="offset points", color="#555555")  # fmt: skip
    axes.set_xlim(0, until_s)
    _dress(axes, f"waiting for a first token: {run.target}", "seconds", "requests")
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def plot_samples(
    samples: Sequence[Sample], panels: Mapping[str, Mapping[str, str]], path: Path, title: str = ""
) -> None:
    """Sampled values over time: `panels` maps a panel's title to `{label: name of the value}`.

    Raises:
        PlotError: matplotlib is missing.
    """
    figure, grid = _figure(max(1, len(panels)), 1, (9.0, 2.8 * max(1, len(panels))))
    for axes, (name, lines) in zip(grid[:, 0], panels.items(), strict=False):
        for index, (label, key) in enumerate(lines.items()):
            points = [(sample.at_s, sample.values[key]) for sample in samples if key in sample.values]
            colour = _CLASS_COLOURS.get(label, _COLOURS[index % len(_COLOURS)])
            axes.step([x for x, _ in points], [y for _, y in points], where="post", color=colour, label=label)
        _dress(axes, name, "seconds", "requests")
        axes.set_ylim(bottom=0)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _save(figure, path, title)


_PANELS: Mapping[str, re.Pattern[str]] = {
    "held here, by class": re.compile(r"classes\.(?P<label>[^.]+)\.held$"),
    "in flight, by class": re.compile(r"classes\.(?P<label>[^.]+)\.inflight$"),
    "window, by backend": re.compile(r"pools\.[^.]+\.(?P<label>.+)\.window$"),
    "running in the engine": re.compile(r"^(?:.*pools\.[^.]+\.)?(?P<label>.+?)(?:\.telemetry)?\.running$"),
    "waiting in the engine": re.compile(r"^(?:.*pools\.[^.]+\.)?(?P<label>.+?)(?:\.telemetry)?\.waiting$"),
}
_MAX_LINES = 12


def sample_panels(samples: Sequence[Sample]) -> dict[str, dict[str, str]]:
    """Panels for `plot_samples`: the sampled values whose meaning is known; a line that is always 0 is left out."""
    values: dict[str, float] = {}
    for sample in samples:
        for key, value in sample.values.items():
            values[key] = max(value, values.get(key, 0.0))
    panels: dict[str, dict[str, str]] = {}
    for title, pattern in _PANELS.items():
        found = {match["label"]: key for key in sorted(values) if (match := pattern.search(key)) and values[key] > 0}
        if found:
            panels[title] = dict(list(found.items())[:_MAX_LINES])
    return panels
