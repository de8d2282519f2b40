"""Where a request's past lies: which backends of a pool have lately prefilled the start of its prompt, or its session.

Believed, not known: what is dispatched counts as prefilled, and as thrown out of the engine's cache once the backend
was sent `cache_tokens` of other prompts (its blocks go least recently used first, as in vLLM). One index for the pool,
by link of the chain (`prefix.py`), so that finding who holds a prompt costs the same for two backends and for a
thousand. A wrong belief costs one prefill that would have been due anyway. What is made of it: `routing.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from prelude_proxy.core.domain import RequestFacts
from prelude_proxy.core.prefix import BLOCK_TOKENS, CHARS_PER_TOKEN, prefix_of

if TYPE_CHECKING:
    from prelude_proxy.core.limits import BackendSlots

_MAX_HOLDERS: Final = 8
"""Backends remembered a link: a prompt that more of them hold, the sample of the fleet finds as well."""
_MAX_SESSION_CHARS: Final = 200


@dataclass(frozen=True, slots=True)
class AffinityPolicy:
    """What ties requests to backends; the same words as in the configuration."""

    prefix: bool = True
    session_header: str | None = None
    """Lower case."""
    session_cookie: str | None = None
    session_field: str | None = None
    max_extra_load: float = 0.1
    """How much more of its window a backend may have in use than the least occupied, and still be preferred."""
    cache_tokens: int = 1_000_000
    """Prompt tokens that one backend is taken to remember."""

    @property
    def is_any(self) -> bool:
        """Whether anything at all ties requests to backends."""
        return self.prefix or bool(self.session_header or self.session_cookie or self.session_field)


class Ties:
    """What ties one request to what was served before."""

    __slots__ = ("density", "prefix", "session")

    def __init__(self, prefix: tuple[int, ...] = (), session: str = "", density: float = 1.0) -> None:
        self.prefix = prefix
        self.session = session
        self.density = density
        """Prompt tokens of this text for each four characters: 1 in English, some 4 in Chinese."""


class Affinity:
    """The memory of one pool."""

    __slots__ = (
        "_clocks",
        "_links",
        "_max_links",
        "_max_sessions",
        "_sessions",
        "num_hits",
        "num_misses",
        "num_moved",
        "policy",
        "saved_tokens",
    )

    def __init__(self, policy: AffinityPolicy, *, max_links: int = 131_072, max_sessions: int = 65_536) -> None:
        """The bounds hold for the pool: some 50 MB of links and 10 MB of sessions at most."""
        self.policy = policy
        self._max_links = max_links
        self._max_sessions = max_sessions
        self._links: OrderedDict[int, dict[BackendSlots, int]] = OrderedDict()
        """Link → its holders, by the holder's clock when it was last sent it; least recently used first."""
        self._clocks: dict[BackendSlots, int] = {}
        """Prompt tokens a backend was sent that it did not hold."""
        self._sessions: OrderedDict[str, BackendSlots] = OrderedDict()
        self.num_hits = 0
        """Dispatches to where the session was, or to where most of the prompt is held."""
        self.num_moved = 0
        """To another backend, although one holds more: it was loaded, full or out."""
        self.num_misses = 0
        """Of which nothing was known."""
        self.saved_tokens = 0
        """Prompt tokens that need not have been prefilled, as believed."""

    def __len__(self) -> int:
        return len(self._links)

    @property
    def num_sessions(self) -> int:
        """Sessions remembered."""
        return len(self._sessions)

    def ties_of(self, facts: RequestFacts) -> Ties | None:
        """What ties this request, its payload not forgotten, to a backend; None: nothing does."""
        prefix = prefix_of(facts) if self.policy.prefix else ()
        session = _session_of(facts, self.policy)
        if not prefix and not session:
            return None
        dense = prefix and facts.prompt_chars
        return Ties(prefix, session, CHARS_PER_TOKEN * facts.prompt_tokens / facts.prompt_chars if dense else 1.0)

    def home_of(self, ties: Ties) -> BackendSlots | None:
        """The backend that served its session last."""
        return self._sessions.get(ties.session) if ties.session else None

    def num_known(self, ties: Ties) -> int:
        """Links at the start of its prompt's chain that some backend holds: whoever holds one holds those before it."""
        return _most(len(ties.prefix), lambda num_links: bool(self.holders_at(ties, num_links)))

    def holders_at(self, ties: Ties, num_links: int) -> list[BackendSlots]:
        """Backends that hold the first `num_links` links of its prompt's chain, as far as they are remembered."""
        holders = self._links.get(ties.prefix[num_links - 1])
        if holders is None:
            return []
        clocks, oldest = self._clocks, self.policy.cache_tokens
        return [backend for backend, clock in holders.items() if clocks[backend] - clock <= oldest]

    def tokens_held(self, ties: Ties, prompt_tokens: int, backend: BackendSlots) -> int:
        """Prompt tokens that `backend` need not prefill."""
        return self._tokens(ties, prompt_tokens, self._num_held(ties.prefix, backend))

    def dispatched(self, ties: Ties, prompt_tokens: int, backend: BackendSlots) -> int:
        """`backend` gets a request: it will hold its prompt, and serve its session. How much it held, in tokens."""
        known, held = self.num_known(ties), self._num_held(ties.prefix, backend)
        tokens = self._tokens(ties, prompt_tokens, held)
        home = self._sessions.get(ties.session) if ties.session else None
        if home is backend or (held and held == known):
            self.num_hits += 1
        elif home is not None or known:
            self.num_moved += 1
        else:
            self.num_misses += 1
        self.saved_tokens += tokens
        if ties.prefix:
            self._remember(ties.prefix, backend, prompt_tokens - tokens)
        if ties.session:
            self._sessions[ties.session] = backend
            self._sessions.move_to_end(ties.session)
            if len(self._sessions) > self._max_sessions:
                self._sessions.popitem(last=False)
        return tokens

    def forget(self, backend: BackendSlots) -> None:
        """`backend` has left or started anew: it holds nothing."""
        if backend in self._clocks:
            self._clocks[backend] += self.policy.cache_tokens + 1

    def _num_held(self, prefix: tuple[int, ...], backend: BackendSlots) -> int:
        """Links at the start of `prefix` that `backend` holds."""
        now, oldest = self._clocks.get(backend, 0), self.policy.cache_tokens

        def holds(num_links: int) -> bool:
            holders = self._links.get(prefix[num_links - 1])
            clock = None if holders is None else holders.get(backend)
            return clock is not None and now - clock <= oldest

        return _most(len(prefix), holds)

    def _tokens(self, ties: Ties, prompt_tokens: int, num_links: int) -> int:
        return min(prompt_tokens, int(BLOCK_TOKENS[num_links - 1] * ties.density)) if num_links else 0

    def _remember(self, prefix: tuple[int, ...], backend: BackendSlots, new_tokens: int) -> None:
        clock = self._clocks[backend] = self._clocks.get(backend, 0) + new_tokens
        links = self._links
        for index in range(len(prefix) - 1, -1, -1):  # the last link becomes the oldest, and so goes first
            link = prefix[index]
            holders = links.get(link)
            if holders is None:
                links[link] = {backend: clock}
                continue
            links.move_to_end(link)
            holders.pop(backend, None)
            holders[backend] = clock
            if len(holders) > _MAX_HOLDERS:
                del holders[next(iter(holders))]
        while len(links) > self._max_links:
            links.popitem(last=False)


def _most(limit: int, is_held: Callable[[int], bool]) -> int:
    """The most links, up to `limit`, that are held, where whoever holds some holds all before; by halving."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if is_held(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _session_of(facts: RequestFacts, policy: AffinityPolicy) -> str:
    """The session a request names: by header, else by cookie, else by a field of its body; empty if by none.

    Each tenant has its own: "1" of one caller is not that of another.
    """
    session: object = None
    if policy.session_header is not None:
        session = facts.headers.get(policy.session_header)
    if not session and policy.session_cookie is not None:
        session = _cookie(facts.headers, policy.session_cookie)
    if not session and policy.session_field is not None and facts.payload is not None:
        session = facts.payload.get(policy.session_field)
    if not session or not isinstance(session, str):
        return ""
    return f"{facts.tenant or ''}\n{session[:_MAX_SESSION_CHARS]}"


def _cookie(headers: Mapping[str, str], name: str) -> str:
    for part in headers.get("cookie", "").split(";"):
        key, _, value = part.strip().partition("=")
        if key == name:
            return value
    return ""
