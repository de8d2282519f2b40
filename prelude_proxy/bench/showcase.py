"""The demonstration's plot of a story: two engines, the same overload twice, first come first served and class-aware.

The children are this very program (`engine`, `serve`), over real sockets. Both proxies stand before the same two
engines, one after the other.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from prelude_proxy.bench import workload
from prelude_proxy.bench.driver import DriverOptions, drive
from prelude_proxy.bench.fleet import Child, Fleet, free_ports
from prelude_proxy.bench.records import RequestRecord, RunResult
from prelude_proxy.bench.sampler import Sampler
from prelude_proxy.bench.wire import Target, Wire
from prelude_proxy.bench.workload import WorkItem
from prelude_proxy.engine.model import EngineProfile

FCFS = "FCFS"
CLASS_AWARE = "class-aware"
_MIX: Mapping[str, float] = {"fast": 0.75, "deep": 0.25}
_START_TIMEOUT_S = 30.0
_DEFAULT_CLI = (sys.executable, "-m", "prelude_proxy.cli")
_NUM_WARMUP = 8
PROFILE = EngineProfile(
    name="demo",
    fixed_s=2.5e-3,
    load_s=0.0,
    token_s=10e-6,
    sequence_s=90e-6,
    kv_read_s=50e-9,
    pair_s=5e-9,
    num_gpu_blocks=65_536,
    frontend_s=1e-3,
)
"""A small model on a quick card: 16 sequences decode in 4–5 ms a step, so a deep answer is done in about 3 s and the
whole demonstration in under a minute, while two engines still cost well below one core of this machine."""


@dataclass(frozen=True, slots=True)
class Scene:
    """The engines and the load on them."""

    seconds: float = 8.0
    """Length of each of the two loads; what is left then is served to the end."""
    seed: int = 7
    rate: float = 55.0
    """Requests a second: about 1.5 times what the engines can serve, 200 output tokens each on average."""
    num_engines: int = 2
    max_num_seqs: int = 16
    model: str = "demo"
    cli: tuple[str, ...] = _DEFAULT_CLI
    """How to run this program's other commands."""


@dataclass(frozen=True, slots=True)
class Door:
    """A proxy before the engines: the process, and where it takes requests."""

    child: Child
    target: Target


@dataclass(frozen=True, slots=True)
class Stage:
    """Where everything will listen."""

    engine_urls: list[str]
    engines: list[Child]
    doors: list[Door]


def set_stage(scene: Scene, folder: Path) -> Stage:
    """The children to start and the two front doors they will make; logs go to `folder`."""
    ports = free_ports(scene.num_engines + 4)
    profile = folder / "engine-profile.json"
    profile.write_text(json.dumps(asdict(PROFILE)))
    urls = [f"http://127.0.0.1:{port}" for port in ports[4:]]
    engines = []
    for number, port in enumerate(ports[4:]):
        argv = [*scene.cli, "engine", "--kind", "vllm", "--port", str(port), "--served-model-name", scene.model]
        argv += ["--max-num-seqs", str(scene.max_num_seqs), "--profile", str(profile)]
        engines.append(Child(f"engine {number}", argv, f"{urls[number]}/health", folder / f"engine-{number}.log"))
    doors = [
        _door(scene, urls, FCFS, ports[0:2], folder, "--admission", "fcfs"),
        _door(scene, urls, CLASS_AWARE, ports[2:4], folder),
    ]
    return Stage(urls, engines, doors)


def _door(scene: Scene, engine_urls: Sequence[str], name: str, ports: Sequence[int], folder: Path, *flags: str) -> Door:
    port, admin_port = ports
    admin_url = f"http://127.0.0.1:{admin_port}"
    argv = [*scene.cli, "serve", "--port", str(port), "--admin-port", str(admin_port), *flags]
    argv += [part for url in engine_urls for part in ("--backend", url)]
    child = Child(f"{name} proxy", argv, f"{admin_url}/readyz", folder / f"proxy-{name.lower()}.log")
    return Door(child, Target(name, f"http://127.0.0.1:{port}", Wire(scene.model), admin_url))


def load_of(scene: Scene) -> list[WorkItem]:
    """The overload, the same for both."""
    return workload.mix_plan(_MIX, scene.rate, scene.seconds, scene.seed)


async def perform(
    scene: Scene,
    stage: Stage,
    fleet: Fleet,
    on_phase: Callable[[str], None],
    on_done: Callable[[RequestRecord], None],
) -> dict[str, RunResult]:
    """Starts the engines, then for each front door in turn: starts it, drives the load through it. The last one stays.

    Raises:
        ChildError: a child did not start or died.
    """
    on_phase("starting")
    first, second = stage.doors
    await fleet.start([*stage.engines, first.child], _START_TIMEOUT_S)
    results = {FCFS: await fleet.watched(_drive_through(first, scene, stage, on_phase, on_done))}
    await fleet.end(first.child)  # a second proxy's load, or its probes, must not teach the first one anything
    await fleet.start([second.child], _START_TIMEOUT_S)
    results[CLASS_AWARE] = await fleet.watched(_drive_through(second, scene, stage, on_phase, on_done))
    return results


async def _drive_through(
    door: Door, scene: Scene, stage: Stage, on_phase: Callable[[str], None], on_done: Callable[[RequestRecord], None]
) -> RunResult:
    on_phase(door.target.name)
    options = DriverOptions(timeout_s=120.0)
    await drive(door.target, workload.mix_plan({"fast": 1.0}, 20.0, 1.0, scene.seed + 1)[:_NUM_WARMUP], options)
    sources = {"": f"{door.target.admin_url}/status"}
    sources |= {f"engine-{number}": f"{url}/metrics" for number, url in enumerate(stage.engine_urls)}
    async with Sampler(sources) as sampler:
        result = await drive(door.target, load_of(scene), options, on_done)
    result.samples = sampler.samples
    return result
