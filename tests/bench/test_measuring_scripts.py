"""`bench/overhead` and `bench/scale` at their smallest, so that they cannot rot: right answers, no timing asserted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ..scripts import run_bench

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="they read CPU time from /proc")


def run(script: str, *arguments: str, out: Path) -> tuple[str, object]:
    """What a script printed, and the JSON it wrote; it must succeed."""
    printed = run_bench(script, "--tiny", "--json", str(out), *arguments)
    return printed, json.loads(out.read_text())


def test_overhead_measures_the_proxy_beside_the_stub(tmp_path):
    """A row for each, every request answered rightly, and no figure that cannot be."""
    printed, written = run("overhead", out=tmp_path / "rounds.json")
    assert list(written["rounds"]) == ["direct", "prelude"]
    for name, (figures,) in written["rounds"].items():
        assert name in printed
        assert figures.pop("bad") == 0
        assert all(math.isfinite(value) and value > 0 for value in figures.values()), figures


def test_scale_answers_every_request(tmp_path):
    """Streams at once, held requests, and requests that go past held ones; the script fails on any wrong answer."""
    printed, rows = run("scale", "streams", "held", "waiting", out=tmp_path / "rows.json")
    values = {(row["part"], row["what"]): row["value"] for row in rows}
    assert values["streams", "at once, all answered"] == 100
    assert values["held", "requests of 2048 bytes, all answered later"] == 200
    assert values["waiting", "CPU a request, 0 held"] > 0
    assert "resident a stream" in printed
