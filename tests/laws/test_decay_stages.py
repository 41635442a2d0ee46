"""The decay law after a stable stage: its derivatives, and the worth of early tokens in planted worlds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import InvalidValueError
from decaylaws.laws.decay import DecayLaw, descent
from decaylaws.laws.decay.form import evaluate
from decaylaws.laws.decay.inputs import DecayInputs, decay_inputs
from decaylaws.laws.decay.parameters import MEMBERS, Frame
from decaylaws.laws.kit.solver import solve
from tests.staged_world import SOURCES, STAGES, TRUNK, planted, row, sweep

SHARES = np.array(list(TRUNK.values()))


def inputs_of(runs: pd.DataFrame) -> DecayInputs:
    return decay_inputs(
        runs, sources=SOURCES, domains=SOURCES, reference_lr=1e-3, reference_batch_tokens=1000
    )


def test_derivatives_are_those_of_the_value() -> None:
    runs = sweep(worth=0.5)[::4].reset_index(drop=True)
    runs.loc[[1, 3], "batch_tokens"] = (4000, 500)
    for name, scale in zip(SOURCES, (0.5, 3.0, 5.0)):
        runs[f"epochs:{name}"] = scale * (runs[f"mix:{name}"] + runs[f"stable_mix:{name}"])
    inputs = inputs_of(runs)
    checkpoints = np.array([[100_000, 1e6]])
    frame = Frame(MEMBERS["effective_gain"], SHARES, 1.2e5, 1e6, checkpoints, (1, 2), 1e6, by_stage=True)
    layout = frame.layout(3)
    rng = np.random.default_rng(0)
    theta = rng.normal(0.0, 0.3, layout.size)
    theta[layout.columns("harm")] = np.abs(theta[layout.columns("harm")])
    numeric = np.array([
        (evaluate(theta + step, inputs, frame, slopes=False)[0]
         - evaluate(theta - step, inputs, frame, slopes=False)[0]) / 2e-5
        for step in 1e-5 * np.eye(layout.size)
    ])  # fmt: skip
    found = evaluate(theta, inputs, frame)[1].dense()
    np.testing.assert_allclose(found, numeric.reshape(layout.size, -1).T, atol=1e-6)


def test_two_stages_of_one_mixture_are_one_longer_decay() -> None:
    runs = sweep(worth=0.5).head(6)
    inputs = inputs_of(runs)
    same = replace(inputs, stable_shares=inputs.shares)
    one = replace(
        inputs,
        intrinsic=inputs.intrinsic + inputs.stable_intrinsic,
        stable_intrinsic=0 * inputs.stable_intrinsic,
    )
    frame = Frame(MEMBERS["effective_gain"], SHARES, 1.2e5, 1e6, by_stage=True)
    theta = np.random.default_rng(1).normal(0.0, 0.3, frame.layout(3).size)
    theta[frame.layout(3).columns("stage")] = 0.0
    both, longer = (evaluate(theta, each, frame, slopes=False)[0] for each in (same, one))
    np.testing.assert_allclose(both, longer, rtol=1e-12)


@pytest.mark.parametrize("worth", [0.3, 1.0], ids=["early is worth less", "order makes no difference"])
def test_the_worth_of_early_tokens_is_found(worth: float) -> None:
    runs = sweep(worth=worth)
    law = DecayLaw(TRUNK, num_draws=8, num_folds=5).fit(runs)
    early, late = (dict.fromkeys(SOURCES, 0.0) for _ in range(2))
    # the same tokens of every source: maths before the decay or in it
    early |= {"web": 0.6, "code": 0.1, "maths": 0.3}
    late |= {"web": 0.6, "code": 0.1, "maths": 0.3}
    pair = pd.DataFrame([
        row(np.array([0.9, 0.1, 0.0]), 100_000, np.array(list(early.values()))),
        row(np.array(list(late.values())), 100_000, SHARES),
    ])  # fmt: skip
    truth = np.array([
        planted(np.array([0.9, 0.1, 0.0]), 100_000, np.array(list(early.values())), worth),
        planted(np.array(list(late.values())), 100_000, SHARES, worth),
    ])  # fmt: skip
    predicted = law.predict(pair, 0.9)
    np.testing.assert_allclose(predicted.mean, truth, atol=0.02)
    gap, wanted = np.diff(predicted.mean[:, 2])[0], np.diff(truth[:, 2])[0]
    assert gap == pytest.approx(wanted, abs=0.015)
    assert abs(wanted) < 1e-9 if worth == 1.0 else wanted < -0.1


def test_a_fit_of_harm_begins_where_the_stage_was_found_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = sweep(worth=0.5)
    for name, scale in zip(SOURCES, (0.5, 3.0, 5.0)):
        runs[f"epochs:{name}"] = scale * (runs[f"mix:{name}"] + runs[f"stable_mix:{name}"])
    solved: list[tuple[np.ndarray, dict[str, float]]] = []

    def recorded(residuals, starts, *, names, **options):  # type: ignore[no-untyped-def]
        found = solve(residuals, starts, names=names, **options)
        begun = np.atleast_2d(starts)[:, names.index("log_stable_worth")]
        solved.append((begun, dict(zip(names, found.theta))))
        return found

    monkeypatch.setattr(descent, "solve", recorded)
    DecayLaw(TRUNK, num_draws=0, num_folds=0).fit(runs)
    first = next(place for place, (_, found) in enumerate(solved) if any("onset" in name for name in found))
    plain, (begun, _) = solved[first - 1][1], solved[first]
    assert len(begun) > 1
    assert (begun == plain["log_stable_worth"]).all()


def test_a_law_of_one_stage_refuses_two_and_the_other_way_round() -> None:
    runs = sweep(worth=0.5)
    plain = runs.drop(columns=[name for name in runs if name.startswith("stable_")])
    law = DecayLaw(TRUNK, num_draws=0, num_folds=0).fit(plain)
    with pytest.raises(InvalidValueError, match="stable_tokens"):
        law.predict(runs.head(1))
    with pytest.raises(InvalidValueError, match="effective_gain"):
        DecayLaw(TRUNK, "effective_saturating", num_draws=0, num_folds=0).fit(runs)


def test_a_staged_law_survives_its_file_and_predicts_decays_without_a_stage() -> None:
    runs = sweep(worth=0.5)
    law = DecayLaw(TRUNK, num_draws=4, num_folds=4).fit(runs)
    again = DecayLaw.from_dict(law.to_dict())
    first = law.predict(runs.head(3), 0.9)
    np.testing.assert_array_equal(first.mean, again.predict(runs.head(3), 0.9).mean)
    plain = runs.head(2).drop(columns=[name for name in runs if name.startswith("stable_")])
    assert np.isfinite(law.predict(plain, 0.9).upper).all()
    assert set(law.params_) >= {"log_stable_worth"}
    assert len(STAGES) == 3
