"""The figures, against cases known by hand and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from prelude_proxy.training.metrics import average, score, true_classes


def test_classes_have_their_edges_inside() -> None:
    """64 is fast, 65 standard; 512 standard, 513 deep."""
    assert true_classes(np.array([1.0, 64.0, 65.0, 512.0, 513.0])).tolist() == [0, 0, 1, 1, 2]


def test_figures_equal_scikit_learn() -> None:
    """Macro-F1 and both areas, on noise."""
    rng = np.random.default_rng(1)
    tokens = rng.lognormal(5, 1.5, 500).round()
    probabilities = rng.dirichlet(np.ones(3), 500)
    likely, truth = probabilities.argmax(axis=1), true_classes(tokens)
    scores = score(probabilities, likely, probabilities[:, 2], tokens)
    assert scores.macro_f1 == pytest.approx(f1_score(truth, likely, average="macro"))
    assert scores.auc_deep == pytest.approx(roc_auc_score(truth == 2, probabilities[:, 2]))
    assert scores.auc_fast == pytest.approx(roc_auc_score(truth == 0, probabilities[:, 0]))


def test_a_perfect_forecast_is_perfect() -> None:
    """And an undefined figure is None."""
    tokens = np.array([10.0, 100.0, 1000.0, 20.0])
    certain = np.eye(3)[true_classes(tokens)]
    scores = score(certain, true_classes(tokens), tokens, tokens)
    assert (scores.accuracy, scores.kendall_tau, scores.calibration_error, scores.deep_recall) == (1.0, 1.0, 0.0, 1.0)
    flat = score(certain[:1], np.array([0]), tokens[:1], tokens[:1])
    assert (flat.auc_deep, flat.kendall_tau, flat.deep_precision) == (None, None, None)


def test_the_average_takes_a_source_that_ranks_nothing_as_zero() -> None:
    """And leaves out figures that a source does not define."""
    tokens = np.array([10.0, 20.0, 1000.0, 2000.0])
    certain = np.eye(3)[true_classes(tokens)]
    good = score(certain, true_classes(tokens), tokens, tokens)
    flat = score(certain[:2], np.array([0, 0]), np.array([5.0, 5.0]), tokens[:2])
    means = average({"good": good, "flat": flat})
    assert means["kendall_tau"] == pytest.approx(0.5)
    assert means["auc_deep"] == 1.0
