"""How long a request may be held and when its first token is wanted: its class's word, and the client's headers.

- `x-prelude-no-queue`: now or never.
- `x-prelude-deadline-ms`: total time to the first token that the caller accepts, from arrival, time held included. A
  request that cannot make it is of no use: it sheds.
- `x-llm-d-slo-ttft-ms`: the same as a wish in place of the class's `ttft_slo_ms`. It orders; whether it also sheds is
  the class's `shed`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from prelude_proxy.core.domain import ClassSpec
from prelude_proxy.errors import ClientError

DEADLINE_HEADER: Final = "x-prelude-deadline-ms"
SLO_HEADER: Final = "x-llm-d-slo-ttft-ms"
NO_QUEUE_HEADER: Final = "x-prelude-no-queue"


class Patience:
    """What a ticket says of time; seconds of the clock that its arrival was taken from."""

    __slots__ = ("deadline", "due", "sheds")

    def __init__(self, deadline: float, due: float = math.inf, *, sheds: bool = False) -> None:
        self.deadline: Final = deadline
        """Held until then at most."""
        self.due: Final = due
        """When the first token is wanted."""
        self.sheds: Final = sheds
        """Whether a later one is of no use."""


def patience_of(spec: ClassSpec, headers: Mapping[str, str], arrival: float, now: float) -> Patience:
    """The patience of a request of class `spec` that came at `arrival` and asks for a slot now.

    Raises:
        ClientError: a header does not hold a time.
    """
    latest = now + spec.queue_timeout_s
    if headers.get(NO_QUEUE_HEADER, "0").lower() not in {"0", "false"}:
        latest = arrival
    deadline_ms = _milliseconds(headers, DEADLINE_HEADER)
    if deadline_ms is not None:
        due = arrival + deadline_ms / 1e3
        return Patience(min(latest, due), due, sheds=True)
    wanted_ms = _milliseconds(headers, SLO_HEADER)
    wanted_ms = spec.ttft_slo_ms if wanted_ms is None else wanted_ms
    if wanted_ms is None:
        return Patience(latest)
    due = arrival + wanted_ms / 1e3
    return Patience(min(latest, due) if spec.shed else latest, due, sheds=spec.shed)


def _milliseconds(headers: Mapping[str, str], name: str) -> float | None:
    given = headers.get(name)
    if given is None:
        return None
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not 0.0 <= value < math.inf:
        raise ClientError(f"'{name}' must be a number of milliseconds, zero or more, not {_shown(given)}.", param=name)
    return value


def _shown(given: str) -> str:
    return ascii(given[:40])
