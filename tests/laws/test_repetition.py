"""Harm from repetition: planted worlds with and without it, derivatives, what search and report make of it."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from decaylaws.laws.decay import MEMBERS, DecayLaw
from decaylaws.laws.decay.baselines import BoostedTrees, MixtureAlone
from decaylaws.laws.decay.form import evaluate, plan_form
from decaylaws.laws.decay.inputs import DecayInputs, decay_inputs, final_losses
from decaylaws.laws.decay.parameters import Frame, ParameterLayout
from decaylaws.laws.decay.repetition import Repetition, repeated_sources
from decaylaws.laws.kit.law import Law
from decaylaws.laws.kit.repetition import Onset
from decaylaws.report.page import asset
from decaylaws.search.evidence import beyond_evidence
from tests.study import browser


@pytest.fixture(scope="module")
def worlds() -> Any:
    """The script that plants worlds with and without harm."""
    return import_module("repetition")


def sweep(worlds: Any, harm: str, seed: int = 0) -> pd.DataFrame:
    world = worlds.World("relaxing_power", harm, seed)
    return world.sweep(np.random.default_rng([seed, 2]), ladder=True)


@pytest.fixture(scope="module")
def harmed(worlds: Any) -> DecayLaw:
    trunk = dict(zip(worlds.SOURCES, worlds.TRUNK))
    return DecayLaw(trunk, num_folds=3, num_draws=4).fit(sweep(worlds, "square"))


def problem(worlds: Any, law: DecayLaw) -> Any:
    return worlds.DecayProblem(
        law, worlds.space(worlds.POOLS), worlds.target(), worlds.goal(code=worlds.CODE_WEIGHT), worlds.PLAN
    )


@pytest.mark.parametrize("truth", ["relaxing_power", "interfering"])
@pytest.mark.parametrize("harm", ["square", "linear"])
def test_the_onset_is_found_within_its_interval_and_the_search_respects_it(
    worlds: Any, harm: str, truth: str
) -> None:
    # seed 3 is the one of six whose interval ends below the onset, at 5.98 of 6 (interfering, linear; analysis/LOG.md)
    found = worlds.simulate(truth, harm, 2)
    assert found.lower <= worlds.ONSET <= found.upper
    assert found.upper < 4 * found.lower
    assert found.others == 0
    assert found.chosen < 1.25 * found.best
    assert found.regret < 0.003


@pytest.mark.parametrize("truth", ["relaxing_power", "interfering", "logarithmic"])
def test_no_onset_is_invented_where_repetition_does_no_harm(worlds: Any, truth: str) -> None:
    found = worlds.simulate(truth, "none", 3)
    assert np.isnan(found.onset)
    assert found.others == 0


def test_without_repetition_the_law_is_the_one_without_its_terms(worlds: Any) -> None:
    runs = sweep(worlds, "none")
    runs = runs.assign(**{name: runs[name].clip(upper=3.0) for name in runs if name.startswith("epochs:")})
    law = DecayLaw(dict(zip(worlds.SOURCES, worlds.TRUNK)), num_folds=0, num_draws=0).fit(runs)
    assert repeated_sources(law.inputs(runs)) == ()
    assert law.onsets_ == ()
    assert not [name for name in law.params_ if name.startswith(("log_onset", "harm", "log_repeat"))]


@pytest.mark.parametrize("member", list(MEMBERS))
def test_derivatives_are_those_of_the_value(worlds: Any, member: str) -> None:
    runs = sweep(worlds, "square").iloc[20:].reset_index(drop=True)
    runs.loc[[1, 3], "batch_tokens"] = (4000, 500)
    sources = list(worlds.SOURCES)
    inputs = decay_inputs(
        runs, sources=sources, domains=sources, reference_lr=1e-3, reference_batch_tokens=1000
    )
    frame = Frame(MEMBERS[member], worlds.TRUNK, 1.2e5, 1e6, np.array([[100_000, 1e6]]), (1, 2))
    layout = ParameterLayout(4, 4, 1, 2)
    assert frame.layout(4) == layout
    theta = np.random.default_rng(1).normal(0, 0.3, layout.size)
    theta[4] = np.log(40)
    found = evaluate(theta, inputs, frame)[1].dense().reshape(*inputs.start_loss.shape, -1)
    numeric = [
        (evaluate(theta + step, inputs, frame)[0] - evaluate(theta - step, inputs, frame)[0]) / 2e-6
        for step in 1e-6 * np.eye(len(theta))
    ]
    np.testing.assert_allclose(found, np.stack(numeric, axis=-1), atol=2e-7)
    plan = {name: values[:1] for name, values in vars(inputs).items()}
    mixtures = {name: np.repeat(values, len(inputs), axis=0) for name, values in plan.items()}
    mixtures |= {"shares": inputs.shares, "epochs": inputs.epochs}
    form = plan_form(theta, DecayInputs(**plan), frame)
    shares = Repetition(np.zeros(0), np.zeros((0, 0)), log_repeat_scale=np.log(form.repeat_scale)).weighted(
        inputs
    )
    wanted = evaluate(theta, DecayInputs(**mixtures), frame, slopes=False)[0]
    np.testing.assert_allclose(form.losses(shares[0].shares, inputs.epochs), wanted, rtol=1e-12)


def test_a_law_with_an_onset_survives_json(worlds: Any, harmed: DecayLaw) -> None:
    copy = Law.from_dict(json.loads(json.dumps(harmed.to_dict())))
    runs = sweep(worlds, "square", 5)
    assert copy.onsets_ == harmed.onsets_
    np.testing.assert_allclose(
        copy.predict(runs, interval=0.9).upper, harmed.predict(runs, interval=0.9).upper, rtol=1e-12
    )


def test_the_explorer_computes_what_the_library_does(worlds: Any, harmed: DecayLaw, tmp_path: Path) -> None:
    question = problem(worlds, harmed)
    names = question.space.names
    model = {
        "decay_tokens": question.plan.decay_tokens,
        "law_sources": harmed.sources_,
        "sources": [
            {"law_index": harmed.sources_.index(name), "available_tokens": worlds.POOLS[name]}
            for name in names
        ],
        "form": harmed.at_plan(question.inputs(question.control_shares[None])).to_dict(),
    }
    shares = np.random.default_rng(0).dirichlet(np.ones(len(names)), 20)
    calls = f"{json.dumps(shares.tolist())}.map((shares) => predictedLosses({json.dumps(model)}, shares))"
    found = browser.evaluate(asset("law.js"), calls, tmp_path)
    np.testing.assert_allclose(found, question.losses(shares), rtol=1e-9)
    assert question.inputs(shares).epochs[:, 1].max() > 1.2 * harmed.onsets_[0].epochs


def test_the_onset_is_said_in_a_sentence() -> None:
    onset = Onset("code", 6.04, 5.2, 7.11, 25.0, {"web": 0.1, "code": 0.321})
    assert onset.sentence == (
        "Repeating 'code' more than 6.0 times in a decay (90 % interval 5.2 to 7.1) raises losses: 25.0 passes, the "
        "most that a run has made, cost 0.321 nats in 'code'."
    )


def test_passes_that_no_run_has_made_are_named(worlds: Any, harmed: DecayLaw) -> None:
    question = problem(worlds, harmed)
    known = SimpleNamespace(**{name: getattr(question, name) for name in ("law", "space", "plan", "target")})
    known.inputs, known.batch_tokens = question.inputs, question.batch_tokens
    maths = np.array([float(name == "maths") for name in question.space.names])
    known.law = SimpleNamespace(
        **{"evidence_": {**harmed.evidence_, "most_epochs": {"maths": 2.5}}, "sources_": harmed.sources_}
    )
    assert not [line for line in beyond_evidence(known, maths) if "passed over" in line]  # 3.3 passes
    shorter = np.where(maths > 0, 1.0, 0.0)
    known.inputs = lambda shares: SimpleNamespace(epochs=2.0 * question.inputs(shares).epochs)
    (line,) = [line for line in beyond_evidence(known, shorter) if "passed over" in line]
    assert line == "maths is passed over 6.7 times; no run passes over it more than 2.5"


def of_one_length(worlds: Any, harm: str) -> pd.DataFrame:
    """Forty random mixtures, all decays as long as one another: what a mixture costs is then its passes alone."""
    world, rng = worlds.World("relaxing_power", harm, 1), np.random.default_rng(5)
    shares, tokens = rng.dirichlet(np.ones(len(worlds.SOURCES)), 40), np.full(40, max(worlds.LENGTHS))
    pools = np.tile([float(worlds.POOLS[name]) for name in worlds.SOURCES], (40, 1))
    pools[:, worlds.SOURCES.index("code")] /= 2.5  # up to 29 passes
    losses = world.losses(shares, tokens, pools) + rng.normal(0, worlds.NOISE_SD, shares.shape)
    epochs = shares * tokens[:, None] / pools
    return worlds.runs_table(shares, tokens, losses, ["simplex"] * 40, epochs)


def test_regressions_beside_the_law_know_of_the_passes(worlds: Any) -> None:
    runs = of_one_length(worlds, "square")
    blind = runs.drop(columns=[name for name in runs if name.startswith("epochs:")])
    fitted, asked = runs[:28], runs[28:]
    observed = final_losses(asked, worlds.SOURCES)
    knowing, unknowing = MixtureAlone().fit(fitted), MixtureAlone().fit(blind[:28])
    (onset,) = knowing._law.onsets_
    assert onset.source == "code"
    assert onset.lower <= worlds.ONSET <= onset.upper
    errors = [np.abs(each.predict(asked) - observed).mean() for each in (knowing, unknowing)]
    assert errors[0] < 0.8 * errors[1]


def test_trees_tell_runs_apart_that_differ_in_their_passes_alone(worlds: Any) -> None:
    runs = sweep(worlds, "square")
    ladder = runs[runs["role"] == "repetition"].sort_values("epochs:code")
    code = list(worlds.SOURCES).index("code")
    trees = BoostedTrees().fit(runs)
    assert "code" in [trees.sources_[k] for k in trees._repeated]
    predicted = trees.predict(ladder)[:, code]
    observed = ladder["loss:code"].to_numpy()
    assert np.sign(predicted[-1] - predicted[0]) == np.sign(observed[-1] - observed[0])
    blind = runs.drop(columns=[name for name in runs if name.startswith("epochs:")])
    assert np.ptp(BoostedTrees().fit(blind).predict(blind.loc[ladder.index])[:, code]) == 0


def test_without_repetition_the_regressions_are_those_without_passes(worlds: Any) -> None:
    runs = of_one_length(worlds, "none")
    few = runs.assign(**{name: runs[name].clip(upper=2.9) for name in runs if name.startswith("epochs:")})
    blind = runs.drop(columns=[name for name in runs if name.startswith("epochs:")])
    for kind in (MixtureAlone, BoostedTrees):
        np.testing.assert_array_equal(kind().fit(few).predict(few), kind().fit(blind).predict(blind))
