"""Measured traffic in, slots to keep free out."""

from __future__ import annotations

import pytest

from prelude_proxy.core.domain import ClassSpec
from prelude_proxy.core.rates import ArrivalRate, DecayingMean
from prelude_proxy.core.staffing import Staffing

CLASSES = [ClassSpec("fast", 0), ClassSpec("standard", 1), ClassSpec("deep", 2, reserve=0.0)]


def measured(rates: list[float], stays: list[float]) -> Staffing:
    """Twenty seconds of regular traffic of each class; later ones take the place of earlier ones."""
    staffing = Staffing(CLASSES, beta=1.0)
    for klass, (rate, stay_s) in enumerate(zip(rates, stays, strict=True)):
        for index in range(int(rate * 20)):
            at = index / rate
            staffing.arrived(klass, at)
            if index >= round(rate * stay_s):
                staffing.left(klass, at)
            staffing.began(klass, at)
    staffing.measure(20.0)
    return staffing


def test_loads_are_pooled_before_the_root_is_taken():
    """2 and 2 busy slots want 4 + √4 against deep, 2 + √2 against standard."""
    staffing = measured([20.0, 20.0, 0.0], [0.1, 0.1, 0.0])
    assert staffing.kept_against([0, 0, 0]) == [0, 3, 6]


def test_slots_in_use_by_urgent_classes_need_not_be_kept_too():
    """Those of lower classes count for nothing: who is called short and is long holds its slot for long."""
    staffing = measured([40.0, 0.0, 5.0], [0.1, 0.0, 2.0])
    assert staffing.kept_against([0, 0, 0])[2] == 6
    assert staffing.kept_against([0, 0, 20])[2] == 6
    assert staffing.kept_against([4, 0, 20])[2] == 2


def test_long_stays_count_while_they_last():
    """Of ten requests a second half end at once; the others hold their slots and show how long a stay can be."""
    staffing = Staffing(CLASSES, beta=1.0)
    for index in range(20):
        at = index * 0.1
        staffing.arrived(0, at)
        staffing.began(0, at)
        if index % 2:
            staffing.left(0, at + 0.05)
    staffing.measure(2.0)
    assert staffing.wanted_above[1] > 5.0


def test_a_stay_that_was_broken_off_teaches_nothing():
    """A client that left at once does not make answers short."""
    staffing = measured([20.0, 0.0, 0.0], [0.5, 0.0, 0.0])
    told = measured([20.0, 0.0, 0.0], [0.5, 0.0, 0.0])
    for each, learned in ((staffing, False), (told, True)):
        for _ in range(400):
            each.began(0, 20.0)
            each.left(0, 20.0, learned=learned)
        each.measure(20.3)
    assert staffing.wanted_above[1] > 1.5 * told.wanted_above[1] > 3.0


def test_a_class_without_traffic_asks_for_nothing():
    """Less than a twentieth of a busy slot is none."""
    assert measured([0.4, 0.0, 9.0], [0.1, 0.0, 3.0]).kept_against([0, 0, 16]) == [0, 0, 0]


def test_it_measures_four_times_a_second():
    """Not with every request."""
    staffing = Staffing(CLASSES, beta=1.0)
    assert [staffing.measure(at) for at in (0.0, 0.1, 0.24, 0.25, 0.3, 0.6)] == [True, False, False, True, False, True]


def test_an_arrival_rate_is_right_from_the_start():
    """No time constant has to pass first."""
    rate = ArrivalRate()
    for index in range(40):
        rate.add(index * 0.05)
    assert rate.per_second(1.95) == pytest.approx(20.0, rel=0.05)


def test_silence_ends_a_rate():
    """After s seconds without an arrival no more than 3/s is believed."""
    rate = ArrivalRate()
    for index in range(400):
        rate.add(index * 0.05)
    assert rate.per_second(20.95) == pytest.approx(3.0, rel=0.01)
    assert rate.per_second(25.95) < 0.55


def test_a_rate_begins_anew_after_a_pause():
    """What was long ago does not thin out what comes now."""
    rate = ArrivalRate()
    rate.add(0.0)
    for index in range(40):
        rate.add(1000.0 + index * 0.05)
    assert rate.per_second(1002.0) == pytest.approx(20.0, rel=0.1)


def test_a_mean_is_plain_until_it_has_enough_to_forget():
    """The first values count alike."""
    mean = DecayingMean(0.05)
    for value in (1.0, 2.0, 6.0):
        mean.add(value)
    assert mean.value == pytest.approx(3.0)
