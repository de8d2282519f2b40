"""Prefix cache: which full prompt blocks the engine has seen lately."""

from __future__ import annotations

from collections import OrderedDict


class PrefixCache:
    """LRU of block hashes, at most as many as the engine has blocks.

    Simpler than vLLM's in two ways: a hit spares the prefill but not the memory (blocks are not shared between live
    requests), and what live requests hold is not subtracted from the cache's room. So under a full KV cache the model
    hits somewhat more often, and preempts somewhat earlier, than the engine.
    """

    __slots__ = ("_blocks", "_capacity")

    def __init__(self, capacity_blocks: int) -> None:
        self._capacity = capacity_blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def hit_blocks(self, prefix: tuple[int, ...], most: int) -> int:
        """Leading blocks of `prefix` that are cached, at most `most`."""
        blocks = self._blocks
        num = 0
        for block in prefix[:most]:
            if block not in blocks:
                break
            num += 1
        for block in reversed(prefix[:num]):
            blocks.move_to_end(block)
        return num

    def insert(self, prefix: tuple[int, ...]) -> None:
        """These blocks were just computed."""
        blocks = self._blocks
        for block in reversed(prefix):  # the last block goes first: without the first, none of the others can be used
            blocks[block] = None
            blocks.move_to_end(block)
        while len(blocks) > self._capacity:
            blocks.popitem(last=False)
