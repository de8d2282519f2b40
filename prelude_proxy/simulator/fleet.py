"""What is simulated: engines, the network between them and the front door, and how telemetry is taken."""

from __future__ import annotations

from dataclasses import dataclass, replace

from prelude_proxy.engine.model import EngineConfig, EngineProfile

_BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One engine: what its operator set, and the hardware it runs on."""

    config: EngineConfig
    profile: EngineProfile
    prefix_cache: bool = True
    """Spare the prefill of known prompts; only workloads with prefix block ids have any."""

    @classmethod
    def of(
        cls,
        profile: EngineProfile,
        max_num_seqs: int,
        num_gpu_blocks: int | None = None,
        max_model_len: int = 8192,
        *,
        prefix_cache: bool = True,
    ) -> EngineSpec:
        """With the KV cache of the profile's card unless `num_gpu_blocks` is given; context as long as fits in it."""
        blocks = num_gpu_blocks or profile.num_gpu_blocks
        longest = min(max_model_len, (blocks - 1) * _BLOCK_TOKENS)
        config = EngineConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max(2048, max_num_seqs),
            num_gpu_blocks=blocks,
            max_model_len=longest,
        )
        return cls(config, profile, prefix_cache)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Engines behind one front door."""

    engines: tuple[EngineSpec, ...]
    network_s: float = 0.001
    """One way between front door and engine."""
    api_s: float = 0.004
    """From an engine's socket to its queue: HTTP, template, tokeniser."""
    proxy_s: float = 0.0005
    """What a proxy adds each way; a policy without one does not pay it."""
    sample_every_s: float = 0.25
    """Between two telemetry samples of one engine."""
    sample_lag_s: float = 0.0
    """How old a sample is when the proxy sees it."""

    @classmethod
    def of(cls, spec: EngineSpec, count: int) -> Fleet:
        """`count` equal engines."""
        return cls((spec,) * count)

    def with_lag(self, sample_lag_s: float) -> Fleet:
        """The same, with telemetry that much older."""
        return replace(self, sample_lag_s=sample_lag_s)
