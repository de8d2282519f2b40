"""`prelude-proxy bench`: the same load against several front doors, side by side."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import click
import orjson
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from prelude_proxy.bench import plots, tables, traces, workload
from prelude_proxy.bench.driver import DriverOptions
from prelude_proxy.bench.records import RunResult
from prelude_proxy.bench.report import DEFAULT_SLO_S, as_json
from prelude_proxy.bench.rounds import TargetError, first_model, run_rounds, summaries_of
from prelude_proxy.bench.wire import LABELS, LengthMode, Target, Wire, check_target
from prelude_proxy.bench.workload import CLASSES, WorkItem
from prelude_proxy.commands.simulation import run_simulation, simulation_options
from prelude_proxy.errors import ConfigError

_DEFAULT_MIX = "0.75,0,0.25"
_PATH = click.Path(exists=True, dir_okay=False, path_type=Path)


@dataclass(frozen=True, slots=True)
class Load:
    """What to plan, as asked for on the command line."""

    mix: str | None
    rate: float | None
    seconds: float | None
    trace: Path | None
    data: Path | None
    scale: float
    category: str | None
    tenants: str | None
    only: str | None
    whole_body: bool
    limits: workload.Limits
    seed: int

    def planner(self) -> Callable[[int], list[WorkItem]]:
        """A function from a round's number to its plan; files are read once.

        Raises:
            ValueError: the options or the file do not make a plan.
        """
        if self.trace is not None and self.data is not None:
            raise ValueError("--trace and --data cannot be combined")
        if self.trace is not None:
            make = self._from_trace(self.trace)
        else:
            make = self._from_data(self.data) if self.data is not None else self._from_mix(None)

        def plan(number: int) -> list[WorkItem]:
            items = make(self.seed + number)
            if self.tenants:
                items = workload.with_tenants(items, parse_weights(self.tenants), self.seed + number)
            items = [item for item in items if self.only in (None, item.klass)]
            if not items:
                raise ValueError("the plan is empty: more --seconds, a higher rate, or another class?")
            return items

        return plan

    def _from_mix(self, draw: workload.Draw | None) -> Callable[[int], list[WorkItem]]:
        weights = parse_mix(self.mix or _DEFAULT_MIX)
        rate, seconds = self.rate or 40.0, self.seconds or 15.0
        draw = draw or workload.built_in_draw(self.limits)
        return lambda seed: workload.mix_plan(weights, rate, seconds, seed, draw)

    def _from_data(self, path: Path) -> Callable[[int], list[WorkItem]]:
        items = workload.data_items(traces.read_json_lines(path), self.limits, whole_body=self.whole_body)
        if self.mix is not None:
            return self._from_mix(workload.data_draw(items))
        return lambda seed: workload.data_plan(items, self.rate or 40.0, self.seconds or 15.0, seed)

    def _from_trace(self, path: Path) -> Callable[[int], list[WorkItem]]:
        span_s = self.seconds * self.scale if self.seconds else None
        items = traces.load_trace(
            path, self.limits, seed=self.seed, rate=self.rate, seconds=span_s, category=self.category
        )
        plan = workload.rescaled(items, self.scale, self.seconds)
        return lambda _: plan


def parse_mix(text: str) -> dict[str, float]:
    """`FAST,STANDARD,DEEP` shares, or `class=share,…`.

    Raises:
        ValueError: not numbers, negative, unknown classes, or nothing above 0.
    """
    if "=" in text:
        weights = parse_weights(text)
    else:
        parts = [float(part) for part in text.split(",")]
        if len(parts) != 3:
            raise ValueError(f"a mix is three shares FAST,STANDARD,DEEP (such as {_DEFAULT_MIX}), not {text!r}")
        weights = dict(zip(("fast", "standard", "deep"), parts, strict=True))
    unknown = [name for name in weights if name not in CLASSES]
    if unknown:
        raise ValueError(f"unknown class {unknown[0]!r}: the classes are {', '.join(CLASSES)}")
    if min(weights.values()) < 0 or sum(weights.values()) <= 0:
        raise ValueError("the shares of a mix must not be negative, and one must be above 0")
    return weights


def parse_weights(text: str) -> dict[str, float]:
    """`name=number,…`; a bare whole number N stands for N equal tenants.

    Raises:
        ValueError: a part is not `name=number`.
    """
    if text.isdigit():
        return {f"tenant-{index}": 1.0 for index in range(int(text))}
    weights = {}
    for part in text.split(","):
        name, separator, number = part.partition("=")
        if not separator:
            raise ValueError(f"expected name=number, not {part!r}")
        weights[name.strip()] = float(number)
    return weights


def make_targets(texts: Sequence[str], labels: Sequence[str], wire: Wire) -> list[Target]:
    """Targets from `NAME=URL`, each with its label from `[NAME=]KIND`.

    Raises:
        ValueError: a URL, label or name is wrong, or a name comes twice.
    """
    pairs = [check_target(text) for text in texts]
    names = [name for name, _ in pairs]
    for one, other in pairwise(sorted(names)):
        if one == other:
            raise ValueError(f"two targets are named {one!r}")
    kinds = {}
    for text in labels:
        name, separator, kind = text.rpartition("=")
        if kind not in LABELS and kind != "none":
            raise ValueError(f"unknown label {kind!r}: one of none, {', '.join(LABELS)}")
        if separator and name not in names:
            raise ValueError(f"--label names {name!r}, but the targets are {', '.join(names)}")
        kinds.update(dict.fromkeys([name] if separator else names, kind))
    return [
        Target(name, url, Wire(**{**asdict(wire), "label": kinds.get(name, "none")})) for name, url in pairs
    ]  # fmt: skip


def parse_watch(texts: Sequence[str], targets: Sequence[Target]) -> dict[str, dict[str, str]]:
    """`[TARGET/]LABEL=URL` of each page to sample; without a target it is read while any of them is under load."""
    watch: dict[str, dict[str, str]] = {target.name: {} for target in targets}
    for text in texts:
        label, separator, url = text.partition("=")
        if not separator:
            raise ValueError(f"expected LABEL=URL, not {text!r}")
        owner, slash, name = label.rpartition("/")
        if slash and owner not in watch:
            raise ValueError(f"--watch names {owner!r}, but the targets are {', '.join(watch)}")
        for target in [owner] if slash else watch:
            watch[target][name] = url
    return watch


@click.command("bench")
@click.option("--target", "targets", metavar="[NAME=]URL", multiple=True, help="A front door; repeat.")
@click.option("--mix", metavar="F,S,D", help=f"Shares of fast, standard, deep requests [default: {_DEFAULT_MIX}].")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Requests a second [default: 40].")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="Length of the load [default: 15].")
@click.option("--trace", type=_PATH, help="Arrivals and lengths: CSV or JSON lines, .gz and .zst too.")
@click.option("--scale", type=click.FloatRange(min=0, min_open=True), default=1.0, help="Times the trace's own rate.")
@click.option("--category", help="Which category of a ServeGen file [default: the busiest].")
@click.option("--data", type=_PATH, help="Prompts: JSON lines of the rows that `evaluate` reads.")
@click.option("--whole-body", is_flag=True, help="Send the data's whole bodies, not only their text.")
@click.option("--tenants", metavar="N|a=1,b=8", help="Spread the load over tenants, equally or by weight.")
@click.option("--only", type=click.Choice(CLASSES), help="Leave out all other classes, at unchanged times.")
@click.option("--label", "labels", metavar="[NAME=]KIND", multiple=True,
              help="Tell a target the true class in its own header: none, prelude, haproxy, prio, smg.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Interleaved; medians count.")
@click.option("--warmup", type=click.IntRange(min=0), default=0, help="Requests to each target before, not counted.")
@click.option("--seed", type=int, default=7, show_default=True)
@click.option("--model", help="Model name to ask for [default: the target's first].")
@click.option("--max-tokens", type=click.IntRange(min=1), default=2048, show_default=True, help="Sent with all alike.")
@click.option("--length", type=click.Choice(["target", "max-tokens", "free"]), default="target", show_default=True,
              help="How the engine learns an answer's length: vllm_xargs.target_len, max_tokens, or not.")  # fmt: skip
@click.option("--cap-output", type=click.IntRange(min=1), default=900, show_default=True, help="Longest answer.")
@click.option("--cap-prompt", type=click.IntRange(min=1), default=1500, show_default=True,
              help="Longest prompt, tokens: traces are cut, data left out.")  # fmt: skip
@click.option("--api-key-env", metavar="VAR", help="Environment variable with the API key.")
@click.option("--slo", metavar="fast=0.5,…", help="Seconds to the first token that count as good, by class.")
@click.option("--watch", metavar="[TARGET/]LABEL=URL", multiple=True, help="Sample an engine's /metrics or a /status.")
@click.option("--timeout-secs", type=click.FloatRange(min=1), default=900.0, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for report.json and plots.")
@click.option("--json", "as_json_", is_flag=True, help="Print the report as JSON instead of tables.")
@simulation_options
def bench(**given: Any) -> None:
    r"""Replay a workload against live URLs, side by side in interleaved rounds, or against a simulated fleet.

    Every target gets the same requests at the same times. Latencies count from when a request was due.

    \b
    prelude-proxy bench --target direct=http://localhost:8000 --target prelude=http://localhost:8080 --rate 40
    prelude-proxy bench --target http://localhost:8080 --trace azure_code.csv.gz --scale 2 --seconds 60
    prelude-proxy bench --simulate --engines 64 --policy fcfs --policy prelude --trace azure_conv.csv.gz --load 0.9
    """
    if not (given["targets"] or given["simulate"]):
        raise click.UsageError("Missing option '--target', or '--simulate'.")
    if given["targets"] and given["simulate"]:
        raise click.UsageError("--target and --simulate cannot be combined")
    key = os.environ.get(given["api_key_env"]) if given["api_key_env"] else None
    if given["api_key_env"] and not key:
        raise click.BadParameter(f"{given['api_key_env']} is not set", param_hint="--api-key-env")
    try:
        load = Load(
            limits=workload.Limits(given["cap_output"], given["cap_prompt"]),
            **{name: given[name] for name in Load.__slots__ if name != "limits"},
        )
        wire = Wire(given["model"] or "", given["max_tokens"], cast("LengthMode", given["length"]), api_key=key)
        targets = make_targets(given["targets"], given["labels"], wire)
        watch = parse_watch(given["watch"], targets)
        slo_s = {**DEFAULT_SLO_S, **(parse_weights(given["slo"]) if given["slo"] else {})}
        planner = load.planner()
        plans = [planner(number) for number in range(given["rounds"])]
        warmup = _warmup(planner, given["warmup"])
        if given["simulate"]:
            shown = {k: v for k, v in given.items() if k != "as_json_"}
            _show(_simulate(given, plans, warmup), slo_s, shown, given["out"], given["as_json_"])
            return
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    options = DriverOptions(timeout_s=given["timeout_secs"])
    try:
        results = uvloop.run(_run(targets, plans, warmup, options, watch))
    except TargetError as error:
        raise click.ClickException(str(error)) from None
    _show(results, slo_s, {k: v for k, v in given.items() if k != "as_json_"}, given["out"], given["as_json_"])


def _simulate(
    given: Mapping[str, Any], plans: Sequence[Sequence[WorkItem]], warmup: Sequence[WorkItem]
) -> dict[str, list[RunResult]]:
    with progress_bar() as progress:
        task = progress.add_task("simulating", total=None)

        def on_done(policy: str, count: int) -> None:
            progress.update(task, advance=count, description=policy)

        try:
            return run_simulation(given, plans, warmup, on_done)
        except ConfigError as error:
            raise click.ClickException(str(error)) from None


def _warmup(planner: Callable[[int], list[WorkItem]], count: int) -> list[WorkItem]:
    """`count` requests of other seeds than the measured ones, at the same rate."""
    items: list[WorkItem] = []
    number = -1
    while len(items) < count:
        start_s = items[-1].at_s if items else 0.0
        items += workload.shifted(planner(number), start_s)
        number -= 1
    return items[:count]


async def _run(
    targets: Sequence[Target],
    plans: Sequence[Sequence[WorkItem]],
    warmup: Sequence[WorkItem],
    options: DriverOptions,
    watch: Mapping[str, Mapping[str, str]],
) -> dict[str, list[RunResult]]:
    ready = []
    for target in targets:
        model = target.wire.model or await first_model(target.url, target.wire.api_key)
        ready.append(Target(target.name, target.url, Wire(**{**asdict(target.wire), "model": model})))
    total = sum(map(len, plans)) * len(ready)
    with progress_bar() as progress:
        task = progress.add_task("warming up" if warmup else "running", total=total)
        return await run_rounds(
            ready, plans, warmup=warmup, options=options, watch=watch,
            on_done=lambda target, _: progress.update(task, advance=1, description=target.name),
        )  # fmt: skip


def progress_bar() -> Progress:
    """The one bar of a run, on stderr, so that stdout stays the report."""
    return Progress(
        TextColumn("{task.description:<14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _show(
    results: Mapping[str, Sequence[RunResult]],
    slo_s: Mapping[str, float],
    parameters: Mapping[str, Any],
    out: Path | None,
    json_only: bool,
) -> None:
    medians, rounds = summaries_of(results, slo_s)
    report = as_json({**parameters, "slo": slo_s}, medians, rounds)
    console = Console(width=None if sys.stdout.isatty() else 100)
    if json_only:
        click.echo(orjson.dumps(report, default=str, option=orjson.OPT_INDENT_2).decode())
    else:
        console.print(tables.class_table(medians))
        console.print(tables.total_table(medians))
        if note := tables.busy_note(medians):
            console.print(note, style="yellow")
        for summary in medians:
            for kind, count in summary.errors.items():
                console.print(f"{summary.target}: {count} × {kind}", style="red", markup=False)
    if out is not None:
        for note in write_files(results, report, out):
            Console(stderr=True).print(note, markup=False, highlight=False, soft_wrap=True)


def write_files(results: Mapping[str, Sequence[RunResult]], report: Mapping[str, Any], out: Path) -> Iterable[str]:
    """Writes `report.json`, `ttft.png` and, where something was watched, `watch-<target>.png`; yields what it did."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.json"
    path.write_bytes(orjson.dumps(report, default=str, option=orjson.OPT_INDENT_2))
    yield f"wrote {path}"
    try:
        plots.plot_ttft(results, out / "ttft.png", "Time to first token")
        yield f"wrote {out / 'ttft.png'}"
        for name, runs in results.items():
            panels = plots.sample_panels(runs[-1].samples)
            if panels:
                plots.plot_samples(runs[-1].samples, panels, out / f"watch-{name}.png", name)
                yield f"wrote {out / f'watch-{name}.png'}"
    except plots.PlotError as error:
        yield str(error)


commands: list[click.Command] = [bench]
