"""Block-arrow derivatives and normal matrices: the same numbers as dense ones."""

from __future__ import annotations

import numpy as np
import pytest

from decaylaws.laws.kit.arrow_matrix import ArrowMatrix, ArrowSlopes
from decaylaws.laws.kit.normal_matrix import DenseSlopes
from decaylaws.laws.kit.solver import solve


def arrow(domains: int, runs: int = 9, shared: int = 3, own: int = 4, seed: int = 0) -> ArrowSlopes:
    """Random derivatives; the own parameters stand by kind, as the decay law's do."""
    rng = np.random.default_rng(seed)
    columns = shared + np.arange(own * domains).reshape(own, domains).T
    return ArrowSlopes(
        rng.normal(size=(domains, runs, shared)),
        rng.normal(size=(domains, runs, own)),
        np.arange(shared),
        columns,
    )


@pytest.mark.parametrize("shared", [3, 0])
def test_an_arrow_is_the_dense_matrix_in_parts(shared: int) -> None:
    slopes = arrow(5, shared=shared)
    dense, rng = DenseSlopes(slopes.dense()), np.random.default_rng(1)
    n, p = dense.values.shape
    assert slopes.num_params == dense.num_params == p
    values, unit, precision, rows = rng.normal(size=p), rng.random(p), rng.random(p), rng.random(n) > 0.4
    factors = rng.normal(size=n)
    np.testing.assert_allclose(slopes.rows_scaled(factors).dense(), dense.rows_scaled(factors).values)
    np.testing.assert_allclose(slopes.projected(factors), dense.projected(factors), atol=1e-12)
    np.testing.assert_allclose(slopes.squared_lengths(), dense.squared_lengths())
    for one, other in (
        (slopes.gram(precision), dense.gram(precision)),
        (slopes.gram(precision, rows), dense.gram(precision, rows)),
        (slopes.gram(precision).scaled(unit, values**2), dense.gram(precision).scaled(unit, values**2)),
    ):
        assert isinstance(one, ArrowMatrix)
        np.testing.assert_allclose(one.dense(), other.values, atol=1e-12)
        np.testing.assert_allclose(one.diagonal(), other.diagonal())
        np.testing.assert_allclose(one.times(values), other.times(values), atol=1e-12)
        for damping in (0.0, 2.0):
            found, wanted = one.factor(damping), other.factor(damping)
            assert found is not None
            assert wanted is not None
            np.testing.assert_allclose(found.solve(values), wanted.solve(values), rtol=1e-9, atol=1e-9)


def test_what_is_not_positive_definite_has_no_factor() -> None:
    slopes = arrow(3)
    for bad in (slopes.shared_columns[1], slopes.own_columns[1, 2]):
        precision = np.ones(slopes.num_params)
        precision[bad] = -1e3
        assert slopes.gram(precision).factor() is None
        assert DenseSlopes(slopes.dense()).gram(precision).factor() is None


def test_free_columns_stay_an_arrow_where_every_domain_frees_the_same() -> None:
    slopes = arrow(4)
    free = np.ones(slopes.num_params, dtype=bool)
    free[[1, *slopes.own_columns[:, 2]]] = False
    kept = slopes.columns(free)
    assert isinstance(kept, ArrowSlopes)
    np.testing.assert_array_equal(kept.dense(), slopes.dense()[:, free])
    free[slopes.own_columns[0, 0]] = False
    uneven = slopes.columns(free)
    assert isinstance(uneven, DenseSlopes)
    np.testing.assert_array_equal(uneven.dense(), slopes.dense()[:, free])


def test_covariances_of_predictions_are_those_of_the_dense_inverse() -> None:
    slopes, precision = arrow(4), np.full(19, 0.3)
    factor = slopes.gram(precision).factor()
    assert factor is not None
    covariance, inverse = factor.inverse(), np.linalg.inv(slopes.gram(precision).dense())
    rows = slopes.dense().reshape(9, 4, -1)
    np.testing.assert_allclose(covariance.of(slopes), rows @ inverse @ rows.transpose(0, 2, 1), atol=1e-12)
    np.testing.assert_allclose(covariance.own_variances(), np.diag(inverse)[slopes.own_columns])
    np.testing.assert_allclose(np.diag(covariance.shared), np.diag(inverse)[:3])
    held = np.zeros(19, dtype=bool)
    held[[0, slopes.own_columns[1, 2]]] = True
    factor = slopes.without(held).gram(np.where(held, 1.0, precision)).factor()
    assert factor is not None
    inverse = np.zeros((19, 19))
    free = ~held
    inverse[np.ix_(free, free)] = np.linalg.inv(slopes.gram(precision).dense()[np.ix_(free, free)])
    part = factor.inverse().holding(held[slopes.shared_columns], held[slopes.own_columns])
    np.testing.assert_allclose(part.of(slopes), rows @ inverse @ rows.transpose(0, 2, 1), atol=1e-12)


@pytest.mark.parametrize("domains", [4, 90])  # all eigenvalues, and the extreme ones by iteration
def test_the_condition_number_is_that_of_the_dense_columns(domains: int) -> None:
    slopes, rng = arrow(domains), np.random.default_rng(2)
    precision, free = rng.random(slopes.num_params), rng.random(slopes.num_params) > 0.1
    wanted = DenseSlopes(slopes.dense()).condition(precision, free)
    assert slopes.condition(precision, free) == pytest.approx(wanted, rel=1e-6)


def test_a_descent_on_an_arrow_ends_where_a_dense_one_does() -> None:
    slopes, rng = arrow(6, runs=12), np.random.default_rng(3)
    truth = rng.normal(size=slopes.num_params)
    observed = np.tanh(slopes.dense() @ truth / 4) + rng.normal(scale=0.01, size=72)
    observed[5] += 3.0

    def residuals(theta: np.ndarray) -> np.ndarray:
        return np.tanh(slopes.dense() @ theta / 4) - observed

    def derivatives(theta: np.ndarray) -> ArrowSlopes:
        return slopes.rows_scaled((1 - np.tanh(slopes.dense() @ theta / 4) ** 2) / 4)

    given = {
        "huber_delta": 0.1, "normal_equations": True, "polish": False, "noise_sd": 0.1,
        "lower": np.full(len(truth), -1.5), "upper": np.full(len(truth), 1.5),
        "prior_mean": np.zeros(len(truth)), "prior_sd": np.ones(len(truth)),
    }  # fmt: skip
    start = np.full(len(truth), 0.1)
    one = solve(residuals, start, jacobian=derivatives, **given)
    other = solve(residuals, start, jacobian=lambda theta: derivatives(theta).dense(), **given)
    np.testing.assert_allclose(one.theta, other.theta, atol=1e-8)
    assert one.report.at_bounds == other.report.at_bounds != ()
    assert one.report.condition == pytest.approx(other.report.condition, rel=1e-6)
    np.testing.assert_allclose(one.jacobian, other.jacobian, atol=1e-8)
