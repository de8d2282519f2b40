"""`prelude-proxy serve` and `prelude-proxy check-config`."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import uvloop

from prelude_proxy.config import Config, build_config, load_config, read_yaml
from prelude_proxy.errors import ConfigError


def _flag(*names: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option whose environment variable is PRELUDE_ and its name."""
    name = names[0].lstrip("-").partition("/")[0].replace("-", "_").upper()
    return click.option(*names, envvar=f"PRELUDE_{name}", show_envvar=True, **options)


@click.command()
@_flag("--config", "-c", type=click.Path(path_type=Path), help="YAML configuration.")
@_flag("--backend", "--worker-urls", "backends", multiple=True, metavar="URL", help="An engine; repeatable.")
@_flag("--backend-kind", type=click.Choice(["vllm", "tgi", "sglang", "openai"]), help="What --backend URLs run.")
@_flag("--host", help="Address of both ports.")
@_flag("--port", type=int, help="Data port  [default: 8080]")
@_flag("--admin-port", type=int, help="Admin port  [default: 9090]")
@_flag("--api-key", help="Bearer token that clients must send.")
@_flag("--admission", type=click.Choice(["class-aware", "fcfs"]), help="fcfs passes everything on at once.")
@_flag("--classifier/--no-classifier", "use_classifier", default=None, help="Predict, or run on rules alone.")
@_flag("--model", type=click.Path(path_type=Path), help="Directory of a trained model.")
@_flag("--trust-class-header", is_flag=True, default=None, help="x-prelude-class decides, whoever sends it.")
@_flag("--max-payload-size", type=int, metavar="BYTES", help="Largest request body.")
@_flag("--request-timeout-secs", type=float, help="Longest wait for a backend's first byte.")
@_flag("--queue-size", type=int, help="Most requests held in all.")
@_flag("--queue-timeout-secs", type=float, help="Longest time any request is held.")
@_flag("--shutdown-grace-period-secs", type=float, help="Time to finish after SIGTERM.")
@_flag("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Least severity written.")
@_flag("--log-format", type=click.Choice(["text", "json"]), help="For people or for machines.")
@_flag("--access-log/--no-access-log", "access_log", default=None, help="One record a request.")
def serve(config: Path | None, api_key: str | None, **flags: Any) -> None:
    """Run the proxy. `serve --backend http://a:8000 --backend http://b:8000` needs no file."""
    from prelude_proxy.app import App
    from prelude_proxy.logs import configure_logging

    try:
        effective = effective_config(config, flags)
        configure_logging(effective.logging.level, effective.logging.format)
        app = App(effective, api_key=api_key, reread=lambda: effective_config(config, flags))
        gc.collect()
        gc.freeze()  # what is built once is never looked at again by the collector
        gc.set_threshold(20_000, 20, 50)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(app.run_until_signal(_announce))
    except ConfigError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


@click.command("check-config")
@click.argument("file", type=click.Path(path_type=Path))
def check_config(file: Path) -> None:
    """Validate FILE and print the effective configuration, defaults filled in."""
    try:
        click.echo(load_config(file).dump_yaml(), nl=False)
    except ConfigError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


commands = [serve, check_config]

# flag → where it goes in the configuration
_TARGETS: dict[str, tuple[str, ...]] = {
    "port": ("listen", "port"),
    "admin_port": ("admin", "port"),
    "admission": ("admission", "mode"),
    "use_classifier": ("classifier", "enabled"),
    "model": ("classifier", "model"),
    "trust_class_header": ("admission", "trust_class_header"),
    "max_payload_size": ("limits", "max_body_bytes"),
    "request_timeout_secs": ("timeouts", "first_byte_s"),
    "queue_size": ("admission", "max_queue_size"),
    "shutdown_grace_period_secs": ("timeouts", "shutdown_grace_s"),
    "log_level": ("logging", "level"),
    "log_format": ("logging", "format"),
    "access_log": ("logging", "access"),
}


def effective_config(path: Path | None, flags: dict[str, Any]) -> Config:
    """The file, if any, with the flags over it.

    Raises:
        ConfigError: either is wrong.
    """
    source = str(path or "flags")
    given = read_yaml(path) if path is not None else {}
    build_config(given, source=source)  # what follows may then rely on its shape
    data: dict[str, Any] = dict(given or {})
    for flag, value in flags.items():
        if value is not None and flag in _TARGETS:
            section, key = _TARGETS[flag]
            _set(data, section, key, str(value) if isinstance(value, Path) else value)
    if flags.get("host"):
        for section in ("listen", "admin"):
            _set(data, section, "host", flags["host"])
    if flags.get("queue_timeout_secs") is not None:
        data["classes"] = dict(data.get("classes") or {})
        for name in build_config(data, source=source).classes:
            _set(data["classes"], name, "queue_timeout_s", flags["queue_timeout_secs"])
    if flags.get("backends"):
        _add_backends(data, [url for given in flags["backends"] for url in given.split()], flags.get("backend_kind"))
    return build_config(data, source=source)


def _set(data: dict[str, Any], section: str, key: str, value: Any) -> None:
    data[section] = {**(data.get(section) or {}), key: value}


def _add_backends(data: dict[str, Any], urls: list[str], kind: str | None) -> None:
    first, *others = data.get("pools") or [{}]
    more = [{"url": url, **({"kind": kind} if kind else {})} for url in urls]
    data["pools"] = [{**first, "backends": [*(first.get("backends") or []), *more]}, *others]


def _announce(app: Any) -> None:
    config = app.config
    num_backends = sum(len(pool.backends) for pool in config.pools)
    click.echo(
        f"prelude-proxy listening on http://{config.listen.host}:{app.port} (admin {app.admin_port}), "
        f"{num_backends} backend{'s' if num_backends != 1 else ''}, mode {config.admission.mode}",
        err=True,
    )
