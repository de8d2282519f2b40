"""The exception tree: whose fault a failure is decides status, log level and retry.

    PreludeError
    ├── ClientError      the caller broke a rule: 4xx, never counted against a backend
    ├── ShedError        capacity is contended or absent: 429/503 with `retry-after`
    ├── UpstreamError    a backend broke a rule or went away: 502/504, may be retried
    └── ConfigError      the operator's file or flags: exit code 2

Leaf module: imports nothing of the project.
"""

from __future__ import annotations


class PreludeError(Exception):
    """Base of every error this project raises on purpose."""


class ClientError(PreludeError):
    """The caller's request cannot be served as it stands.

    `status` is the HTTP status, `param` the offending field, `kind` the machine-readable type in the answer.
    """

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, kind: str = "invalid_request_error"
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.kind = kind


class ShedError(PreludeError):
    """A well-formed request that is not served now; `reason` decides `x-prelude-dropped-reason`."""

    def __init__(self, message: str, *, status: int, reason: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s


class UpstreamError(PreludeError):
    """A backend failed. `sent` says whether any byte of the request may have reached it."""

    status = 502

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class UpstreamConnectError(UpstreamError):
    """No connection could be made: nothing was sent, so a retry is always safe."""

    def __init__(self, message: str) -> None:
        super().__init__(message, sent=False)


class UpstreamStaleError(UpstreamError):
    """A pooled connection was closed by the engine before it answered a byte: safe to retry once."""


class UpstreamProtocolError(UpstreamError):
    """The backend's bytes were not HTTP, or ended in the middle of a message."""


class UpstreamTimeoutError(UpstreamError):
    """The backend did not connect, answer or continue within the configured time."""

    status = 504


class ConfigError(PreludeError):
    """A configuration that cannot be used; the message names path, reason and nearest valid name."""
