"""`bench/leave-one-source-out` and `bench/reference-pipeline` on a made-up workload, so that they cannot rot."""

from __future__ import annotations

import orjson
import pytest

from ..scripts import run_bench
from .synthetic import requests, write


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("rows")
    train = write(folder / "train.jsonl", requests(600))
    test = write(folder / "test.jsonl", requests(200, seed=9))
    return ["--train", str(train), "--test", str(test)]


def test_every_source_is_left_out_once(files: list[str]) -> None:
    """Both are scored by models that have not seen them, static and online."""
    reports = orjson.loads(run_bench("leave-one-source-out", *files, "--json", timeout_s=300.0))
    assert set(reports) == {"static", "online"}
    for report in reports.values():
        assert set(report["sources"]) == {"source0", "source1"}
        assert report["pooled"]["rows"] == 200


def test_the_reference_knows_its_workload(files: list[str]) -> None:
    """Eight lines of figures: with and without the model's name, static and online, held out and tested."""
    lines = [
        line for line in run_bench("reference-pipeline", *files, timeout_s=300.0).splitlines() if "reference" in line
    ]
    assert len(lines) == 8
    accuracy = {line.split("│")[1].strip(): float(line.split("│")[3]) for line in lines}
    assert accuracy["reference + model name, static, test.jsonl"] > 0.8
