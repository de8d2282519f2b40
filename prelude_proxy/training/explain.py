"""Which features pushed a forecast: SHAP values by XGBoost itself, on the forest made scalar for this one request.

The forecast's mean E[ln tokens] is a softmax of the margins and so not additive in them; to first order it changes by
`p_k · (m_k - E)` per unit of margin k, m_k being the bin's middle. With every leaf's vector replaced by that weighted
sum the forest has one output, and its SHAP values say by how much (in ln tokens, to first order) each feature moved
the forecast from the training average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import xgboost as xgb
from numpy.typing import NDArray

from prelude_proxy.core.bins import LN_MIDDLES
from prelude_proxy.core.features import FEATURES
from prelude_proxy.modelfile import ModelParts


@dataclass(frozen=True, slots=True)
class Contribution:
    """One feature's part in a forecast."""

    feature: str
    value: float
    ln_tokens: float
    """Above 0: made the answer longer."""

    @property
    def factor(self) -> float:
        """The same as a factor on tokens."""
        return float(np.exp(self.ln_tokens))


def contributions(parts: ModelParts, values: list[float], probabilities: NDArray[np.float64]) -> list[Contribution]:
    """Parts of all features that had any, largest first."""
    middles = np.array(list(LN_MIDDLES))
    mean = float(probabilities @ middles)
    weights = (probabilities * (middles - mean)).astype(np.float32)
    booster = _scalar_booster(parts, weights)
    shap = booster.predict(xgb.DMatrix(np.array([values], dtype=np.float32)), pred_contribs=True)[0, :-1]
    found = [
        Contribution(name, float(value), float(part)) for name, value, part in zip(FEATURES, values, shap, strict=True)
    ]
    return sorted((each for each in found if abs(each.ln_tokens) > 1e-4), key=lambda each: -abs(each.ln_tokens))


def _scalar_booster(parts: ModelParts, weights: NDArray[np.float32]) -> xgb.Booster:
    """A regression booster of the same trees whose leaves are `leaves · weights`."""
    zeros = np.zeros((2, len(FEATURES)), dtype=np.float32)
    shell = xgb.train({"objective": "reg:squarederror", "base_score": 0.0}, xgb.DMatrix(zeros, label=[0.0, 0.0]), 1)
    model = orjson.loads(bytes(shell.save_raw("json")))
    inner = model["learner"]["gradient_booster"]["model"]
    leaves = parts.leaves @ weights
    inner["trees"] = [_tree(parts, leaves, index) for index in range(len(parts.feature))]
    inner["tree_info"] = [0] * len(inner["trees"])
    inner["iteration_indptr"] = list(range(len(inner["trees"]) + 1))
    inner["gbtree_model_param"]["num_trees"] = str(len(inner["trees"]))
    booster = xgb.Booster()
    booster.load_model(bytearray(orjson.dumps(model)))
    return booster


def _tree(parts: ModelParts, leaves: NDArray[np.float32], index: int) -> dict[str, Any]:
    """One padded tree in XGBoost's JSON, its padding taken away."""
    feature, threshold, cover = parts.feature[index], parts.threshold[index], parts.cover[index]
    num_nodes = len(feature)
    nodes: list[dict[str, Any]] = []

    def add(place: int, parent: int) -> int:
        number = len(nodes)
        node: dict[str, Any] = {"parent": parent, "left": -1, "right": -1, "feature": 0}
        nodes.append(node)
        if place < num_nodes and np.isfinite(threshold[place]):
            node["feature"], node["value"] = int(feature[place]), float(threshold[place])
            node["left"] = add(2 * place + 1, number)
            node["right"] = add(2 * place + 2, number)
            node["cover"] = nodes[node["left"]]["cover"] + nodes[node["right"]]["cover"]
        else:
            while place < num_nodes:
                place = 2 * place + 1
            node["value"] = float(leaves[index, place - num_nodes])
            node["cover"] = float(cover[place - num_nodes])
        return number

    add(0, 2147483647)
    count = len(nodes)
    return {
        "base_weights": [0.0] * count,
        "categories": [],
        "categories_nodes": [],
        "categories_segments": [],
        "categories_sizes": [],
        "default_left": [0] * count,
        "id": index,
        "left_children": [node["left"] for node in nodes],
        "right_children": [node["right"] for node in nodes],
        "loss_changes": [0.0] * count,
        "parents": [node["parent"] for node in nodes],
        "split_conditions": [node["value"] for node in nodes],
        "split_indices": [node["feature"] for node in nodes],
        "split_type": [0] * count,
        "sum_hessian": [node["cover"] for node in nodes],
        "tree_param": {
            "num_deleted": "0",
            "num_feature": str(len(FEATURES)),
            "num_nodes": str(count),
            "size_leaf_vector": "1",
        },
    }
