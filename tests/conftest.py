"""What holds for all tests."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from compiling import is_current, outputs  # noqa: E402  it is no package


def pytest_configure() -> None:
    """Compiled modules hide their source: never test an old form of it. And Ctrl-C works in what tests start.

    A shell starts background jobs with SIGINT ignored, and what the tests start from there would ignore it too.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if any((ROOT / path).exists() for path in outputs(ROOT)) and not is_current(ROOT):
        pytest.exit("what is compiled is older than its source: scripts/compile, or scripts/compile --remove", 4)
