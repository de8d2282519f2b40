"""What an engine is: its limits, what a step costs, one request as it sees it. Values, no behaviour over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from prelude_proxy.errors import ConfigError

NS_PER_S = 1_000_000_000


class SchedulingPolicy(StrEnum):
    """Order of the waiting queue, and who is preempted first."""

    FCFS = "fcfs"
    PRIORITY = "priority"
    """Lowest `priority` number first, then arrival; the running request with the highest number is preempted first."""


class SequenceState(IntEnum):
    """Where a request is inside the engine."""

    WAITING = 0
    PREFILLING = 1
    DECODING = 2
    FINISHED = 3
    ABORTED = 4


class EventKind(IntEnum):
    """What can happen to a request that a driver wants to know."""

    FIRST_TOKEN = 0
    FINISHED = 1
    PREEMPTED = 2


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """Cost of one step on one piece of hardware, as a roofline.

        step = fixed + max(load, token · (decodes + prefill)) + sequence · requests + kv_read · context + pair · pairs

    `requests` in the step, `context` KV tokens that decoding requests read, `pairs` (query, key) pairs of the prefill's
    attention. Decoding is bound by reading weights (`load`) and KV, prefill by arithmetic (`token`): the roofline of
    Yuan et al., "LLM Inference Unveiled" (arXiv 2402.16363), with the terms of Vidur's regressions (arXiv 2405.05465).
    All times in seconds.
    """

    name: str
    fixed_s: float
    """Scheduler, launch and sampling of any step."""
    load_s: float
    """Reading the weights once."""
    token_s: float
    """Arithmetic of one token through the dense layers."""
    sequence_s: float
    """Per request in the step: sampling, detokenising, book-keeping."""
    kv_read_s: float
    """Reading the keys and values of one context token for one decoding request."""
    pair_s: float
    """Attention of one prefill token to one earlier token."""
    num_gpu_blocks: int
    """KV blocks of 16 tokens that fit beside the weights; scaled when the block size differs."""
    frontend_s: float = 0.0
    """Between a request's arrival and the queue: HTTP, template, tokeniser. Only the server adds it."""

    def __post_init__(self) -> None:
        for cost in fields(self):
            value = getattr(self, cost.name)
            if cost.name.endswith("_s") and not 0 <= value < 3600:
                raise ConfigError(f"engine profile {self.name!r}: {cost.name} must be 0 … 3600 s, not {value}")
        if self.fixed_s + self.load_s + self.token_s + self.sequence_s < 1e-6:
            raise ConfigError(f"engine profile {self.name!r}: a step must take at least 1 µs")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> EngineProfile:
        """A profile from decoded JSON (what `bench/engine-fidelity fit` writes).

        Raises:
            ConfigError: a field is missing, unknown or not a number.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"engine profile: unknown field {unknown[0]!r}, known are {', '.join(sorted(known))}")
        checked: dict[str, Any] = {
            key: str(value) if key == "name" else _number(key, value) for key, value in values.items()
        }
        try:
            return cls(**checked)
        except TypeError as error:
            raise ConfigError(f"engine profile: {error}") from None


def _number(key: str, value: object) -> float | int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"engine profile: {key} must be a number, not {value!r}")
    return int(value) if key == "num_gpu_blocks" else float(value)


def roofline_profile(
    name: str,
    *,
    parameters: float,
    layers: int,
    hidden: int,
    kv_bytes_per_token: int,
    memory_bytes: float,
    bytes_per_s: float,
    flop_per_s: float,
    bandwidth_efficiency: float = 0.8,
    flop_efficiency: float = 0.6,
) -> EngineProfile:
    """Profile of a dense bf16 model from data-sheet numbers: 2 bytes a weight, 2 flop a weight and token.

    The efficiencies are the shares of peak that serving kernels usually reach (arXiv 2402.16363, section 3). The host's
    1 ms a step and 10 µs a request are the order of vLLM's own scheduler and sampler with CUDA graphs.
    """
    bandwidth = bytes_per_s * bandwidth_efficiency
    flops = flop_per_s * flop_efficiency
    spare_bytes = 0.9 * memory_bytes - 2 * parameters - 2e9  # gpu_memory_utilization 0.9, activations
    return EngineProfile(
        name=name,
        fixed_s=1e-3,
        load_s=2 * parameters / bandwidth,
        token_s=2 * parameters / flops,
        sequence_s=10e-6,
        kv_read_s=kv_bytes_per_token / bandwidth,
        pair_s=4 * hidden * layers / flops,
        num_gpu_blocks=int(spare_bytes / kv_bytes_per_token / 16),
        frontend_s=2e-3,
    )


def _llama_8b(name: str, *, memory_bytes: float, bytes_per_s: float, flop_per_s: float) -> EngineProfile:
    """Llama 3.1 8B in bf16: 32 layers of 4096, 8 KV heads of 128 → 131,072 bytes of KV a token."""
    return roofline_profile(
        name,
        parameters=8.03e9,
        layers=32,
        hidden=4096,
        kv_bytes_per_token=131_072,
        memory_bytes=memory_bytes,
        bytes_per_s=bytes_per_s,
        flop_per_s=flop_per_s,
    )


PROFILES: Mapping[str, EngineProfile] = MappingProxyType(
    {
        profile.name: profile
        for profile in (
            # vLLM 0.32 (CPU build) with the tiny Llama of scripts/real-vllm on two cores of a small virtual machine:
            # solved from 16 step times of a quiet moment, 15 of them within 10 %; frontend_s is set by hand.
            # `bench/engine-fidelity fit URL` fits a profile to the engine and machine at hand; see docs/engine.md.
            EngineProfile(
                name="vllm-cpu-tiny",
                fixed_s=1.73e-3,
                load_s=0.0,
                token_s=16.6e-6,
                sequence_s=246e-6,
                kv_read_s=496e-9,
                pair_s=12.6e-9,
                num_gpu_blocks=65_536,
                frontend_s=5e-3,
            ),
            # NVIDIA data sheets: L4 24 GB, 300 GB/s, 121 TFLOP/s dense bf16; A100 80 GB SXM, 2,039 GB/s, 312 TFLOP/s.
            _llama_8b("llama8b-l4", memory_bytes=24e9, bytes_per_s=300e9, flop_per_s=121e12),
            _llama_8b("llama8b-a100", memory_bytes=80e9, bytes_per_s=2039e9, flop_per_s=312e12),
        )
    }
)


class StepCosts:
    """An `EngineProfile` in whole nanoseconds, so that adding k equal steps is exact and k of them can be skipped."""

    __slots__ = ("_fixed", "_load", "_pair", "_sequence", "_token", "kv_read")

    def __init__(self, profile: EngineProfile) -> None:
        self._fixed = round(profile.fixed_s * NS_PER_S)
        self._load = round(profile.load_s * NS_PER_S)
        self._token = round(profile.token_s * NS_PER_S)
        self._sequence = round(profile.sequence_s * NS_PER_S)
        self._pair = profile.pair_s * NS_PER_S  # only ever part of a single step, so it need not be whole
        self.kv_read = round(profile.kv_read_s * NS_PER_S)

    def step_ns(self, num_decodes: int, context_tokens: int, num_prefills: int, prefill_tokens: int, pairs: int) -> int:
        """Duration of one step; at least 1 ns."""
        compute = self._token * (num_decodes + prefill_tokens)
        dense = max(self._load, compute)
        attention = self.kv_read * context_tokens + round(self._pair * pairs)
        return max(1, self._fixed + dense + self._sequence * (num_decodes + num_prefills) + attention)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What the operator of an engine sets; names and defaults are vLLM's."""

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    num_gpu_blocks: int = 65_536
    block_size: int = 16
    max_model_len: int = 8192
    policy: SchedulingPolicy = SchedulingPolicy.FCFS
    max_num_queued_reqs: int | None = None
    """Most requests in the engine, waiting *and running* (vLLM counts both); None: no limit."""
    reserve_output: bool = False
    """TGI: a request is admitted with the blocks of its whole `max_tokens`, and so is never preempted."""

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "num_gpu_blocks", "block_size", "max_model_len"):
            if getattr(self, name) < 1:
                raise ConfigError(f"engine: {name} must be at least 1, not {getattr(self, name)}")
        if self.max_num_queued_reqs is not None and self.max_num_queued_reqs < 0:
            raise ConfigError(f"engine: max_num_queued_reqs must not be negative, not {self.max_num_queued_reqs}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"engine: max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least "
                f"max_num_seqs ({self.max_num_seqs})"
            )
        if self.usable_blocks * self.block_size < self.max_model_len:
            raise ConfigError(
                f"engine: {self.num_gpu_blocks} KV blocks of {self.block_size} tokens cannot hold one request of "
                f"max_model_len {self.max_model_len}: raise num_gpu_blocks or lower max_model_len"
            )

    @property
    def usable_blocks(self) -> int:
        """Blocks for requests: vLLM keeps one as the null block."""
        return self.num_gpu_blocks - 1


@dataclass(slots=True, eq=False)
class Sequence:
    """One request inside an engine. The driver fills the first part; the rest is the engine's own."""

    prompt_tokens: int
    output_tokens: int
    """True length, `max_tokens` already applied; at least 1. Known to the engine alone."""
    priority: int = 0
    reserve_tokens: int = 0
    """Output tokens to reserve KV for under `reserve_output`: the request's `max_tokens`."""
    prefix: tuple[int, ...] = ()
    """Hashes of the prompt's full blocks, each covering everything before it; empty: not looked up in the cache."""
    owner: Any = None
    """Whatever the driver wants to find again in an event."""

    state: SequenceState = SequenceState.WAITING
    arrival_s: float = 0.0
    first_token_s: float | None = None
    end_s: float | None = None
    num_preemptions: int = 0
    cached_tokens: int = 0
    """Prompt tokens the prefix cache spared at the first admission."""
    generated: int = 0
    """Output tokens written before the present stay in the running batch; see `Engine.generated`."""
    computed: int = 0
    """Tokens prefilled in the present stay."""
    blocks: int = 0
    """KV blocks held while prefilling, or reserved for good under `reserve_output`."""
    offset: int = 0
    """While decoding: generated tokens = offset + the engine's step count."""
    serial: int = 0

    @property
    def kv_tokens(self) -> int:
        """Tokens to prefill at the next admission: prompt and what had been written before a preemption."""
        return self.prompt_tokens + self.generated


class Event(NamedTuple):
    """Something happened to `sequence` at `time_s`."""

    kind: EventKind
    time_s: float
    sequence: Sequence


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine's `/metrics` can tell, at one moment."""

    num_running: int
    num_waiting: int
    kv_usage: float
    """Share of KV blocks in use, 0 … 1."""
    num_preemptions: int
    prompt_tokens: int
    """Prefilled so far, cached ones included, recomputed ones not (as vLLM counts)."""
    generation_tokens: int
    prefix_queries_tokens: int
    prefix_hits_tokens: int
    num_finished: int
    num_aborted: int
    num_rejected: int
    num_steps: int
    busy_s: float
