"""The flattened forest gives what XGBoost gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xgboost as xgb

from prelude_proxy.core.bins import NUM_BINS
from prelude_proxy.core.features import FEATURES
from prelude_proxy.core.trees import FlatForest, softmax
from prelude_proxy.training.dataset import read_rows
from prelude_proxy.training.flatten import flatten
from prelude_proxy.training.train import label_of, prepare

from ..training.synthetic import requests, write

TOLERANCE = 1e-5


def _train(values: np.ndarray, labels: np.ndarray, outputs: int, depth: int, rounds: int = 25) -> xgb.Booster:
    return xgb.train(
        {
            "objective": "multi:softprob",
            "num_class": outputs,
            "multi_strategy": "multi_output_tree",
            "tree_method": "hist",
            "max_depth": depth,
            "nthread": 1,
        },
        xgb.DMatrix(values, label=labels),
        rounds,
    )


def _largest_difference(booster: xgb.Booster, forest: FlatForest, values: np.ndarray) -> float:
    expected = booster.predict(xgb.DMatrix(values), output_margin=True)
    return float(max(np.abs(forest.margins(row) - wanted).max() for row, wanted in zip(values, expected, strict=True)))


def _flat(booster: xgb.Booster, outputs: int) -> FlatForest:
    parts = flatten(booster, outputs)
    return FlatForest.build(parts["feature"], parts["threshold"], parts["leaves"], parts["base"])


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_margins_equal_xgboost_on_random_rows(depth: int) -> None:
    """Also on values that are exactly a threshold, and far outside the training range."""
    rng = np.random.default_rng(depth)
    values = np.round(rng.normal(size=(600, 12)), 1).astype(np.float32)
    labels = (values[:, 0] > 0).astype(int) + (values[:, 1] * values[:, 2] > 0.3)
    booster = _train(values, labels, 3, depth)
    forest = _flat(booster, 3)
    thresholds = np.resize(forest.threshold[np.isfinite(forest.threshold)], (200, 12)).astype(np.float32)
    rows = np.concatenate([values, thresholds, np.float32(1e6) * values[:50]])
    assert _largest_difference(booster, forest, rows) < TOLERANCE


def test_margins_equal_xgboost_on_requests(tmp_path: Path) -> None:
    """Features of whole requests, all bins."""
    rows = list(read_rows(write(tmp_path / "rows.jsonl", requests(400))))
    data = prepare(rows, lambda stage, share: None)
    assert data.values.shape == (400, len(FEATURES))
    booster = _train(data.values, label_of(data.tokens), NUM_BINS, 6, rounds=15)
    forest = _flat(booster, NUM_BINS)
    assert _largest_difference(booster, forest, data.values) < TOLERANCE
    wanted = booster.predict(xgb.DMatrix(data.values[:1]))[0]
    assert np.abs(softmax(forest.margins(data.values[0])) - wanted).max() < TOLERANCE


def test_a_tree_without_splits_is_a_constant() -> None:
    """A leaf at the root reaches every leaf of the padded tree."""
    values = np.zeros((50, 2), dtype=np.float32)
    booster = _train(values, np.arange(50) % 2, 2, 3, rounds=2)
    forest = _flat(booster, 2)
    assert _largest_difference(booster, forest, np.array([[0, 0], [-9, 9]], dtype=np.float32)) < TOLERANCE
