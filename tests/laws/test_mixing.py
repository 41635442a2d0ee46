"""Mixture regressions: Jacobians, planted laws, intervals, weights, round trips, bad input."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import approx_fprime
from scipy.stats import spearmanr

from decaylaws.errors import InvalidValueError, NotFittedError, SchemaError
from decaylaws.laws.kit.draws import coverage
from decaylaws.laws.kit.law import Law
from decaylaws.laws.mixing import (
    REGRESSIONS,
    BlendedRegression,
    GaussianProcess,
    InverseSum,
    LightGBMRegression,
    LinearRegression,
    LogLinear,
    MixtureRegression,
    Recalibration,
    recalibrate,
    regression,
    shares_frame,
    simulated_optimum,
)
from decaylaws.laws.mixing.blend import best_share
from decaylaws.laws.mixing.data import grouped_folds, mixture_groups
from decaylaws.laws.mixing.diverged import diverged
from decaylaws.laws.mixing.families import Family, InverseSumFamily, LogLinearFamily, Start
from decaylaws.laws.mixing.parametric import Fitted, FitUnder, FormulaRegression
from decaylaws.laws.mixing.process import GaussianProcessModel
from decaylaws.mixtures import MixtureSpace, SourceLimits

SOURCES = ["web", "code", "math", "books"]


def draw_shares(count: int, seed: int, alpha: float = 0.7) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(len(SOURCES), alpha), size=count)


def planted(shares: np.ndarray) -> np.ndarray:
    """Losses of two domains under an inverse-sum law with k = 1 [runs, 2]."""
    scale = np.array([[0.4, 0.1, 0.1, 0.3], [0.1, 0.6, 0.3, 0.05]])
    power = np.array([[0.3, 0.5, 0.8, 0.2], [0.6, 0.25, 0.4, 0.9]])
    terms = [1.0 / np.sum(c * (shares + 3e-4) ** g, axis=1) for c, g in zip(scale, power)]
    return np.column_stack([1.8 + terms[0], 1.2 + terms[1]])


def noisy(shares: np.ndarray, seed: int, sd: float = 0.005) -> pd.DataFrame:
    factor = np.exp(sd * np.random.default_rng(seed).standard_normal((len(shares), 2)))
    return pd.DataFrame(planted(shares) * factor, columns=["loss:web", "loss:code"])


def frame(shares: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(shares, columns=SOURCES)


@pytest.mark.parametrize("family", [InverseSumFamily(), LogLinearFamily()])
def test_jacobians_equal_finite_differences(family: Family) -> None:
    shares, rng = draw_shares(6, seed=0), np.random.default_rng(1)
    start = family.start(shares, planted(shares)[:, 0])
    theta = np.clip(start.theta + 0.3 * rng.standard_normal(len(start.theta)), start.lower, start.upper)
    numeric = approx_fprime(theta, lambda at: family.value(at, shares), 1e-7)
    value, slopes = family.with_slopes(theta, shares)
    np.testing.assert_allclose(slopes, numeric, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(value, family.value(theta, shares), rtol=1e-14)
    steps = rng.standard_normal(slopes.shape)
    np.testing.assert_allclose(
        family.along(theta, shares, steps)[1], np.sum(slopes * steps, axis=1), rtol=1e-9
    )
    assert len(family.param_names(SOURCES)) == len(theta)


def test_a_planted_law_is_recovered_on_unseen_mixtures() -> None:
    shares, unseen = draw_shares(80, seed=2), draw_shares(200, seed=3)
    law = InverseSum().fit(frame(shares), planted(shares))
    errors = np.abs(law.predict(frame(unseen)) / planted(unseen) - 1)
    assert np.mean(errors) < 0.002
    assert np.quantile(errors, 0.98) < 0.01  # corners that no run came near may be off by a little more
    assert law.report_.status.value == "converged"


@pytest.mark.parametrize(
    "make",
    [BlendedRegression, InverseSum, GaussianProcess, lambda: LightGBMRegression(100, 0.05, num_folds=4)],
)
def test_intervals_hold_on_held_out_runs(make: object) -> None:
    held = []
    for seed in range(4):
        shares, unseen = draw_shares(64, seed=seed), draw_shares(64, seed=100 + seed)
        law = make().fit(frame(shares), noisy(shares, seed))  # type: ignore[operator]
        held.append(coverage(law.predict(frame(unseen), interval=0.9), noisy(unseen, 50 + seed).to_numpy()))
    assert 0.80 <= np.mean(held) <= 0.97


def test_the_interval_of_an_objective_keeps_the_correlation_of_errors() -> None:
    shares, unseen = draw_shares(64, seed=5), draw_shares(300, seed=6)
    law = InverseSum().fit(frame(shares), noisy(shares, 7, sd=0.02))
    weights = {"loss:web": 0.25, "loss:code": 0.75}
    prediction = law.predict_objective(frame(unseen), weights, interval=0.9)
    truth = noisy(unseen, 8, sd=0.02).to_numpy() @ [0.25, 0.75]
    np.testing.assert_allclose(prediction.mean, law.predict(frame(unseen)) @ [0.25, 0.75])
    assert 0.80 <= coverage(prediction, truth) <= 0.98
    with pytest.raises(SchemaError, match="unexpected loss:latin"):
        law.predict_objective(frame(unseen), {"loss:latin": 1.0})


@pytest.mark.parametrize("name", list(REGRESSIONS))
def test_every_regression_survives_json(name: str) -> None:
    shares = draw_shares(40, seed=9)
    law = regression(name)
    if isinstance(law, LightGBMRegression):
        law.set_params(num_trees=30)
    law.fit(frame(shares), noisy(shares, 10))
    again = Law.from_dict(json.loads(json.dumps(law.to_dict(), allow_nan=False)))
    assert isinstance(again, MixtureRegression)
    np.testing.assert_allclose(again.predict(frame(shares)), law.predict(frame(shares)), rtol=1e-9)
    assert again.sources_ == tuple(SOURCES)
    assert again.targets_ == ("loss:web", "loss:code")


def test_a_frame_is_read_by_name_and_never_by_position() -> None:
    shares = draw_shares(40, seed=11)
    law = InverseSum().fit(frame(shares), noisy(shares, 12))
    turned = frame(shares)[["math", "books", "web", "code"]]
    np.testing.assert_array_equal(law.predict(turned), law.predict(frame(shares)))
    with pytest.raises(SchemaError, match="missing code; unexpected latin"):
        law.predict(frame(shares).rename(columns={"code": "latin"}))


def test_weights_of_runs_are_multiplicities() -> None:
    shares = draw_shares(30, seed=13)
    losses, counts = noisy(shares, 14), np.tile([1, 2, 3], 10)
    doubled = np.repeat(np.arange(30), counts)
    weighted = LinearRegression().fit(frame(shares), losses, sample_weight=counts)
    repeated = LinearRegression().fit_checked(frame(shares[doubled]), losses.iloc[doubled])
    np.testing.assert_allclose(weighted.predict(shares), repeated.predict(shares), rtol=1e-9)
    weighted_sum = InverseSum(num_starts=1).fit(frame(shares), losses, sample_weight=counts)
    repeated_sum = InverseSum(num_starts=1).fit_checked(frame(shares[doubled]), losses.iloc[doubled])
    # the priors' centres read the median, which repeats move a little
    np.testing.assert_allclose(weighted_sum.predict(shares), repeated_sum.predict(shares), rtol=2e-3)


def test_resampled_fits_spread_the_optimum() -> None:
    shares, grid = draw_shares(24, seed=15), draw_shares(400, seed=16)
    losses = noisy(shares, 17, sd=0.03)
    draws = InverseSum(num_starts=1).resampled(frame(shares), losses, num_draws=6, seed=0)
    best = {int(np.argmin(law.predict(grid).mean(axis=1))) for law in draws}
    assert len(best) > 1


def test_the_posterior_holds_the_true_regret() -> None:
    grid, held, true_regrets = draw_shares(600, seed=40, alpha=1.0), 0, []
    for seed in range(12):
        shares = draw_shares(20, seed=200 + seed, alpha=1.0)
        law = InverseSum(num_starts=1).fit(frame(shares), noisy(shares, seed, sd=0.02))
        chosen = int(np.argmin(law.predict(grid).mean(axis=1)))
        draws = law.posterior(grid, num_draws=100, seed=seed).mean(axis=2)
        assert draws.shape == (100, 600)
        truth = planted(grid).mean(axis=1)
        true_regrets.append(truth[chosen] - truth.min())
        held += true_regrets[-1] <= np.quantile(draws[:, chosen] - draws.min(axis=1), 0.95)
    assert max(true_regrets) > 0.0
    assert held >= 10


def test_the_blend_lies_between_its_members() -> None:
    shares, unseen = draw_shares(60, seed=18), frame(draw_shares(100, seed=19))
    losses = noisy(shares, 20)
    corners = [
        BlendedRegression(tree_share=0.0, process_share=0.0),
        BlendedRegression(1.0, 0.0),
        BlendedRegression(0.0, 1.0),
    ]
    formula, trees, process = [member.fit(frame(shares), losses).predict(unseen) for member in corners]
    blend = BlendedRegression(process_share=0.5).fit(frame(shares), losses)
    np.testing.assert_allclose(formula, InverseSum(num_starts=1).fit(frame(shares), losses).predict(unseen))
    np.testing.assert_allclose(blend.predict(unseen), (formula**0.75 * trees**0.25) ** 0.5 * process**0.5)
    assert "log_C:web" in blend.params_["loss:web"]
    for name in ("tree_share", "process_share"):
        with pytest.raises(InvalidValueError, match=name):
            BlendedRegression(**{name: 1.5}).fit(frame(shares), losses)


def test_the_blend_turns_up_where_the_runs_do() -> None:
    """Too much of one source raises the loss, which no inverse sum can say: the process takes over, and only there."""
    shares, unseen = draw_shares(60, seed=18, alpha=1.0), draw_shares(200, seed=19, alpha=1.0)

    def losses(rows: np.ndarray, seed: int | None) -> pd.DataFrame:
        harmed = planted(rows)[:, 1] + 4.0 * np.maximum(rows[:, 1] - 0.3, 0.0) ** 2
        noise = (
            1.0 if seed is None else np.exp(0.003 * np.random.default_rng(seed).standard_normal(len(rows)))
        )
        return pd.DataFrame({"loss:web": planted(rows)[:, 0] * noise, "loss:code": harmed * noise})

    blend = BlendedRegression().fit(frame(shares), losses(shares, 1))
    weights = {name: values["process_share"] for name, values in blend.params_.items()}
    assert weights["loss:code"] > 0.5 > weights["loss:web"]
    truth = losses(unseen, None)
    error = np.abs(np.log(blend.predict(frame(unseen)) / truth)).mean()
    law = BlendedRegression(process_share=0.0).fit(frame(shares), losses(shares, 1))
    assert error["loss:code"] < 0.6 * np.abs(np.log(law.predict(frame(unseen)) / truth)).mean()["loss:code"]
    grid = np.tile([[0.4, 0.0, 0.3, 0.3]], (50, 1)) * (1 - np.linspace(0, 0.95, 50))[:, None]
    grid[:, 1] = 1 - grid.sum(axis=1)
    best, true_best = blend.predict(grid)[:, 1].argmin(), losses(grid, None)["loss:code"].argmin()
    assert abs(grid[best, 1] - grid[true_best, 1]) < 0.08


def test_the_better_predictor_gets_the_weight() -> None:
    rng = np.random.default_rng(0)
    small, large, ones = rng.normal(0, 0.1, 400), rng.normal(0, 0.3, 400), np.ones(400)
    assert best_share(small, large, ones) == pytest.approx(0.1, abs=0.04)
    assert best_share(large, small, ones) == pytest.approx(0.9, abs=0.04)
    assert best_share(small, small + large, ones) == pytest.approx(0.0, abs=0.04)
    assert best_share(small, small, ones) == 0.0
    large[0] = 1e3  # a run that diverged
    assert best_share(small, large, ones) == pytest.approx(0.1, abs=0.04)


def test_draws_of_a_process_are_functions_of_its_posterior() -> None:
    shares, grid = draw_shares(25, seed=60), draw_shares(40, seed=61)
    law = GaussianProcess(transform="sqrt", floor_share=0.8).fit(frame(shares), noisy(shares, 62)["loss:web"])
    (model,) = law.models_.values()
    assert isinstance(model, GaussianProcessModel)
    drawn = model.posterior(4000, np.random.default_rng(0)).all(grid)
    logs = np.log(drawn - model.floor)
    signal, noise, _ = model.scales
    spread = np.sqrt(np.maximum(model.spread(grid) ** 2 * noise - noise, 0.0))
    np.testing.assert_allclose(
        logs.mean(axis=0), np.log(model.predict(grid) - model.floor), atol=0.1 * spread.max()
    )
    np.testing.assert_allclose(logs.std(axis=0), spread, rtol=0.25, atol=0.05 * np.sqrt(signal))
    apart = [model.posterior(4, np.random.default_rng(0)).all(grid[rows]) for rows in ([3], [3, 7])]
    np.testing.assert_allclose(apart[0][:, 0], apart[1][:, 0])  # one function, wherever it is asked


def test_draws_of_a_blend_have_the_slopes_that_their_differences_show() -> None:
    shares = draw_shares(30, seed=60)
    law = BlendedRegression(tree_share=0.0, process_share=0.4).fit(
        frame(shares), noisy(shares, 62)["loss:web"]
    )
    (draws,), (fit,) = law.draws(2, 0).values(), law.fit_as_draw().values()
    mixture = draw_shares(1, seed=63)[0]
    for number in (0, 1):
        value, slopes = draws.slopes(mixture, number)
        around = np.vstack([mixture, mixture + 1e-6 * np.eye(4)])
        found = draws.each(around, np.full(5, number))
        assert value == pytest.approx(found[0])
        assert value == pytest.approx(draws.all(mixture[None])[number, 0])
        np.testing.assert_allclose(slopes, (found[1:] - found[0]) / 1e-6, rtol=1e-3, atol=1e-3)
    assert fit.slopes(mixture, 0)[0] == pytest.approx(law.predict(mixture[None])[0])


def test_folds_keep_replicates_together() -> None:
    shares = np.repeat(draw_shares(10, seed=21), 3, axis=0)
    groups = mixture_groups(shares)
    folds = grouped_folds(groups, 5, seed=0)
    assert sorted(np.concatenate(folds).tolist()) == list(range(30))
    assert all(len(np.intersect1d(groups[a], groups[b])) == 0 for i, a in enumerate(folds) for b in folds[:i])


def test_recalibration_carries_a_fit_to_another_scale() -> None:
    shares, larger = draw_shares(80, seed=22), draw_shares(40, seed=23)
    law = InverseSum().fit(frame(shares), noisy(shares, 35))
    truth = np.exp(-0.4 + 0.9 * np.log(noisy(larger, 36).to_numpy()))
    mapping = recalibrate(law, frame(larger[:8]), truth[:8])
    adjusted = mapping.apply(law.predict(frame(larger[8:])))
    assert np.mean(np.abs(adjusted / truth[8:] - 1)) < 0.008
    widened = mapping.interval(law.predict(frame(larger[8:]), interval=0.9))
    assert coverage(widened, truth[8:]) > 0.8
    missed = np.std(np.log(widened.mean / truth[8:]))
    assert np.mean((widened.upper - widened.lower) / widened.mean) < 6 * missed
    with pytest.raises(InvalidValueError, match="at least 3"):
        Recalibration.fit(truth[:2], truth[:2])


def test_recalibration_cannot_turn_a_ranking_round() -> None:
    predicted = np.array([2.0, 2.1, 2.2, 2.3])
    mapping = Recalibration.fit(predicted, predicted[::-1])
    assert (np.diff(mapping.apply(predicted)) > 0).all()


def test_a_loss_that_was_not_measured_is_a_named_exclusion() -> None:
    shares = draw_shares(30, seed=24)
    losses = noisy(shares, 25)
    losses.iloc[[3, 7], 1] = np.nan
    law = InverseSum(num_starts=1).fit(frame(shares), losses)
    assert [(e.target, e.rows, e.reason) for e in law.excluded_] == [
        ("loss:code", (3, 7), "no loss was measured")
    ]
    json.dumps(law.to_dict(), allow_nan=False)


def test_a_source_that_no_run_held_is_refused_unless_asked_for() -> None:
    shares = draw_shares(30, seed=26)
    shares[:, 2] = 0.0
    shares /= shares.sum(axis=1, keepdims=True)
    law = InverseSum(num_starts=1).fit(frame(shares), noisy(shares, 27))
    assert law.unseen_ == ("math",)
    with pytest.raises(InvalidValueError, match=r"'shares\.math' must be 0: no run of the fit held it"):
        law.predict(frame(draw_shares(2, seed=28)))
    assert np.isfinite(law.predict(frame(draw_shares(2, seed=28)), allow_unseen=True)).all()


def test_a_vector_of_losses_is_answered_by_a_vector() -> None:
    shares = draw_shares(30, seed=31)
    law = InverseSum(num_starts=1).fit(shares, planted(shares)[:, 0])
    assert law.predict(shares).shape == (30,)
    assert law.predict(shares, interval=0.9).lower.shape == (30,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x * 1.1, y), "must sum to 1 in every row"),
        (lambda x, y: (-x, y), "must be finite and not negative"),
        (lambda x, y: (x, -y), r"'losses\.loss:web' must be positive and finite"),
        (lambda x, y: (x, y.iloc[:5]), "one row for each of the 30 runs"),
        (lambda x, y: (x.iloc[:5], y.iloc[:5]), "at least 8 runs"),
        (lambda x, y: (x, y * np.inf), "must be positive and finite"),
        (lambda x, y: (x, y.astype(str) + " nats"), "must hold numbers only"),
    ],
)
def test_bad_input_is_named(change: object, message: str) -> None:
    shares = draw_shares(30, seed=32)
    X, y = change(frame(shares), noisy(shares, 33))  # type: ignore[operator]
    with pytest.raises(InvalidValueError, match=message):
        InverseSum().fit(X, y)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "one weight for each of the 12 runs"),
        ([-1.0] * 12, "sample_weight\\[0\\]"),
        ([np.nan] * 12, "sample_weight\\[0\\]"),
        ([0.0] * 12, "above zero"),
    ],
)
def test_weights_that_cannot_be_are_named(weights: list[float], message: str) -> None:
    shares = np.random.default_rng(0).dirichlet(np.ones(3), 12)
    with pytest.raises(InvalidValueError, match=message):
        LogLinear().fit(shares, 2 + shares[:, 0], sample_weight=weights)


def test_columns_of_one_name_and_losses_of_another_shape_are_refused() -> None:
    shares = np.random.default_rng(0).dirichlet(np.ones(3), 12)
    with pytest.raises(SchemaError, match="unexpected a"):
        LogLinear().fit(pd.DataFrame(shares, columns=["a", "a", "b"]), 2 + shares[:, 0])
    with pytest.raises(SchemaError, match="unexpected web"):
        LogLinear().fit(shares, pd.DataFrame(2 + shares[:, :2], columns=["web", "web"]))
    for losses in (2.0, np.full((12, 2, 2), 2.0)):
        with pytest.raises(InvalidValueError, match=r"must have shape \[runs\]"):
            LogLinear().fit(shares, losses)


def test_prediction_before_fit_and_unknown_names_are_clear() -> None:
    with pytest.raises(NotFittedError):
        InverseSum().predict(draw_shares(1, seed=0))
    with pytest.raises(InvalidValueError, match="must be one of"):
        regression("magic")
    shares = draw_shares(20, seed=34)
    trees = LightGBMRegression(10).fit(shares, planted(shares))
    with pytest.raises(InvalidValueError, match="must be at least 2 for intervals"):
        trees.predict(shares, interval=0.9)


def test_shares_are_taken_from_a_table_by_prefix() -> None:
    table = pd.DataFrame({"mix:web": [0.5], "mix:code": [0.5], "loss:web": [3.0]})
    assert list(shares_frame(table, "mix:").columns) == ["web", "code"]
    with pytest.raises(SchemaError, match="share_<source>"):
        shares_frame(table, "share_")


def test_the_simulated_optimum_keeps_the_caps_and_beats_random_mixtures() -> None:
    shares = draw_shares(60, seed=37)
    law = InverseSum(num_starts=1).fit(frame(shares), noisy(shares, 38))
    space = MixtureSpace(tuple(SourceLimits(name, 10**9, max_epochs=2) for name in SOURCES))
    best = simulated_optimum(
        law, space, {"loss:code": 1.0}, seed=0, decay_tokens=5e9, num_candidates=2000, num_best=16
    )
    space.check(best, 5e9)
    random = np.array([mixture.array(SOURCES) for mixture in space.sample(200, seed=1, decay_tokens=5e9)])
    assert planted(best.array(SOURCES)[None])[0, 1] < np.quantile(planted(random)[:, 1], 0.05)
    with pytest.raises(InvalidValueError, match="num_best"):
        simulated_optimum(law, space, {"loss:code": 1.0}, seed=0, num_candidates=5, num_best=6)


class WeakPrior(InverseSum):
    """The inverse sum under the one prior that its family states."""

    def _most_likely(self, fit: FitUnder, start: Start, points: np.ndarray) -> Fitted:
        return FormulaRegression._most_likely(self, fit, start, points)


def test_with_as_many_runs_as_sources_the_runs_ask_for_a_firmer_prior() -> None:
    """With ten times as many and exact runs it is the weak one that it was."""
    rng = np.random.default_rng(60)
    scale, power = rng.lognormal(-2.5, 0.6, 24), rng.lognormal(np.log(0.2), 0.3, 24)

    def draw(count: int) -> np.ndarray:
        return np.array([rng.dirichlet(np.where(rng.random(24) < 0.3, 1.0, 1e-3)) for _ in range(count)])

    def losses(shares: np.ndarray) -> np.ndarray:
        return np.asarray(1.0 + 1.0 / np.sum(scale * (shares + 3e-4) ** power, axis=1))

    unseen = draw(200)
    errors: dict[str, list[float]] = {"InverseSum": [], "WeakPrior": []}
    for _ in range(4):
        shares = draw(24)
        noisy_losses = losses(shares) * np.exp(0.03 * rng.standard_normal(24))
        for law in (InverseSum(num_starts=1), WeakPrior(num_starts=1)):
            law.fit(shares, noisy_losses)
            missed = np.log(law.predict(unseen, allow_unseen=True) / losses(unseen))
            errors[type(law).__name__].append(float(np.sqrt(np.mean(missed**2))))
    assert np.mean(errors["InverseSum"]) < 0.8 * np.mean(errors["WeakPrior"])
    many = draw(240)
    plain = losses(many) * np.exp(0.003 * rng.standard_normal(240))
    for law in (InverseSum(num_starts=1), WeakPrior(num_starts=1)):
        missed = np.log(law.fit(many, plain).predict(unseen) / losses(unseen))
        errors[type(law).__name__].append(float(np.sqrt(np.mean(missed**2))))
    assert errors["InverseSum"][-1] < 1.1 * errors["WeakPrior"][-1]  # runs that say enough are believed


@pytest.mark.slow
def test_the_default_beats_regmix_on_its_own_records(shared_data: object) -> None:
    table = pd.read_csv(shared_data / "regmix" / "runs.csv")  # type: ignore[operator]
    shares = shares_frame(table, "w_")
    shares = shares.div(shares.sum(axis=1), axis=0)
    losses = table[[column for column in table if column.startswith("loss_")]].iloc[:, 6:9]
    fit, test = table["use"] == "fit", table["use"] == "predict"

    def score(law: MixtureRegression, count: int) -> float:
        law.fit(shares[fit].iloc[:count], losses[fit].iloc[:count])
        predicted = law.predict(shares[test])
        return float(np.mean([spearmanr(predicted[:, j], losses[test].iloc[:, j])[0] for j in range(3)]))

    assert score(regression(), 128) > score(LightGBMRegression.regmix(), 128) + 0.01
    assert score(regression(), 512) > score(LightGBMRegression.regmix(), 512)


@pytest.mark.parametrize("name", ["inverse_sum", "blend", "lightgbm", "gaussian_process", "linear"])
def test_one_diverged_run_is_left_out_by_name_and_spoils_nothing(name: str) -> None:
    shares, unseen = draw_shares(20, seed=21), draw_shares(200, seed=22)
    losses = noisy(shares, 23)
    spoiled = losses.copy()
    spoiled.iloc[7] *= 1.6
    law = regression(name).fit(frame(shares), spoiled)
    clean = regression(name).fit(frame(np.delete(shares, 7, axis=0)), losses.drop(index=7))
    assert {(each.target, each.rows) for each in law.excluded_} == {(target, (7,)) for target in law.targets_}
    assert "diverged" in law.excluded_[0].reason
    np.testing.assert_array_equal(law.predict(unseen), clean.predict(unseen))
    again = Law.from_dict(law.to_dict())
    np.testing.assert_array_equal(again.predict(unseen), law.predict(unseen))
    assert again.excluded_ == law.excluded_


@pytest.mark.parametrize("count", [9, 20, 60])
def test_no_run_of_clean_records_counts_as_diverged(count: int) -> None:
    for seed in range(8):
        shares = draw_shares(count, seed=seed, alpha=0.4)
        for losses in noisy(shares, seed, sd=0.02).to_numpy().T:
            assert not diverged(shares, losses).any()


def test_two_diverged_runs_do_not_hide_each_other() -> None:
    found = 0
    for seed in range(8):
        shares = draw_shares(20, seed=seed)
        losses = noisy(shares, seed + 50).iloc[:, 0].to_numpy().copy()
        losses[[2, 3]] *= 1.6
        found += int(diverged(shares, losses)[[2, 3]].sum())
    assert found >= 14  # of 16: one that alone holds a source may pass for what the source does


def test_copies_of_a_run_are_left_out_by_name_and_replicates_are_not() -> None:
    shares = draw_shares(20, seed=31)
    losses = noisy(shares, 32)
    twice = np.append(np.arange(20), [4, 4, 9])
    law = InverseSum().fit(frame(shares[twice]), losses.iloc[twice])
    assert [(each.rows, each.reason) for each in law.excluded_] == [
        ((20, 21, 22), "an exact copy of another run")
    ] * 2
    np.testing.assert_array_equal(
        law.predict(shares), InverseSum().fit(frame(shares), losses).predict(shares)
    )
    replicates = pd.concat([losses, losses.iloc[[4]] * 1.001], ignore_index=True)
    assert InverseSum().fit(frame(shares[np.append(np.arange(20), 4)]), replicates).excluded_ == ()


def test_too_few_runs_and_blind_regressions_are_doubted() -> None:
    shares = draw_shares(12, seed=41)
    few = np.hstack([0.5 * shares, 0.5 * np.random.default_rng(1).dirichlet(np.ones(8), 12)])
    law = InverseSum().fit(few, noisy(shares, 42).iloc[:, 0])
    assert law.doubts_[law.targets_[0]][0] == "12 runs were fitted; 12 sources need at least 14."
    assert Law.from_dict(law.to_dict()).doubts_ == law.doubts_
    random = np.random.default_rng(43).uniform(2, 3, 40)
    blind = InverseSum().fit(draw_shares(40, seed=44), random)
    assert "no less than their mean loss does" in blind.doubts_["loss"][0]
    clear = InverseSum().fit(draw_shares(40, seed=45), noisy(draw_shares(40, seed=45), 46))
    assert set(clear.doubts_.values()) == {()}


def test_shares_rounded_to_six_digits_are_read() -> None:
    shares = draw_shares(20, seed=51)
    losses = noisy(shares, 52)
    law = LinearRegression().fit(shares, losses)
    rounded = np.tile([0.333333, 0.333333, 0.333333, 0.0], (1, 1))
    np.testing.assert_allclose(law.predict(rounded), law.predict(rounded / rounded.sum()), rtol=1e-12)
    with pytest.raises(InvalidValueError, match="must sum to 1"):
        law.predict([[0.3333, 0.3333, 0.3333, 0.0]])
