"""What is taken from a client's headers before anything is decided: an id, and who it is."""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from prelude_proxy.errors import ClientError

_ID = re.compile(r"[\x21-\x7e]{1,200}")
_NOBODY = ""
_ids = random.Random(os.urandom(32))  # an identifier, not a secret


def request_id_of(headers: Mapping[str, str]) -> str:
    """`x-request-id`, else `x-correlation-id`, if it can travel in a header; else a new one."""
    given = headers.get("x-request-id") or headers.get("x-correlation-id")
    if given and _ID.fullmatch(given):
        return given
    return f"{_ids.getrandbits(128):032x}"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request."""

    name: str | None
    may_raise_class: bool = False


class Callers:
    """Tells callers apart, lets in those who may."""

    def __init__(
        self,
        *,
        tenants: Mapping[str, Caller],
        api_key: str | None = None,
        trust_class_header: bool = False,
        max_tenants: int = 1024,
    ) -> None:
        """`tenants`: API key → caller. With an `api_key`, or with tenants and one, others are turned away."""
        self._tenants = dict(tenants)
        self._api_key = api_key
        self._trust = trust_class_header
        self._max_tenants = max_tenants
        self._lines: set[str] = set()
        self._nameless = Caller(None, trust_class_header)

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """The caller behind these headers: by API key, `x-tenant-id`, `x-user-id`, else a hash of its key.

        Raises:
            ClientError: 401, a key is required and this is none.
        """
        key = _bearer(headers)
        known = self._tenants.get(key) if key else None
        if known is not None:
            return Caller(known.name, known.may_raise_class or self._trust)
        if self._api_key is not None and key != self._api_key:
            raise ClientError("A valid API key is required.", status=401, kind="authentication_error")
        name = headers.get("x-tenant-id") or headers.get("x-user-id")
        if not name and key:
            name = _fingerprint(key)
        return Caller(_printable(name), self._trust) if name else self._nameless

    def line_of(self, tenant: str | None) -> str:
        """Name of the line this tenant waits in: its own, or the common one when there are too many."""
        if tenant is None or tenant in self._lines:
            return tenant or _NOBODY
        if len(self._lines) >= self._max_tenants:
            return _NOBODY
        self._lines.add(tenant)
        return tenant


def _printable(name: str) -> str:
    """A name from a header, fit for logs: headers may hold any bytes, and be long."""
    return name[:200].encode("utf-8", "replace").decode()


def _bearer(headers: Mapping[str, str]) -> str | None:
    value = headers.get("authorization")
    if value is None:
        return headers.get("x-api-key")
    scheme, _, key = value.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


@lru_cache(maxsize=4096)
def _fingerprint(key: str) -> str:
    """A name for a caller that is only known by its key: tells callers apart, tells nobody the key."""
    return "key-" + hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=6).hexdigest()
