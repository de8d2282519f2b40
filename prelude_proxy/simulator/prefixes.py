"""The prefix block ids of a trace as the two sides of a run see them: the engine its KV blocks, the proxy its chain.

An id stands for 512 tokens and all before them (Mooncake), so equal ids are equal prefixes.
"""

from __future__ import annotations

from prelude_proxy.bench.prompts import BLOCK_TOKENS as ID_TOKENS
from prelude_proxy.bench.workload import WorkItem
from prelude_proxy.core.prefix import BLOCK_TOKENS

_STRIDE = 2**20
"""More than the tokens of any prompt: keeps the parts of one id apart from the next."""


def engine_blocks(item: WorkItem, block_size: int) -> tuple[int, ...]:
    """What `engine.model.Sequence.prefix` wants: one hash for each full block of the prompt."""
    ids = item.prefix_blocks
    num_blocks = min(item.prompt_tokens, len(ids) * ID_TOKENS) // block_size
    return tuple(_part(ids, (index + 1) * block_size) for index in range(num_blocks))


def chain(item: WorkItem) -> tuple[int, ...]:
    """What `core.prefix.prefix_of` would make of the prompt."""
    ids = item.prefix_blocks
    known = min(item.prompt_tokens, len(ids) * ID_TOKENS)
    return tuple(_part(ids, end) for end in BLOCK_TOKENS if end <= known)


def _part(ids: tuple[int, ...], end: int) -> int:
    """The first `end` tokens."""
    return ids[(end - 1) // ID_TOKENS] * _STRIDE + end
