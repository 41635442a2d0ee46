"""Absolute laws of size, tokens and mixture, and of replay, against planted truths and published records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.continued.joint import JointLaw
from decaylaws.laws.continued.joint_forms import FORMS, JointInputs, leans, log_loss_of, prior_of
from decaylaws.laws.continued.replay import FORMS as REPLAY_FORMS
from decaylaws.laws.continued.replay import ReplayLaw
from decaylaws.laws.kit.draws import coverage
from decaylaws.laws.kit.holdout import left_out
from decaylaws.laws.kit.law import Law
from decaylaws.laws.kit.solver import Solution, solve


def grid(sizes: tuple[float, ...] = (1e8, 2e8, 4e8), seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for size in sizes:
        for _ in range(12):
            shares = rng.dirichlet([1, 1, 1])
            mixture = dict(zip(("w_a", "w_b", "w_c"), shares))
            rows += [{"params": size, "tokens": tokens, **mixture} for tokens in (4e9, 8e9, 16e9)]
    return pd.DataFrame(rows)


def truth(rows: pd.DataFrame) -> pd.DataFrame:
    shares = rows[["w_a", "w_b", "w_c"]].to_numpy()
    reducible = (0.5 * (rows["params"] / 2e8) ** -0.6 + 0.5 * (rows["tokens"] / 8e9) ** -0.7) ** 0.5
    factor = np.exp(-0.4 * shares[:, 0])
    floor = np.exp(0.5 - 0.2 * shares[:, 0] + 0.1 * shares[:, 2])
    return pd.DataFrame({"text": floor + factor * reducible})


@pytest.mark.parametrize("form", FORMS)
def test_derivatives_are_those_of_the_value(form: str) -> None:
    rng = np.random.default_rng(0)
    inputs = JointInputs(rng.normal(0, 1, 5), rng.normal(0, 1, 5), rng.dirichlet(np.ones(3), 5))
    theta = prior_of(form, 3, 1.0)[0] + rng.normal(0, 0.2, len(prior_of(form, 3, 1.0)[0]))
    numeric = [
        (log_loss_of(form, theta + step, inputs)[0] - log_loss_of(form, theta - step, inputs)[0]) / 2e-6
        for step in 1e-6 * np.eye(len(theta))
    ]
    np.testing.assert_allclose(log_loss_of(form, theta, inputs)[1], np.stack(numeric, axis=-1), atol=1e-7)


def test_a_planted_law_is_recovered_at_an_unseen_size() -> None:
    fit, unseen = grid(), grid((8e8,), seed=1)
    law = JointLaw("factor_floor").fit(fit, truth(fit))
    assert np.abs(law.predict(unseen) / truth(unseen) - 1).mean().item() < 0.004
    chinchilla = JointLaw("chinchilla").fit(fit, truth(fit))
    assert np.abs(chinchilla.predict(unseen) / truth(unseen) - 1).mean().item() > 0.01


def test_one_size_in_the_fit_leaves_the_stack_its_forms_without_coupling() -> None:
    one = grid((2e8,))
    assert JointLaw().fit(one, truth(one)).weights_ == {"additive": 0.5, "mixing_law": 0.5}


def gaining(rows: pd.DataFrame) -> pd.DataFrame:
    """Three targets of which one has much and one has little to gain, from tokens and size alike."""
    left = 0.55 * (rows["params"] / 1e8) ** -0.33 + 0.5 * (rows["tokens"] / 8e9) ** -0.35
    return pd.DataFrame(
        {name: 3.0 - share + share * left for name, share in (("much", 1.6), ("some", 1.0), ("little", 0.5))}
    )


def test_a_target_that_gains_more_from_tokens_is_expected_to_gain_more_from_size() -> None:
    one, larger = grid((1e8,)), grid((5e8,), seed=1)
    together = JointLaw().fit(one, gaining(one)).predict(larger, interval=0.9)
    for index, name in enumerate(gaining(one)):
        observed = gaining(larger)[name]
        alone = JointLaw().fit(one, gaining(one)[[name]]).predict(larger)[:, 0]
        error = np.abs(together.mean[:, index] / observed - 1).mean()
        assert error < 0.03
        if name != "some":
            assert error < 0.75 * np.abs(alone / observed - 1).mean()
        held = (together.lower[:, index] <= observed) & (observed <= together.upper[:, index])
        assert held.mean() > 0.85


def test_targets_lead_one_another_only_where_tokens_tell() -> None:
    rng = np.random.default_rng(0)
    tokens = np.repeat(np.log([0.5, 1.0, 2.0]), 8)
    inputs = JointInputs(np.zeros(24), tokens, rng.dirichlet(np.ones(3), 24))
    losses = np.exp(np.outer(-tokens, [0.05, 0.1, 0.2]))
    assert leans(inputs, losses) == pytest.approx([-0.5 * np.log(2), 0.0, 0.5 * np.log(2)])
    rising = losses.copy()
    rising[:, 0] = np.exp(0.1 * tokens)
    assert leans(inputs, rising)[0] == pytest.approx(
        0.5 * np.log(0.25)
    )  # it is not taken for gaining nothing
    same = JointInputs(np.zeros(24), np.zeros(24), inputs.shares)
    assert leans(same, losses).tolist() == [0.0, 0.0, 0.0]


def test_the_stack_is_weighed_by_rolling_origins_inside_the_fitted_rows() -> None:
    fit, unseen = grid(), grid((8e8, 1.6e9), seed=1)
    law = JointLaw().fit(fit, truth(fit))
    assert sum(law.weights_.values()) == pytest.approx(1.0)
    assert max(law.weights_, key=lambda form: law.weights_[form]) == "factor_floor"  # the form of the truth
    assert np.abs(law.predict(unseen) / truth(unseen) - 1).mean().item() < 0.004
    others = JointLaw().fit(fit.sample(frac=1.0, random_state=0), truth(fit).sample(frac=1.0, random_state=0))
    assert law.weights_ == pytest.approx(others.weights_)


def test_both_laws_survive_their_json() -> None:
    rows = grid()
    law = JointLaw().fit(rows, truth(rows))
    copy = Law.from_dict(json.loads(json.dumps(law.to_dict())))
    np.testing.assert_array_equal(law.predict(rows), copy.predict(rows))
    table, losses = replay_rows((0.1, 0.5))
    replay = ReplayLaw(["new"]).fit(table, losses)
    again = Law.from_dict(json.loads(json.dumps(replay.to_dict())))
    np.testing.assert_array_equal(replay.predict(table), again.predict(table))


def test_bad_records_are_named() -> None:
    rows = grid()
    with pytest.raises(InvalidValueError, match="form"):
        JointLaw("guess").fit(rows, truth(rows))
    with pytest.raises(SchemaError, match="tokens"):
        JointLaw().fit(rows.drop(columns="tokens"), truth(rows))
    with pytest.raises(InvalidValueError, match="sum to one"):
        JointLaw().fit(rows.assign(w_a=2.0), truth(rows))
    with pytest.raises(InvalidValueError, match="positive losses"):
        JointLaw().fit(rows, -truth(rows))


def replay_rows(shares: tuple[float, ...]) -> tuple[pd.DataFrame, np.ndarray]:
    rows = [
        {"share": share, "steps": steps, "domain": domain}
        for share in shares
        for steps in range(1000, 10_001, 1000)
        for domain in ("old", "new")
    ]
    table = pd.DataFrame(rows)
    t = table["steps"] / 1e4
    old = 2.9 + (-0.02 - 0.06 * np.log(table["share"])) * (1 - (1 + 20 * t) ** -0.5) - 0.02 * t
    new = 1.0 + 0.4 * ((1 - table["share"]) * t + 0.03) ** -0.2
    return table, np.where(table["domain"] == "old", old, new)


def test_unseen_replay_shares_and_the_critical_one_are_found() -> None:
    fit, losses = replay_rows((0.125, 0.5))
    law = ReplayLaw(["new"], base_losses={"old": 2.9, "general": 2.9}).fit(fit, losses)
    unseen, observed = replay_rows((0.25, 0.375))
    assert np.abs(law.predict(unseen) - observed).max() < 0.005
    moved = 1 - 21**-0.5
    expected = float(np.exp((-0.02 - 0.02 / moved) / 0.06))
    assert law.critical_share(10_000, 2.9) == pytest.approx(expected, abs=0.03)
    assert np.isnan(law.critical_share(10_000, 1.0))
    assert law.critical_share(10_000, 9.0) == 0.0


@pytest.mark.parametrize("form", REPLAY_FORMS)
def test_every_replay_form_can_be_fitted_alone(form: str) -> None:
    fit, losses = replay_rows((0.125, 0.3, 0.5))
    law = ReplayLaw(["new"], form, form).fit(fit, losses)
    assert np.abs(law.predict(fit) - losses).mean() < 0.05


def test_bad_replay_rows_are_named() -> None:
    fit, losses = replay_rows((0.1, 0.5))
    with pytest.raises(SchemaError, match="share"):
        ReplayLaw(["new"]).fit(fit.drop(columns="share"), losses)
    with pytest.raises(InvalidValueError, match="share"):
        ReplayLaw(["new"]).fit(fit.assign(share=1.5), losses)
    with pytest.raises(InvalidValueError, match="domain"):
        ReplayLaw(["new"]).fit(fit, losses).predict(fit.assign(domain="other"))


def test_the_default_beats_every_single_form_on_published_sizes(shared_data: Path, run_script: Any) -> None:
    report = run_script("joint_law", shared_data / "dmsl_slimpajama")
    means = {name: law["sizes"]["680000000"]["mean"] for name, law in report["laws"].items()}
    assert means[report["default"]] < 0.008
    assert means[report["default"]] < min(error for name, error in means.items() if name != report["default"])


def test_the_published_critical_replay_share_is_found(shared_data: Path, run_script: Any) -> None:
    report = run_script("continued_pretraining", shared_data / "mixinglaws")
    assert report["critical_replay_share"] == pytest.approx(0.286, abs=0.02)
    assert report["fit"]["weighted_mae"] < 0.003


def test_intervals_of_joint_laws_hold_at_an_unseen_size_and_widen_with_it() -> None:
    fit, rng = grid(), np.random.default_rng(3)
    law = JointLaw().fit(fit, truth(fit) * np.exp(rng.normal(0, 0.003, (len(fit), 1))))
    sizes = [grid((size,), seed=1) for size in (4e8, 8e8, 3.2e9)]
    found = [law.predict(rows, interval=0.9) for rows in sizes]
    widths = [float((each.upper / each.lower).mean()) for each in found]
    assert widths == sorted(widths)
    for rows, each in zip(sizes, found):
        assert coverage(each, truth(rows) * np.exp(rng.normal(0, 0.003, (len(rows), 1)))) >= 0.8
    np.testing.assert_array_equal(found[0].mean, law.predict(sizes[0]))
    copy = Law.from_dict(json.loads(json.dumps(law.to_dict())))
    np.testing.assert_array_equal(copy.predict(sizes[1], interval=0.9).upper, found[1].upper)
    assert set(law.scores_["text"]) == {"mixture", "size", "tokens"}


def test_intervals_of_replay_hold_at_unseen_shares_and_steps() -> None:
    fit, losses = replay_rows((0.125, 0.3, 0.5))
    unseen, observed = replay_rows((0.2, 0.4))
    early, late = (fit["steps"] <= 7000).to_numpy(), (unseen["steps"] > 7000).to_numpy()
    inside = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        law = ReplayLaw(["new"]).fit(fit[early], (losses + rng.normal(0, 0.002, len(losses)))[early])
        found = law.predict(unseen, interval=0.9)
        inside.append(coverage(found, observed + rng.normal(0, 0.002, len(observed))))
    assert 0.8 <= np.mean(inside) <= 0.97
    widths = found.upper - found.lower
    assert widths[late].mean() > widths[~late].mean()
    np.testing.assert_array_equal(found.mean, law.predict(unseen))
    again = Law.from_dict(json.loads(json.dumps(law.to_dict())))
    np.testing.assert_array_equal(again.predict(unseen, interval=0.9).lower, found.lower)


def test_a_row_that_was_left_out_is_predicted_as_by_a_fit_without_it() -> None:
    """For a linear law one Newton step is the refit."""
    rng = np.random.default_rng(0)
    slopes, rows = rng.normal(size=(12, 2)), np.arange(12) >= 9
    observed = slopes @ [1.0, -2.0] + rng.normal(0, 0.1, 12)

    def fitted(kept: np.ndarray) -> Solution:
        return solve(
            lambda theta: (slopes @ theta - observed)[kept], np.zeros((1, 2)), jacobian=lambda _: slopes[kept],
            huber_delta=100.0, prior_mean=np.zeros(2), prior_sd=np.ones(2), noise_sd=0.1,
        )  # fmt: skip

    errors, spread = left_out(fitted(rows | True), rows, huber_delta=100.0, noise_sd=0.1)
    np.testing.assert_allclose(errors, (slopes @ fitted(~rows).theta - observed)[rows], atol=1e-8)
    assert (spread > 0.05).all()
