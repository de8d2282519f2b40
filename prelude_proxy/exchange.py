"""What a request's stages share: the backend it goes to, and everything about it that outlives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prelude_proxy.classifier import Observation
from prelude_proxy.core.affinity import Ties
from prelude_proxy.core.domain import Dialect, EngineKind, RequestFacts
from prelude_proxy.core.lessons import Lesson
from prelude_proxy.core.limits import BackendSlots
from prelude_proxy.core.outcome import Outcome
from prelude_proxy.heartbeat import Heartbeat
from prelude_proxy.judge import Verdict
from prelude_proxy.upstream import Upstream


@dataclass(slots=True)
class Engine:
    """A backend as the journey needs it: its slots, its connections, what it speaks."""

    slots: BackendSlots
    upstream: Upstream
    kind: EngineKind
    has_telemetry: bool
    extra_headers: Mapping[bytes, bytes] = field(default_factory=dict)
    """Sent to this backend in place of the client's (its API key)."""
    class_headers: tuple[Mapping[bytes, bytes], ...] = ()
    """By class: in-engine priority."""


class Exchange:
    """Everything about one request that outlives its stages; becomes the access record and the metrics.

    One a request: written out, since the `__init__` that `dataclass` makes stays interpreted.
    """

    facts: RequestFacts | None = None
    verdict: Verdict | None = None
    observation: Observation | None = None
    lesson: Lesson[Observation] | None = None
    ties: Ties | None = None
    """What ties it to a backend."""
    status: int = 0
    error: str | None = None
    backend: str | None = None
    num_attempts: int = 0
    held_s: float = 0.0
    classify_s: float = 0.0
    ready_at: float = 0.0
    """When it was classified and asked for a slot."""
    dispatched_at: float = 0.0
    first_token_at: float = 0.0
    finished_at: float = 0.0
    request_bytes: int = 0
    response_bytes: int = 0
    output_tokens: int | None = None
    is_streamed: bool = False
    promoted_to: int | None = None
    heartbeat: Heartbeat | None = None
    """Of a stream that may show signs of life before its answer."""
    prompt: str | None = None
    """Only when logging of prompts was asked for."""

    def __init__(
        self,
        request_id: str,
        *,
        method: str,
        path: str,
        arrival: float,
        started_at: float,
        dialect: Dialect,
        peer: str | None,
    ) -> None:
        self.id = request_id
        self.method = method
        self.path = path
        self.arrival = arrival
        """Event-loop clock, seconds."""
        self.started_at = started_at
        """Wall clock, seconds since the epoch."""
        self.dialect = dialect
        self.peer = peer
        self.outcome = Outcome.INTERNAL  # not above: a compiled class takes no enum member for a default

    @property
    def class_name(self) -> str:
        """Class it was given, or empty when it never came to that."""
        return self.verdict.classification.name if self.verdict else ""
