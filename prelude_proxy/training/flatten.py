"""An XGBoost forest with vector leaves, taken apart into the padded arrays that `core.trees` walks."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import xgboost as xgb
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


def flatten(booster: xgb.Booster, num_outputs: int) -> Arrays:
    """`feature`, `threshold`, `cover`, `leaves` and `base` of a `multi_output_tree` model.

    A leaf above the last level is repeated in all leaves below it; its padding nodes compare feature 0 with +inf, so
    everything goes left. Missing values have no direction here: features must be finite.
    """
    learner = orjson.loads(bytes(booster.save_raw("json")))["learner"]
    trees = learner["gradient_booster"]["model"]["trees"]
    depth = max(map(_depth, trees))
    num_nodes, num_leaves = 2**depth - 1, 2**depth
    feature = np.zeros((len(trees), num_nodes), dtype=np.uint8)
    threshold = np.full((len(trees), num_nodes), np.inf, dtype=np.float32)
    leaves = np.zeros((len(trees), num_leaves, num_outputs), dtype=np.float32)
    cover = np.zeros((len(trees), num_leaves), dtype=np.float32)
    for index, tree in enumerate(trees):
        values = np.asarray(tree["leaf_weights"], dtype=np.float32).reshape(-1, num_outputs)
        stack = [(0, 0, 0)]
        while stack:
            node, place, level = stack.pop()
            if tree["left_children"][node] == -1:
                width = 2 ** (depth - level)
                first = (place + 1) * width - 1 - num_nodes
                leaves[index, first : first + width] = values[tree["right_children"][node]]
                cover[index, first] = tree["sum_hessian"][node]
                continue
            feature[index, place] = tree["split_indices"][node]
            threshold[index, place] = tree["split_conditions"][node]
            stack.append((tree["left_children"][node], 2 * place + 1, level + 1))
            stack.append((tree["right_children"][node], 2 * place + 2, level + 1))
    base = np.asarray(orjson.loads(learner["learner_model_param"]["base_score"].encode()), dtype=np.float32)
    return {"feature": feature, "threshold": threshold, "cover": cover, "leaves": leaves, "base": base}


def _depth(tree: dict[str, Any]) -> int:
    levels = {0: 0}
    deepest = 0
    for node, (left, right) in enumerate(zip(tree["left_children"], tree["right_children"], strict=True)):
        if left != -1:
            levels[left] = levels[right] = levels[node] + 1
            deepest = max(deepest, levels[left])
    return deepest
