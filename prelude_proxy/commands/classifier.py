"""`train`, `evaluate` and `explain`: make a model, measure it, ask it why."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from prelude_proxy.errors import ClientError, ConfigError, PreludeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prelude_proxy.training.evaluate import Report
    from prelude_proxy.training.train import Comparison

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)
_FIGURES = {
    "accuracy": "acc",
    "macro_f1": "mF1",
    "auc_deep": "AUC deep",
    "auc_fast": "AUC fast",
    "kendall_tau": "τ",
    "spearman": "ρ",
    "calibration_error": "ECE",
    "dispatch_accuracy": "disp acc",
    "deep_recall": "deep R",
    "deep_precision": "deep P",
}
_NOT_BETTER = 1


@click.command(name="train", context_settings={"show_default": True})
@click.option("--data", type=_FILE, help="Rows: JSON lines, .gz or .zst.")
@click.option("--journal", type=_DIRECTORY, help="Directory of a training journal instead of --data.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Where the model goes.")
@click.option("--force", is_flag=True, help="Replace the model in use even if that is better.")
@click.option("--exclude-source", multiple=True, help="Leave rows of this source out, to test on it. Repeatable.")
@click.option("--rounds", type=click.IntRange(1, 2000), default=80, help="Boosting rounds: trees in the forest.")
@click.option("--depth", type=click.IntRange(1, 8), default=6, help="Depth of the trees.")
@click.option("--threads", type=click.IntRange(1), default=1, help="Threads for growing trees.")
@click.option("--name", default="own", help="What the model calls itself in /status and reports.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def train(data: Path | None, journal: Path | None, out: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Train a model on rows or on the proxy's own journal, and report on rows it has not seen.

    A tenth of the prompts is held out, the same tenth in every run. The model in use (the file at --out, else the one
    shipped) is scored on the same rows; a model that is not better is not written, unless --force.
    """
    if (data is None) == (journal is None):
        raise click.UsageError("give either --data or --journal")
    _need_training_libraries()
    from prelude_proxy.training.train import TrainSettings, train_and_compare

    settings = TrainSettings(rounds=options["rounds"], depth=options["depth"], threads=options["threads"])
    try:
        with _Bar("training", quiet=as_json) as bar:
            comparison = train_and_compare(
                data=data,
                journal=journal,
                in_use=out if out.exists() else None,
                exclude=frozenset(options["exclude_source"]),
                settings=settings,
                name=options["name"],
                progress=bar.update,
            )
    except (ValueError, PreludeError) as error:
        _fail(str(error))
    accepted = force or comparison.is_better
    if accepted:
        comparison.write(out)
    if as_json:
        click.echo(orjson.dumps(comparison.as_dict() | {"written": accepted, "out": str(out)}).decode())
    else:
        _print_comparison(comparison)
        click.echo(f"written to {out}" if accepted else "not written: the model in use is as good (--force overrides)")
    if not accepted:
        sys.exit(_NOT_BETTER)


@click.command(name="evaluate", context_settings={"show_default": True})
@click.option("--data", type=_FILE, required=True, help="Rows: JSON lines, .gz or .zst.")
@click.option("--model", type=_FILE, help="Model file.  [default: the one shipped]")
@click.option("--online", is_flag=True, help="Learn from the rows as the proxy would, from an empty prior.")
@click.option("--label-delay", type=click.IntRange(0), default=50, help="Rows before a row's length is known.")
@click.option("--predictions", type=click.Path(dir_okay=False, path_type=Path), help="Write a JSON line a row.")
@click.option("--source", multiple=True, help="Only rows of this source. Repeatable.")
@click.option("--held-out", is_flag=True, help="Only the tenth that `train` keeps back, mixed by checksum.")
@click.option("--baselines", type=_FILE, help="Also train the baselines on these rows and score them on --data.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def evaluate(data: Path, model: Path | None, as_json: bool, **options: Any) -> None:
    """Score a model on rows: pooled, per source, and averaged over sources."""
    _need_training_libraries()
    from prelude_proxy.modelfile import load_model
    from prelude_proxy.training.dataset import read_rows
    from prelude_proxy.training.evaluate import forecast_rows, report_on
    from prelude_proxy.training.train import held_out

    wanted = frozenset(options["source"])
    try:
        rows = [row for row in read_rows(data) if not wanted or row.source in wanted]
        loaded = load_model(model)
    except (ConfigError, ValueError, KeyError, TypeError, OSError) as error:
        _fail(f"cannot read: {error}")
    if options["held_out"]:
        rows = held_out(rows)
    if not rows:
        _fail(f"{data}: no rows")
    with _Bar("evaluating", quiet=as_json) as bar:
        forecasts = forecast_rows(
            rows,
            loaded,
            label_delay=options["label_delay"] if options["online"] else None,
            progress=lambda share: bar.update("evaluating", share),
        )
    if options["predictions"] is not None:
        with options["predictions"].open("wb") as file:
            for prediction in forecasts.predictions():
                file.write(orjson.dumps(prediction, option=orjson.OPT_APPEND_NEWLINE))
    reports = {"online" if options["online"] else "static": report_on(rows, forecasts)}
    if options["baselines"] is not None:
        kept_back = frozenset(row.group for row in rows) if options["held_out"] else frozenset()
        reports |= _baseline_reports(options["baselines"], rows, options["label_delay"], kept_back)
    first = next(iter(reports.values()))
    if as_json:
        baselines = {name: report.as_dict() for name, report in list(reports.items())[1:]}
        answer = first.as_dict() | {"model": loaded.info.name, "online": options["online"], "baselines": baselines}
        click.echo(orjson.dumps(answer | {"refused": forecasts.num_refused}).decode())
        return
    if len(reports) > 1:
        _print_figures("pooled", {name: report.pooled.as_dict() for name, report in reports.items()})
    _print_report(first, online=options["online"])
    if forecasts.num_refused:
        click.echo(f"{forecasts.num_refused} rows are no requests the proxy accepts; counted as standard")


def _baseline_reports(
    train_on: Path, rows: list[Any], label_delay: int, kept_back: frozenset[str]
) -> dict[str, Report]:
    from prelude_proxy.training import baselines
    from prelude_proxy.training.dataset import cap_sources, read_rows
    from prelude_proxy.training.evaluate import report_on

    known = [row for row in cap_sources(list(read_rows(train_on))) if row.group not in kept_back]
    return {
        "constant": report_on(rows, baselines.constant(known, rows)),
        "prompt length": report_on(rows, baselines.prompt_length(known, rows)),
        "three-bucket rule": report_on(rows, baselines.three_bucket(known, rows)),
        "19 lexical features": report_on(rows, baselines.lexical(known, rows)),
        "tenant history": report_on(rows, baselines.tenant_history(rows, label_delay)),
    }


@click.command(name="explain", context_settings={"show_default": True})
@click.argument("request_file", type=click.File("rb"), required=False)
@click.option("--prompt", help="A chat prompt instead of a request body.")
@click.option("--request-path", default="/v1/chat/completions", help="Path the request would be sent to.")
@click.option("--model-name", default="default", help="Model to ask for with --prompt.")
@click.option("--header", "headers", multiple=True, help="Request header `name: value`. Repeatable.")
@click.option("--model", type=_FILE, help="Model file.  [default: the configured or the shipped one]")
@click.option("--config", "config_path", type=_FILE, help="Configuration whose rules and classes apply.")
@click.option("--top", type=click.IntRange(1), default=10, help="Features to show.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(request_file: Any, prompt: str | None, as_json: bool, top: int, **options: Any) -> None:
    """Say which class a request gets and why: the rule that matched, or what pushed the forecast.

    REQUEST_FILE holds a JSON body; `-` or nothing reads it from standard input.
    """
    from prelude_proxy.explain import explain_request

    body: bytes
    if prompt is not None:
        body = orjson.dumps({"model": options["model_name"], "messages": [{"role": "user", "content": prompt}]})
    else:
        body = (request_file or sys.stdin.buffer).read()
    try:
        explanation = explain_request(
            body,
            path=options["request_path"],
            headers=_headers_of(options["headers"]),
            config_path=options["config_path"],
            model_path=options["model"],
            top=top,
        )
    except ClientError as error:
        _fail(f"the proxy would answer {error.status}: {error}")
    except ConfigError as error:
        _fail(str(error))
    if as_json:
        click.echo(orjson.dumps(explanation.as_dict()).decode())
    else:
        explanation.show(Console())


def _headers_of(given: tuple[str, ...]) -> dict[str, str]:
    headers = {}
    for each in given:
        name, colon, value = each.partition(":")
        if not colon:
            raise click.UsageError(f"--header {each!r}: expected `name: value`")
        headers[name.strip().lower()] = value.strip()
    return headers


# --- printing ---------------------------------------------------------------------------------------------------------


def _print_comparison(comparison: Comparison) -> None:
    figures = {"new": comparison.new.as_dict()}
    if comparison.old is not None:
        figures[f"in use ({comparison.old_name})"] = comparison.old.as_dict()
    click.echo(
        f"{comparison.num_trained} rows trained on, {comparison.num_held_out} held out; "
        f"log-loss {comparison.new_loss:.4f}"
        + (f", in use {comparison.old_loss:.4f}" if comparison.old_loss is not None else "")
    )
    _print_figures("held out", figures)


def _print_report(report: Report, *, online: bool) -> None:
    rows: dict[str, Mapping[str, Any]] = {
        "pooled": report.pooled.as_dict(),
        "average of sources": dict(report.averaged) | {"rows": report.pooled.rows},
    }
    rows |= {f"  {name}": scores.as_dict() for name, scores in report.sources.items()}
    _print_figures("online" if online else "static", rows)


def _print_figures(title: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("rows", justify="right")
    for short in _FIGURES.values():
        table.add_column(short, justify="right")
    for name, figures in rows.items():
        cells = ["–" if figures[key] is None else f"{figures[key]:.3f}" for key in _FIGURES]
        table.add_row(name, str(figures["rows"]), *cells)
    console = Console()
    Console(width=max(console.width, 120)).print(table)


class _Bar:
    """A progress bar on standard error, one line per stage."""

    def __init__(self, title: str, *, quiet: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=quiet,
        )
        self._title = title
        self._stage: str | None = None
        self._task: Any = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=1.0)
        self._progress.stop()

    def update(self, stage: str, share: float) -> None:
        """Show that `stage` is at `share`."""
        if stage != self._stage:
            if self._task is not None:
                self._progress.update(self._task, completed=1.0)
            self._stage = stage
            self._task = self._progress.add_task(stage, total=1.0)
        self._progress.update(self._task, completed=share)


def _need_training_libraries() -> None:
    try:
        import scipy  # noqa: F401  is it there?
        import xgboost  # noqa: F401  is it there?
        import zstandard  # noqa: F401  is it there?
    except ImportError as error:
        _fail(f"{error.name} is missing: pip install 'prelude-proxy[train]'")


def _fail(message: str) -> NoReturn:
    click.echo(f"error: {message}", err=True)
    sys.exit(2)


commands: list[click.Command] = [train, evaluate, explain]
