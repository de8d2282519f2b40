"""KV blocks of the decoding batch, without touching each request at each step.

A request that has `a + s` tokens in the cache after engine step `s` (it gains one a step) holds ⌈(a + s)/B⌉ blocks of B
tokens. Written as (a + s + pad)/B with pad = −(a + s) mod B, the pad depends on `a mod B` alone. So B counters, one a
phase, give the blocks of the whole batch after *any* step, now or later, in O(B), however many requests there are.
"""

from __future__ import annotations


class DecodeBlocks:
    """Blocks held by all decoding requests as a function of the step count. `start` is the `a` of a request."""

    __slots__ = ("_block_size", "_phases", "count", "tokens_at_zero")

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._phases = [0] * block_size
        self.count = 0
        self.tokens_at_zero = 0

    def add(self, start: int) -> None:
        """A request that has `start + step` tokens begins to decode."""
        self._phases[start % self._block_size] += 1
        self.tokens_at_zero += start
        self.count += 1

    def remove(self, start: int) -> None:
        """It ended, or was preempted: all its blocks are free."""
        self._phases[start % self._block_size] -= 1
        self.tokens_at_zero -= start
        self.count -= 1

    def tokens(self, step: int) -> int:
        """Tokens in the cache after `step`."""
        return self.tokens_at_zero + self.count * step

    def used(self, step: int) -> int:
        """Blocks held after `step`."""
        size = self._block_size
        pad = sum(num * ((-phase - step) % size) for phase, num in enumerate(self._phases) if num)
        return (self.tokens(step) + pad) // size

    def fits(self, step: int, blocks: int) -> bool:
        """Whether `blocks` suffice after `step`; decided by a bound where the answer is plain."""
        at_most = (self.tokens(step) + self.count * (self._block_size - 1)) // self._block_size
        return at_most <= blocks or self.used(step) <= blocks

    def max_steps(self, step: int, most: int, blocks: int) -> int:
        """Largest k ≤ `most` such that `blocks` suffice after step + k, given that they do after `step`."""
        if self.fits(step + most, blocks):
            return most
        low, high = 0, most  # fits at low, not at high: blocks only grow with the step
        while high - low > 1:
            middle = (low + high) // 2
            if self.fits(step + middle, blocks):
                low = middle
            else:
                high = middle
        return low
