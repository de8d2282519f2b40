"""YAML → typed, validated configuration. The only file that reads YAML or the environment for it.

Every field's docstring is its user documentation: `docs/configuration.md` is generated from here.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from prelude_proxy.core.affinity import AffinityPolicy
from prelude_proxy.core.domain import ClassSpec, EngineKind, Order
from prelude_proxy.core.rules import Bounds, Condition
from prelude_proxy.core.rules import Rule as CoreRule
from prelude_proxy.errors import ConfigError


def _url(value: str) -> str:
    try:
        parts = urlsplit(value.strip())
        is_good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # a port that is none, a bracket that is not closed
        is_good = False
    if not is_good or any(char in value.strip() for char in " ?#"):
        raise ValueError(f"{value!r} is not an http(s) URL such as http://10.0.0.5:8000")
    return value.strip().rstrip("/")


Url = Annotated[str, AfterValidator(_url)]
Seconds = Annotated[float, Field(gt=0)]
ByteCount = Annotated[int, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True, validate_default=True)


class Listen(_Section):
    """Where clients connect."""

    host: str = "0.0.0.0"  # noqa: S104  a front door listens to everyone; the operator narrows it
    """Address of the data port."""
    port: int = Field(8080, ge=0, le=65535)
    """Data port; 0 picks a free one."""
    backlog: int = Field(4096, gt=0)
    """Length of the kernel's accept queue."""


class Admin(_Section):
    """Where `/metrics`, `/healthz`, `/readyz` and `/status` are served."""

    host: str = "0.0.0.0"  # noqa: S104  probes and Prometheus come from outside the pod
    """Address of the admin port."""
    port: int = Field(9090, ge=0, le=65535)
    """Admin port; 0 picks a free one."""


class Backend(_Section):
    """One engine."""

    url: Url
    """Base URL, without the path of an endpoint."""
    kind: EngineKind | None = None
    """`vllm`, `tgi`, `sglang`, or `openai`: anything OpenAI-shaped without telemetry; default: the pool's."""
    window: int | None = Field(None, gt=0)
    """A fixed number of requests this engine may hold at once; default: found and followed automatically."""
    weight: float = Field(1.0, gt=0)
    """Relative speed of the engine, for routing."""
    labels: dict[str, str] = {}
    """Free labels, matched by `pools[].class_labels`."""
    name: str | None = None
    """Name in metrics, logs and headers; default: host and port of the URL."""

    @property
    def display_name(self) -> str:
        """The name metrics, logs and headers use."""
        return self.name or self.url.partition("://")[2].rpartition("@")[2]


class Routing(_Section):
    """Which of the backends with a free slot gets a request: the least occupied, or one that knows it already."""

    prefix_affinity: bool = True
    """Prefer the backend that has lately prefilled the start of the same prompt (its prefix cache spares that work), as
    far as that outweighs what else it has to do."""
    cache_tokens: int = Field(1_000_000, gt=0)
    """Prompt tokens that one backend is taken to remember; the engine's KV cache, in tokens."""
    session_header: str | None = "x-session-id"
    """Requests of one tenant with the same value of this header go to the same backend; none: no such header."""
    session_cookie: str | None = None
    """The same by a cookie, for requests without that header."""
    session_field: str | None = None
    """The same by a field of the body, e.g. `user` or `prompt_cache_key`, for requests with neither."""
    max_extra_load: float = Field(0.1, ge=0)
    """Share of its window that a backend may have in use beyond that of the least occupied one, or one request, and
    still be preferred for a prefix or a session. No request waits for a preferred backend."""

    def policy(self) -> AffinityPolicy:
        """The same as the core uses it."""
        return AffinityPolicy(
            prefix=self.prefix_affinity,
            session_header=self.session_header.lower() if self.session_header else None,
            session_cookie=self.session_cookie,
            session_field=self.session_field,
            max_extra_load=self.max_extra_load,
            cache_tokens=self.cache_tokens,
        )


class Pool(_Section):
    """Backends that can stand in for each other."""

    name: str = "default"
    """Name in rules, metrics and logs."""
    models: list[str] = ["*"]
    """Model names this pool serves; `*`: whatever its backends list at `/v1/models`."""
    aliases: dict[str, str] = {}
    """Further names a client may say → the model that is meant. The body is forwarded as it came, so the engine
    has to know the alias too (vLLM: `--served-model-name`)."""
    kind: EngineKind = EngineKind.VLLM
    """Engine kind of backends that name none."""
    backends: list[Backend] = []
    """The engines. May be empty: requests then wait `admission.cold_start_wait_s` for one to appear."""
    class_labels: dict[str, dict[str, str]] = {}
    """Class → labels a backend must carry to get it, e.g. `deep: {tier: batch}`."""
    routing: Routing = Routing()
    """Which of its backends gets a request."""
    in_engine_priority: bool = False
    """Send `X-Vllm-Priority` by class (the engine must run with `--scheduling-policy priority`)."""
    api_key_env: str | None = None
    """Environment variable with the bearer token sent to the backends instead of the client's."""


class ExecutionClass(_Section):
    """What belongs to a class and what it may use."""

    priority: int
    """Order of preference; the lowest goes first."""
    max_output_tokens: int | None = Field(None, gt=0)
    """Predicted output tokens up to which a request belongs here; none: no bound."""
    max_prompt_tokens: int | None = Field(None, gt=0)
    """A longer prompt moves the request to the next class: its prefill alone is heavy."""
    ceiling: float | None = Field(None, gt=0)
    """Most slots of one backend it may use: a share of the window (< 1) or a count (≥ 1)."""
    fleet_ceiling: float | None = Field(None, gt=0)
    """The same over all backends of a pool together."""
    ceiling_tokens: int | None = Field(None, gt=0)
    """Instead of slots, predicted tokens (prompt and answer): once those at one backend reach this, it gets no more
    there. A stream that outgrows its class counts for more from then on."""
    fleet_ceiling_tokens: int | None = Field(None, gt=0)
    """The same over all backends of a pool together."""
    prefill_stall_s: float | None = Field(None, gt=0)
    """How long its prompts may stall more urgent work at a backend, in seconds: while there is any, they go there one
    after the other, or as many as the engine prefills in this time (its speed is learned). None: never paced."""
    reserve: float | Literal["auto"] = "auto"
    """Slots of each backend kept for it against lower classes: a share (< 1), a count (≥ 1), or `auto` (sized from its
    measured arrival rate and service time by square-root staffing)."""
    queue_size: int = Field(32768, ge=0)
    """Most requests held; 0: never hold."""
    queue_bytes: ByteCount = 512 * 2**20
    """Most body bytes held."""
    queue_timeout_s: Seconds = 300.0
    """Longest time a request is held before 429."""
    aging_s: Seconds = 60.0
    """Held this long, a request goes before every other class (never into another's reserve)."""
    order: Order = Order.FCFS
    """Who of one tenant's held requests goes next: `fcfs` (first come), `shortest` (fewest predicted tokens, see
    `shortest_s_per_token`) or `deadline` (earliest due, by `x-prelude-deadline-ms` or `ttft_slo_ms`)."""
    shortest_s_per_token: float = Field(0.05, ge=0)
    """For order `shortest`: an expected output token counts as this much later an arrival, so a request of n tokens can
    be overtaken for this times n seconds, at most for `aging_s`."""
    ttft_slo_ms: float | None = Field(None, gt=0)
    """When the first token is wanted, after arrival; `x-prelude-deadline-ms` and `x-llm-d-slo-ttft-ms` override it."""
    shed: bool = False
    """Turn away at once, with 429 and `retry-after`, what cannot have its first token in time. A request with
    `x-prelude-deadline-ms` is treated so in any case."""
    keepalive_after_s: float | None = Field(None, gt=0)
    """A stream of this class that has had no answer for this long gets status 200 and a comment (`: keep-alive`), and
    another each time it passes: some load balancers cut connections that are idle for 60 s. What goes wrong afterwards
    is an error event in the stream. None: nothing is sent before the engine answers, so the status stays honest."""
    stream_interval_ms: float = Field(0.0, ge=0)
    """While requests are held, a stream of this class that is faster goes on in pieces this far apart instead of token
    by token, which saves work at both ends. Its beginning goes on at once, and all of it while nothing waits."""
    ladder: bool = True
    """Whether the classifier may choose it; if not, only structure, rules and headers do."""


DEFAULT_CLASSES: dict[str, dict[str, Any]] = {
    "oneshot": {"priority": 0, "ladder": False, "reserve": 0, "queue_timeout_s": 60.0, "aging_s": 10.0},
    "fast": {
        "priority": 1,
        "max_output_tokens": 64,
        "max_prompt_tokens": 4096,
        "queue_timeout_s": 120.0,
        "aging_s": 10.0,
    },
    "standard": {
        "priority": 2,
        "max_output_tokens": 512,
        "max_prompt_tokens": 16384,
        "prefill_stall_s": 0.2,
        "queue_timeout_s": 300.0,
        "aging_s": 30.0,
        "order": "shortest",
    },
    "deep": {
        "priority": 3,
        "prefill_stall_s": 0.2,
        "reserve": 0,
        "queue_timeout_s": 600.0,
        "aging_s": 15.0,
        "stream_interval_ms": 50.0,
    },
}


class Range(_Section):
    """An inclusive range of a number."""

    min: int | None = None
    """Smallest value that matches."""
    max: int | None = None
    """Largest value that matches."""


class Match(_Section):
    """What a rule looks at; all that is given must hold. Texts are shell patterns (`*`, `?`, `[a-z]`)."""

    path: str | None = None
    """Request path, e.g. `/v1/chat/*`."""
    headers: dict[str, str] = {}
    """Header → pattern of its value; `*` asks only that it is there."""
    tenant: str | None = None
    """Tenant (see `tenants`)."""
    model: str | None = None
    """Model name."""
    prompt_tokens: Range | None = None
    """Estimated prompt tokens."""
    max_tokens: Range | None = None
    """The client's bound on output tokens; a request without one does not match."""
    stream: bool | None = None
    """Whether the answer is streamed."""
    tools: bool | None = None
    """Whether tools are offered."""
    json_schema: bool | None = None
    """Whether the answer is bound to a JSON schema or grammar."""
    reasoning: bool | None = None
    """Whether a reasoning switch is on (`true`) or explicitly off (`false`)."""


class Rule(_Section):
    """First match wins. Decides a class, a pool, or a rejection."""

    name: str
    """Name in `explain`, logs and metrics."""
    when: Match = Match()
    """Condition."""
    class_: str | None = Field(None, alias="class")
    """Class to use instead of the predicted one."""
    pool: str | None = None
    """Pool to use instead of the model's."""
    reject: str | None = None
    """Answer with this message instead of serving."""
    status: int = Field(403, ge=400, le=499)
    """Status of the rejection."""

    @model_validator(mode="after")
    def _decides_something(self) -> Rule:
        if self.class_ is None and self.pool is None and self.reject is None:
            raise ValueError("a rule must decide something: give `class`, `pool` or `reject`")
        return self


class Tenant(_Section):
    """A caller known by its API key."""

    name: str
    """Name in metrics, logs and rules."""
    api_key_env: str
    """Environment variable that holds its key."""
    trust_class_header: bool = False
    """Whether `x-prelude-class` from it may also raise the class."""
    weight: float = Field(1.0, gt=0)
    """Share it gets inside a class relative to others."""


class Admission(_Section):
    """How requests are held and let through."""

    mode: Literal["class-aware", "fcfs"] = "class-aware"
    """`fcfs` passes everything on at once, to the least loaded backend: the emergency switch, and the baseline."""
    trust_class_header: bool = False
    """Whether `x-prelude-class` from anyone may also raise the class."""
    max_queue_size: int = Field(65536, ge=0)
    """Most requests held in all."""
    max_queue_bytes: ByteCount = 2**30
    """Most body bytes held in all."""
    cold_start_wait_s: float = Field(15.0, ge=0)
    """How long requests wait for a first backend when none is up, before 503."""
    initial_window: int = Field(16, gt=0)
    """Requests an engine may hold before anything is known of it."""
    max_window: int = Field(4096, gt=0)
    """Most requests an engine may ever hold."""
    feed: int = Field(1, ge=0)
    """Requests that may wait inside an engine so that it never idles between two steps."""
    reserve_beta: float = Field(1.0, ge=0)
    """Safety factor β of the automatic reserve ⌈a + β√a⌉, a the offered load in slots."""
    max_reserve: float = Field(0.75, ge=0, lt=1)
    """Most of a window that all reserves together may keep free."""
    max_tenants: int = Field(1024, gt=0)
    """Tenants told apart; the rest share one line."""
    max_attempts: int = Field(3, gt=0)
    """Tries a request gets, each on another backend, before the first byte reached the client."""
    retry_budget: float = Field(0.2, ge=0, le=1)
    """Retries allowed as a share of requests, over ten seconds (connect failures are always retried)."""


class Telemetry(_Section):
    """Scrapes of the engines' `/metrics` and health probes."""

    interval_s: Seconds = 0.25
    """Time between scrapes of one backend."""
    steady_interval_s: Seconds = 1.0
    """The same while its window is steady, if that is longer; not above `interval_s`: at all times alike."""
    timeout_s: Seconds = 2.0
    """Longest time for one scrape."""
    stale_after_s: Seconds = 3.0
    """Telemetry older than this is not believed."""
    health_interval_s: Seconds = 2.0
    """Time between health probes of one backend."""
    health_timeout_s: Seconds = 5.0
    """Longest time for one probe."""
    discovery_interval_s: Seconds = 30.0
    """Time between looks at a backend's `/v1/models`."""

    @property
    def longest_interval_s(self) -> float:
        """Time between scrapes of a backend whose window is steady."""
        return max(self.interval_s, self.steady_interval_s)

    @model_validator(mode="after")
    def _is_believed_till_the_next(self) -> Telemetry:
        if self.stale_after_s <= self.longest_interval_s:
            raise ValueError(
                f"stale_after_s ({self.stale_after_s:g}) must be longer than the longest time between two scrapes,"
                f" interval_s or steady_interval_s ({self.longest_interval_s:g})"
            )
        return self


class Health(_Section):
    """When a backend is taken out and let in again."""

    unhealthy_after: int = Field(3, gt=0)
    """Failed probes in a row that take a backend out."""
    eject_after: int = Field(5, gt=0)
    """Failed requests in a row that open its circuit breaker."""
    eject_s: Seconds = 5.0
    """Time before one request may try it again; doubles up to 16 times this."""


class Timeouts(_Section):
    """Per phase of a request to a backend; a long generation is never cut by a total."""

    connect_s: Seconds = 5.0
    """TCP (and TLS) connect."""
    first_byte_s: Seconds = 600.0
    """From the sent request to the head of the answer (a non-streamed answer is this late by nature)."""
    idle_s: Seconds = 120.0
    """Between two pieces of the answer."""
    header_s: Seconds = 30.0
    """For a client to send the head of a request on a connection."""
    body_s: Seconds = 60.0
    """For a client to send the body."""
    keepalive_s: Seconds = 75.0
    """How long an idle client connection stays open."""
    upstream_keepalive_s: Seconds = 4.0
    """How long an idle backend connection is reused; below the engines' own 5 s."""
    shutdown_grace_s: Seconds = 120.0
    """How long held and streaming requests may finish after SIGTERM."""


class Limits(_Section):
    """Bounds on what a client may send."""

    max_body_bytes: ByteCount = 8 * 2**20
    """Largest request body."""
    max_connections: int = Field(65536, gt=0)
    """Most client connections at once."""
    max_label_values: int = Field(100, gt=0)
    """Distinct client-given names (models, tenants) in metrics; the rest become `other`."""


class Classifier(_Section):
    """Prediction of output length."""

    enabled: bool = True
    """Without it classes come from structure, rules and headers, else `default_class`."""
    model: Path | None = None
    """Directory of a trained model; default: the one shipped with the package."""
    shadow_model: Path | None = None
    """A second model, scored on live traffic without effect."""
    default_class: str = "standard"
    """Class of a request about which nothing is known."""
    online: bool = True
    """Learn from answers seen: the blend with what each tenant, model and prompt family tends to produce."""
    journal: Path | None = None
    """Directory for the training journal (features and outcome, never text); default: none is written."""
    journal_max_bytes: ByteCount = 256 * 2**20
    """Most bytes the journal keeps; the oldest file goes first."""


class Logging(_Section):
    """Logs on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is written."""
    format: Literal["text", "json"] = "text"
    """One line a record, for people or for machines."""
    access: bool = True
    """One record a request."""
    prompts: bool = False
    """Include prompt text in access records. Off: no prompt text is ever written."""


class Headers(_Section):
    """What the proxy adds to answers."""

    backend: bool = True
    """`x-prelude-backend`."""
    timing: bool = True
    """`server-timing`, `x-prelude-queue-ms`."""


class Config(_Section):
    """The whole configuration."""

    listen: Listen = Listen()
    """Where clients connect."""
    admin: Admin = Admin()
    """Where operators and probes connect."""
    pools: list[Pool] = Field([Pool()], min_length=1)
    """Model → backends."""
    classes: dict[str, ExecutionClass] = {}
    """Execution classes; given ones are merged over the defaults `oneshot`, `fast`, `standard`, `deep`."""
    rules: list[Rule] = []
    """Decisions before the classifier."""
    tenants: list[Tenant] = []
    """Callers known by API key. Others are told apart by `x-tenant-id` or `x-user-id`."""
    admission: Admission = Admission()
    """Holding and letting through."""
    classifier: Classifier = Classifier()
    """Prediction."""
    telemetry: Telemetry = Telemetry()
    """Scrapes and probes."""
    health: Health = Health()
    """Ejection and return of backends."""
    timeouts: Timeouts = Timeouts()
    """Time bounds."""
    limits: Limits = Limits()
    """Size bounds."""
    headers: Headers = Headers()
    """Response headers."""
    logging: Logging = Logging()
    """Logs."""

    @field_validator("classes", mode="before")
    @classmethod
    def _merge_defaults(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        merged: dict[str, Any] = {name: dict(fields) for name, fields in DEFAULT_CLASSES.items()}
        for name, fields in given.items():
            if fields is None:
                merged.pop(name, None)
            elif isinstance(fields, dict):
                merged[name] = {**merged.get(name, {}), **fields}
            else:
                merged[name] = fields
        return merged

    @model_validator(mode="after")
    def _names_resolve(self) -> Config:
        pools = [pool.name for pool in self.pools]
        _unique("pools", pools)
        _unique("backends", [backend.url for pool in self.pools for backend in pool.backends])
        _unique("names of backends", [backend.display_name for pool in self.pools for backend in pool.backends])
        _unique("rules", [rule.name for rule in self.rules])
        _unique("tenants", [tenant.name for tenant in self.tenants])
        _unique("api_key_env of tenants", [tenant.api_key_env for tenant in self.tenants])
        for index, rule in enumerate(self.rules):
            if rule.class_ is not None:
                _known(f"rules[{index}].class", rule.class_, self.classes)
            if rule.pool is not None:
                _known(f"rules[{index}].pool", rule.pool, pools)
        for index, pool in enumerate(self.pools):
            for name in pool.class_labels:
                _known(f"pools[{index}].class_labels", name, self.classes)
        _known("classifier.default_class", self.classifier.default_class, self.classes)
        _ladder(self.classes)
        return self

    def class_specs(self) -> list[ClassSpec]:
        """The classes as the core uses them, most urgent first."""
        is_paced = self.admission.mode == "class-aware"
        specs = [
            ClassSpec(
                name=name,
                **{
                    **fields.model_dump(),
                    "reserve": None if fields.reserve == "auto" else fields.reserve,
                    "prefill_stall_s": fields.prefill_stall_s if is_paced else None,
                },
            )
            for name, fields in self.classes.items()
        ]
        return sorted(specs, key=lambda spec: spec.priority)

    def core_rules(self) -> list[CoreRule]:
        """The rules as the core matches them."""
        return [
            CoreRule(
                rule.name,
                Condition(
                    path=rule.when.path,
                    headers={name.lower(): pattern for name, pattern in rule.when.headers.items()},
                    tenant=rule.when.tenant,
                    model=rule.when.model,
                    prompt_tokens=_bounds(rule.when.prompt_tokens),
                    max_tokens=_bounds(rule.when.max_tokens),
                    stream=rule.when.stream,
                    tools=rule.when.tools,
                    json_schema=rule.when.json_schema,
                    reasoning=rule.when.reasoning,
                ),
                class_name=rule.class_,
                pool=rule.pool,
                reject=rule.reject,
                status=rule.status,
            )
            for rule in self.rules
        ]

    def dump_yaml(self) -> str:
        """The effective configuration, defaults filled in."""
        plain = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _bounds(given: Range | None) -> Bounds | None:
    return None if given is None else (given.min, given.max)


def _unique(where: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{where}: {name!r} is given twice")


def _known(where: str, name: str, names: Any) -> None:
    if name not in names:
        raise ValueError(f"{where}: no {name!r} is configured{_nearest(name, list(names))}")


def _ladder(classes: dict[str, ExecutionClass]) -> None:
    rungs = sorted((c for c in classes.values() if c.ladder), key=lambda c: c.priority)
    if not rungs:
        raise ValueError("classes: at least one class needs `ladder: true` for the classifier to choose from")
    bounds = [rung.max_output_tokens for rung in rungs]
    if bounds[-1] is not None or None in bounds[:-1]:
        raise ValueError("classes: of those on the ladder the last by priority, and only it, has no max_output_tokens")
    if bounds[:-1] != sorted(set(bounds[:-1])):  # type: ignore[type-var]  # None was excluded just above
        raise ValueError("classes: max_output_tokens must grow with priority")
    priorities = [c.priority for c in classes.values()]
    if len(set(priorities)) != len(priorities):
        raise ValueError("classes: every class needs a priority of its own")


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f" (known: {', '.join(sorted(names))})" if names else ""


def build_config(data: object, *, source: str = "configuration") -> Config:
    """Validate decoded YAML.

    Raises:
        ConfigError: every mistake, one line each: path, reason, nearest valid name.
    """
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: the top level must be a mapping of sections, not {type(data).__name__}")
    try:
        # a section whose every line is commented out is None, and means its defaults
        return Config.model_validate(
            {"classes": {}, **{key: value for key, value in data.items() if value is not None}}
        )
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from None


class _Loader(yaml.SafeLoader):
    """Also refuses a key given twice: YAML forbids it, and the loader would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """What `path` holds, decoded and not looked at.

    Raises:
        ConfigError: the file cannot be read or is not YAML.
    """
    try:
        return yaml.load(path.read_text("utf-8"), _Loader)  # noqa: S506  a SafeLoader
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split()).replace('in "<unicode string>", ', "at ")
        raise ConfigError(f"{path}: is not YAML: {reason}") from None


def load_config(path: Path) -> Config:
    """Read and validate `path`.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or is not a valid configuration.
    """
    return build_config(read_yaml(path), source=str(path))


def read_secret(variable: str, *, where: str) -> str:
    """The value of environment variable `variable`, which the configuration names at `where`.

    Raises:
        ConfigError: it is not set.
    """
    value = os.environ.get(variable)
    if not value:
        raise ConfigError(f"{where}: environment variable {variable} is not set")
    return value


def _explain(problem: Any) -> str:
    path = _path(problem["loc"])
    if problem["type"] == "extra_forbidden":
        name = str(problem["loc"][-1])
        return f"{path}: unknown key{_nearest(name, _fields_at(problem['loc'][:-1]))}"
    if problem["type"] in {"model_type", "dataclass_type"}:
        return f"{path}: must be a mapping of settings, not {type(problem['input']).__name__}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{path}: {message}" if path else message


def _path(loc: tuple[int | str, ...]) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _fields_at(loc: tuple[int | str, ...]) -> list[str]:
    """Field names valid at `loc`, found by walking the schema."""
    schema = Config.model_json_schema(by_alias=True)
    node = schema
    for part in loc:
        node = _child(_resolve(schema, node), part)
    return list(_resolve(schema, node).get("properties", {}))


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    for option in node.get("anyOf", []):
        if "$ref" in option:
            node = option
            break
    if "$ref" in node:
        resolved: dict[str, Any] = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
        return resolved
    return node


def _child(node: dict[str, Any], part: int | str) -> dict[str, Any]:
    if isinstance(part, int):
        child = node.get("items", {})
    else:
        child = node.get("properties", {}).get(part) or node.get("additionalProperties", {})
    return child if isinstance(child, dict) else {}
