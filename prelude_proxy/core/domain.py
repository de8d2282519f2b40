"""The words the whole project speaks: engines, endpoints, dialects, what is known of a request.

No behaviour beyond small derivations; imports nothing but the standard library.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol


class Rng(Protocol):
    """Where the core gets its randomness from; `random.Random` fits."""

    def random(self) -> float:
        """A number in [0, 1)."""
        ...


class EngineKind(StrEnum):
    """What a backend runs; decides its metric names, its admission signals and its stream format."""

    VLLM = "vllm"
    TGI = "tgi"
    SGLANG = "sglang"
    OPENAI = "openai"
    """Anything OpenAI-shaped without telemetry we can read."""


class Order(StrEnum):
    """Who of one tenant's held requests of one class goes next."""

    FCFS = "fcfs"
    SHORTEST = "shortest"
    DEADLINE = "deadline"


class Dialect(StrEnum):
    """How the caller wants errors and stream ends to look."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    TGI = "tgi"


class Endpoint(StrEnum):
    """What a path asks of an engine."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    GENERATE = "generate"
    """TGI `/`, `/generate`, `/generate_stream`; SGLang `/generate`."""
    EMBEDDINGS = "embeddings"
    RERANK = "rerank"
    SCORE = "score"
    CLASSIFY = "classify"
    POOLING = "pooling"
    OTHER = "other"
    """Any other path of a known engine: proxied, not understood."""


GENERATING: Final = frozenset(
    {Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES, Endpoint.GENERATE}
)
"""Endpoints that decode tokens; the others of the known ones answer in one step (class `oneshot`)."""


class RequestFacts:
    """What is known of one request after parsing, before any decision.

    `payload` is the decoded JSON body and by far the largest part; the journey drops it (`forget_payload`) before the
    request may be held, so that a held request costs its body and little else.
    """

    model: str | None = None
    stream: bool = False
    max_tokens: int | None = None
    """Upper bound the client set on output tokens of one choice (`max_tokens`, `max_completion_tokens`, …)."""
    min_tokens: int = 0
    num_choices: int = 1
    """`n` or `best_of`: how many sequences are decoded."""
    num_messages: int = 0
    prompt_chars: int = 0
    """Characters of text the engine must prefill: messages, prompt, tools."""
    prompt_tokens: int = 0
    """Estimated from characters (exact when the prompt came as token ids)."""
    has_tools: bool = False
    has_json_schema: bool = False
    has_fixed_choices: bool = False
    """The answer is one of a given list (`guided_choice`, `structured_outputs.choice`)."""
    wants_prompt_logprobs: bool = False
    reasoning: bool | None = None
    """The reasoning switch: True on, False off, None not said."""
    may_raise_class: bool = False
    """Whether `x-prelude-class` of this caller may also raise its class."""

    def __init__(
        self,
        path: str,
        endpoint: Endpoint,
        dialect: Dialect,
        *,
        tenant: str | None = None,
        headers: Mapping[str, str] | None = None,
        payload: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.endpoint = endpoint
        self.dialect = dialect
        self.tenant = tenant
        self.headers: Mapping[str, str] = {} if headers is None else headers
        """Lower-case names. Only what rules and features may look at; never forwarded from here."""
        self.payload = payload

    def forget_payload(self) -> None:
        """Drop the decoded body once features and rules have seen it."""
        self.payload = None


@dataclass(frozen=True, slots=True)
class ClassSpec:
    """One execution class: what belongs to it and what it may use. Order of preference is `priority`, lowest first."""

    name: str
    priority: int
    max_output_tokens: int | None = None
    """Predicted output tokens up to which a request belongs here; None: no bound (the last of the ladder)."""
    max_prompt_tokens: int | None = None
    """A longer prompt pushes the request to the next class: its prefill alone is heavy work."""
    ceiling: float | None = None
    """Most slots it may use on one backend: a share of the window (< 1) or a count (≥ 1); None: no ceiling."""
    fleet_ceiling: float | None = None
    """The same over all backends of a pool together."""
    ceiling_tokens: int | None = None
    """Predicted tokens (prompt and answer) at which it gets no more slots of one backend; None: no such ceiling."""
    fleet_ceiling_tokens: int | None = None
    """The same over all backends of a pool together."""
    prefill_stall_s: float | None = None
    """How long its prompts may stall an engine while more urgent work is there; None: it is not paced."""
    reserve: float | None = None
    """Slots of each backend kept for it against lower classes: share or count; None: sized from its traffic."""
    queue_size: int = 1024
    queue_bytes: int = 256 * 2**20
    queue_timeout_s: float = 60.0
    """Longest time a request of this class is held."""
    aging_s: float = 30.0
    """Held this long, a ticket goes before every class: the starvation bound."""
    order: Order = Order.FCFS
    """Of one tenant's requests of this class; tenants take turns in any case."""
    shortest_s_per_token: float = 0.05
    """Order `shortest`: an expected output token counts as this much later an arrival."""
    ttft_slo_ms: float | None = None
    """The first token is wanted this long after arrival, unless a header says otherwise."""
    shed: bool = False
    """Turn away what cannot have its first token by then (a deadline the client gave sheds in any case)."""
    keepalive_after_s: float | None = None
    """A stream that has had no answer for this long gets 200 and comments; None: nothing before the engine answers."""
    stream_interval_ms: float = 0.0
    """While requests are held, its streams go on in pieces this far apart; 0: each piece as it comes."""
    ladder: bool = True
    """Whether the classifier may choose it (False: only structure, rules and headers do, as for `oneshot`)."""


class Forecast:
    """Predicted distribution of output tokens of a whole request (all choices): a piecewise-linear CDF in ln(tokens).

    `edges` are ascending token counts, `cdf[i]` = P(tokens ≤ edges[i]); the last is 1.
    """

    __slots__ = ("cdf", "edges", "expected_tokens", "support")

    def __init__(
        self, edges: tuple[float, ...], cdf: tuple[float, ...], expected_tokens: float, support: float = 0.0
    ) -> None:
        self.edges: Final = edges
        self.cdf: Final = cdf
        self.expected_tokens: Final = expected_tokens
        """The point forecast used for load accounting and order: exp(E[ln tokens]), near the median."""
        self.support: Final = support
        """Answers of the same tenant that it rests on, beside the trained model."""

    def quantile(self, share: float) -> float:
        """Tokens below which `share` of the distribution lies, interpolated in ln(tokens)."""
        index = min(bisect_left(self.cdf, share), len(self.cdf) - 1)
        high, above = self.edges[index], self.cdf[index]
        if index == 0:
            return high * share / above if above > 0.0 else high
        low, below = self.edges[index - 1], self.cdf[index - 1]
        part = (share - below) / (above - below) if above > below else 1.0
        return low * float((high / low) ** part)


class Classification:
    """Which class a request goes to, and why."""

    __slots__ = ("confidence", "expected_tokens", "forecast", "likeliest", "name", "perhaps", "reason")

    def __init__(
        self,
        name: str,
        reason: str,
        expected_tokens: float,
        confidence: float = 1.0,
        forecast: Forecast | None = None,
        *,
        perhaps: Classification | None = None,
        likeliest: str | None = None,
    ) -> None:
        self.name: Final = name
        self.reason: Final = reason
        """`rule:<name>`, `structure`, `header`, `model`, `doubt` (the benefit of it), `default`."""
        self.expected_tokens: Final = expected_tokens
        """Output tokens the scheduler accounts for; from the forecast, else from the class bound and `max_tokens`."""
        self.confidence: Final = confidence
        self.forecast: Final = forecast
        self.perhaps: Final = perhaps
        """The shorter class that it may well belong to: taken instead while that has room, see `classify.placed`."""
        self.likeliest: Final = likeliest or name
        """The class without the benefit of the doubt."""
