"""What draws say of a recommended mixture: errors of the form, members that disagree, and when to fall back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from decaylaws.laws.mixing import BlendedRegression, InverseSum, LinearRegression
from decaylaws.laws.mixing.blend import BlendModel
from decaylaws.mixtures import MixtureSpace, SourceLimits
from decaylaws.search import recommend_mixture
from decaylaws.search.form_errors import FormErrors, left_out_size

SOURCES = ("web", "code", "maths", "books")
SPACE = MixtureSpace(tuple(SourceLimits(name, 10**9) for name in SOURCES))


def records(count: int, seed: int, slope: float, noise: float = 0.02) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two targets that learn from two sources each, beside noise."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(4), count)
    own = np.column_stack([shares[:, 0] + shares[:, 1], shares[:, 2] + shares[:, 3]])
    losses = 2.0 + slope * (own + 0.05) ** -0.5 + noise * rng.standard_normal((count, 2))
    return pd.DataFrame(shares, columns=SOURCES), pd.DataFrame(losses, columns=["web", "code"])


def test_an_error_of_the_form_is_one_function_of_the_mixture() -> None:
    shares = np.random.default_rng(0).dirichlet(np.ones(5), 400)
    errors = FormErrors.of(0.03, list(shares.T), 6, seed=1)
    every = errors.all(shares)
    assert every.std() == pytest.approx(0.03, rel=0.3)
    draw = np.arange(len(shares)) % 6
    np.testing.assert_allclose(errors.each(shares, draw), every[draw, np.arange(len(shares))])
    value, slopes = errors.slopes(shares[3], 2)
    assert value == pytest.approx(every[2, 3])
    around = shares[3] + 1e-6 * np.eye(5)
    np.testing.assert_allclose(slopes, (errors.all(around)[2] - value) / 1e-6, rtol=1e-3, atol=1e-6)
    near = errors.all(0.98 * shares[:1] + 0.02 * shares[1:2])
    assert np.abs(near - every[:, :1]).max() < 0.01  # smooth: mixtures that are near err alike


def test_one_run_far_off_does_not_set_the_size_of_errors() -> None:
    errors = 0.01 * np.random.default_rng(0).standard_normal(40)
    assert left_out_size(np.append(errors, [3.0, np.nan])) < 1.5 * left_out_size(errors)
    assert left_out_size(np.full(3, np.nan)) == 0.0


def test_a_draw_of_the_blend_is_a_draw_of_one_member() -> None:
    shares, losses = records(30, 2, 0.2)
    law = BlendedRegression().fit(shares, losses)
    mixtures = np.random.default_rng(5).dirichlet(np.ones(4), 20)
    model = law.models_["web"]
    assert isinstance(model, BlendModel)
    model = replace(model, process_share=0.5)
    rng = np.random.default_rng(3)
    formula, process = model._formula.posterior(16, rng), model._process.posterior(16, rng)
    drawn = model.posterior(16, np.random.default_rng(3)).all(mixtures)
    trees = model._trees.predict(mixtures)
    by_formula = formula.all(mixtures) ** 0.75 * trees**0.25
    of_formula = np.isclose(drawn, by_formula).all(axis=1)
    of_process = np.isclose(drawn, process.all(mixtures)).all(axis=1)
    assert (of_formula | of_process).all()
    assert 4 <= of_formula.sum() <= 12
    # a member that left-out runs speak against is drawn half-way to the other
    for share, sure, other in (
        (0.95, process.all(mixtures), by_formula),
        (0.05, by_formula, process.all(mixtures)),
    ):
        drawn = replace(model, process_share=share).posterior(16, np.random.default_rng(3)).all(mixtures)
        of_sure = np.isclose(drawn, sure).all(axis=1)
        assert of_sure.sum() == 12
        assert (of_sure | np.isclose(drawn, np.sqrt(sure * other)).all(axis=1)).all()


@pytest.mark.parametrize("law", [InverseSum(num_starts=1), LinearRegression()])
def test_left_out_errors_are_those_of_fits_without_the_run(law) -> None:
    """Sixteen runs of seven sources: leverages are high, and residuals are half of what fits without the run miss."""
    rng = np.random.default_rng(7)
    shares = rng.dirichlet(np.ones(7), 16)
    losses = 2.0 + 0.1 * (shares[:, :2].sum(axis=1) + 0.1) ** -0.5 + 0.01 * rng.standard_normal(16)
    told = law.fit(shares, losses).left_out_errors({"loss": 1.0})
    refitted = np.empty(16)
    for row in range(16):
        kept = np.arange(16) != row
        refitted[row] = (
            type(law)(**law.get_params()).fit(shares[kept], losses[kept]).predict(shares[[row]])[0]
        )
    true = refitted - losses
    assert np.sqrt(np.mean(told**2)) == pytest.approx(np.sqrt(np.mean(true**2)), rel=0.35)
    assert np.corrcoef(told, true)[0, 1] > 0.8


def test_where_the_mixture_does_nothing_no_gain_is_promised() -> None:
    """Losses are noise: whatever the fit makes of it, nothing is predicted to beat the best observed run."""
    for seed in range(3):
        found = recommend_mixture(
            *records(14, seed, 0.0), SPACE, {"web": 1.0, "code": 1.0}, law="inverse_sum"
        )
        (best,) = [rival for rival in found.rivals if rival.name == "best_observed"]
        assert not best.beaten
        assert "best_observed" in found.verdict.partition("There is not enough evidence")[2] or found.fallback
        if found.fallback:
            assert found.verdict.startswith(found.fallback)


def test_a_strong_effect_is_followed_all_the_way() -> None:
    """No run holds more than .3 of web and code together, and half would be best."""
    shares, losses = records(120, 6, 0.3, noise=0.003)
    kept = shares[["web", "code"]].sum(axis=1) < 0.3
    shares, losses = shares[kept], losses[kept]
    assert len(shares) < 60
    found = recommend_mixture(shares, losses, SPACE, {"web": 1.0, "code": 1.0}, num_draws=8)
    assert found.fallback == ""
    own = found.mixture.share("web") + found.mixture.share("code")
    assert own == pytest.approx(0.5, abs=0.12)
    (best,) = [rival for rival in found.rivals if rival.name == "best_observed"]
    assert best.mixture.array(SOURCES) == pytest.approx(shares.iloc[int(losses.mean(axis=1).argmin())])
