"""Parts of a fleet, for tests of the core in virtual time."""

from __future__ import annotations

from prelude_proxy.core.health import Health, HealthPolicy
from prelude_proxy.core.limits import BackendSlots, PoolSlots
from prelude_proxy.core.window import Window


def static_backend(
    pool: PoolSlots,
    index: int,
    size: int,
    *,
    health: HealthPolicy | None = None,
    reachable: bool = True,
    **more: object,
) -> BackendSlots:
    """A backend of a fixed window; it is not in its pool yet."""
    window = Window(initial=size, maximum=size, feed=1, static=size)
    return BackendSlots(index, f"b{index}", pool, window, Health(health or HealthPolicy(), reachable=reachable), **more)
