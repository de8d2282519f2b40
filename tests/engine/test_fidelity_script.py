"""`bench/engine-fidelity`, as far as it goes without a real engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "bench" / "engine-fidelity"


def test_a_simulated_fleet_is_timed():
    """It says how many tokens were simulated and what a request cost."""
    pytest.importorskip("matplotlib")
    arguments = [sys.executable, str(SCRIPT), "speed", "--engines", "2", "--requests", "200"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert "2 engines, 200 requests" in done.stdout
    assert "µs a request" in done.stdout
