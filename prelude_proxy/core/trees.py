"""A boosted forest as flat arrays: the same answer as XGBoost to 1e-5, without importing it.

Each tree has a vector in every leaf (one margin per bin), and is padded to a perfect tree of the forest's depth, so
that one walk goes down all trees at once. The walk compares every node first - one gather, one comparison - and then
follows the outcomes level by level: for 100 trees of depth 6 that was faster (11 µs) than gathering per level
(25 µs), than leaf bit masks (21 µs) and than generated Python (39 µs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FlatForest:
    """Perfect trees, node by node in heap order, tree after tree."""

    feature: NDArray[np.intp]
    """Feature compared at each inner node."""
    threshold: Vector
    """A value below goes left. float32, as XGBoost compares; +inf in padding, which goes left always."""
    leaves: NDArray[np.float32]
    """One row of margins per leaf, tree after tree."""
    base: Vector
    """Margins before any tree."""
    depth: int
    roots: NDArray[np.intp]
    left: NDArray[np.int16] | NDArray[np.int32]
    """Of each node: where its left child is, in the nodes or, on the last level, in the leaves; right is one after."""
    ones: Vector
    """One per tree: a product with it adds up the leaves faster than a reduction."""

    @classmethod
    def build(cls, feature: NDArray[Any], threshold: Vector, leaves: NDArray[np.float32], base: Vector) -> FlatForest:
        """From `feature` and `threshold` of shape (trees, 2^depth - 1) and `leaves` of (trees, 2^depth, outputs)."""
        num_trees, num_nodes = feature.shape
        depth = (num_nodes + 1).bit_length() - 1
        node = np.arange(num_nodes)
        tree = np.arange(num_trees)[:, None]
        inner = tree * num_nodes + 2 * node + 1
        last = tree * (num_nodes + 1) + 2 * node + 1 - num_nodes
        left = np.where(2 * node + 1 < num_nodes, inner, last)
        return cls(
            feature=np.ascontiguousarray(feature.reshape(-1), dtype=np.intp),
            threshold=np.ascontiguousarray(threshold.reshape(-1), dtype=np.float32),
            leaves=np.ascontiguousarray(leaves.reshape(-1, leaves.shape[-1]), dtype=np.float32),
            base=np.asarray(base, dtype=np.float32),
            depth=depth,
            roots=(np.arange(num_trees) * num_nodes).astype(np.intp),
            left=left.reshape(-1).astype(np.int16 if num_trees * (num_nodes + 1) < 2**15 else np.int32),
            ones=np.ones(num_trees, dtype=np.float32),
        )

    def margins(self, values: Vector) -> Vector:
        """Sum of the leaves that `values` (finite float32, one per feature) falls into."""
        take = (self.left + (values.take(self.feature) >= self.threshold)).take
        node: NDArray[Any] = self.roots
        for _ in range(self.depth):
            node = take(node)
        total: Vector = self.ones.dot(self.leaves.take(node, axis=0))
        total += self.base
        return total


def softmax(margins: Vector) -> Vector:
    """Probabilities that `margins` stand for. Margins of a forest are far below where float32 overflows (e^88)."""
    weights: Vector = np.exp(margins)
    weights *= 1.0 / float(np.add.reduce(weights))
    return weights
