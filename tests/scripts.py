"""Runs the scripts of bench/ as a user would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parent.parent / "bench"


def run_bench(script: str, *arguments: str, timeout_s: float = 50.0) -> str:
    """What a script printed; it must succeed."""
    command = [sys.executable, str(BENCH / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
