"""Child processes of a demonstration: started together, watched while they serve, always ended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import aiohttp

T = TypeVar("T")

_POLL_S = 0.05
_TERM_GRACE_S = 3.0
_LOG_LINES = 15


class ChildError(Exception):
    """A child did not start, or ended while it was needed; the message holds its last log lines."""


@dataclass(slots=True)
class Child:
    """A process to run. It counts as up when `ready_url` answers 200."""

    name: str
    argv: Sequence[str]
    ready_url: str
    log: Path
    process: asyncio.subprocess.Process | None = None


def free_ports(count: int) -> list[int]:
    """TCP ports on the loopback that nobody listens on now, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


class Fleet:
    """`async with Fleet() as fleet: await fleet.start(children, 30.0)`; leaving ends every child, whatever happened."""

    def __init__(self) -> None:
        self._children: list[Child] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.shield(self.stop())

    async def start(self, children: Sequence[Child], timeout_s: float) -> None:
        """Starts all of them at once and waits until each is ready.

        Raises:
            ChildError: one ended or was not ready in time.
        """
        for child in children:
            self._children.append(child)
            await self._spawn(child)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as session:
            await asyncio.gather(*(self._wait_ready(session, child, timeout_s) for child in children))

    async def _spawn(self, child: Child) -> None:
        with child.log.open("wb") as log:
            child.process = await asyncio.create_subprocess_exec(
                *child.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                start_new_session=True,  # a Ctrl-C in the terminal is ours to handle, in order
            )

    async def _wait_ready(self, session: aiohttp.ClientSession, child: Child, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while loop.time() < deadline:
            self._check(child)
            with suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with session.get(child.ready_url) as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(_POLL_S)
        raise ChildError(f"{child.name} was not ready after {timeout_s:.0f} s.\n{last_lines(child.log)}")

    def _check(self, child: Child) -> None:
        if child.process is not None and child.process.returncode is not None:
            code = child.process.returncode
            raise ChildError(f"{child.name} ended with exit code {code}.\n{last_lines(child.log)}")

    async def watched(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work`, and gives it up as soon as a child ends by itself.

        Raises:
            ChildError: a child ended.
        """
        task = asyncio.ensure_future(work)
        ends = [asyncio.ensure_future(child.process.wait()) for child in self._children if child.process]
        try:
            await asyncio.wait([task, *ends], return_when=asyncio.FIRST_COMPLETED)
            for child in self._children if not task.done() else ():
                self._check(child)
            return await task
        finally:
            for waiting in [task, *ends]:
                waiting.cancel()
            await asyncio.gather(task, *ends, return_exceptions=True)

    async def end(self, child: Child) -> None:
        """Ends one child, as `stop` does."""
        self._children.remove(child)
        await _end([child])

    async def stop(self) -> None:
        """Ends every child and its descendants: SIGTERM, then SIGKILL to those that stay."""
        await _end(self._children)


async def _end(children: Sequence[Child]) -> None:
    running = [child.process for child in children if child.process and child.process.returncode is None]
    for process in running:
        _signal_group(process, signal.SIGTERM)
    with suppress(TimeoutError):
        async with asyncio.timeout(_TERM_GRACE_S):
            await asyncio.gather(*(process.wait() for process in running))
    for process in running:
        if process.returncode is None:
            _signal_group(process, signal.SIGKILL)
            await process.wait()


def _environment() -> dict[str, str]:
    """Ours without `PRELUDE_…`: what an operator set for the real proxy must not bend the children."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PRELUDE_")}


def _signal_group(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)  # its own session, so its group has its number


def last_lines(log: Path, count: int = _LOG_LINES) -> str:
    """The end of a log file, indented; says so if it is empty."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-count:]
    except OSError:
        lines = []
    return "\n".join(f"  {line}" for line in lines) or "  (it wrote nothing)"
