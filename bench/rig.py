"""What the measuring scripts share: processes pinned to a CPU, their CPU time and memory from /proc, and load.

Linux only.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROMPT = ("Explain how a load balancer keeps short requests from waiting behind long ones. " * 6)[:400]
TOKENS = 64
START_TIMEOUT_S = 60.0
_PR_SET_PDEATHSIG = 1


class SubjectError(Exception):
    """A subject did not start or does not answer; the message has its last words."""


# --- processes --------------------------------------------------------------------------------------------------------


def free_port() -> int:
    """A TCP port nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def running(command: Sequence[str], port: int, cpu: int, log: Path, *, model: str = "stub") -> Iterator[int]:
    """Runs a command pinned to a CPU; yields its process id once it answers; ends its whole group afterwards."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True,
            preexec_fn=lambda: _settle(cpu),  # noqa: PLW1509  (there are no threads here)
            env=environment(),
        )  # fmt: skip
    try:
        wait_for(process, port, log, model)
        yield process.pid
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _settle(cpu: int) -> None:
    """In the child: stay on that CPU, and do not outlive the script, however that ends."""
    os.sched_setaffinity(0, {cpu})
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def environment() -> dict[str, str]:
    """Ours, with this checkout first to import, and nothing that would configure the proxy."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PRELUDE_")}
    return {**kept, "PYTHONPATH": str(HERE.parent)}


def wait_for(process: subprocess.Popen[bytes], port: int, log: Path, model: str) -> None:
    """Blocks until a chat request through `port` is answered 200."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0) as sock:
            sock.settimeout(5.0)
            sock.sendall(request_bytes(port, stream=False, model=model))
            if b" 200 " in sock.recv(64)[:16]:
                return
        time.sleep(0.1)
    raise SubjectError(f"{process.args!r} does not answer:\n{log.read_text(errors='replace')[-2000:]}")


def tree(pid: int) -> list[int]:
    """`pid` and all its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def cpu_s(pid: int) -> float:
    """CPU seconds the tree has used, to the nanosecond where the kernel keeps schedstats, else to the clock tick."""
    total = 0.0
    for one in tree(pid):
        with suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                total += _task_cpu_s(task)
    return total


def _task_cpu_s(task: Path) -> float:
    try:
        return int((task / "schedstat").read_text().split()[0]) / 1e9
    except OSError:
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    """Resident memory of the tree."""
    pages = 0
    for one in tree(pid):
        with suppress(OSError):
            pages += int(Path(f"/proc/{one}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# --- load -------------------------------------------------------------------------------------------------------------


def request_bytes(port: int, *, stream: bool, prompt: str = PROMPT, klass: str = "", model: str = "stub") -> bytes:
    """A chat request, as OpenAI's client would send it; asks for a lower class if one is given."""
    messages = [{"role": "user", "content": prompt}]
    body = json.dumps({"model": model, "messages": messages, "max_tokens": TOKENS, "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    head += f"x-prelude-class: {klass}\r\n" if klass else ""
    return f"{head}authorization: Bearer sk-1234\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


class Connection(asyncio.Protocol):
    """Sends one request at a time and hands back the whole answer."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def send(self, request: bytes) -> asyncio.Future[bytes]:
        self._answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._buffer = bytearray()
        self.first_s = 0.0
        self._transport.write(request)
        return self._answer

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._answer.done():
            self._answer.set_exception(ConnectionError(str(exc)))

    def data_received(self, data: bytes) -> None:
        self.first_s = self.first_s or time.perf_counter()
        self._buffer += data
        split = self._buffer.find(b"\r\n\r\n")
        if split < 0 or self._answer.done():
            return
        head = bytes(self._buffer[:split]).lower()
        if b"transfer-encoding: chunked" in head:
            whole = self._buffer.endswith(b"0\r\n\r\n")
        else:
            whole = len(self._buffer) >= split + 4 + int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
        if whole:
            self._answer.set_result(bytes(self._buffer))

    @property
    def is_under_way(self) -> bool:
        """The answer has begun and not ended."""
        return self.first_s > 0 and not self._answer.done()

    def close(self) -> None:
        self._transport.close()


@dataclass(slots=True)
class Phase:
    """What one phase measured."""

    wall_s: float
    cpu_s: float
    latencies_s: list[float]
    firsts_s: list[float]
    bad: int


async def load(
    port: int,
    pid: int,
    count: int,
    concurrency: int,
    *,
    stream: bool,
    request: bytes | None = None,
    pause_s: float = 0.0,
) -> Phase:
    """`count` requests over `concurrency` connections, closed loop, and the CPU time the subject spent on them.

    `pause_s`: mean of the exponentially distributed time that a connection rests before each request.
    """
    request = request or request_bytes(port, stream=stream)
    is_right: Callable[[bytes], bool] = (lambda a: b"[DONE]" in a[-60:]) if stream else (lambda a: b" 200 " in a[:16])
    phase = Phase(0.0, cpu_s(pid), [], [], 0)
    left = count
    rng = random.Random(count)

    async def work() -> None:
        nonlocal left
        connection: Connection | None = None
        while left > 0:
            left -= 1
            if pause_s:
                await asyncio.sleep(rng.expovariate(1.0 / pause_s))
            start = time.perf_counter()
            try:
                connection = connection or await connect(port)
                answer = await asyncio.wait_for(connection.send(request), 60)
            except (OSError, TimeoutError):
                phase.bad += 1
                connection = None
                continue
            phase.latencies_s.append(time.perf_counter() - start)
            phase.firsts_s.append(connection.first_s - start)
            phase.bad += not is_right(answer)
            if b"connection: close" in answer[:600].lower():
                connection = None
        if connection is not None:
            connection.close()

    start = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(min(concurrency, count))))
    phase.wall_s = time.perf_counter() - start
    phase.cpu_s = cpu_s(pid) - phase.cpu_s
    return phase


async def connect(port: int) -> Connection:
    """A new connection to the subject."""
    return (await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port))[1]


def quantile(values: Sequence[float], q: float) -> float:
    """Nearest rank; NaN of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else float("nan")
