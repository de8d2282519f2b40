"""What is asked and when: seeded plans from the built-in mix, from recorded prompts, or from a trace's numbers.

Pure: a plan is a list of `WorkItem`, ordered by time, and the same seed gives the same plan. A live run renders each
item into a request when it is due (`wire`); a simulator needs only the numbers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prelude_proxy.bench import prompts
from prelude_proxy.core.domain import GENERATING
from prelude_proxy.core.parse import endpoint_of, estimate_tokens, iter_text

CLASSES = ("oneshot", "fast", "standard", "deep")
CLASS_BOUNDS = (("fast", 64), ("standard", 512))
"""True output tokens up to which a request counts as the class; above the last it is `deep`."""
CHAT_PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One planned request. `klass` is its true class, from the true length, which no front door is told."""

    at_s: float
    klass: str
    prompt_tokens: int
    output_tokens: int
    tenant: str | None = None
    path: str = CHAT_PATH
    content: Mapping[str, Any] | None = None
    """The body's own fields (messages, prompt, …); None: text of `prompt_tokens` is made from `seed`."""
    headers: tuple[tuple[str, str], ...] = ()
    prefix_blocks: tuple[int, ...] = ()
    """Ids of the 512-token blocks of its prompt, equal where prompts shared a prefix."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engines under test can take: longer outputs are cut, longer prompts cut (traces) or left out (data)."""

    max_output_tokens: int = 900
    max_prompt_tokens: int = 1500


def class_of(output_tokens: int, path: str = CHAT_PATH) -> str:
    """The class of a request whose true output length is known."""
    if output_tokens <= 1 or endpoint_of(path) not in GENERATING:
        return "oneshot"
    return next((name for name, bound in CLASS_BOUNDS if output_tokens <= bound), "deep")


# --- arrivals ---------------------------------------------------------------------------------------------------------


def poisson_arrivals(rate: float, seconds: float, rng: random.Random) -> Iterator[float]:
    """Arrival times in `[0, seconds)` of a Poisson stream of `rate` requests a second."""
    at_s = rng.expovariate(rate)
    while at_s < seconds:
        yield at_s
        at_s += rng.expovariate(rate)


def rescaled(plan: Sequence[WorkItem], scale: float, seconds: float | None = None) -> list[WorkItem]:
    """`plan` at `scale` times its rate, cut at `seconds` of the new time; the mix and burstiness stay."""
    if scale <= 0:
        raise ValueError("scale must be above 0")
    moved = (replace(item, at_s=item.at_s / scale) for item in plan)
    return [item for item in moved if seconds is None or item.at_s < seconds]


def shifted(plan: Sequence[WorkItem], by_s: float) -> list[WorkItem]:
    """`plan` moved in time."""
    return [replace(item, at_s=item.at_s + by_s) for item in plan]


def mean_rate(plan: Sequence[WorkItem]) -> float:
    """Requests a second over the span of `plan`; 0 if that cannot be told."""
    span_s = plan[-1].at_s - plan[0].at_s if plan else 0.0
    return (len(plan) - 1) / span_s if span_s > 0 else 0.0


# --- tenants ----------------------------------------------------------------------------------------------------------


def with_tenants(plan: Iterable[WorkItem], weights: Mapping[str, float], seed: int) -> list[WorkItem]:
    """`plan` with every item given to a tenant, drawn by weight."""
    rng = random.Random(f"{seed}/tenants")
    names, shares = list(weights), list(weights.values())
    return [replace(item, tenant=rng.choices(names, shares)[0]) for item in plan]


# --- the built-in mix -------------------------------------------------------------------------------------------------

Draw = Callable[[float, str, random.Random], WorkItem]
"""Makes the item of a class that arrives at a time."""


def mix_plan(
    weights: Mapping[str, float], rate: float, seconds: float, seed: int, draw: Draw | None = None
) -> list[WorkItem]:
    """One Poisson stream whose items are of the classes in `weights`, each made by `draw` (default: built-in prompts).

    Arrival times, classes and lengths depend on the seed alone, so every target gets the very same requests.
    """
    draw = draw or built_in_draw(Limits())
    rng = random.Random(f"{seed}/mix")
    names = [name for name, weight in weights.items() if weight > 0]
    shares = [weights[name] for name in names]
    return [draw(at_s, rng.choices(names, shares)[0], rng) for at_s in poisson_arrivals(rate, seconds, rng)]


def built_in_draw(limits: Limits) -> Draw:
    """Items of the built-in prompts, with a length drawn from their class's range."""

    def draw(at_s: float, klass: str, rng: random.Random) -> WorkItem:
        text = prompts.question(klass, rng)
        return WorkItem(
            at_s=at_s,
            klass=klass,
            prompt_tokens=estimate_tokens(text),
            output_tokens=min(rng.randint(*prompts.OUTPUT_TOKENS[klass]), limits.max_output_tokens),
            content={"messages": [{"role": "user", "content": text}]},
            seed=rng.getrandbits(32),
        )

    return draw


# --- recorded prompts -------------------------------------------------------------------------------------------------

_TEXT_FIELDS = ("messages", "prompt", "system", "input", "inputs", "query", "documents", "text")


def data_items(rows: Iterable[Mapping[str, Any]], limits: Limits, *, whole_body: bool = False) -> list[WorkItem]:
    """Items (at time 0) of rows `{"request", "output_tokens", "headers"?, "path"?}`; too long prompts are left out.

    Of each request only its text is kept, which every engine takes, unless `whole_body`.

    Raises:
        ValueError: a row lacks `request` or `output_tokens`; the message names the row.
    """
    items = []
    for number, row in enumerate(rows, 1):
        request, output = row.get("request"), row.get("output_tokens")
        if not isinstance(request, dict) or not isinstance(output, int):
            message = f"row {number}: needs an object 'request' and a number 'output_tokens'"
            raise ValueError(message)  # noqa: TRY004  (the file's fault, not the caller's)
        item = _data_item(row, request, output, limits, whole_body)
        if item.prompt_tokens <= limits.max_prompt_tokens:
            items.append(item)
    return items


def _data_item(
    row: Mapping[str, Any], request: Mapping[str, Any], output: int, limits: Limits, whole_body: bool
) -> WorkItem:
    path = str(row.get("path") or (CHAT_PATH if "messages" in request else "/v1/completions"))
    headers = {str(k).lower(): str(v) for k, v in (row.get("headers") or {}).items()}
    return WorkItem(
        at_s=0.0,
        klass=class_of(output, path),
        prompt_tokens=sum(map(estimate_tokens, _texts(request))),
        output_tokens=min(output, limits.max_output_tokens),
        tenant=headers.pop("x-tenant-id", None) or row.get("source"),
        path=path,
        content=request if whole_body else {key: request[key] for key in _TEXT_FIELDS if key in request},
        headers=tuple(headers.items()),
    )


def _texts(request: Mapping[str, Any]) -> Iterator[str]:
    for key in _TEXT_FIELDS:
        value = request.get(key)
        for part in value if isinstance(value, list) else [value]:
            yield from iter_text(part.get("content") if isinstance(part, dict) else part)


def data_draw(items: Sequence[WorkItem]) -> Draw:
    """Draws a recorded item of the class asked for.

    Raises:
        ValueError: when drawing a class the data has no row of.
    """
    by_class: dict[str, list[WorkItem]] = {}
    for item in items:
        by_class.setdefault(item.klass, []).append(item)

    def draw(at_s: float, klass: str, rng: random.Random) -> WorkItem:
        if klass not in by_class:
            raise ValueError(f"the data has no request of class {klass!r} (it has {', '.join(sorted(by_class))})")
        return replace(rng.choice(by_class[klass]), at_s=at_s)

    return draw


def data_plan(items: Sequence[WorkItem], rate: float, seconds: float, seed: int) -> list[WorkItem]:
    """The recorded items in seeded random order and their natural mix, as one Poisson stream."""
    if not items:
        raise ValueError("the data has no request within the limits")
    rng = random.Random(f"{seed}/data")
    order: list[WorkItem] = []
    plan = []
    for at_s in poisson_arrivals(rate, seconds, rng):
        if not order:
            order = rng.sample(items, len(items))
        plan.append(replace(order.pop(), at_s=at_s))
    return plan
