"""How a request can end, and what each end means for the backend, the retry and the books. One row an outcome.

`docs/failure-modes.md` explains the same rows to operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Meaning:
    """What follows from an outcome."""

    label: str
    """Value of the `outcome` label."""
    backend_fault: bool = False
    """Counts against the backend's circuit breaker."""
    backend_proof: bool = False
    """Shows that the backend works: closes its breaker."""
    retryable: bool = False
    """May be tried again as long as nothing reached the client."""
    free_retry: bool = False
    """The retry costs no budget: no work can have been done."""
    learned: bool = False
    """The number of output tokens is exact enough to learn from."""


class Outcome(Enum):
    """Every end of a request or of one attempt."""

    OK = Meaning("ok", backend_proof=True, learned=True)
    UPSTREAM_4XX = Meaning("upstream_4xx", backend_proof=True)
    BAD_REQUEST = Meaning("bad_request")
    RULE_REJECTED = Meaning("rule_rejected")
    REJECTED_SATURATED = Meaning("rejected_saturated")
    EXPIRED = Meaning("expired")
    UNMEETABLE = Meaning("unmeetable")
    """Its turn would have come after its deadline."""
    NO_ENDPOINTS = Meaning("no_endpoints")
    SHUTTING_DOWN = Meaning("shutting_down")
    CLIENT_GONE = Meaning("client_gone")
    CONNECT_FAILED = Meaning("connect_failed", backend_fault=True, retryable=True, free_retry=True)
    STALE_CONNECTION = Meaning("stale_connection", retryable=True)
    ENGINE_BUSY = Meaning("engine_busy", retryable=True, free_retry=True)
    """The engine's own admission control said no (vLLM 503, TGI 429): full, not ill."""
    UPSTREAM_5XX = Meaning("upstream_5xx", backend_fault=True)
    UPSTREAM_RESET = Meaning("upstream_reset", backend_fault=True)
    UPSTREAM_TIMEOUT = Meaning("upstream_timeout", backend_fault=True)
    UPSTREAM_PROTOCOL = Meaning("upstream_protocol", backend_fault=True)
    STREAM_BROKEN = Meaning("stream_broken", backend_fault=True)
    """The answer had begun and ended without its terminator."""
    INTERNAL = Meaning("internal")

    @property
    def label(self) -> str:
        """Value of the `outcome` label in metrics and logs."""
        return self.value.label
