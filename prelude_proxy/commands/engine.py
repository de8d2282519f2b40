"""`prelude-proxy engine`: a model of vLLM, TGI or SGLang that needs no GPU."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from prelude_proxy.core.domain import EngineKind
from prelude_proxy.engine.model import PROFILES, EngineConfig, EngineProfile, SchedulingPolicy
from prelude_proxy.engine.server import EngineServer, ServerConfig, tgi_config
from prelude_proxy.errors import ConfigError

_PROFILE_BLOCK_TOKENS = 16


@click.command(name="engine", context_settings={"show_default": True})
@click.option("--kind", type=click.Choice(["vllm", "tgi", "sglang"]), default="vllm", help="The engine it plays.")
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="Port to listen on; 0: any free one.")
@click.option("--served-model-name", default="tiny", help="The model it says it serves.")
@click.option("--profile", default="vllm-cpu-tiny", help=f"What a step costs: {', '.join(PROFILES)}, or a JSON file.")
@click.option("--max-num-seqs", type=int, default=256, help="Batch slots.")
@click.option("--max-num-batched-tokens", type=int, default=2048, help="Token budget of a step (chunked prefill).")
@click.option("--num-gpu-blocks-override", type=int, help="KV blocks.  [default: what the profile's card holds]")
@click.option("--block-size", type=int, default=16, help="Tokens in a KV block.")
@click.option("--max-model-len", type=int, default=8192, help="Longest prompt and answer together, in tokens.")
@click.option(
    "--scheduling-policy", type=click.Choice(["fcfs", "priority"]), default="fcfs", help="Order of its queue."
)
@click.option("--max-num-queued-reqs", type=int, help="Refuse above this many requests, waiting or running.")
@click.option(
    "--enable-prefix-caching/--no-enable-prefix-caching", default=True, help="Spare the prefill of known prompts."
)
@click.option("--seed", type=int, default=0, help="Seed of answer lengths that the request does not give.")
@click.option("--gauge-lag-secs", type=float, default=0.0, help="Gauges read 0 for this long after the start.")
@click.option("--startup-secs", type=float, default=0.0, help="Nothing listens for this long.")
def engine(**options: Any) -> None:
    """Serve an embedded engine: continuous batching in real time, with the real metric names and answers.

    The length of an answer comes from `vllm_xargs.target_len` (TGI: `parameters.target_len`) in the body, else it is
    drawn from the prompt; `max_tokens` cuts it.
    """
    try:
        server = EngineServer(_server_config(options))
    except ConfigError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    run_until_signal(
        lambda: server.run(started=lambda url: click.echo(f"engine ({options['kind']}) listening on {url}"))
    )


def run_until_signal(main: Callable[[], Any]) -> None:
    """Run the coroutine `main()` on uvloop until it ends, or SIGTERM or SIGINT cancels it: that is a normal exit."""
    import uvloop

    async def supervised() -> None:
        task = asyncio.ensure_future(main())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    uvloop.run(supervised())


def _server_config(options: dict[str, Any]) -> ServerConfig:
    profile = load_profile(options["profile"])
    kind = EngineKind(options["kind"])
    block_size = max(1, options["block_size"])
    num_blocks = options["num_gpu_blocks_override"]
    if num_blocks is None:
        num_blocks = profile.num_gpu_blocks * _PROFILE_BLOCK_TOKENS // block_size
    config = EngineConfig(
        max_num_seqs=options["max_num_seqs"],
        max_num_batched_tokens=options["max_num_batched_tokens"],
        num_gpu_blocks=num_blocks,
        block_size=options["block_size"],
        max_model_len=options["max_model_len"],
        policy=SchedulingPolicy(options["scheduling_policy"]),
        max_num_queued_reqs=options["max_num_queued_reqs"],
    )
    return ServerConfig(
        kind=kind,
        engine=tgi_config(config) if kind is EngineKind.TGI else config,
        profile=profile,
        host=options["host"],
        port=options["port"],
        served_model_name=options["served_model_name"],
        seed=options["seed"],
        prefix_cache=options["enable_prefix_caching"],
        gauge_lag_s=options["gauge_lag_secs"],
        startup_s=options["startup_secs"],
    )


def load_profile(name: str) -> EngineProfile:
    """A preset by name, or a profile from a JSON file.

    Raises:
        ConfigError: neither, or the file is no profile.
    """
    if name in PROFILES:
        return PROFILES[name]
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"--profile: {name!r} is neither one of {', '.join(PROFILES)} nor a file")
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--profile {name}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"--profile {name}: a JSON object is expected")
    return EngineProfile.from_mapping(values)


commands: list[click.Command] = [engine]
