"""Intervals of mixture regressions outside the range of their runs."""

from __future__ import annotations

import numpy as np
import pytest

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.horizon import Horizon
from decaylaws.laws.mixing import BlendedRegression, InverseSum, MixtureRegression
from decaylaws.laws.mixing.reach import Box, inner_fit, mixture_horizon, outer_errors

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


def test_an_inner_fit_is_asked_about_what_lies_outside_its_range() -> None:
    shares, _, _ = runs(0)
    fitted, asked = inner_fit(shares)
    assert fitted.sum() == 45
    assert not (fitted & asked).any()
    np.testing.assert_array_equal(Box.of(shares[fitted]).outside(shares) > 0, asked)
    assert asked.sum() > 30
    for count in (16, 12, 9, 8):
        fitted, asked = inner_fit(shares[:count])
        assert fitted.sum() == 8  # a fit needs eight runs
        assert asked.sum() <= count - 8
    assert not inner_fit(np.tile(shares[:1], (12, 1)))[1].any()


def test_the_width_grows_with_the_spread_as_far_as_inner_fits_err_more_than_they_say() -> None:
    """Errors three times as large as the spread that is stated for them, whatever that is by mixture."""
    rng = np.random.default_rng(0)
    stated = rng.uniform(0.02, 0.03, 60)
    errors = np.where(np.arange(60) < 40, 3.0 * stated * rng.standard_normal(60), np.nan)
    (reach,) = mixture_horizon(errors, stated).reaches
    assert reach.fits == 4
    assert reach.gap == pytest.approx(0.025, rel=0.05)
    half = reach.half_width(np.exp([0.0, 0.01, reach.gap, 0.1]), 0.9)
    assert half[0] == 0.0
    assert half[2] == pytest.approx(1.94 * 3.0 * reach.gap, rel=0.25)  # Student's t, six degrees of freedom
    assert half[1] < half[2] < half[3]
    assert half[1] > 0.7 * half[2]  # a spread that is stated to be small is not believed to the end
    (few,) = mixture_horizon(errors[:4], stated[:4]).reaches
    assert few.fits == 2
    # a single one says nothing of what is usual
    assert mixture_horizon(errors[39:], stated[39:]) == Horizon()


def test_inner_fits_see_nothing_of_the_runs_beyond_them() -> None:
    """A kernel that was chosen with the outer runs in sight would already know how the losses go on there."""
    shares, losses, _ = runs(4)
    fitted, _ = inner_fit(shares)
    other = np.where(fitted, losses, losses * np.exp(4.0 * (shares**2).sum(axis=1)))
    predicted = []
    for seen in (losses, other):
        law = BlendedRegression().fit(shares, seen)
        inner = law._fit_inner("loss", law.models_["loss"], shares[fitted], seen[fitted])
        predicted.append(inner.predict(shares))
    np.testing.assert_array_equal(predicted[0], predicted[1])


def test_intervals_grow_from_the_edge_of_the_range_on() -> None:
    shares, losses, inner = runs(5)
    law = InverseSum(num_starts=1).fit(shares[inner], losses[inner])
    box = law.box_
    assert box.near > 0
    centre, corner = box.centre, np.array([1.0, 0.0, 0.0, 0.0])
    along = np.array([(1 - part) * centre + part * corner for part in np.linspace(0, 1, 400)])
    found = law.predict(along, interval=0.9)
    half = np.log(found.upper / found.mean)
    outside = box.outside(along)
    assert outside.max() > box.near
    assert np.abs(np.diff(half)).max() < 0.05 * half.max()  # no jump where the range ends
    law.horizons_ = {}
    own = law.predict(along, interval=0.9)
    np.testing.assert_allclose(found.upper[outside == 0], own.upper[outside == 0])
    assert (half > np.log(own.upper / own.mean) * 1.2)[outside > box.near].all()


def test_an_inner_fit_that_is_refused_is_passed_over() -> None:
    shares, losses, _ = runs(0)

    def refused(fitted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raise InvalidValueError("losses", "all equal", "must differ between runs")

    errors, spreads = outer_errors(shares, losses, refused)
    assert np.isnan(errors).all()
    assert mixture_horizon(errors, spreads) == Horizon()


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
    both = np.column_stack([losses, losses + 0.5])[inner]
    law = BlendedRegression().fit(shares[inner], both)
    weights = {"0": 0.5, "1": 0.5}
    found = law.predict_objective(shares, weights, interval=0.9)
    again = MixtureRegression.from_dict(law.to_dict()).predict_objective(shares, weights, interval=0.9)
    np.testing.assert_allclose(again.upper, found.upper)
    law._outer_errors[:] = np.nan
    plain = law.predict_objective(shares, weights, interval=0.9)
    outside = law.box_.outside(shares) > 0
    assert (found.upper - plain.upper)[outside].max() > 0.01
    np.testing.assert_array_equal(found.upper[~outside], plain.upper[~outside])


def test_an_objective_keeps_what_its_targets_err_to_both_sides() -> None:
    """Two targets whose errors of form cancel in the sum: its interval need not hold what either of them errs."""
    shares, losses, inner = runs(5)
    opposite = np.column_stack([losses, 4.0 - losses])
    law = InverseSum(num_starts=1).fit(shares[inner], opposite[inner])
    one = law.predict_objective(shares, {"0": 1.0}, interval=0.9)
    both = law.predict_objective(shares, {"0": 0.5, "1": 0.5}, interval=0.9)
    outside = law.box_.outside(shares) > 0
    assert (both.upper - both.lower)[outside].mean() < 0.7 * (one.upper - one.lower)[outside].mean()


def test_refits_of_a_bootstrap_measure_no_horizon() -> None:
    shares, losses, _ = runs(2)
    (draw,) = InverseSum(num_starts=1).resampled(shares, losses, num_draws=1, seed=0)
    assert draw.horizons_ == {}


def test_a_fit_for_means_alone_predicts_the_same_and_makes_no_inner_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares, losses, _ = runs(1)
    whole = InverseSum(num_starts=1).fit(shares[:24], losses[:24])
    monkeypatch.setattr(InverseSum, "_inner_errors", None)  # calling it would fail
    means = InverseSum(num_starts=1).fit_means(shares[:24], losses[:24])
    np.testing.assert_array_equal(means.predict(shares), whole.predict(shares))
    assert list(whole.horizons_) == list(whole.targets_)
    assert means.horizons_ == {}
