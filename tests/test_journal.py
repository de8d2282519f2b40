"""The training journal: what is written, rotation, crashes, a slow disk."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from prelude_proxy.classifier import Classifier, Observation
from prelude_proxy.core.domain import ClassSpec
from prelude_proxy.core.features import FEATURES
from prelude_proxy.core.parse import parse_request
from prelude_proxy.journal import Journal, JournalSettings, journal_files, read_journal
from prelude_proxy.modelfile import load_model

SECRET = "a very private question about a medical matter"


@pytest.fixture(scope="module")
def observation() -> Observation:
    body = {"model": "m", "messages": [{"role": "user", "content": SECRET}], "n": 2}
    facts = parse_request("/v1/chat/completions", orjson.dumps(body), {}, "tenant-name")
    return Classifier(load_model(), [ClassSpec("all", 1)], keeps_features=True).classify(facts)[1]


def write(settings: JournalSettings, observation: Observation, count: int) -> Journal:
    journal = Journal(settings)
    journal.start()
    for index in range(count):
        journal.record(observation, 10 + index, censored=index % 2 == 1, class_name="all", ts=float(index))
    journal.close()
    return journal


def test_records_come_back_as_written(tmp_path: Path, observation: Observation) -> None:
    """Features, tokens of one choice, and whether they were cut."""
    journal = write(JournalSettings(tmp_path), observation, 3)
    rows = list(read_journal(tmp_path))
    assert [row.output_tokens for row in rows] == [5.0, 5.5, 6.0]
    assert [row.censored for row in rows] == [False, True, False]
    assert len(rows[0].values) == len(FEATURES)
    assert rows[0].model == "m"
    assert journal.statistics().num_written == 3


def test_no_text_is_written(tmp_path: Path, observation: Observation) -> None:
    """Neither the prompt nor the tenant's name."""
    write(JournalSettings(tmp_path), observation, 1)
    (file,) = journal_files(tmp_path)
    data = file.read_text()
    assert not any(word in data for word in SECRET.split() if len(word) > 4)
    assert "tenant-name" not in data


def test_files_are_bounded_in_size_and_number(tmp_path: Path, observation: Observation) -> None:
    """The oldest go; the newest records stay."""
    settings = JournalSettings(tmp_path, max_file_bytes=1, max_files=3)
    for _ in range(6):
        write(settings, observation, 1)
    files = journal_files(tmp_path)
    assert len(files) == 3
    assert files[-1].name.endswith("06.jsonl")
    assert len(list(read_journal(tmp_path))) == 3


def test_a_torn_line_is_skipped_and_not_continued(tmp_path: Path, observation: Observation) -> None:
    """After a crash the next run starts a new file, and all whole records are read."""
    write(JournalSettings(tmp_path), observation, 2)
    (file,) = journal_files(tmp_path)
    file.write_bytes(file.read_bytes()[:-20])
    write(JournalSettings(tmp_path), observation, 1)
    assert len(journal_files(tmp_path)) == 2
    assert len(list(read_journal(tmp_path))) == 2


def test_foreign_lines_are_skipped(tmp_path: Path, observation: Observation) -> None:
    """Other versions of the features, other shapes, no JSON."""
    write(JournalSettings(tmp_path), observation, 1)
    (file,) = journal_files(tmp_path)
    line = orjson.loads(file.read_bytes())
    others = [line | {"v": -1}, line | {"values": [1.0]}, {"x": 1}, [1]]
    file.write_bytes(b"\n".join(map(orjson.dumps, others)) + b"\nnonsense\n" + orjson.dumps(line) + b"\n")
    assert len(list(read_journal(tmp_path))) == 1


def test_a_full_queue_drops_and_counts(tmp_path: Path, observation: Observation) -> None:
    """The hot path never waits for the disk."""
    journal = Journal(JournalSettings(tmp_path, max_queue=2))
    for _ in range(5):
        journal.record(observation, 1, censored=False, class_name="all", ts=0.0)
    assert journal.statistics().num_dropped == 3


def test_a_lost_directory_costs_records_not_the_proxy(tmp_path: Path, observation: Observation) -> None:
    """What cannot be written is counted."""
    directory = tmp_path / "journal"
    journal = Journal(JournalSettings(directory))
    directory.rmdir()
    journal.start()
    journal.record(observation, 1, censored=False, class_name="all", ts=0.0)
    journal.close()
    assert journal.statistics().num_failed == 1
