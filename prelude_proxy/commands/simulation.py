"""The part of `prelude-proxy bench` that needs no network: policies against a simulated fleet, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from prelude_proxy.bench.records import RunResult
from prelude_proxy.bench.workload import WorkItem
from prelude_proxy.commands.engine import load_profile
from prelude_proxy.config import Config, load_config
from prelude_proxy.judge import Judge
from prelude_proxy.simulator import POLICIES, EngineSpec, Fleet, Simulation, simulate
from prelude_proxy.simulator.capacity import at_load
from prelude_proxy.simulator.forecasters import Forecaster, Ladder, Noisy, Oracle, Real

_Command = TypeVar("_Command", bound=Callable[..., Any])
_DEFAULT_POLICIES = ("fcfs", "prelude")
_PREDICTIONS = ("auto", "model", "noisy", "oracle")


def simulation_options(command: _Command) -> _Command:
    """The options of mode `--simulate`."""
    options = [
        click.option("--simulate", is_flag=True, help="Against a simulated fleet in virtual time; no --target then."),
        click.option("--policy", "policies", type=click.Choice(POLICIES), multiple=True,
                     help="Front doors to compare, repeat [default: fcfs, prelude]."),
        click.option("--engines", type=click.IntRange(min=1), default=1, show_default=True, help="Simulated engines."),
        click.option("--profile", default="vllm-cpu-tiny", show_default=True, help="Their step costs: preset or file."),
        click.option("--max-num-seqs", default="16", show_default=True, metavar="N[,N…]",
                     help="Batch slots; several are given to the engines in turn."),
        click.option("--num-gpu-blocks", type=click.IntRange(min=2), help="KV blocks [default: the profile's]."),
        click.option("--enable-prefix-caching/--no-enable-prefix-caching", default=True,
                     help="Spare the prefill of known prompts, in traces that say what was shared."),
        click.option("--load", type=click.FloatRange(min=0, min_open=True),
                     help="Scale the workload to this share of what the fleet can do."),
        click.option("--network-ms", type=click.FloatRange(min=0), default=1.0, show_default=True, help="One way."),
        click.option("--api-ms", type=click.FloatRange(min=0), default=4.0, show_default=True,
                     help="From an engine's socket to its queue."),
        click.option("--telemetry-lag-secs", type=click.FloatRange(min=0), default=0.0, help="Age of a sample."),
        click.option("--prediction", type=click.Choice(_PREDICTIONS), default="auto", show_default=True,
                     help="What policy prelude knows: the model's forecast (needs prompts), a noisy guess, the truth."),
        click.option("--config", "config_file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
                     help="The proxy's configuration, for its classes and admission settings."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def make_fleet(given: Mapping[str, Any]) -> Fleet:
    """The fleet the options describe.

    Raises:
        ValueError: a number of batch slots is none.
        ConfigError: the profile or an engine's limits make no sense.
    """
    profile = load_profile(given["profile"])
    slots = [int(text) for text in given["max_num_seqs"].split(",")]
    cache = given["enable_prefix_caching"]
    specs = [EngineSpec.of(profile, count, given["num_gpu_blocks"], prefix_cache=cache) for count in slots]
    return Fleet(
        engines=tuple(specs[index % len(specs)] for index in range(given["engines"])),
        network_s=given["network_ms"] / 1e3,
        api_s=given["api_ms"] / 1e3,
        sample_lag_s=given["telemetry_lag_secs"],
    )


def run_simulation(
    given: Mapping[str, Any],
    plans: Sequence[Sequence[WorkItem]],
    warmup: Sequence[WorkItem],
    on_done: Callable[[str, int], None],
) -> dict[str, list[RunResult]]:
    """Every policy on every plan. `on_done` is told the policy and how many more requests have ended.

    `warmup` is served before each run, and not counted.

    Raises:
        ValueError: the options and the workload do not fit each other.
        ConfigError: the fleet or the configuration makes no sense.
    """
    fleet = make_fleet(given)
    if given["load"]:
        plans = [at_load(plan, fleet, given["load"]) for plan in plans]
    results: dict[str, list[RunResult]] = {}
    warmup = [_fitted(item, fleet) for item in warmup]
    for number, plan in enumerate(plans):
        fitting = [_fitted(item, fleet) for item in plan]
        for policy in given["policies"] or _DEFAULT_POLICIES:
            simulation = _simulation(given, plan, warmup, given["seed"] + number)
            result = _run(fitting, fleet, policy, simulation, on_done)
            results.setdefault(policy, []).append(result)
    return results


def _run(
    plan: Sequence[WorkItem], fleet: Fleet, policy: str, simulation: Simulation, on_done: Callable[[str, int], None]
) -> RunResult:
    left = len(plan)

    def report(num_open: int) -> None:
        nonlocal left
        on_done(policy, left - num_open)
        left = num_open

    result = simulate(plan, fleet, policy, simulation, report)
    report(0)
    return result


def _simulation(
    given: Mapping[str, Any], plan: Sequence[WorkItem], warmup: Sequence[WorkItem], seed: int
) -> Simulation:
    config = load_config(given["config_file"]) if given["config_file"] else Config.model_validate({"classes": {}})
    kind = given["prediction"]
    if kind == "auto":
        kind = "model" if all(item.content is not None for item in plan) else "noisy"
    return Simulation.of(config, forecaster=_forecaster(config, kind, seed), seed=seed, warmup=warmup)


def _forecaster(config: Config, kind: str, seed: int) -> Forecaster:
    """A fresh one for every run: what one run taught must not help the next."""
    classes = config.class_specs()
    if kind == "model":
        from prelude_proxy.classifier import Classifier
        from prelude_proxy.modelfile import load_model

        classifier = Classifier(load_model(config.classifier.model), classes)
        return Real(Judge(classes, config.core_rules(), classifier, config.classifier.default_class))
    return Oracle(Ladder(classes)) if kind == "oracle" else Noisy(Ladder(classes), seed)


def _fitted(item: WorkItem, fleet: Fleet) -> WorkItem:
    """Cut a prompt that no engine of the fleet has the context for; answers are cut by the workload's own limits."""
    room = min(spec.config.max_model_len for spec in fleet.engines) - item.output_tokens
    if room < 1:
        raise ValueError(f"an answer of {item.output_tokens} tokens is longer than the engines' context")
    return item if item.prompt_tokens <= room else replace(item, prompt_tokens=room)
