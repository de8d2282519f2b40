"""Learning from own traffic: shrinkage, forgetting, bounds, and which expert is trusted."""

from __future__ import annotations

import random
from math import exp, log

import numpy as np
import pytest
from librt.vecs import vec

from prelude_proxy.core.bins import LN_MIDDLES, NUM_BINS
from prelude_proxy.core.prior import OnlinePrior, PriorSettings


def guess(tokens: float, width: float = 0.8) -> vec[float]:
    """A model's forecast around `tokens`."""
    weights = np.exp(-0.5 * ((np.array(list(LN_MIDDLES)) - log(tokens)) / width) ** 2)
    return vec[float]((weights / weights.sum()).tolist())


def feed(prior: OnlinePrior, keys: tuple[int, ...], static: vec[float], tokens: list[float]) -> None:
    for count in tokens:
        prior.learn(keys, prior.predict(keys, static), count)


def test_nothing_learned_changes_nothing() -> None:
    """An empty prior gives the model's forecast."""
    static = guess(200)
    assert list(OnlinePrior().predict((1, 2), static).blended) == list(static)


def test_every_forecast_is_a_distribution() -> None:
    """Whatever was learned."""
    prior = OnlinePrior()
    rng = random.Random(1)
    for _ in range(300):
        keys = (rng.randrange(3), 10 + rng.randrange(9), 100 + rng.randrange(99))
        blend = prior.predict(keys, guess(rng.lognormvariate(5, 1.5)))
        assert sum(blend.blended) == pytest.approx(1.0, abs=1e-5)
        assert min(blend.blended) > -1e-6
        prior.learn(keys, blend, rng.lognormvariate(4, 2))


def test_fifty_answers_outweigh_a_wrong_model() -> None:
    """A tenant whose answers are ten times shorter than forecast is learned."""
    prior = OnlinePrior()
    static = guess(300)
    rng = random.Random(2)
    feed(prior, (1, 2), static, [30 * rng.lognormvariate(0, 0.3) for _ in range(50)])
    assert exp(prior.predict((1, 2), static).mean) == pytest.approx(30, rel=0.35)


def test_one_answer_moves_the_forecast_a_little() -> None:
    """Shrinkage: a single outlier is not a habit."""
    prior = OnlinePrior()
    static = guess(300)
    feed(prior, (1, 2), static, [3.0])
    assert exp(prior.predict((1, 2), static).mean) > 50


def test_tenants_do_not_learn_from_each_other_s_keys() -> None:
    """What one sends does not become another's history."""
    prior = OnlinePrior()
    static = guess(300)
    feed(prior, (1, 2), static, [10.0] * 60)
    assert exp(prior.predict((7, 8), static).mean) > exp(prior.predict((1, 2), static).mean) * 2


def test_a_finer_key_adds_what_the_coarser_ones_miss() -> None:
    """Two call sites of one tenant are told apart."""
    prior = OnlinePrior()
    static = guess(200)
    for _ in range(60):
        feed(prior, (1, 11), static, [20.0])
        feed(prior, (1, 12), static, [1500.0])
    assert exp(prior.predict((1, 11), static).mean) < 60
    assert exp(prior.predict((1, 12), static).mean) > 500


def test_what_the_model_ranks_right_stays_ranked() -> None:
    """A shifted tenant keeps the order that the model sees between its prompts."""
    prior = OnlinePrior()
    rng = random.Random(3)
    for _ in range(120):
        believed = rng.choice([50.0, 200.0, 800.0])
        keys = (1, 2)
        prior.learn(keys, prior.predict(keys, guess(believed)), believed / 4 * rng.lognormvariate(0, 0.2))
    short, middle, long = (exp(prior.predict((1, 2), guess(size)).mean) for size in (50, 200, 800))
    assert short < middle < long
    assert middle == pytest.approx(50, rel=0.5)


def test_it_follows_drift() -> None:
    """After a change of habit the forecast follows, for memories are bounded."""
    prior = OnlinePrior()
    static = guess(200)
    feed(prior, (1, 2), static, [20.0] * 400)
    feed(prior, (1, 2), static, [800.0] * 400)
    assert exp(prior.predict((1, 2), static).mean) > 500


def test_the_expert_that_is_right_is_trusted() -> None:
    """A model that is always right keeps the weight."""
    prior = OnlinePrior()
    rng = random.Random(4)
    for _ in range(200):
        size = rng.choice([5.0, 100.0, 3000.0])
        prior.learn((1,), prior.predict((1,), guess(size, 0.3)), size)
    weights = prior.weights()
    assert weights["reweighted"] + weights["corrected"] > 0.9
    assert sum(weights.values()) == pytest.approx(1.0)


def test_keys_are_bounded_and_the_least_recently_learned_go() -> None:
    """A key that is used stays while others come and go."""
    prior = OnlinePrior(PriorSettings(max_keys=50))
    static = guess(200)
    for index in range(500):
        feed(prior, (1,), static, [20.0])
        feed(prior, (1000 + index,), static, [200.0])
    assert len(prior) == 50
    assert exp(prior.predict((1,), static).mean) < 60


def test_what_a_held_forecast_keeps_is_small() -> None:
    """Two distributions, packed; one while nothing is learned."""
    prior = OnlinePrior()
    blend = prior.predict((1,), guess(9))
    assert blend.blended is blend.static or list(blend.blended) == list(blend.static)
    assert memoryview(blend.static).nbytes == NUM_BINS * 8
