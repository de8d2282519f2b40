"""The record of forecasts: confusion, calibration, drift, forgetting."""

from __future__ import annotations

import random

import pytest

from prelude_proxy.core.calibration import DRIFT_ALARM, MEMORY, Calibration

NAMES = ["fast", "standard", "deep"]


def test_nothing_seen_is_nothing_said() -> None:
    """All figures are 0 before the first answer."""
    statistics = Calibration(NAMES).statistics()
    assert (statistics.num_learned, statistics.accuracy, statistics.calibration_error, statistics.drift) == (0, 0, 0, 0)


def test_confusion_counts_actual_by_predicted() -> None:
    """Too short a class is under-prediction."""
    record = Calibration(NAMES)
    record.learn(2, 1, [0.1, 0.7, 0.2], 1.0)
    record.learn(0, 0, [0.9, 0.1, 0.0], 0.0)
    record.learn(0, 1, [0.4, 0.6, 0.0], -1.0)
    statistics = record.statistics()
    assert statistics.confusion[2][1] == pytest.approx(1.0, abs=0.01)
    assert statistics.underpredicted == pytest.approx(1 / 3, abs=0.01)
    assert statistics.overpredicted == pytest.approx(1 / 3, abs=0.01)
    assert statistics.accuracy == pytest.approx(1 / 3, abs=0.01)


def test_honest_probabilities_have_no_calibration_error_and_boasts_do() -> None:
    """70 % said and 70 % right against 99 % said."""
    rng = random.Random(5)
    honest, boast = Calibration(NAMES), Calibration(NAMES)
    for _ in range(3000):
        actual = 0 if rng.random() < 0.7 else 1
        honest.learn(actual, 0, [0.7, 0.3, 0.0], 0.0)
        boast.learn(actual, 0, [0.99, 0.01, 0.0], 0.0)
    assert honest.statistics().calibration_error < 0.05
    assert boast.statistics().calibration_error > 0.2


def test_old_answers_are_forgotten() -> None:
    """Counts weigh about as many answers as is remembered, however many there were."""
    record = Calibration(NAMES)
    for _ in range(int(MEMORY) * 6):
        record.learn(0, 0, [1.0, 0.0, 0.0], 0.0)
    assert sum(map(sum, record.statistics().confusion)) <= MEMORY + 1
    for _ in range(int(MEMORY) * 6):
        record.learn(0, 1, [0.0, 1.0, 0.0], 0.0)
    assert record.statistics().accuracy < 0.01


def test_drift_is_quiet_while_errors_are_only_noise_and_speaks_when_they_move() -> None:
    """Answers suddenly three times longer raise the alarm."""
    rng = random.Random(6)
    record = Calibration(NAMES)
    for _ in range(2000):
        record.learn(0, 0, [1.0, 0.0, 0.0], rng.gauss(0, 0.5))
    assert record.statistics().drift < DRIFT_ALARM
    for _ in range(100):
        record.learn(0, 0, [1.0, 0.0, 0.0], rng.gauss(1.1, 0.5))
    assert record.statistics().drift > DRIFT_ALARM
    assert record.statistics().mean_log_error > 0.5


def test_cut_off_answers_are_counted_apart() -> None:
    """Their class is not known."""
    record = Calibration(NAMES)
    record.censor()
    assert (record.statistics().num_censored, record.statistics().num_learned) == (1, 0)
