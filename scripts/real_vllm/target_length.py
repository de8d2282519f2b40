"""A vLLM plug-in: the answer ends after exactly `vllm_xargs.target_len` tokens, whatever the weights would say.

All requests can so carry the same generous `max_tokens`, and only the prompt tells how long the answer will be, as in
real traffic. Load with `--logits-processors target_length:TargetLength`, this folder on PYTHONPATH.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

END_OF_TEXT = 2


class _StopAt:
    """Forbids the end token until the last position, where it allows nothing else."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __call__(self, output_ids: list[int], logits: Any) -> Any:
        if len(output_ids) >= self._length - 1:
            logits[:] = float("-inf")
            logits[END_OF_TEXT] = 0.0
        else:
            logits[END_OF_TEXT] = float("-inf")
        return logits


class TargetLength(AdapterLogitsProcessor):
    """One `_StopAt` for each request that says its length."""

    @classmethod
    def validate_params(cls, params: Any) -> None:
        """Nothing to check: a wrong value is the experimenter's."""

    def is_argmax_invariant(self) -> bool:
        """No: it decides which token is the likeliest."""
        return False

    def new_req_logits_processor(self, params: Any) -> _StopAt | None:
        """The processor of a new request, or none."""
        length = (params.extra_args or {}).get("target_len")
        return _StopAt(int(length)) if length else None
