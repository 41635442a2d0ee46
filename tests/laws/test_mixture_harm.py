"""Harm of repetition in mixture regressions: planted worlds with and without it, and derivatives."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import approx_fprime

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.law import Law
from decaylaws.laws.mixing import BlendedRegression, InverseSum
from decaylaws.laws.mixing.families import InverseSumFamily
from decaylaws.laws.mixing.harm import HarmTerms

SOURCES = ["web", "code", "maths", "books"]
PASSES = {"web": 0.8, "code": 1.5, "maths": 4.0, "books": 25.0}
ONSET = 6.0


def runs(seed: int, harm: float, count: int = 40) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mixtures and noisy losses of two targets; books are read up to 25 times and cost from six passes on."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(4), count)
    return pd.DataFrame(shares, columns=SOURCES), losses(shares, harm) * np.exp(
        0.003 * rng.standard_normal((count, 2))
    )


def losses(shares: np.ndarray, harm: float) -> pd.DataFrame:
    scale = np.array([[0.4, 0.1, 0.1, 0.3], [0.1, 0.5, 0.3, 0.4]])
    power = np.array([[0.3, 0.5, 0.8, 0.2], [0.6, 0.25, 0.4, 0.3]])
    terms = [1.0 / np.sum(c * (shares + 3e-4) ** g, axis=1) for c, g in zip(scale, power)]
    cost = harm * np.maximum(np.log(np.maximum(PASSES["books"] * shares[:, 3], 1e-9) / ONSET), 0.0) ** 1.5
    return pd.DataFrame({"web": 1.8 + terms[0] + cost, "books": 1.2 + terms[1] + 0.6 * cost})


@pytest.mark.parametrize("seed", range(4))
def test_a_planted_onset_is_found_within_its_interval(seed: int) -> None:
    law = InverseSum(num_starts=1, epochs=PASSES).fit(*runs(seed, 0.25))
    (onset,) = law.onsets_
    assert onset.source == "books"
    assert onset.lower <= ONSET <= onset.upper
    assert onset.upper < 2 * ONSET
    # along more and more books the loss turns where it truly does, and goes up beyond
    rest = np.array([0.5, 0.3, 0.2])
    books = np.linspace(0.01, 0.95, 95)
    line = np.column_stack([(1 - books)[:, None] * rest, books])
    guess, truth = law.predict(line).mean(axis=1), losses(line, 0.25).mean(axis=1).to_numpy()
    assert abs(books[guess.argmin()] - books[truth.argmin()]) < 0.08
    assert guess[-1] > guess.min() + 0.5 * (truth[-1] - truth.min())


@pytest.mark.parametrize("seed", range(4))
def test_no_onset_is_invented_where_repetition_does_no_harm(seed: int) -> None:
    data = runs(seed, 0.0)
    law = InverseSum(num_starts=1, epochs=PASSES).fit(*data)
    assert law.onsets_ == ()
    plain = InverseSum(num_starts=1).fit(*data)
    np.testing.assert_array_equal(law.predict(data[0]), plain.predict(data[0]))


def test_the_blend_has_the_onset_of_its_law_and_survives_json() -> None:
    shares, observed = runs(11, 0.25)
    law = BlendedRegression(epochs=PASSES).fit(shares, observed)
    (onset,) = law.onsets_
    assert onset.lower <= ONSET <= onset.upper
    assert "Repeating 'books' more than" in onset.words("a run", "nats")
    again = Law.from_dict(law.to_dict())
    np.testing.assert_allclose(again.predict(shares), law.predict(shares))
    assert again.onsets_ == law.onsets_


def test_where_no_run_repeats_much_nothing_changes() -> None:
    data = runs(5, 0.25)
    seldom = {name: 0.1 * value for name, value in PASSES.items()}
    law = InverseSum(num_starts=1, epochs=seldom).fit(*data)
    assert law.onsets_ == ()
    np.testing.assert_array_equal(law.predict(data[0]), InverseSum(num_starts=1).fit(*data).predict(data[0]))


def test_derivatives_equal_differences() -> None:
    family = InverseSumFamily(harm=HarmTerms((1, 3), (9.0, 25.0)))
    shares = np.random.default_rng(3).dirichlet(np.ones(4), 12)
    start = family.start(shares, np.linspace(2.0, 3.0, 12))
    theta = start.theta + 0.1
    theta[-2:] = [0.08, 0.2]
    value, slopes = family.with_slopes(theta, shares)
    numeric = approx_fprime(theta, lambda t: family.value(t, shares), 1e-7)
    np.testing.assert_allclose(slopes, numeric, atol=2e-5)
    steps = np.random.default_rng(4).standard_normal((12, len(theta)))
    np.testing.assert_allclose(family.along(theta, shares, steps)[1], np.sum(slopes * steps, axis=1))
    np.testing.assert_allclose(family.along(theta, shares, steps)[0], value)
    for row in range(4):
        loss, along, by_loss, by_along = family.by_shares(theta, shares[row], steps[row])
        assert loss == pytest.approx(value[row])
        assert along == pytest.approx(slopes[row] @ steps[row])
        by = approx_fprime(shares[row], lambda w: family.value(theta, w[None])[0], 1e-7)
        np.testing.assert_allclose(by_loss, by, rtol=1e-4, atol=1e-5)
        moved = approx_fprime(
            shares[row], lambda w, step=steps[row]: family.along(theta, w[None], step[None])[1][0], 1e-7
        )
        np.testing.assert_allclose(by_along, moved, rtol=1e-3, atol=1e-4)


def test_unknown_sources_and_passes_are_named() -> None:
    shares, observed = runs(1, 0.0)
    with pytest.raises(InvalidValueError, match="poems"):
        InverseSum(epochs={"poems": 3.0}).fit(shares, observed)
    with pytest.raises(InvalidValueError, match="positive"):
        InverseSum(epochs={"web": 0.0}).fit(shares, observed)
