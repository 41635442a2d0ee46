"""Pre-training tokens of the checkpoints as an axis of the decay law: a planted truth, and laws that must not move."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from decaylaws.laws.decay import MEMBERS, DecayLaw
from decaylaws.laws.decay.form import evaluate, plan_form
from decaylaws.laws.decay.inputs import DecayInputs
from decaylaws.laws.decay.parameters import BY_TOKENS, Frame, reference_start_tokens
from decaylaws.laws.kit.draws import coverage
from decaylaws.laws.kit.law import Law
from tests.laws.test_decay_law import NOISE, SOURCES, TRUNK, inputs_of, planned, planted_loss

ANNEAL, MIXTURE = 0.35, -0.3  # powers of the pre-training tokens
MOMENTS = (500_000, 1_000_000, 2_000_000)


def loss(row: dict, domain: str) -> float:
    """The planted loss of ``test_decay_law`` with its annealing gain and its mixture's term scaled by the tokens."""
    seen = row["start_tokens"] / 1e6
    with_gain, without = (planted_loss(row, domain, gain) for gain in (0.12, 0.0))
    on_trunk = {**row, **{f"mix:{name}": share for name, share in TRUNK.items()}}
    mixture = without - planted_loss(on_trunk, domain, 0.0)
    return with_gain + mixture * (seen**MIXTURE - 1) + (with_gain - without) * (seen**ANNEAL - 1)


def sweep(moments: Sequence[int], count: int = 40, *, noise: float = NOISE, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    trunk, rows = np.array(list(TRUNK.values())), []
    for index in range(count):
        changes = {
            "start_tokens": moments[index % len(moments)],
            "decay_tokens": (50_000, 100_000, 200_000)[(index // 3) % 3],
        }
        shares = trunk if index % 7 == 0 else rng.dirichlet([1.2, 0.8, 0.8])
        rows.append(planned(shares, role="control" if index % 7 == 0 else "simplex", **changes))
    for row in rows:
        for name in SOURCES:
            row[f"loss:{name}"] = loss(row, name) + rng.normal(0, noise)
    return pd.DataFrame(rows)


def observed(runs: pd.DataFrame) -> np.ndarray:
    return runs[[f"loss:{name}" for name in SOURCES]].to_numpy()


def test_a_later_moment_is_predicted_by_powers_that_earlier_ones_show() -> None:
    law = DecayLaw(TRUNK, num_folds=4, num_draws=0).fit(sweep(MOMENTS, 60))
    assert law.params_["tokens_anneal"] == pytest.approx(ANNEAL, abs=0.15)
    assert (
        law.params_["tokens_mixture"] < MIXTURE + 0.1
    )  # the planted mixture also moves slower after more tokens
    later = sweep((4_000_000,), 30, noise=0.0, seed=1)
    found = law.predict(later, interval=0.9)
    error = np.abs(found.mean - observed(later)).mean()
    assert law.slice_scores_["predict_size"]["num_runs"] == 60  # every moment was held out in turn
    assert coverage(found, observed(later)) > 0.7
    assert error < 0.6 * np.abs(without_axis(sweep(MOMENTS, 60)).predict(later) - observed(later)).mean()


def without_axis(runs: pd.DataFrame) -> DecayLaw:
    """The law that does not ask for the tokens' part."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("decaylaws.laws.decay.law.reference_start_tokens", lambda inputs: None)
        return DecayLaw(TRUNK, num_folds=0, num_draws=0).fit(runs)


def test_one_moment_of_each_size_has_no_such_axis() -> None:
    runs = sweep((1_000_000,), 24)
    larger = runs["non_embedding_params"].where(runs.index % 3 > 0, 200_000)
    runs = runs.assign(
        non_embedding_params=larger, start_tokens=np.where(runs.index % 3 > 0, 1_000_000, 2_000_000)
    )
    assert reference_start_tokens(inputs_of(runs)) is None
    law = DecayLaw(TRUNK, num_folds=0, num_draws=0).fit(runs)
    assert not set(BY_TOKENS) & set(law.params_)
    assert law.params_ == without_axis(runs).params_
    two = runs.assign(start_tokens=np.where(runs.index % 2, 1_000_000, 2_000_000))
    assert reference_start_tokens(inputs_of(two)) == pytest.approx(np.sqrt(2) * 1e6)


def test_a_law_with_the_axis_survives_json() -> None:
    runs = sweep(MOMENTS, 24)
    law = DecayLaw(TRUNK, num_folds=2, num_draws=2).fit(runs)
    copy = Law.from_dict(json.loads(json.dumps(law.to_dict())))
    found, wanted = copy.predict(runs, interval=0.9), law.predict(runs, interval=0.9)
    np.testing.assert_allclose(found.upper, wanted.upper, rtol=1e-12)


@pytest.mark.parametrize("member", list(MEMBERS))
def test_derivatives_and_the_form_at_a_plan(member: str) -> None:
    inputs = inputs_of(sweep(MOMENTS, 12))
    frame = Frame(
        MEMBERS[member],
        np.array(list(TRUNK.values())),
        1.2e5,
        1e6,
        np.array([[100_000, 1e6]]),
        reference_start_tokens=1.1e6,
    )
    theta = np.random.default_rng(1).normal(0, 0.4, frame.layout(3).size)
    theta[4] = np.log(40)
    found = evaluate(theta, inputs, frame)[1].dense().reshape(*inputs.start_loss.shape, -1)
    numeric = [
        (evaluate(theta + step, inputs, frame)[0] - evaluate(theta - step, inputs, frame)[0]) / 2e-6
        for step in 1e-6 * np.eye(len(theta))
    ]
    np.testing.assert_allclose(found, np.stack(numeric, axis=-1), atol=2e-8)
    assert np.abs(found[..., -2:]).max() > 1e-3
    plan = {name: values[5:6] for name, values in vars(inputs).items()}
    mixtures = {name: np.repeat(values, len(inputs), axis=0) for name, values in plan.items()}
    mixtures |= {"shares": inputs.shares, "epochs": inputs.epochs}
    wanted = evaluate(theta, DecayInputs(**mixtures), frame, slopes=False)[0]
    form = plan_form(theta, DecayInputs(**plan), frame)
    np.testing.assert_allclose(form.losses(inputs.shares, inputs.epochs), wanted, rtol=1e-12)
