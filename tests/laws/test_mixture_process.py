"""The Gaussian process with an additive kernel: one function in all its forms, and better where shares act alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from decaylaws.laws.kit.law import Array, Law
from decaylaws.laws.mixing import GaussianProcess
from decaylaws.laws.mixing.process import Alone, GaussianProcessModel

SOURCES = 9


def stepped(shares: Array) -> Array:
    """A loss that drops where each of four sources passes a share of its own: a sum of functions of one share."""
    at = np.array([0.05, 0.1, 0.15, 0.2])
    return 2.0 - 0.15 * (1.0 / (1.0 + np.exp(-(shares[:, :4] - at) / 0.02))).sum(axis=1)


@pytest.fixture(scope="module")
def fitted() -> tuple[GaussianProcess, Array]:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(SOURCES), 40)
    losses = stepped(shares) + 0.003 * rng.standard_normal(40)
    return GaussianProcess(transform="sqrt", floor_share=0.8, additive=True).fit(shares, losses), shares


def parts(fitted: tuple[GaussianProcess, Array]) -> tuple[GaussianProcessModel, Alone, Array]:
    law, _ = fitted
    (model,) = law.models_.values()
    assert isinstance(model, GaussianProcessModel)
    assert model.alone is not None
    return model, model.alone, np.random.default_rng(1).dirichlet(np.ones(SOURCES), 30)


def test_shares_that_act_alone_are_seen(fitted) -> None:
    law, shares = fitted
    unseen = np.random.default_rng(2).dirichlet(np.ones(SOURCES), 300)
    together = GaussianProcess(transform="sqrt", floor_share=0.8).fit(shares, stepped(shares))

    def error(process: GaussianProcess) -> float:
        return float(np.sqrt(np.mean((process.predict(unseen) - stepped(unseen)) ** 2)))

    assert error(law) < 0.75 * error(together)
    answer = law.predict(unseen, interval=0.9)
    held = (answer.lower <= stepped(unseen)) & (stepped(unseen) <= answer.upper)
    assert held.mean() >= 0.8


def test_what_is_looked_up_equals_the_kernel(fitted) -> None:
    model, alone, mixtures = parts(fitted)
    cross = model._together(mixtures) + alone.kernel(np.sqrt(mixtures), model.inputs)
    exact = model.floor + np.exp(model.centre + cross @ model.dual)
    np.testing.assert_allclose(model.predict(mixtures), exact, rtol=1e-4)


def test_draws_are_functions_and_spread_as_the_posterior(fitted) -> None:
    model, _, mixtures = parts(fitted)
    draws = model.posterior(400, np.random.default_rng(3))
    every, draw = draws.all(mixtures), np.arange(len(mixtures)) % 7
    np.testing.assert_allclose(draws.each(mixtures, draw), every[draw, np.arange(len(mixtures))])
    value, slopes = draws.slopes(mixtures[0], 5)
    assert value == pytest.approx(every[5, 0])
    step = 1e-5 * np.eye(SOURCES)
    around = (draws.all(mixtures[0] + step)[5] - draws.all(mixtures[0] - step)[5]) / 2e-5
    np.testing.assert_allclose(slopes, around, rtol=0.05, atol=0.02 * np.abs(slopes).max())
    expected = np.sqrt(np.maximum(model.spread(mixtures) ** 2 - 1.0, 0.0) * model.scales[1])
    drawn = np.log(every - model.floor).std(axis=0)
    assert np.median(drawn / expected) == pytest.approx(1.0, abs=0.15)
    np.testing.assert_allclose(model.fit_as_draw().all(mixtures)[0], model.predict(mixtures))


def test_it_is_the_same_after_json(fitted) -> None:
    law, _ = fitted
    mixtures = np.random.default_rng(4).dirichlet(np.ones(SOURCES), 10)
    again = Law.from_dict(json.loads(json.dumps(law.to_dict())))
    np.testing.assert_allclose(again.predict(mixtures), law.predict(mixtures), rtol=1e-12)
    before, after = law.predict(mixtures, interval=0.9), again.predict(mixtures, interval=0.9)
    np.testing.assert_allclose(after.upper, before.upper, rtol=1e-9)
