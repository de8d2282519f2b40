"""Slots: what each backend may hold, which class may use them, who holds them now.

Counts are derived from live permits (they are the sizes of sets), so they cannot drift or go negative. A backend keeps
one bit a class, "this class may have a slot here", and tells the routes that use it when a bit changes; so a decision
looks at no backend that has nothing to give.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from prelude_proxy.core.domain import ClassSpec, Rng
from prelude_proxy.core.rates import DecayingMean, DecayingRate

if TYPE_CHECKING:
    from prelude_proxy.core.health import Health
    from prelude_proxy.core.queues import Ticket
    from prelude_proxy.core.window import Window


class Permit:
    """One slot of one backend, held by one request until the end of its response body."""

    __slots__ = ("backend", "expected_tokens", "issued_at", "klass", "prefill_tokens", "released", "route", "work")

    def __init__(self, ticket: Ticket, backend: BackendSlots, work: int, issued_at: float) -> None:
        self.backend = backend
        self.route = ticket.route
        self.klass = ticket.klass
        self.expected_tokens = ticket.expected_tokens
        self.prefill_tokens = ticket.prompt_tokens
        self.work = work
        """Predicted work in decode-token equivalents, for routing."""
        self.issued_at = issued_at
        self.released = False


class BackendSlots:
    """One backend as admission sees it: its window, its live permits, which classes may have a slot."""

    __slots__ = (
        "_ceilings",
        "_max_reserve",
        "_reserves",
        "_shape",
        "available",
        "health",
        "index",
        "labels",
        "models",
        "name",
        "open_mask",
        "outstanding_work",
        "permits",
        "pool",
        "routes",
        "weight",
        "window",
    )

    def __init__(
        self,
        index: int,
        name: str,
        pool: PoolSlots,
        window: Window,
        health: Health,
        *,
        weight: float = 1.0,
        labels: Mapping[str, str] | None = None,
        max_reserve: float = 0.5,
    ) -> None:
        self.index = index
        self.name = name
        self.pool = pool
        self.window = window
        self.health = health
        self.weight = weight
        self.labels = dict(labels or {})
        self.models: frozenset[str] | None = None
        """Models it lists; None: not known (yet), so it may be asked for any of its pool."""
        num_classes = len(pool.classes)
        self.permits: list[set[Permit]] = [set() for _ in range(num_classes)]
        self.outstanding_work = 0
        self.available = False
        self.routes: list[Route] = []
        self.open_mask = 0
        self._max_reserve = max_reserve
        self._ceilings: list[int] = []
        self._reserves: list[int] = [0] * num_classes
        self._shape = -1

    @property
    def num_in_use(self) -> int:
        """Slots in use: the number of live permits (invariant 1)."""
        return sum(map(len, self.permits))

    @property
    def reserves(self) -> Sequence[int]:
        """Slots kept for each class against lower ones."""
        return self._reserves

    def load(self) -> float:
        """Predicted outstanding work relative to what it can do side by side."""
        return self.outstanding_work / (self.window.size * self.weight)

    def resize(self) -> None:
        """Recompute ceilings and reserves after the window or the wanted reserves changed."""
        size = self.window.size
        classes = self.pool.classes
        self._ceilings = [_slots(spec.ceiling, size, default=size) for spec in classes]
        wanted = [
            math.ceil(self.pool.wanted_reserve[c] * size) if spec.reserve is None else _slots(spec.reserve, size, 0)
            for c, spec in enumerate(classes)
        ]
        allowed = min(int(size * self._max_reserve), size - 1)
        for c, reserve in enumerate(wanted):
            self._reserves[c] = min(reserve, allowed)
            allowed -= self._reserves[c]
        self._shape = size

    def compute_mask(self) -> int:
        """Bit c is set when class c may have one more slot here now."""
        if not self.available:
            return 0
        if self._shape != self.window.size:
            self.resize()
        counts = [len(permits) for permits in self.permits]
        free = self.window.size - sum(counts)
        mask = 0
        for c, count in enumerate(counts):
            if free <= 0:
                break
            if count < self._ceilings[c]:
                mask |= 1 << c
            missing = self._reserves[c] - count
            if missing > 0:
                free -= missing
        return mask


class OpenSet:
    """Backends with something to give: O(1) add, remove and random choice."""

    __slots__ = ("_position", "items")

    def __init__(self) -> None:
        self.items: list[BackendSlots] = []
        self._position: dict[int, int] = {}

    def add(self, backend: BackendSlots) -> None:
        """Add `backend` if it is not there."""
        if backend.index not in self._position:
            self._position[backend.index] = len(self.items)
            self.items.append(backend)

    def discard(self, backend: BackendSlots) -> None:
        """Remove `backend` if it is there."""
        at = self._position.pop(backend.index, None)
        if at is None:
            return
        last = self.items.pop()
        if last is not backend:
            self.items[at] = last
            self._position[last.index] = at

    def sample(self, rng: Rng, count: int) -> list[BackendSlots]:
        """`count` of them, drawn with replacement."""
        items = self.items
        return [items[int(rng.random() * len(items))] for _ in range(count)]


class Route:
    """A set of backends that can serve one model of one pool, with, per class, those that have a slot for it."""

    __slots__ = ("backends", "model", "open", "pool")

    def __init__(self, pool: PoolSlots, model: str | None) -> None:
        self.pool = pool
        self.model = model
        self.backends: list[BackendSlots] = []
        self.open = [OpenSet() for _ in pool.classes]

    def serves(self, backend: BackendSlots) -> bool:
        """Whether `backend` may get requests of this route."""
        return backend.models is None or self.model is None or self.model in backend.models

    def attach(self, backends: Iterable[BackendSlots]) -> None:
        """Set the backends of this route and learn their open bits."""
        for backend in self.backends:
            backend.routes.remove(self)
        self.backends = [backend for backend in backends if self.serves(backend)]
        self.open = [OpenSet() for _ in self.pool.classes]
        for backend in self.backends:
            backend.routes.append(self)
            self.update(backend, backend.open_mask)

    def update(self, backend: BackendSlots, mask: int) -> None:
        """Take over the open bits of `backend`."""
        for c, open_set in enumerate(self.open):
            if mask >> c & 1 and self.pool.may_use(c, backend):
                open_set.add(backend)
            else:
                open_set.discard(backend)


_MEASURE_S = 0.25


class PoolSlots:
    """What the backends of one pool share: classes, fleet-wide ceilings, measured traffic, wanted reserves."""

    __slots__ = (
        "_arrivals",
        "_beta",
        "_class_labels",
        "_measured_at",
        "_service_s",
        "backends",
        "classes",
        "name",
        "wanted_reserve",
    )

    def __init__(
        self,
        name: str,
        classes: Sequence[ClassSpec],
        *,
        class_labels: Mapping[str, Mapping[str, str]] | None = None,
        beta: float = 1.0,
    ) -> None:
        self.name = name
        self.classes = list(classes)
        self.backends: list[BackendSlots] = []
        self._beta = beta
        self._class_labels = [dict((class_labels or {}).get(spec.name, {})) for spec in classes]
        self._arrivals = [DecayingRate() for _ in classes]
        self._service_s = [DecayingMean() for _ in classes]
        self._measured_at = -math.inf
        self.wanted_reserve: list[float] = [0.0] * len(self.classes)
        """Per class, the share of each window that its traffic asks for."""

    def may_use(self, klass: int, backend: BackendSlots) -> bool:
        """Whether the labels of `backend` admit this class."""
        wanted = self._class_labels[klass]
        return not wanted or all(backend.labels.get(key) == value for key, value in wanted.items())

    def num_in_use(self, klass: int) -> int:
        """Live permits of a class over all backends."""
        return sum(len(backend.permits[klass]) for backend in self.backends)

    def total_window(self) -> int:
        """Slots of all available backends."""
        return sum(backend.window.size for backend in self.backends if backend.available)

    def below_fleet_ceiling(self, klass: int) -> bool:
        """Whether the class may use one more slot of the pool."""
        ceiling = self.classes[klass].fleet_ceiling
        if ceiling is None:
            return True
        return self.num_in_use(klass) < _slots(ceiling, self.total_window(), 0)

    def arrived(self, klass: int, now: float) -> None:
        """Count an arrival."""
        self._arrivals[klass].add(now)

    def served(self, klass: int, service_s: float) -> None:
        """Count the time a request held its slot."""
        self._service_s[klass].add(service_s)

    def measure_reserves(self, now: float) -> None:
        """Square-root staffing (Halfin & Whitt 1981): a load of `a` busy slots wants a + β·√a of them.

        Spread over the windows of the pool, as a share; the load of a class is its arrival rate times its mean service
        time. Less than a twentieth of a slot is no traffic. Measured anew at most four times a second.
        """
        if now - self._measured_at < _MEASURE_S:
            return
        self._measured_at = now
        total = self.total_window()
        for c in range(len(self.classes)):
            offered = self._arrivals[c].per_second(now) * (self._service_s[c].value or 0.0)
            wanted = offered + self._beta * math.sqrt(offered) if offered >= 0.05 else 0.0
            self.wanted_reserve[c] = wanted / total if total else 0.0


def _slots(bound: float | None, size: int, default: int) -> int:
    """A share (< 1) or count (≥ 1) of `size` slots; a share of something is at least one slot."""
    if bound is None:
        return default
    if bound >= 1:
        return int(bound)
    return max(1, int(bound * size)) if bound > 0 else 0
