"""What holds for all tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from compiling import is_current, outputs  # noqa: E402  it is no package


def pytest_configure() -> None:
    """Compiled modules hide their source: never test an old form of it."""
    if any((ROOT / path).exists() for path in outputs(ROOT)) and not is_current(ROOT):
        pytest.exit("the compiled core is older than its source: scripts/compile, or scripts/compile --remove", 4)
