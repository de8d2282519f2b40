"""The flattened forest gives what XGBoost gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xgboost as xgb
from hypothesis import given
from hypothesis import strategies as st
from librt.vecs import vec

from prelude_proxy.core.bins import NUM_BINS
from prelude_proxy.core.features import FEATURES
from prelude_proxy.core.trees import FlatForest, boundaries, softmax
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
    found = np.array([_margins(forest, row) for row in values])
    return float(np.abs(found - expected).max())


def _margins(forest: FlatForest, row: np.ndarray) -> np.ndarray:
    return np.array(list(forest.margins(vec[float](row.tolist()))))


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
    found = flatten(booster, 3)["threshold"]
    thresholds = np.resize(found[np.isfinite(found)], (200, 12)).astype(np.float32)
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
    found = softmax(forest.margins(vec[float](data.values[0].tolist())))
    assert np.abs(np.array(list(found)) - wanted).max() < TOLERANCE


def test_a_tree_without_splits_is_a_constant() -> None:
    """A leaf at the root reaches every leaf of the padded tree."""
    values = np.zeros((50, 2), dtype=np.float32)
    booster = _train(values, np.arange(50) % 2, 2, 3, rounds=2)
    forest = _flat(booster, 2)
    assert _largest_difference(booster, forest, np.array([[0, 0], [-9, 9]], dtype=np.float32)) < TOLERANCE


@given(
    threshold=st.floats(-1e6, 1e6, width=32),
    offset=st.integers(-3, 3),
    share=st.floats(0, 1),
)
def test_a_boundary_compares_doubles_as_float32_would(threshold: float, offset: int, share: float) -> None:
    """On, between and exactly half-way between neighbouring float32 numbers."""
    near = np.float32(threshold)
    for _ in range(abs(offset)):
        near = np.nextafter(near, np.float32(np.sign(offset) * np.inf))
    following = np.nextafter(near, np.float32(np.inf))
    boundary = boundaries(np.array([threshold], dtype=np.float32))[0]
    for part in (0.0, 0.5, share):
        value = float(near) + part * (float(following) - float(near))
        assert (value < boundary) == bool(np.float32(value) < np.float32(threshold))


def test_both_walks_agree() -> None:
    """Compiled code walks packed arrays, the interpreter lets NumPy do it."""
    rng = np.random.default_rng(5)
    values = rng.normal(size=(400, 6)).astype(np.float32)
    forest = _flat(_train(values, (values[:, 0] > values[:, 1]).astype(int), 2, 4), 2)
    for row in values[:100]:
        packed = vec[float](row.tolist())
        assert np.allclose(list(forest._walked(packed)), list(forest._gathered(packed)), atol=1e-9)
