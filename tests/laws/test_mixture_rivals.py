"""Mixture regressions that stand in the analysis as rivals: a stack and BiMix."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from analysis._mixture_rivals import BiMix, BiMixFamily, StackedRegression
from decaylaws.errors import InvalidValueError
from decaylaws.laws.mixing import LogLinear
from tests.laws.test_mixing import draw_shares, frame, noisy, planted


def test_the_stack_is_no_worse_than_its_worse_member_and_weighs_the_better_more() -> None:
    shares, unseen = draw_shares(60, seed=18), draw_shares(200, seed=19)
    stack = StackedRegression(members=("inverse_sum", "log_linear")).fit(frame(shares), noisy(shares, 20))
    for target, weights in stack.params_.items():
        assert weights["inverse_sum"] > weights["log_linear"], target
        assert sum(weights.values()) == pytest.approx(1.0)
    error = np.abs(np.log(stack.predict(frame(unseen)) / planted(unseen))).mean()
    alone = LogLinear().fit(frame(shares), noisy(shares, 20)).predict(frame(unseen))
    assert error < np.abs(np.log(alone / planted(unseen))).mean()
    with pytest.raises(InvalidValueError, match="must be among"):
        StackedRegression(members=("nothing",)).fit(frame(shares), noisy(shares, 20))


def test_bimix_needs_a_source_of_the_domains_own() -> None:
    shares = draw_shares(30, seed=29)
    law = BiMix().fit(frame(shares), noisy(shares, 30))
    assert law.params_["loss:code"]["a:code"] > 0
    with pytest.raises(InvalidValueError, match="BiMix needs an own source"):
        BiMix().fit(frame(shares), noisy(shares, 30).rename(columns={"loss:web": "loss:latin"}))


def test_the_slopes_of_bimix_equal_finite_differences() -> None:
    shares, family = draw_shares(6, seed=0), BiMixFamily(own=1)
    start = family.start(shares, planted(shares)[:, 0])
    theta = start.theta + 0.3
    numeric = approx_fprime(theta, lambda at: family.value(at, shares), 1e-7)
    value, slopes = family.with_slopes(theta, shares)
    np.testing.assert_allclose(slopes, numeric, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(value, family.value(theta, shares), rtol=1e-14)
    steps = np.random.default_rng(1).standard_normal(slopes.shape)
    np.testing.assert_allclose(
        family.along(theta, shares, steps)[1], np.sum(slopes * steps, axis=1), rtol=1e-9
    )
    value, moved, *by_share = family.by_shares(theta, shares[0], steps[0])
    at = [lambda h, k=k: family.along(theta, h[None], steps[:1])[k][0] for k in (0, 1)]
    assert (value, moved) == pytest.approx([each(shares[0]) for each in at])
    for found, each in zip(by_share, at):
        np.testing.assert_allclose(found, approx_fprime(shares[0], each, 1e-7), rtol=1e-4, atol=1e-5)
