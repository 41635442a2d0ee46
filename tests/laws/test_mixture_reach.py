"""Intervals of mixture regressions outside the range of their runs."""

from __future__ import annotations

import numpy as np

from decaylaws.laws.kit.horizon import Horizon
from decaylaws.laws.mixing import BlendedRegression, InverseSum, MixtureRegression
from decaylaws.laws.mixing.reach import Box, mixture_origins

HOLDS_AT_LEAST = 0.7
"""90 % intervals of a form that cannot be right, far from every run (.8 is measured, .46 without the horizon)."""


def bowl(shares: np.ndarray) -> np.ndarray:
    """Losses of a form that no inverse sum has: lowest in the middle, and steeper and steeper away from it [runs]."""
    return np.asarray(2.0 + ((shares - 1 / shares.shape[1]) ** 2).sum(axis=1))


def runs(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mixtures, noisy losses, and which of them lie among the inner two thirds."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(4, 1.2), 90)
    losses = bowl(shares) * np.exp(0.004 * rng.standard_normal(90))
    distance = np.abs(shares - shares.mean(axis=0)).sum(axis=1)
    return shares, losses, distance <= np.quantile(distance, 2 / 3)


def inside(law: MixtureRegression, shares: np.ndarray, losses: np.ndarray) -> float:
    found = law.predict(shares, interval=0.9)
    return float(np.mean((found.lower <= losses) & (losses <= found.upper)))


def test_origins_ask_inner_fits_about_what_lies_outside_their_range() -> None:
    shares, _, _ = runs(0)
    origins = mixture_origins(shares)
    assert len(origins) == 4
    for origin in origins:
        box = Box.of(shares[origin.fitted])
        assert not (origin.fitted & origin.asked).any()
        assert (box.outside(shares[origin.asked]) > 0).all()
        assert (box.outside(shares[origin.fitted]) == 0).all()
    assert origins[1].reached > origins[0].reached
    assert mixture_origins(shares[:9]) == []


def test_intervals_outside_the_range_are_as_wide_as_errors_there() -> None:
    held, held_without = [], []
    for seed in range(6):
        shares, losses, inner = runs(seed)
        law = InverseSum(num_starts=1).fit(shares[inner], losses[inner])
        widened = law.predict(shares, interval=0.9)
        held.append(inside(law, shares[~inner], losses[~inner]))
        law.horizons_ = {"loss": Horizon()}
        plain = law.predict(shares, interval=0.9)
        held_without.append(inside(law, shares[~inner], losses[~inner]))
        outside = law.box_.outside(shares) > 0
        np.testing.assert_array_equal(widened.upper[~outside], plain.upper[~outside])
        assert (widened.upper[outside] >= plain.upper[outside]).all()
    assert np.mean(held) > HOLDS_AT_LEAST > np.mean(held_without)


def test_the_interval_of_an_objective_is_widened_too_and_survives_json() -> None:
    shares, losses, inner = runs(1)
    both = np.column_stack([losses, losses[::-1]])[inner]
    law = BlendedRegression().fit(shares[inner], both)
    weights = {"0": 0.5, "1": 0.5}
    found = law.predict_objective(shares, weights, interval=0.9)
    again = MixtureRegression.from_dict(law.to_dict()).predict_objective(shares, weights, interval=0.9)
    np.testing.assert_allclose(again.upper, found.upper)
    law.horizons_ = {}
    plain = law.predict_objective(shares, weights, interval=0.9)
    outside = law.box_.outside(shares) > 0
    assert (found.upper - plain.upper)[outside].max() > 0.01
    np.testing.assert_array_equal(found.upper[~outside], plain.upper[~outside])


def test_refits_of_a_bootstrap_measure_no_horizon() -> None:
    shares, losses, _ = runs(2)
    (draw,) = InverseSum(num_starts=1).resampled(shares, losses, num_draws=1, seed=0)
    assert draw.horizons_ == {}
