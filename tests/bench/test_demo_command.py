from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from prelude_proxy.bench.showcase import CLASS_AWARE, FCFS, Scene, load_of, set_stage


def scene_code(standin: str, out: Path, *, stay: bool, plot: bool) -> str:
    """A program that runs a small demo with stand-ins for engine and proxy."""
    out.mkdir()
    scene = f"Scene(seconds=0.4, rate=20.0, cli=({sys.executable!r}, {standin!r}))"
    return "\n".join([
        "import sys, click",
        "from pathlib import Path",
        "" if plot else "sys.modules['matplotlib.figure'] = None",
        "from prelude_proxy.commands.demo import play",
        "from prelude_proxy.bench.showcase import Scene",
        f"click.Command('demo', callback=lambda: play({scene}, Path({str(out)!r}), stay={stay}))()",
    ])  # fmt: skip


async def demo(standin: str, out: Path, *, stay: bool = False, plot: bool = True) -> asyncio.subprocess.Process:
    """Starts it."""
    code = scene_code(standin, out, stay=stay, plot=plot)
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=pipe, stderr=pipe)


def test_both_front_doors_stand_before_the_same_engines(tmp_path: Path) -> None:
    """One proxy passes all on, the other decides; ports differ and logs go to the folder."""
    stage = set_stage(Scene(), tmp_path)
    assert [door.target.name for door in stage.doors] == [FCFS, CLASS_AWARE]
    fcfs, class_aware = (door.child.argv for door in stage.doors)
    assert "--admission" in fcfs
    assert "--admission" not in class_aware
    assert all(url in argv for url in stage.engine_urls for argv in (fcfs, class_aware))
    children = [*stage.engines, *(door.child for door in stage.doors)]
    assert len({child.log for child in children}) == len({child.ready_url for child in children}) == 4
    assert all(child.log.parent == tmp_path for child in children)


def test_the_overload_is_a_quarter_deep() -> None:
    """The load is the mix the figures are quoted for, and does not depend on the run."""
    plan = load_of(Scene())
    deep = sum(item.klass == "deep" for item in plan)
    assert 0.18 < deep / len(plan) < 0.32
    assert plan == load_of(Scene())


async def test_the_demonstration_ends_by_itself(standin: str, tmp_path: Path) -> None:
    """It prints the comparison, writes report and plot, and leaves no process."""
    process = await demo(standin, tmp_path / "out")
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert "FCFS against class-aware" in output.decode()
    assert "instead of" in output.decode()
    assert (tmp_path / "out" / "demo.png").exists()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report["targets"]) == {FCFS, CLASS_AWARE}
    assert not left_over(tmp_path)


async def test_stay_prints_commands_and_ends_on_interrupt(standin: str, tmp_path: Path) -> None:
    """With --stay everything keeps running until Ctrl-C, which ends all of it."""
    process = await demo(standin, tmp_path / "out", stay=True, plot=False)
    assert process.stdout is not None
    seen = ""
    while "Ctrl-C ends it." not in seen:
        line = await process.stdout.readline()
        assert line, seen
        seen += line.decode()
    assert "pip install 'prelude-proxy[plot]'" in seen
    assert "curl -iN http://127.0.0.1:" in seen
    assert left_over(tmp_path)
    process.send_signal(signal.SIGINT)
    await process.communicate()
    assert process.returncode == 130
    assert not left_over(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_while_starting_leaves_nothing(standin: str, tmp_path: Path, number: signal.Signals) -> None:
    """Whenever it is stopped, the children end first."""
    process = await demo(standin, tmp_path / "out")
    while not (tmp_path / "out" / "proxy-fcfs.log").exists():  # noqa: ASYNC110  (a file has no event)
        await asyncio.sleep(0.02)
    process.send_signal(number)
    await process.communicate()
    assert process.returncode == 130
    assert not left_over(tmp_path)


async def test_a_failing_child_is_shown(tmp_path: Path) -> None:
    """Its last log lines and what to do are printed, and the exit code is 1."""
    broken = tmp_path / "broken.py"
    broken.write_text("import sys; sys.exit('port 99 is taken')")
    process = await demo(str(broken), tmp_path / "out")
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert "ended with exit code 1" in errors.decode()
    assert "port 99 is taken" in errors.decode()
    assert "Traceback" not in errors.decode()


def left_over(folder: Path) -> list[str]:
    """Processes of which the command line or output still points into `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace")
            log = (entry / "fd" / "1").readlink()
        except OSError:
            continue
        if log.is_relative_to(folder):
            found.append(line)
    return found
