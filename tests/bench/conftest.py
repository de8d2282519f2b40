from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

sys.path.insert(0, str(Path(__file__).parent))

from standin import engine_app


@pytest.fixture
async def engine_url() -> AsyncIterator[str]:
    """A small engine on a free port."""
    runner = web.AppRunner(engine_app())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
def standin() -> str:
    """The script that plays `engine` and `serve`."""
    return str(Path(__file__).parent / "standin.py")
