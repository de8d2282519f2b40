"""`bench/real-frontier` at its smallest, on an embedded engine in place of a real one, so that it cannot rot."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from ..scripts import run_bench

QUICK = {"name": "quick", "fixed_s": 5e-4, "load_s": 0.0, "token_s": 0.0, "sequence_s": 0.0, "kv_read_s": 0.0,
         "pair_s": 0.0, "num_gpu_blocks": 65536, "frontend_s": 0.0}  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="it pins processes to a CPU")
def test_every_front_door_is_started_and_measured(tmp_path):
    """A line for each, and the picture."""
    profile, plot = tmp_path / "quick.json", tmp_path / "frontier.png"
    profile.write_text(json.dumps(QUICK))
    command = [sys.executable, "-m", "prelude_proxy.engine", "--port", "0", "--max-num-seqs", "2"]
    with subprocess.Popen([*command, "--profile", str(profile)], stdout=subprocess.PIPE, text=True) as engine:
        try:
            assert engine.stdout is not None
            address = f"http://127.0.0.1:{engine.stdout.readline().rsplit(':', 1)[1].strip()}"
            printed = run_bench(
                "real-frontier", address, "--slots", "2", "--rate", "12", "--seconds", "1.5", "--rounds", "1",
                "--warmup", "3", "--betas", "1", "--cpu", str(min(os.sched_getaffinity(0))), "--plot", str(plot),
                timeout_s=120.0,
            )  # fmt: skip
        finally:
            engine.terminate()
    for row in ("direct", "fast alone", "deep ≤ 9/16"):
        assert row in printed
    assert plot.read_bytes().startswith(b"\x89PNG")
