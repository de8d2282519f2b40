"""`prelude-proxy demo`: what the proxy does for short requests, seen on this machine in under a minute."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import click
import orjson
import uvloop
from rich.console import Console

from prelude_proxy.bench import plots, showcase, tables
from prelude_proxy.bench.fleet import ChildError, Fleet
from prelude_proxy.bench.records import RunResult
from prelude_proxy.bench.report import DEFAULT_SLO_S, RunSummary, as_json, summarise
from prelude_proxy.bench.showcase import CLASS_AWARE, FCFS, Scene, Stage
from prelude_proxy.commands.bench import progress_bar

_ADVICE = "If the machine is merely busy, try again; else run the failing command by itself to see it whole."


@click.command("demo")
@click.option("--stay", is_flag=True, help="Leave engines and proxy running afterwards, until Ctrl-C.")
@click.option("--seconds", type=click.FloatRange(min=1, max=600), default=Scene().seconds, show_default=True,
              help="Length of each of the two loads.")  # fmt: skip
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("prelude-demo"),
              show_default=True, help="Folder for plot, report and logs.")  # fmt: skip
@click.option("--seed", type=int, default=7, show_default=True, help="Another seed draws other requests.")
def demo(stay: bool, seconds: float, out: Path, seed: int) -> None:
    """Two simulated engines, the same overload twice: first come first served, then class-aware.

    Needs no GPU and no model: the engines model vLLM's batching in real time, and only they know how long each answer
    is going to be. The proxy decides from the prompts.
    """
    scene = Scene(seconds=seconds, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    play(scene, out, stay=stay)


def play(scene: Scene, out: Path, *, stay: bool) -> None:
    """Runs the demonstration to its end, or to Ctrl-C.

    Raises:
        click.ClickException: a child failed; the message has its last words.
    """
    try:
        uvloop.run(run(scene, out, stay=stay))
    except ChildError as error:
        raise click.ClickException(f"{error}\nThe whole logs are in {out}. {_ADVICE}") from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        Console(stderr=True).print("stopped; nothing is left running")
        sys.exit(130)


async def run(scene: Scene, out: Path, *, stay: bool) -> None:
    """The whole demonstration; every child has ended when it returns or raises."""
    _cancel_on_sigterm()
    async with Fleet() as fleet:
        stage = showcase.set_stage(scene, out)
        results = await _perform(scene, stage, fleet)
        _show(scene, results, out)
        if stay:
            _explain_stay(scene, stage)
            await fleet.watched(_forever())


async def _perform(scene: Scene, stage: Stage, fleet: Fleet) -> dict[str, RunResult]:
    with progress_bar() as progress:
        task = progress.add_task("starting", total=2 * len(showcase.load_of(scene)))
        return await showcase.perform(
            scene,
            stage,
            fleet,
            on_phase=lambda name: progress.update(task, description=name),
            on_done=lambda _: progress.advance(task),
        )


async def _forever() -> None:
    await asyncio.Event().wait()


def _cancel_on_sigterm() -> None:
    main = asyncio.current_task()
    if main is not None:
        with suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, main.cancel)


def _show(scene: Scene, results: Mapping[str, RunResult], out: Path) -> None:
    summaries = {name: summarise(result) for name, result in results.items()}
    base, new = summaries[FCFS], summaries[CLASS_AWARE]
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(tables.comparison_table(base, new))
    console.print(tables.total_table([base, new]))
    console.print(_headline(base, new))
    if note := tables.busy_note([base, new]):
        console.print(note, style="yellow")
    parameters = {"seconds": scene.seconds, "seed": scene.seed, "rate": scene.rate, "slo": DEFAULT_SLO_S}
    report = as_json(parameters, [base, new], {name: [summary] for name, summary in summaries.items()})
    (out / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    try:
        plots.plot_comparison(results, out / "demo.png", "The same overload, first come first served and class-aware")
        console.print(f"plot: {out / 'demo.png'}", soft_wrap=True)
    except plots.PlotError as error:
        console.print(str(error), markup=False)


def _headline(base: RunSummary, new: RunSummary) -> str:
    before, after = base.classes["fast"].ttft_s.p99, new.classes["fast"].ttft_s.p99
    better = before is not None and after is not None and after <= before
    change = (
        f"{tables.factor(before, after)}[/bold] better" if better else f"{tables.factor(after, before)}[/bold] worse"
    )
    speed = new.tokens_per_s / base.tokens_per_s if base.tokens_per_s else 0.0
    return (
        f"Short requests: first token at p99 after [bold]{tables.seconds(after)}[/bold] instead of "
        f"{tables.seconds(before)} ([bold]{change}), "
        f"at {speed:.2f}× the tokens/s, {new.rejected:.0f} rejected."
    )


def _explain_stay(scene: Scene, stage: Stage) -> None:
    target = stage.doors[1].target
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    body = json.dumps({"model": scene.model, "messages": messages, "stream": True, "max_tokens": 64})
    click.echo(f"\nStill running: the proxy at {target.url}, before {' and '.join(stage.engine_urls)}. Try:\n")
    click.echo(f"curl -iN {target.url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'\n")
    click.echo(f"curl -s {target.admin_url}/status | python3 -m json.tool\n")
    click.echo(f"curl -s {target.admin_url}/metrics | grep ^prelude_proxy_\n")
    click.echo("Ctrl-C ends it.")


commands: list[click.Command] = [demo]
