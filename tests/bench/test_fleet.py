from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import aiohttp
import pytest

from prelude_proxy.bench.fleet import Child, ChildError, Fleet, free_ports, last_lines


def engine(standin: str, folder: Path, command: str = "engine") -> Child:
    """A stand-in engine on a free port."""
    port = free_ports(1)[0]
    argv = [sys.executable, standin, command, "--port", str(port)]
    return Child("engine 0", argv, f"http://127.0.0.1:{port}/health", folder / "engine.log")


def test_free_ports_differ() -> None:
    """Ports handed out together are never the same."""
    assert len(set(free_ports(50))) == 50


async def test_children_serve_and_end_with_the_block(standin: str, tmp_path: Path) -> None:
    """After start they answer; after the block nobody listens."""
    child = engine(standin, tmp_path)
    async with aiohttp.ClientSession() as session:
        async with Fleet() as fleet:
            await fleet.start([child], 20.0)
            async with session.get(child.ready_url) as response:
                assert response.status == 200
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.get(child.ready_url)
    assert child.process is not None
    assert child.process.returncode is not None


async def test_children_end_when_the_work_is_cancelled(standin: str, tmp_path: Path) -> None:
    """A Ctrl-C, which cancels the main task, leaves nothing behind."""
    child = engine(standin, tmp_path)
    started = asyncio.Event()

    async def work() -> None:
        async with Fleet() as fleet:
            await fleet.start([child], 20.0)
            started.set()
            await fleet.watched(asyncio.Event().wait())

    task = asyncio.create_task(work())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert child.process is not None
    assert child.process.returncode is not None


async def test_a_child_that_cannot_start_shows_its_last_lines(standin: str, tmp_path: Path) -> None:
    """The message has the exit code and what the child wrote."""
    async with Fleet() as fleet:
        with pytest.raises(ChildError, match=r"engine 0 ended with exit code 1[\s\S]*no such model: 'x'"):
            await fleet.start([engine(standin, tmp_path, "die")], 20.0)


async def test_work_is_given_up_when_a_child_dies(standin: str, tmp_path: Path) -> None:
    """A run does not wait for answers that can no longer come."""
    child = engine(standin, tmp_path)
    async with Fleet() as fleet:
        await fleet.start([child], 20.0)
        assert child.process is not None
        child.process.kill()
        with pytest.raises(ChildError, match="exit code -9"):
            await fleet.watched(asyncio.Event().wait())


async def test_the_result_of_watched_work_comes_back(standin: str, tmp_path: Path) -> None:
    """While all children live, work is simply done."""
    async with Fleet() as fleet:
        await fleet.start([engine(standin, tmp_path)], 20.0)
        assert await fleet.watched(asyncio.sleep(0, "done")) == "done"


def test_an_empty_log_says_so(tmp_path: Path) -> None:
    """A child that wrote nothing is no reason for a crash."""
    assert "nothing" in last_lines(tmp_path / "absent.log")
