"""Errors as the caller's own API would say them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import orjson

from prelude_proxy.core.domain import Dialect

_ANTHROPIC_TYPES: Final[Mapping[int, str]] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_OPENAI_TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    502: "upstream_error",
    503: "service_unavailable",
    504: "timeout_error",
}
_TGI_TYPES: Final[Mapping[int, str]] = {
    429: "overloaded",
    502: "generation",
    503: "unavailable",
    504: "timeout",
}


def error_body(
    dialect: Dialect, status: int, message: str, *, kind: str | None = None, param: str | None = None
) -> bytes:
    """One line of JSON that says `message` in `dialect`.

    OpenAI and vLLM: `{"error": {message, type, param, code}}`; Anthropic: `{"type": "error", "error": {type,
    message}}`; TGI: `{error, error_type}`. `kind` overrides the type where the dialect's table does not settle it.
    """
    if dialect is Dialect.ANTHROPIC:
        fallback = "invalid_request_error" if status < 500 else "api_error"
        error_type = _ANTHROPIC_TYPES.get(status, fallback)
        return orjson.dumps({"type": "error", "error": {"type": error_type, "message": message}})
    if dialect is Dialect.TGI:
        error_type = _TGI_TYPES.get(status, "validation" if status < 500 else "generation")
        return orjson.dumps({"error": message, "error_type": error_type})
    error_type = kind or _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "internal_error")
    return orjson.dumps({"error": {"message": message, "type": error_type, "param": param, "code": status}})
