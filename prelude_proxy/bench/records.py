"""What a run brings back: one record a request, gap histograms a class. Filled by the driver, or by a simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

_LOWEST_S = 1e-5
_BINS_PER_DECADE = 24  # 10 % wide
_NUM_BINS = 7 * _BINS_PER_DECADE + 1  # 10 µs … 100 s


@dataclass(slots=True)
class RequestRecord:
    """One request as its client saw it. Times in seconds; latencies count from the *scheduled* arrival."""

    klass: str
    scheduled_s: float
    """Since the start of the run."""
    prompt_tokens: int
    wanted_tokens: int
    """The true output length the engine was told."""
    tenant: str | None = None
    status: int = 0
    """HTTP status; 0: none came."""
    ok: bool = False
    """Answered 200 and complete to its terminator."""
    error: str = ""
    ttft_s: float | None = None
    e2e_s: float = 0.0
    tokens: int = 0
    """Output tokens received: from `usage` if the engine sent it, else counted events."""
    gap_mean_s: float = 0.0
    gap_max_s: float = 0.0
    served_as: str | None = None
    """The class the proxy answered in `x-prelude-class`."""
    queue_s: float = 0.0
    """Time held, as the proxy said in `x-prelude-queue-ms`."""


class GapHistogram:
    """Distribution of inter-token gaps in logarithmic bins: constant memory however long the run."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: npt.NDArray[np.int64] = np.zeros(_NUM_BINS, dtype=np.int64)

    def add(self, gaps_s: Sequence[float]) -> None:
        """Counts these gaps."""
        if not gaps_s:
            return
        position = np.log10(np.maximum(np.asarray(gaps_s), _LOWEST_S) / _LOWEST_S) * _BINS_PER_DECADE
        bins = np.minimum(position.astype(np.int64), _NUM_BINS - 1)
        self.counts += np.bincount(bins, minlength=_NUM_BINS)

    def quantile(self, q: float) -> float | None:
        """The gap in seconds at quantile `q`, to within half a bin (5 %); None if nothing was counted."""
        total = int(self.counts.sum())
        if total == 0:
            return None
        index = int(np.searchsorted(np.cumsum(self.counts), min(q * total, total - 1), side="right"))
        return float(_LOWEST_S * 10 ** ((index + 0.5) / _BINS_PER_DECADE))


@dataclass(slots=True)
class Sample:
    """One look at a target's insides: time since the start of the run, and named values."""

    at_s: float
    values: dict[str, float]


@dataclass(slots=True)
class RunResult:
    """One round of one target."""

    target: str
    records: list[RequestRecord]
    gaps: dict[str, GapHistogram]
    """By class."""
    makespan_s: float
    """From the first scheduled arrival to the last answer."""
    window_s: float
    """Length of the arrival window: the offered load ends here."""
    max_late_s: float = 0.0
    """Longest delay of a request in the client itself: beyond some milliseconds the machine was too busy."""
    samples: list[Sample] = field(default_factory=list)
