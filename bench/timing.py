"""How the scripts that measure pure code take time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def microseconds(action: Callable[[], object], count: int, repeats: int) -> float:
    """Median CPU time of one call, over `repeats` rounds of `count` calls."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(count):
            action()
        times.append((time.process_time() - start) / count)
    return 1e6 * statistics.median(times)
