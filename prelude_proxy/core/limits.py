"""Slots: what each backend may hold, which class may use them, who holds them now.

Counts are derived from live permits (they are the sizes of sets), so they cannot drift or go negative. A backend keeps
one bit a class, "this class may have a slot here", and tells the routes that use it when a bit changes; so a decision
looks at no backend that has nothing to give.

A slot is closed to a class when it is needed for a more urgent one, in three ways:

- a *configured reserve*: that many slots of each backend, less what the class uses there;
- the *automatic reserve* (`staffing.py`): a number for the whole pool, laid out over its backends slot by slot in a
  fixed order, so that a change by one touches one backend and a large fleet keeps few slots, not one an engine;
- the *feed*: slots beyond what the engine runs at once hold whoever is next inside the engine, where nobody can
  overtake; where urgent classes want half a slot an engine or more, it is theirs.

Beside slots, tokens: a class may have a ceiling of predicted tokens (prompt and answer), and the prompt tokens that one
engine has to prefill are budgeted (`prefill.py`). Both close a backend to a class once they are *reached*, and never to
a class that has none of them there. So the last request let in may go beyond, by itself at most, and a large one is
never overtaken for good by small ones that still fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from prelude_proxy.core.domain import ClassSpec, Rng
from prelude_proxy.core.prefill import LEAST_BUDGET_TOKENS, LEAST_TOKENS, PrefillSpeed
from prelude_proxy.core.staffing import Staffing

if TYPE_CHECKING:
    from prelude_proxy.core.affinity import Affinity
    from prelude_proxy.core.health import Health
    from prelude_proxy.core.queues import Ticket
    from prelude_proxy.core.window import Window


class Permit:
    """One slot of one backend, held by one request until the end of its response body."""

    __slots__ = (
        "backend",
        "expected_tokens",
        "is_telling",
        "issued_at",
        "klass",
        "planned",
        "prefill_tokens",
        "released",
        "route",
        "serial",
        "started",
        "tokens",
        "work",
    )

    def __init__(self, ticket: Ticket, backend: BackendSlots, work: int, issued_at: float) -> None:
        self.backend = backend
        self.route = ticket.route
        self.klass = ticket.klass
        self.planned = ticket.planned
        self.expected_tokens = ticket.expected_tokens
        """Output tokens; more once the stream has outgrown its class."""
        self.tokens = ticket.prompt_tokens + ticket.expected_tokens
        """Predicted size: prompt and answer."""
        self.prefill_tokens = ticket.prompt_tokens
        """Prompt tokens as long as its first token is outstanding, then 0."""
        self.work = work
        """Predicted work in decode-token equivalents, for routing."""
        self.issued_at = issued_at
        self.serial = 0
        """Of the requests sent to its backend, the how manieth."""
        self.is_telling = False
        """Its first token will tell how fast the engine prefills: its prompt is long and had a place in the batch."""
        self.started = False
        """Its first token has come: the engine runs it."""
        self.released = False


class BackendSlots:
    """One backend as admission sees it: its window, its live permits, which classes may have a slot."""

    __slots__ = (
        "_ceilings",
        "_max_reserve",
        "_num_issued",
        "_reserves",
        "_shape",
        "available",
        "health",
        "index",
        "is_paced",
        "kept",
        "labels",
        "models",
        "name",
        "num_started",
        "open_mask",
        "outstanding_work",
        "pending_prefill_tokens",
        "permits",
        "pool",
        "prefill_speed",
        "prefilling",
        "routes",
        "tokens",
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
        max_reserve: float = 0.75,
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
        self.num_started = 0
        """Live permits whose answer has begun."""
        self.kept = [0] * num_classes
        """By class, slots here that the automatic reserve keeps free of it."""
        self.outstanding_work = 0
        self.tokens = [0] * num_classes
        """By class, predicted tokens of live permits; counted only where a class has a ceiling in tokens."""
        self.pending_prefill_tokens = 0
        """Prompt tokens of live permits whose answer has not begun."""
        self.prefilling = [0] * num_classes
        """The same by class."""
        self.prefill_speed = PrefillSpeed()
        self.is_paced = False
        """Some class has a slot here and waits for the prefill budget."""
        self._num_issued = 0
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
        total = 0  # a loop: compiled it takes 0.06 µs, `sum(map(len, …))` 0.6
        for permits in self.permits:
            total += len(permits)
        return total

    @property
    def reserves(self) -> Sequence[int]:
        """Slots for each class against lower ones: as configured, or in use and really kept free while some are."""
        free = max(0, self.window.size - self.num_in_use)
        reserves, above, kept = [], 0, 0
        for c, permits in enumerate(self.permits):
            above += len(permits)
            following = min(free, self._kept_from(c + 1, above)) if c + 1 < len(self.permits) else kept
            own, kept = max(0, following - kept), max(kept, following)
            reserves.append(self._reserves[c] or (len(permits) + own if own else 0))
        return reserves

    def num_kept_free(self) -> int:
        """Free slots that the automatic reserve keeps from the last class now."""
        free = self.window.size - self.num_in_use
        last = len(self.permits) - 1
        return max(0, min(free, self._kept_from(last, self.num_in_use - len(self.permits[last]))))

    def prefill_budget(self, klass: int) -> float:
        """Pending prefill tokens at which a class is paced here, while more urgent work is; infinite: never."""
        return self.prefill_speed.budget(self.pool.classes[klass].prefill_stall_s)

    def load(self) -> float:
        """Predicted outstanding work relative to what it can do side by side."""
        return self.outstanding_work / (self.window.size * self.weight)

    def issue(self, permit: Permit) -> None:
        """A request goes out."""
        self.permits[permit.klass].add(permit)
        self.pool.permits[permit.klass].add(permit)
        self.pool.is_balanced = False
        self.outstanding_work += permit.work
        if self.pool.has_ceilings_tokens:
            self._count_tokens(permit, permit.tokens)
        self.pending_prefill_tokens += permit.prefill_tokens
        self.prefilling[permit.klass] += permit.prefill_tokens
        self._num_issued += 1
        permit.serial = self._num_issued
        if permit.prefill_tokens >= LEAST_TOKENS:
            limit = self.window.limit
            permit.is_telling = limit is None or self.num_in_use <= limit

    def start(self, permit: Permit, now: float) -> bool:
        """Its answer has begun. Returns whether that may open or close the backend to a class."""
        if permit.started or permit.released:
            return False
        permit.started = True
        self.num_started += 1
        has_learned = self.prefill_speed.observe(
            permit.prefill_tokens, permit.serial, permit.issued_at, is_telling=permit.is_telling, now=now
        )
        self.end_prefill(permit)
        return self.is_paced or (has_learned and self.pending_prefill_tokens >= LEAST_BUDGET_TOKENS)

    def end_prefill(self, permit: Permit) -> None:
        """Its prompt is prefilled, or will not be any more."""
        self.pending_prefill_tokens -= permit.prefill_tokens
        self.prefilling[permit.klass] -= permit.prefill_tokens
        permit.prefill_tokens = 0

    def give_back(self, permit: Permit) -> None:
        """It has ended."""
        permit.released = True
        self.permits[permit.klass].remove(permit)
        self.pool.permits[permit.klass].remove(permit)
        self.pool.is_balanced = False
        self.outstanding_work -= permit.work
        if self.pool.has_ceilings_tokens:
            self._count_tokens(permit, -permit.tokens)
        self.num_started -= permit.started
        self.end_prefill(permit)

    def recharge(self, permit: Permit, klass: int) -> None:
        """It counts for another class from now on, and for more tokens if it has outgrown the one before."""
        has_ceilings_tokens = self.pool.has_ceilings_tokens
        if has_ceilings_tokens:
            self._count_tokens(permit, -permit.tokens)
        bound = self.pool.classes[permit.klass].max_output_tokens
        if bound is not None and permit.expected_tokens < _OUTGROWN * bound:
            permit.tokens += _OUTGROWN * bound - permit.expected_tokens
            permit.expected_tokens = _OUTGROWN * bound
        self.prefilling[permit.klass] -= permit.prefill_tokens
        self.prefilling[klass] += permit.prefill_tokens
        for permits in (self.permits, self.pool.permits):
            permits[permit.klass].remove(permit)
            permits[klass].add(permit)
        self.pool.is_balanced = False
        permit.klass = klass
        if has_ceilings_tokens:
            self._count_tokens(permit, permit.tokens)

    def _count_tokens(self, permit: Permit, tokens: int) -> None:
        self.tokens[permit.klass] += tokens
        self.pool.tokens[permit.klass] += tokens

    def resize(self) -> None:
        """Recompute ceilings and configured reserves after the window changed."""
        size = self.window.size
        classes = self.pool.classes
        self._ceilings = [_slots(spec.ceiling, size, default=size) for spec in classes]
        allowed = min(int(size * self._max_reserve), size - 1)
        for c, spec in enumerate(classes):
            self._reserves[c] = min(_slots(spec.reserve, size, default=0), allowed)
            allowed -= self._reserves[c]
        self._shape = size

    def compute_mask(self) -> int:
        """Bit c is set when class c may have one more slot here now."""
        self.is_paced = False
        if not self.available:
            return 0
        window = self.window
        size = window.size
        if self._shape != size:
            self.resize()
        free = size - self.num_in_use
        if free <= 0:
            return 0
        feed = window.feed
        owned_from = self.pool.feed_owned_from if feed else 0
        has_ceilings_tokens = self.pool.has_ceilings_tokens
        is_prefilling = self.pending_prefill_tokens >= LEAST_BUDGET_TOKENS
        mask = above = 0
        for c, permits in enumerate(self.permits):
            count = len(permits)
            room = free - self._kept_from(c, above) if self.kept[c] else free
            if feed and c >= owned_from:
                room -= feed
            if room > 0 and count < self._ceilings[c]:
                if is_prefilling and self._is_paced(c, above):
                    self.is_paced = True
                elif not has_ceilings_tokens or self.tokens[c] < self.pool.ceilings_tokens[c]:
                    mask |= 1 << c
            above += count
            missing = self._reserves[c] - count
            if missing > 0:
                free -= missing
        return mask

    def _is_paced(self, klass: int, num_above: int) -> bool:
        """Whether `klass`, with a prompt in prefill here, must wait: a more urgent class would feel one more."""
        if not self.prefilling[klass] or not (num_above or klass >= self.pool.feed_owned_from):
            return False
        return self.pending_prefill_tokens >= self.prefill_budget(klass)

    def _kept_from(self, klass: int, num_above: int) -> int:
        """Slots that the automatic reserve really keeps free of `klass`, beside those that more urgent classes use."""
        limit = self.window.size if self.window.limit is None else self.window.limit
        kept = min(self.kept[klass], max(0, int(limit * self._max_reserve) - num_above))
        return math.ceil(kept * self.pool.staffing.footprint[klass]) if self.window.is_kv_bound else kept


class OpenSet:
    """Backends with something to give: O(1) add, remove and random choice."""

    __slots__ = ("_position", "items")

    def __init__(self) -> None:
        self.items: list[BackendSlots] = []
        self._position: dict[int, int] = {}

    def __contains__(self, backend: BackendSlots) -> bool:
        return backend.index in self._position

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

    def has_slot(self, klass: int) -> bool:
        """Whether the class may have one more slot here now."""
        return bool(self.open[klass].items) and self.pool.below_fleet_ceiling(klass)

    def update(self, backend: BackendSlots, mask: int) -> None:
        """Take over the open bits of `backend`."""
        for c, open_set in enumerate(self.open):
            if mask >> c & 1 and self.pool.may_use(c, backend):
                open_set.add(backend)
            else:
                open_set.discard(backend)


class PoolSlots:
    """What the backends of one pool share: classes, fleet-wide ceilings, measured traffic and what is kept free."""

    __slots__ = (
        "_class_labels",
        "_kept",
        "_layout",
        "_order",
        "affinity",
        "backends",
        "ceilings_tokens",
        "classes",
        "feed_owned_from",
        "has_ceilings_tokens",
        "is_balanced",
        "name",
        "permits",
        "staffing",
        "tokens",
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
        self.permits: list[set[Permit]] = [set() for _ in classes]
        self.tokens = [0] * len(self.classes)
        """By class, predicted tokens of live permits; counted only where a class has a ceiling in tokens."""
        self.ceilings_tokens = [math.inf if spec.ceiling_tokens is None else spec.ceiling_tokens for spec in classes]
        """By class, for each backend."""
        self.has_ceilings_tokens = any(spec.ceiling_tokens or spec.fleet_ceiling_tokens for spec in classes)
        self.staffing = Staffing(self.classes, beta)
        self.affinity: Affinity | None = None
        """What ties requests to backends; None: nothing does."""
        self._class_labels = [dict((class_labels or {}).get(spec.name, {})) for spec in classes]
        self._kept = [0] * len(self.classes)
        """By class, slots of the pool that are kept free of it now: the sum of what its backends keep."""
        self._order: list[BackendSlots] = []
        """Which backend keeps the first slot, the second, …; then from the start again."""
        self._layout: list[tuple[int, int]] = []
        self.is_balanced = True
        """Nothing has changed since the last `rebalance`."""
        self.feed_owned_from = len(self.classes)
        """The first class that must leave the feed to more urgent ones."""

    @property
    def keeps_slots(self) -> bool:
        """Whether the automatic reserve keeps anything free now: it must be looked at again though nothing happens."""
        return any(self._kept)

    def may_use(self, klass: int, backend: BackendSlots) -> bool:
        """Whether the labels of `backend` admit this class."""
        wanted = self._class_labels[klass]
        return not wanted or all(backend.labels.get(key) == value for key, value in wanted.items())

    def num_in_use(self, klass: int) -> int:
        """Live permits of a class over all backends."""
        return len(self.permits[klass])

    def total_window(self) -> int:
        """Slots of all available backends."""
        return sum(backend.window.size for backend in self.backends if backend.available)

    def below_fleet_ceiling(self, klass: int) -> bool:
        """Whether the class may use one more slot of the pool."""
        spec = self.classes[klass]
        if spec.fleet_ceiling_tokens is not None and self.tokens[klass] >= spec.fleet_ceiling_tokens:
            return False
        if spec.fleet_ceiling is None:
            return True
        return self.num_in_use(klass) < _slots(spec.fleet_ceiling, self.total_window(), 0)

    def measure(self, now: float) -> Iterable[BackendSlots]:
        """Take stock of the traffic now and then; the backends on which something changed by that."""
        if not self.staffing.measure(now):
            return ()
        self.is_balanced = False
        touched = set(self._lay_out())
        touched.update(self.rebalance())
        enough = _FEED_SHARE * sum(backend.available for backend in self.backends)
        wanted = self.staffing.wanted_above
        owned_from = next((c for c, slots in enumerate(wanted) if slots and slots >= enough), len(wanted))
        changed = owned_from != self.feed_owned_from
        self.feed_owned_from = owned_from
        return self.backends if changed else touched

    def rebalance(self) -> list[BackendSlots]:
        """Keep free what is to be kept free now; the backends on which that changed."""
        touched: list[BackendSlots] = []
        if self.is_balanced:
            return touched
        self.is_balanced = True
        order = self._order
        if not order:
            return touched
        wanted = self.staffing.kept_against([len(permits) for permits in self.permits])
        for c, total in enumerate(wanted):
            at = self._kept[c]
            while at != total:
                step = 1 if at < total else -1
                backend = order[(at if step > 0 else at - 1) % len(order)]
                backend.kept[c] += step
                touched.append(backend)
                at += step
            self._kept[c] = at
        return touched

    def _lay_out(self) -> list[BackendSlots]:
        """Order the backends that urgent classes may use, each as often as its window is large, well mixed."""
        auto = [c for c, spec in enumerate(self.classes[:-1]) if spec.reserve is None]
        usable = [b for b in self.backends if b.available and any(self.may_use(c, b) for c in auto)]
        layout = [(backend.index, backend.window.size) for backend in usable]
        if layout == self._layout:
            return []
        self._layout = layout
        mean = sum(size for _, size in layout) / max(1, len(layout))
        turns: list[tuple[float, int, BackendSlots]] = []
        for backend in usable:
            times = max(1, round(_TURNS * backend.window.size / mean)) if len(usable) > 1 else 1
            turns += [((turn + 0.5) / times, backend.index, backend) for turn in range(times)]
        self._order = [backend for _, _, backend in sorted(turns, key=lambda turn: turn[:2])]
        for backend in self.backends:
            backend.kept = [0] * len(self.classes)
        self._kept = [0] * len(self.classes)
        return self.backends


_TURNS: Final = 4
_FEED_SHARE: Final = 0.5
_OUTGROWN: Final = 2
"""An answer that has passed the bound of its class is expected to be this many times as long as the bound."""


def _slots(bound: float | None, size: int, default: int) -> int:
    """A share (< 1) or count (≥ 1) of `size` slots; a share of something is at least one slot."""
    if bound is None:
        return default
    if bound >= 1:
        return int(bound)
    return max(1, int(bound * size)) if bound > 0 else 0
