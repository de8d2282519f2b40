"""The training journal: what was seen of each request and how long its answer was. Never its text.

Records are handed over on the hot path as one object into a bounded queue; a thread turns them into JSON lines and
appends them. Files are bounded in size and number; a crash costs at most the lines not yet flushed, and a torn last
line is skipped on reading. When the disk is slower than the traffic, records are dropped and counted, not queued.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import orjson

from prelude_proxy.classifier import Observation
from prelude_proxy.core.features import FEATURES, FEATURES_VERSION

_PREFIX = "journal-"
_SUFFIX = ".jsonl"
_FLUSH_S = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JournalSettings:
    """Where the journal is and how much it may keep."""

    directory: Path
    max_file_bytes: int = 64 * 2**20
    max_files: int = 8
    max_queue: int = 10_000
    """Records waiting for the disk; more are dropped."""


@dataclass(frozen=True, slots=True)
class JournalStatistics:
    """A snapshot for `/status` and metrics."""

    num_written: int
    num_dropped: int
    num_failed: int
    """Records lost to a full or broken disk."""


@dataclass(slots=True)
class _Record:
    observation: Observation
    output_tokens: float
    censored: bool
    class_name: str
    ts: float


@dataclass(frozen=True, slots=True)
class JournalRow:
    """One record as read back."""

    values: list[float]
    output_tokens: float
    """Of one choice."""
    censored: bool
    model: str
    group: str
    tenant: str
    ts: float


class Journal:
    """Appends records to rotated files from a thread of its own. `start` before, `close` after.

    Raises:
        OSError: from the constructor, when the directory cannot be made.
    """

    def __init__(self, settings: JournalSettings) -> None:
        self._settings = settings
        settings.directory.mkdir(parents=True, exist_ok=True)
        self._queue: queue.Queue[_Record | None] = queue.Queue(settings.max_queue)
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._num_written = 0
        self._num_dropped = 0
        self._num_failed = 0

    def start(self) -> None:
        """Begin writing."""
        self._thread.start()

    def record(
        self, observation: Observation, output_tokens: float, *, censored: bool, class_name: str, ts: float
    ) -> None:
        """Hand a finished request over. Never waits.

        Args:
            observation: from `Classifier.classify`.
            output_tokens: of all choices together.
            censored: the answer was cut off.
            class_name: the class it was put into.
            ts: when it ended, seconds since the epoch.
        """
        try:
            self._queue.put_nowait(_Record(observation, output_tokens, censored, class_name, ts))
        except queue.Full:
            self._num_dropped += 1

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what is queued and end the thread."""
        if not self._thread.is_alive():
            return
        try:
            self._queue.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def statistics(self) -> JournalStatistics:
        """What is known now."""
        return JournalStatistics(self._num_written, self._num_dropped, self._num_failed)

    # --- the writing thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        batch: list[_Record] = []
        while True:
            record = self._queue.get()
            while record is not None:
                batch.append(record)
                try:
                    record = self._queue.get(timeout=_FLUSH_S)
                except queue.Empty:
                    break
                if len(batch) >= self._settings.max_queue:
                    self._write(batch)
                    batch = []
            self._write(batch)
            batch = []
            if record is None and self._queue.empty():
                return

    def _write(self, batch: list[_Record]) -> None:
        try:
            with self._open() as file:
                for record in batch:
                    file.write(_line_of(record))
            self._num_written += len(batch)
        except OSError as error:
            if not self._num_failed:
                _log.warning("the training journal cannot be written: %s", error)
            self._num_failed += len(batch)

    def _open(self) -> BinaryIO:
        """The newest file, or a new one when that is full or torn; the oldest beyond the limit go."""
        files = journal_files(self._settings.directory)
        newest = files[-1] if files else None
        if newest is None or newest.stat().st_size >= self._settings.max_file_bytes or _is_torn(newest):
            number = int(newest.name[len(_PREFIX) : -len(_SUFFIX)]) + 1 if newest else 1
            newest = self._settings.directory / f"{_PREFIX}{number:08d}{_SUFFIX}"
            files.append(newest)
        for old in files[: -self._settings.max_files]:
            old.unlink(missing_ok=True)
        return newest.open("ab")


def _is_torn(path: Path) -> bool:
    """Whether a crash left the last line without its end."""
    with path.open("rb") as file:
        file.seek(0, 2)
        if file.tell() == 0:
            return False
        file.seek(-1, 2)
        return file.read(1) != b"\n"


def _line_of(record: _Record) -> bytes:
    observation = record.observation
    values = np.frombuffer(observation.values, dtype=np.float32)
    row = {
        "v": FEATURES_VERSION,
        "ts": round(record.ts, 3),
        "path": observation.path,
        "model": observation.model,
        "tenant": f"{observation.keys[0] & 0xFFFFFFFF:08x}",
        "group": f"{observation.digest:08x}",
        "class": record.class_name,
        "tokens": record.output_tokens / observation.num_choices,
        "max_tokens": observation.max_tokens,
        "censored": record.censored,
        "values": [float(f"{value:.7g}") for value in values.tolist()],
    }
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)


def journal_files(directory: Path) -> list[Path]:
    """Files of the journal in `directory`, oldest first."""
    return sorted(directory.glob(f"{_PREFIX}*{_SUFFIX}"))


def read_journal(directory: Path) -> Iterator[JournalRow]:
    """Every whole record of the present features version, oldest first; torn and foreign lines are skipped."""
    for path in journal_files(directory):
        with path.open("rb") as file:
            for line in file:
                row = _parse(line)
                if row is not None:
                    yield row


def _parse(line: bytes) -> JournalRow | None:
    try:
        raw = orjson.loads(line)
        if raw["v"] != FEATURES_VERSION or len(raw["values"]) != len(FEATURES):
            return None
        return JournalRow(
            values=raw["values"],
            output_tokens=float(raw["tokens"]),
            censored=bool(raw["censored"]),
            model=str(raw["model"] or ""),
            group=str(raw["group"]),
            tenant=str(raw["tenant"]),
            ts=float(raw["ts"]),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None
