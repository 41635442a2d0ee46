from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import logsumexp

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.report import FitReport, FitStatus
from decaylaws.laws.kit.solver import solve


def _line(x, y):
    return lambda theta: theta[0] + theta[1] * x - y, lambda theta: np.column_stack([np.ones_like(x), x])


def test_least_squares_matches_the_closed_form():
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    y = 2 - 3 * x + rng.normal(size=40)
    residuals, jacobian = _line(x, y)
    solution = solve(residuals, [0.0, 0.0], jacobian=jacobian)
    expected, rest, *_ = np.linalg.lstsq(jacobian(None), y, rcond=None)
    np.testing.assert_allclose(solution.theta, expected, rtol=1e-12)
    assert solution.report.objective == pytest.approx(0.5 * rest[0], rel=1e-12)
    assert solution.report.status is FitStatus.CONVERGED
    expected_covariance = rest[0] / 38 * np.linalg.inv(jacobian(None).T @ jacobian(None))
    np.testing.assert_allclose(solution.covariance(), expected_covariance, rtol=1e-9)


def test_prior_is_the_posterior_mode_of_the_linear_gaussian_model():
    x = np.linspace(-1, 1, 7)
    residuals, jacobian = _line(x, 1 + x)
    mean, sd, noise = np.array([0.0, 0.5]), np.array([0.3, np.inf]), 0.2
    solution = solve(residuals, [0.0, 0.0], jacobian=jacobian, prior_mean=mean, prior_sd=sd, noise_sd=noise)
    design = jacobian(None)
    precision = np.diag([(noise / 0.3) ** 2, 0.0])
    expected = np.linalg.solve(design.T @ design + precision, design.T @ (1 + x))
    np.testing.assert_allclose(solution.theta, expected, rtol=1e-10)


def test_a_prior_stands_in_for_missing_observations():
    residuals, jacobian = _line(np.array([1.0]), np.array([2.0]))
    with pytest.raises(InvalidValueError, match="observations"):
        solve(residuals, [0.0, 0.0], jacobian=jacobian)
    solution = solve(
        residuals, [0.0, 0.0], jacobian=jacobian, prior_mean=[0.0, np.nan], prior_sd=[1.0, np.inf]
    )
    np.testing.assert_allclose(solution.theta, [0.0, 2.0], atol=1e-9)


@pytest.mark.parametrize("delta", [0.05, 1e6])
def test_huber_objective_is_the_textbook_sum(delta):
    rng = np.random.default_rng(1)
    x = rng.normal(size=30)
    y = x + rng.standard_t(2, size=30)
    residuals, jacobian = _line(x, y)
    weights = rng.uniform(0, 2, size=30)
    solution = solve(residuals, [0.0, 0.0], jacobian=jacobian, huber_delta=delta, weights=weights)
    size = np.abs(residuals(solution.theta))
    terms = np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))
    assert solution.report.objective == pytest.approx(weights @ terms, rel=1e-12)
    slope = jacobian(None).T @ (weights * np.clip(residuals(solution.theta), -delta, delta))
    np.testing.assert_allclose(slope, 0, atol=1e-7)


def test_zero_weights_are_missing_rows():
    x = np.linspace(0, 1, 10)
    y = np.where(np.arange(10) < 7, 1 + x, 99.0)
    residuals, jacobian = _line(x, y)
    solution = solve(residuals, [0.0, 0.0], jacobian=jacobian, huber_delta=0.1, weights=np.arange(10) < 7)
    np.testing.assert_allclose(solution.theta, [1, 1], atol=1e-9)


def test_numeric_and_analytic_jacobians_agree():
    x = np.linspace(0, 2, 25)
    y = 3 * np.exp(-1.5 * x) + 0.01 * np.sin(40 * x)

    def residuals(theta):
        return theta[0] * np.exp(-theta[1] * x) - y

    def jacobian(theta):
        decay = np.exp(-theta[1] * x)
        return np.column_stack([decay, -theta[0] * x * decay])

    exact = solve(residuals, [1.0, 1.0], jacobian=jacobian)
    numeric = solve(residuals, [1.0, 1.0])
    np.testing.assert_allclose(numeric.theta, exact.theta, rtol=1e-6)


def test_starts_in_another_basin_lower_the_agreeing_share():
    def residuals(theta):
        return np.array([np.sin(theta[0]) + 1.1, 0.1 * theta[0] - 0.3])

    starts = np.array([[5.0], [4.5], [-14.0], [17.0]])
    report = solve(residuals, starts).report
    assert report.num_starts == 4
    assert report.agreeing_share == 0.5


def test_bounds_hold_and_are_reported_by_name():
    x = np.linspace(0, 1, 9)
    residuals, jacobian = _line(x, 1 + 5 * x)
    solution = solve(
        residuals, [0.0, 0.0], jacobian=jacobian, lower=[-9, 0], upper=[9, 2], names=["level", "slope"]
    )
    assert solution.theta[1] == pytest.approx(2)
    assert solution.report.at_bounds == ("slope",)
    assert solution.report.status is FitStatus.AT_BOUNDS
    assert "slope" in solution.report.sentence


@pytest.mark.parametrize("upper", [np.inf, 5.0, 0.6])
def test_normal_equations_end_where_scipy_does(upper):
    rng = np.random.default_rng(4)
    x = np.linspace(0, 3, 60)
    y = 2 * np.exp(-0.9 * x) + 0.3 + 0.02 * rng.standard_t(2, size=60)
    known = {
        "jacobian": lambda t: np.column_stack([np.exp(-t[1] * x), -t[0] * x * np.exp(-t[1] * x), x**0]) / 0.02,
        "lower": [-np.inf, 0.0, -1.0], "upper": [9.0, upper, 1.0], "huber_delta": 1.345,
        "prior_mean": np.zeros(3), "prior_sd": np.full(3, 3.0), "polish": False,
    }  # fmt: skip

    def residuals(t):
        return (t[0] * np.exp(-t[1] * x) + t[2] - y) / 0.02

    scipys, ours = (
        solve(residuals, [[0.5, 0.1, 0.9], [5.0, 0.5, 0.0]], normal_equations=which, **known)
        for which in (False, True)
    )
    np.testing.assert_allclose(ours.theta, scipys.theta, rtol=1e-5)
    assert ours.report.objective == pytest.approx(scipys.report.objective, rel=1e-9)
    assert ours.report.at_bounds == scipys.report.at_bounds
    assert ours.report.agreeing_share == 1.0


def test_equal_bounds_fix_a_parameter():
    x = np.linspace(0, 1, 9)
    residuals, jacobian = _line(x, 1 + 5 * x)
    solution = solve(residuals, [0.0, 4.0], jacobian=jacobian, lower=[-9, 4], upper=[9, 4])
    assert solution.theta[1] == 4
    assert solution.report.num_params == 1
    assert solution.report.at_bounds == ()


def test_an_undetermined_direction_is_named():
    def residuals(theta):
        return np.array([theta[0] + theta[1] - 1.0, 2 * theta[0] + 2 * theta[1] - 2.1, 0.0])

    assert solve(residuals, [0.3, 0.1]).report.status is FitStatus.ILL_CONDITIONED


def test_running_out_of_evaluations_is_named():
    def rosenbrock(theta):
        return np.array([10 * (theta[1] - theta[0] ** 2), 1 - theta[0]])

    report = solve(rosenbrock, [-1.2, 1.0], max_evaluations=2, polish=False).report
    assert report.status is FitStatus.NOT_CONVERGED


def test_starts_without_finite_residuals_are_an_error():
    with pytest.raises(InvalidValueError, match="finite residuals"):
        solve(lambda theta: np.full(3, np.nan), [1.0])


def test_crossed_bounds_are_an_error():
    with pytest.raises(InvalidValueError, match="lower"):
        solve(lambda theta: theta, [1.0], lower=[2.0], upper=[1.0])


def test_report_survives_json():
    report = solve(*_line_problem()).report
    assert FitReport.from_dict(report.to_dict()) == report


def _line_problem():
    x = np.linspace(0, 1, 5)
    return _line(x, 1 - x)[0], [0.0, 0.0]


def test_chinchilla_reaches_the_certified_optimum(shared_data: Path):
    points = pd.read_csv(shared_data / "analyzing_chinchilla" / "points_240.csv")
    log_n, log_d, log_loss = (np.log(points[name].to_numpy()) for name in ("params", "tokens", "loss"))

    def parts(theta):
        a, b, e, alpha, beta = theta
        return np.stack([a - alpha * log_n, b - beta * log_d, np.full_like(log_n, e)])

    def jacobian(theta):
        terms = parts(theta)
        share = np.exp(terms - logsumexp(terms, axis=0))
        return np.stack([share[0], share[1], share[2], -share[0] * log_n, -share[1] * log_d], axis=1)

    starts = [[a, b, e, s, s] for a in (5, 10) for b in (5, 10) for e in (0.0, 0.5) for s in (0.3, 0.5)]
    solution = solve(
        lambda theta: logsumexp(parts(theta), axis=0) - log_loss, starts, jacobian=jacobian, huber_delta=1e-3
    )
    assert solution.report.objective == pytest.approx(1.0182740178e-3, abs=1e-12)
    expected = [np.log(477.83), np.log(2143.42), np.log(1.81722), 0.34731, 0.36717]
    np.testing.assert_allclose(solution.theta, expected, atol=2e-5)
    assert solution.report.agreeing_share > 0.3
    assert solution.report.seconds < 5
