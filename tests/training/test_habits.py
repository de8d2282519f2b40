"""How long models of each name write, beside others on the same prompts."""

from __future__ import annotations

import pytest

from prelude_proxy.training.habits import fit_habits

PROMPTS = 200


def fitted() -> dict[str, tuple[float, float, float, float]]:
    """`plain` writes 4 or 6, `wordy` one more, `steep` twice as far from the middle."""
    rows = []
    for prompt in range(PROMPTS):
        usual = 4.0 if prompt % 2 else 6.0
        rows += [("plain", prompt, usual), ("plain", prompt, usual)]
        rows += [("wordy", prompt, usual + 1.0), ("steep", prompt, 5.0 + 2.0 * (usual - 5.0))]
    habits = fit_habits(
        [m for m, _, _ in rows], [str(p) for _, p, _ in rows], ["one"] * len(rows), [y for *_, y in rows]
    )
    return {name: (each.level, each.excess, each.slope, each.spread) for name, each in habits.items()}


def test_a_wordy_model_has_an_excess_and_a_steep_one_a_slope() -> None:
    """Each against what others write on the very prompt."""
    habits = fitted()
    assert habits["wordy"][0] == pytest.approx(6.0, abs=0.15)
    assert habits["wordy"][1] > 0.6 > 0.1 > abs(habits["steep"][1]) - 0.4
    assert habits["steep"][2] > 0.5 > habits["plain"][2]
    assert habits["steep"][3] > habits["plain"][3]


def test_values_are_rounded() -> None:
    """So that a fold's mean does not give away the rows it leaves out."""
    assert all(value * 20 == pytest.approx(round(value * 20)) for values in fitted().values() for value in values)


def test_a_model_that_was_never_compared_is_taken_for_usual() -> None:
    """No other answers to its prompts: a level, and no difference."""
    habit = fit_habits(["alone"] * 30, [str(n) for n in range(30)], ["one"] * 30, [5.0] * 30)["alone"]
    assert (habit.level, habit.excess, habit.slope) == (5.0, 0.0, 0.0)
    assert habit.spread == pytest.approx(0.55)
