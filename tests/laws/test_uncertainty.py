import numpy as np
import pytest

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.draws import (
    bootstrap,
    cluster_weights,
    conformal_radius,
    coverage,
    draw_scale,
    one_step_draws,
    quantile_interval,
)
from decaylaws.laws.kit.law import Prediction
from decaylaws.laws.kit.solver import solve


def test_weights_are_equal_within_a_run_and_average_one_over_runs():
    groups = np.array(["a", "b", "a", "c", "c", "c"])
    for weights in cluster_weights(groups, 20, seed=3):
        for label in "abc":
            assert np.ptp(weights[groups == label]) == 0
        assert weights[[0, 1, 3]].mean() == pytest.approx(1)
        assert (weights > 0).all()


def test_one_run_cannot_be_bootstrapped():
    with pytest.raises(InvalidValueError, match="groups"):
        next(cluster_weights(["a", "a"], 3, seed=0))


def test_bootstrap_spread_is_the_standard_error_between_runs():
    rng = np.random.default_rng(0)
    run_means = rng.normal(size=60)
    groups = np.repeat(np.arange(60), 50)
    values = np.repeat(run_means, 50) + 1e-3 * rng.normal(size=3000)
    draws = bootstrap(lambda w: np.array([np.average(values, weights=w)]), groups, num_draws=500, seed=1)
    expected = run_means.std() / np.sqrt(60)
    assert draws.std() == pytest.approx(expected, rel=0.15)  # not the sqrt(3000) of independent points


def test_the_same_seed_gives_the_same_draws():
    first, second = (list(cluster_weights([1, 2, 3], 4, seed=9)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_run_has_its_own_random_numbers_whatever_stands_beside_it():
    few = np.array(list(cluster_weights(["a", "b", "c"], 6, seed=9)))
    shuffled = np.array(list(cluster_weights(["c", "a", "b"], 6, seed=9)))
    np.testing.assert_array_equal(shuffled, few[:, [2, 0, 1]])
    more = np.array(list(cluster_weights(["a", "b", "c", "d"], 6, seed=9)))
    np.testing.assert_allclose(more[:, 0] / more[:, 1], few[:, 0] / few[:, 1])


def test_quantile_interval_holds_its_mean():
    draws = np.random.default_rng(0).normal(loc=[0.0, 9.0], size=(4000, 2))
    interval = quantile_interval([0.0, 3.0], draws, 0.9)
    assert interval.lower[0] == pytest.approx(-1.645, abs=0.1)
    assert interval.upper[0] == pytest.approx(1.645, abs=0.1)
    assert interval.lower[1] == 3.0
    assert interval.level == 0.9


def test_conformal_radius_covers_a_new_score():
    rng = np.random.default_rng(5)
    hits = []
    for _ in range(2000):
        scores = np.abs(rng.standard_t(3, size=20))
        hits.append(scores[0] <= conformal_radius(scores[1:], 0.9))
    assert 0.88 <= np.mean(hits) <= 0.93


def test_conformal_radius_grows_when_scores_are_too_few():
    assert conformal_radius([0.2, -0.5], 0.9) == pytest.approx(0.5 * 2.7 / 2)


@pytest.mark.parametrize("level", [0.0, 1.0, 90])
def test_a_level_outside_zero_and_one_is_an_error(level):
    with pytest.raises(InvalidValueError, match="interval"):
        conformal_radius([0.1], level)


def test_coverage_counts_what_the_interval_holds():
    prediction = Prediction(np.zeros(4), -np.ones(4), np.ones(4), 0.9)
    assert coverage(prediction, [0.0, 1.0, -1.5, 2.0]) == 0.5


def test_one_step_draws_spread_as_runs_and_priors_do():
    """A mean over 60 runs, and a second parameter that only its prior knows."""
    rng = np.random.default_rng(0)
    run_means = rng.normal(size=60)
    groups = np.repeat(np.arange(60), 5)
    values = run_means[groups]
    design = np.column_stack([np.ones(300), np.zeros(300)])
    solution = solve(
        lambda theta: theta[0] - values,
        [0.0, 0.5],
        jacobian=lambda theta: design,
        prior_mean=[np.nan, 0.0],
        prior_sd=[np.inf, 0.3],
    )
    bounds = {"lower": np.full(2, -9.0), "upper": np.full(2, 9.0)}
    draws = one_step_draws(solution, groups, num_draws=2000, seed=1, **bounds)
    assert draws[:, 0].mean() == pytest.approx(run_means.mean(), abs=0.02)
    assert draws[:, 0].std() == pytest.approx(run_means.std() / np.sqrt(60), rel=0.1)
    assert draws[:, 1].std() == pytest.approx(0.3, rel=0.1)
    wider = one_step_draws(solution, groups, num_draws=2000, seed=1, group_sd=5.0, **bounds)
    assert wider[:, 0].std() == pytest.approx(np.hypot(5.0, run_means.std()) / np.sqrt(60), rel=0.1)


def test_draws_keep_fixed_parameters_and_bounds():
    groups = np.repeat(np.arange(4), 3)
    values = np.linspace(0, 1, 12)
    solution = solve(lambda t: t[0] + t[1] - values, [0.0, 0.2], lower=[0.28, 0.2], upper=[9, 0.2])
    lower, upper = np.array([0.28, 0.2]), np.array([9, 0.2])
    draws = one_step_draws(solution, groups, num_draws=50, seed=0, lower=lower, upper=upper)
    assert (draws[:, 1] == 0.2).all()
    assert draws[:, 0].min() >= 0.28


def test_draws_are_scaled_to_the_errors_of_held_out_rows():
    rng = np.random.default_rng(0)
    noise, misfit = rng.normal(0, 0.01, 4000), rng.normal(0, 0.03, 4000)
    own_noise = np.full(4000, 2 * 0.01**2)  # a fit's noise holds some of its misfit: half of it is the seeds'
    assert draw_scale(noise + misfit, own_noise, 0.01**2) == pytest.approx(3.0, rel=0.05)
    assert draw_scale(noise, own_noise, 0.01**2) == 1.0
    assert draw_scale(noise, own_noise, 0.0) == 1.0
