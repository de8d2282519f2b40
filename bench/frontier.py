"""The frontier as a picture: what short requests wait against what the engine still does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

PRIORITY = "one queue by priority"
PARTITION = "deep ≤ 9/16"
OTHERS = {PRIORITY: ("s", "#d62728"), PARTITION: ("D", "#ff7f0e")}


def draw(points: Mapping[str, tuple[float, float]], alone_s: float, direct_s: float, path: Path) -> None:
    """Tokens/s to the right, fast p99 downwards: what is below and to the right of a point is better.

    `points`: tokens/s relative to direct, and the p99 in seconds, by β or by one of `OTHERS`.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional, and slow to import

    figure = Figure(figsize=(7.5, 5.0), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    own = sorted((float(name), point) for name, point in points.items() if name not in OTHERS)
    axes.plot(
        [x for _, (x, _) in own], [1e3 * y for _, (_, y) in own], "o-", color="#1f77b4", label="prelude, β varied"
    )
    for index, (beta, (x, y)) in enumerate(own):
        side = {"xytext": (7, -8)} if index % 2 else {"xytext": (-7, 3), "ha": "right"}
        axes.annotate(f"β = {beta:g}", (x, 1e3 * y), textcoords="offset points", fontsize=9, **side)
    for name, (marker, colour) in OTHERS.items():
        if name in points:
            axes.plot(points[name][0], 1e3 * points[name][1], marker, color=colour, markersize=8, label=name)
    axes.plot(1.0, 1e3 * direct_s, "X", color="black", markersize=9, label="first come, first served")
    axes.axhline(1e3 * alone_s, linestyle=":", color="grey", label="the same fast requests alone")
    axes.set_yscale("log")
    axes.set_xlabel("tokens/s relative to first come, first served")
    axes.set_ylabel("fast: p99 time to first token, ms")
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(fontsize=9)
    figure.savefig(path)
