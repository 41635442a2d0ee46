"""The decay law against planted truths, its own derivatives, and bad tables."""

from __future__ import annotations

import copy
import functools
import json

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import InvalidValueError, NotFittedError, SchemaError
from decaylaws.laws.decay import (
    MEMBERS,
    ConstantChange,
    ControlChange,
    DecayLaw,
    MixtureAlone,
    NearestRun,
    best_member,
    chosen_member,
    decay_predictors,
    held_out_fits,
    held_out_table,
    select_member,
    splits,
)
from decaylaws.laws.decay.descent import FittedDecays
from decaylaws.laws.decay.form import annealed, evaluate, plan_form
from decaylaws.laws.decay.heldout import HeldOutFits, member_votes
from decaylaws.laws.decay.inputs import DecayInputs, at_reference_batch, decay_inputs
from decaylaws.laws.decay.parameters import Frame, ParameterLayout
from decaylaws.laws.kit.arrow_matrix import ArrowMatrix, ArrowSlopes
from decaylaws.laws.kit.draws import coverage
from decaylaws.laws.kit.formulas import effective_epochs
from decaylaws.laws.kit.law import Law
from decaylaws.laws.kit.repetition import Onset

SOURCES = ("web", "code", "maths")
TRUNK = {"web": 0.9, "code": 0.1, "maths": 0.0}
NOISE = 0.003
MEMORY = 15.0  # full-LR steps in which the planted model forgets


@functools.cache
def followed(shape: str, steps: float, lr: float = 1.0) -> float:
    """Share of the fall of the LR that the planted model has answered: it forgets with the LR integral."""
    if shape == "constant":
        return 1 - float(np.exp(-steps * lr / MEMORY))
    edges = np.linspace(0.0, 1.0, 401)
    path = 1 - (np.sqrt(edges) if shape == "1-sqrt" else edges)
    middles = 0.5 * (path[1:] + path[:-1])
    left = steps * lr * (np.cumsum(middles[::-1])[::-1] - 0.5 * middles) / 400
    return float(np.sum(-np.diff(path) * (1 - np.exp(-left / MEMORY))))


def planted_loss(row: dict, domain: str, full_gain: float = 0.12) -> float:
    """A truth of another form than the family's: own-token power law, transient forgetting, another memory."""
    own = {"web": 0, "code": 1, "maths": 2}[domain]
    shares = np.array([row[f"mix:{name}"] for name in SOURCES])
    mean_lr = {"linear": 0.5, "1-sqrt": 1 / 3, "constant": 1.0}[row["decay_shape"]] * row["start_lr"] / 1e-3
    intrinsic = row["decay_tokens"] * mean_lr / row["start_tokens"]
    transfer = 0.05 + np.eye(3)[own] * 0.9
    before, after = transfer @ np.array(list(TRUNK.values())), transfer @ shares
    reached = (before + after * 8 * intrinsic) / (1 + 8 * intrinsic)
    size = (row["non_embedding_params"] / 1e5) ** -0.05
    mixture = 0.5 * size * (reached**-0.4 - before**-0.4)
    progress = 0.6 * ((1 + intrinsic) ** -0.4 - 1)
    held = followed(row["decay_shape"], row["decay_tokens"] / row["batch_tokens"], row["start_lr"] / 1e-3)
    gain = full_gain * (1e-3 - row["end_lr"]) / 1e-3 * held
    return float(row[f"start_loss:{domain}"] + mixture + progress - gain)


def planned(shares: np.ndarray, **changes: object) -> dict:
    row = {
        "kind": "decay", "role": "simplex", "non_embedding_params": 100_000, "start_tokens": 1_000_000,
        "decay_tokens": 100_000, "start_lr": 1e-3, "end_lr": 0.0, "decay_shape": "linear", "batch_tokens": 1000,
        **{f"mix:{name}": float(share) for name, share in zip(SOURCES, shares)},
        "start_loss:web": 3.2, "start_loss:code": 2.9, "start_loss:maths": 3.6,
    }  # fmt: skip
    return {**row, **changes}


def simulated(
    count: int = 40,
    *,
    seed: int = 0,
    noise: float = NOISE,
    sizes: tuple[int, ...] = (100_000, 200_000),
    gain: dict[int, float] | None = None,
):
    """A sweep like a study's: mixtures, three lengths, two shapes, controls, a drop-and-hold, a second size."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        length = (50_000, 100_000, 200_000)[index % 3]
        shape = ("linear", "1-sqrt")[(index // 3) % 2]
        size = sizes[1] if len(sizes) > 1 and index % 4 == 3 else sizes[0]
        rows.append(
            planned(
                rng.dirichlet([1.2, 0.8, 0.8]),
                decay_tokens=length,
                decay_shape=shape,
                non_embedding_params=size,
            )
        )
    trunk = np.array(list(TRUNK.values()))
    rows += [planned(trunk, decay_tokens=length, role="control") for length in (50_000, 100_000, 200_000)]
    hold = {"start_lr": 1e-4, "end_lr": 1e-4, "decay_shape": "constant", "role": "drop_and_hold"}
    rows += [planned(trunk, **hold), planned(trunk, decay_tokens=200_000, **hold)]
    for row in rows:
        full = 0.12 if gain is None else gain[row["non_embedding_params"]]
        for name in SOURCES:
            row[f"loss:{name}"] = planted_loss(row, name, full) + rng.normal(0, noise)
    return pd.DataFrame(rows)


def inputs_of(runs: pd.DataFrame, *, measured: bool = False) -> DecayInputs:
    """What a law of the planted trunk sees: LR 1e-3, batches of 1000 tokens."""
    return decay_inputs(
        runs,
        sources=SOURCES,
        domains=SOURCES,
        reference_lr=1e-3,
        reference_batch_tokens=1000,
        measured=measured,
    )


def with_averages(runs: pd.DataFrame, gain: object) -> pd.DataFrame:
    """The table with averaged losses that lie so much below those at the start."""
    return runs.assign(
        **{f"averaged_start_loss:{name}": runs[f"start_loss:{name}"] - gain for name in SOURCES}
    )


def jumping(sizes: tuple[int, ...], *, seed: int) -> pd.DataFrame:
    """Decays from checkpoints whose loss was measured on a jump, and whose gain follows no power of the size."""
    rng = np.random.default_rng(seed)
    gain = {size: 0.12 + rng.uniform(-0.06, 0.06) for size in sorted({*sizes, 100_000})}
    jump = {size: rng.normal(0, 0.03) for size in sizes}
    runs = simulated(24, seed=seed, sizes=sizes, gain=gain)
    runs = runs[runs["non_embedding_params"].isin(sizes)].reset_index(drop=True)
    at = runs["non_embedding_params"]
    held = followed("linear", 100)  # of a decay as long as the mean
    return with_averages(runs, at.map(gain) * held).assign(
        **{f"start_loss:{name}": runs[f"start_loss:{name}"] + at.map(jump) for name in SOURCES}
    )


@pytest.fixture(scope="module")
def fitted() -> DecayLaw:
    return DecayLaw(TRUNK, num_draws=16, num_folds=5).fit(simulated())


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("member", list(MEMBERS))
def test_derivatives_are_those_of_the_value(member: str, measured: bool) -> None:
    runs = with_averages(simulated(5), 0.05)
    runs.loc[[1, 3], "batch_tokens"] = (4000, 500)
    inputs = inputs_of(runs, measured=measured)
    checkpoints = np.array([[100_000, 1e6], [400_000, 1e6]])  # rows of 200,000 start from an unknown one
    frame = Frame(MEMBERS[member], np.array(list(TRUNK.values())), 1.2e5, 1e6, checkpoints)
    theta = np.random.default_rng(1).normal(0, 0.4, ParameterLayout(3, 3, 2).size)
    theta[4] = np.log(40)
    found = evaluate(theta, inputs, frame)[1].dense().reshape(*inputs.start_loss.shape, -1)
    steps = 1e-6 * np.eye(len(theta))
    numeric = [
        (evaluate(theta + step, inputs, frame)[0] - evaluate(theta - step, inputs, frame)[0]) / 2e-6
        for step in steps
    ]
    np.testing.assert_allclose(found, np.stack(numeric, axis=-1), atol=2e-8)


@pytest.mark.parametrize("memory_steps", [2.0, 20.0, 400.0])
def test_a_linear_decay_over_the_averaged_steps_gains_what_was_measured(memory_steps: float) -> None:
    inputs = inputs_of(with_averages(simulated(1), 0.05), measured=True)  # a mean over 100 steps
    fall = annealed(inputs.rows(inputs.decay_tokens == 100_000), memory_steps)[0][0]
    assert fall == pytest.approx(1.0, abs=2e-3)


def test_a_shape_that_is_low_for_long_before_it_ends_brings_less() -> None:
    """On published and own proxies a cosine ends above a linear decay, and 1-sqrt a little below it."""
    shapes = ("1-sqrt", "linear", "cosine")
    trunk = np.array(list(TRUNK.values()))
    inputs = inputs_of(pd.DataFrame([planned(trunk, decay_shape=shape) for shape in shapes]))
    falls = annealed(inputs, 10.0)[0]
    assert falls[0] > falls[1] > falls[2]
    whole = inputs_of(pd.DataFrame([planned(trunk, decay_shape="constant", start_lr=2.5e-4, end_lr=2.5e-4)]))
    assert whole.ages[0, 0] == pytest.approx(50.0)  # of 100 steps, each counted by the root of a quarter


def test_a_law_of_an_earlier_version_is_not_read_with_another_memory(fitted: DecayLaw) -> None:
    stored = json.loads(json.dumps(fitted.to_dict()))
    del stored["state"]["lr_memory"]
    with pytest.raises(InvalidValueError, match=r"An earlier version wrote this law\. Fit it again"):
        DecayLaw.from_dict(stored)


def test_no_decay_leaves_the_checkpoint_as_it_is() -> None:
    runs = simulated(4).assign(decay_tokens=1, batch_tokens=1000)
    inputs = decay_inputs(runs, sources=SOURCES, domains=SOURCES, reference_lr=1e-3)
    theta = np.zeros(ParameterLayout(3, 3).size)
    theta[4] = np.log(100)
    frame = Frame(MEMBERS["effective_gain"], np.array(list(TRUNK.values())), 1e5, 1e6)
    loss = evaluate(theta, inputs, frame)[0]
    np.testing.assert_allclose(loss, inputs.start_loss, atol=1e-4)


def test_unseen_plans_are_predicted_within_twice_the_noise(fitted: DecayLaw) -> None:
    unseen = simulated(30, seed=9, noise=0.0)
    errors = fitted.predict(unseen) - unseen[[f"loss:{name}" for name in SOURCES]].to_numpy()
    assert np.abs(errors).mean() < 2 * NOISE


def test_intervals_hold_what_they_promise(fitted: DecayLaw) -> None:
    unseen = simulated(60, seed=4)
    found = fitted.predict(unseen, interval=0.9)
    assert 0.8 <= coverage(found, unseen[[f"loss:{name}" for name in SOURCES]].to_numpy()) <= 0.99
    weighted = fitted.predict_objective(unseen, dict.fromkeys(SOURCES, 1.0), interval=0.9)
    observed = unseen[[f"loss:{name}" for name in SOURCES]].to_numpy().mean(axis=1)
    assert 0.75 <= coverage(weighted, observed) <= 1.0
    np.testing.assert_allclose(weighted.mean, found.mean.mean(axis=1))


def test_the_law_beats_every_baseline_on_unseen_mixtures() -> None:
    runs = simulated()
    report = held_out_table(held_out_fits(decay_predictors(TRUNK), runs, num_folds=4), runs)
    unseen = report[report["held_out"] == "mixture"].set_index("law")["mae"]
    law = unseen[[name for name in unseen.index if name.startswith("decay:")]].min()
    assert law < 0.6 * unseen.drop([name for name in unseen.index if name.startswith("decay:")]).min()
    assert set(report["held_out"]) == {"mixture", "tokens", "size", "corner"}
    assert np.isfinite(report["mae"]).all()


def test_selection_names_a_member_and_shows_why() -> None:
    name, report = select_member(TRUNK, simulated(20))
    assert name in (best_member(report), next(iter(MEMBERS)))
    assert set(report["law"]) == {"decay:effective_gain", "decay:effective_saturating"}


def test_too_few_runs_to_hold_any_out_are_named() -> None:
    one = simulated(6).head(4).assign(decay_tokens=100_000, non_embedding_params=100_000, role="control")
    with pytest.raises(InvalidValueError, match="must leave at least 4 runs"):
        held_out_fits(decay_predictors(TRUNK), one)


def test_splits_keep_one_mixture_together_and_leave_enough_to_fit() -> None:
    runs = pd.concat([simulated(12), simulated(12)], ignore_index=True)
    for split in splits(runs):
        assert 0 < split.test.sum() < len(runs)
        if split.name == "mixture":
            assert (split.test[: len(runs) // 2] == split.test[len(runs) // 2 :]).all()


def test_a_law_survives_its_json(fitted: DecayLaw) -> None:
    back = Law.from_dict(json.loads(json.dumps(fitted.to_dict())))
    plans = simulated(5, seed=2)
    before, after = fitted.predict(plans, interval=0.9), back.predict(plans, interval=0.9)
    np.testing.assert_array_equal(before.mean, after.mean)
    np.testing.assert_array_equal(before.upper, after.upper)


def test_the_three_slices_vary_one_thing(fitted: DecayLaw) -> None:
    plan = pd.Series(planned(np.array([0.5, 0.3, 0.2])))
    by_tokens = fitted.predict_tokens(plan, [50_000, 200_000])
    assert list(by_tokens["decay_tokens"].unique()) == [50_000, 200_000]
    web = fitted.predict_ratio(plan, "maths", [0.0, 0.5]).query("domain == 'maths'")["mean"].to_numpy()
    assert web[1] < web[0] - 0.1
    start = {name: plan[f"start_loss:{name}"] for name in SOURCES}
    sizes = fitted.predict_size(plan, {100_000: start, 400_000: start})
    assert len(sizes) == 6
    assert (sizes["lower"] < sizes["upper"]).all()
    for wrong in ({"web": 2.0}, {**start, "wbe": 2.0}):
        with pytest.raises(InvalidValueError, match=r"start_losses\.400000.*must hold the loss of each of"):
            fitted.predict_size(plan, {100_000: start, 400_000: wrong})


def test_a_share_of_a_source_that_the_plan_lacks_is_refused_where_its_repetition_counts(
    fitted: DecayLaw,
) -> None:
    plan = pd.Series(planned(np.array([0.5, 0.5, 0.0])))
    law = copy.copy(fitted)
    law.onsets_ = (Onset("maths", 4.0, 3.0, 6.0, 16.0, {}),)
    assert len(law.predict_ratio(plan, "code", [0.1, 0.9])) == 6
    with pytest.raises(
        InvalidValueError, match=r"'mix:maths' must be above 0.*Plan a decay that has a share of maths"
    ):
        law.predict_ratio(plan, "maths", [0.1])


def test_the_critical_share_is_where_the_general_loss_crosses(fitted: DecayLaw) -> None:
    plan = pd.Series(planned(np.array([0.9, 0.1, 0.0])))
    ends = fitted.predict_ratio(plan, "maths", [0.0, 1.0]).query("domain == 'web'")["mean"].to_numpy()
    tolerance = float(ends.mean() - plan["start_loss:web"])
    found = fitted.critical_mixture_ratio(plan, "maths", {"web": 1.0}, tolerance)
    assert 0 < found.lower < found.share < found.upper <= 1
    table = fitted.predict_ratio(plan, "maths", [found.share, found.lower]).query("domain == 'web'")
    assert table["mean"].iloc[0] - plan["start_loss:web"] == pytest.approx(tolerance, abs=1e-3)
    assert table["upper"].iloc[1] - plan["start_loss:web"] == pytest.approx(tolerance, abs=2e-3)
    assert np.isnan(fitted.critical_mixture_ratio(plan, "maths", {"web": 1.0}, -5.0).share)
    assert fitted.critical_mixture_ratio(plan, "maths", {"web": 1.0}, 9.0).lower == 1.0


def test_each_slice_has_its_own_hold_out_score(fitted: DecayLaw) -> None:
    scores = fitted.slice_scores_
    assert set(scores) == {"predict_ratio", "predict_tokens", "predict_size"}
    assert scores["predict_ratio"]["num_runs"] == 40
    assert all(0 < score["mae"] < 0.03 for score in scores.values())
    one_size = DecayLaw(TRUNK, num_draws=0).fit(simulated(12, sizes=(100_000,)))
    assert "predict_size" not in one_size.slice_scores_


def test_intervals_at_an_unseen_size_hold_what_they_promise() -> None:
    """Domains differ in how size changes their gain, and a checkpoint's measured loss lies off its course."""
    inside = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        exponents = dict(zip(SOURCES, rng.normal(0, 0.12, 3)))
        offsets = {
            (size, name): rng.normal(0, 0.01) for size in (100_000, 200_000, 800_000) for name in SOURCES
        }

        def truth(runs: pd.DataFrame, exponents: dict = exponents, offsets: dict = offsets) -> pd.DataFrame:
            for name in SOURCES:
                sizes = runs["non_embedding_params"]
                change = (runs[f"loss:{name}"] - runs[f"start_loss:{name}"]) * (sizes / 1e5) ** exponents[
                    name
                ]
                runs[f"loss:{name}"] = runs[f"start_loss:{name}"] + change
                runs[f"start_loss:{name}"] -= [offsets[size, name] for size in sizes]
            return runs

        law = DecayLaw(TRUNK, num_draws=0).fit(truth(simulated(32, seed=seed)))
        target = truth(simulated(8, seed=seed + 50, sizes=(800_000,)))
        found = law.predict(target, interval=0.9)
        inside.append(coverage(found, target[[f"loss:{name}" for name in SOURCES]].to_numpy()))
    assert 0.8 <= np.mean(inside) <= 0.99


def batches(sizes: tuple[int, ...], *, seed: int, exponent: float = 0.7) -> pd.DataFrame:
    """Decays of several batch sizes, each like one of the trunk's 1000 at LR over ``(size / 1000)**exponent``."""
    runs = simulated(36, seed=seed, sizes=(100_000,))
    rng = np.random.default_rng(seed)
    runs["batch_tokens"] = np.resize(sizes, len(runs))
    for index, row in runs.iterrows():
        inputs = inputs_of(runs.loc[[index]])
        for name in SOURCES:
            runs.at[index, f"loss:{name}"] = _at_equivalent_lr(row.to_dict(), name, inputs, exponent)
            runs.at[index, f"loss:{name}"] += rng.normal(0, NOISE)
    return runs


def _at_equivalent_lr(row: dict, domain: str, inputs: DecayInputs, exponent: float) -> float:
    """The planted loss with its LR integral and its followed fall of the LR as the reference batch would see them."""
    seen = at_reference_batch(inputs, exponent)
    fall = float(annealed(seen, 60.0)[0][0])
    flat = row | {
        "decay_shape": "constant",
        "start_lr": 1e-3,
        "end_lr": 1e-3,
        "decay_tokens": float(seen.intrinsic[0]),
    }
    return planted_loss(flat, domain) - 0.12 * fall


def test_the_worth_of_a_batch_size_is_found_and_carries_to_others() -> None:
    law = DecayLaw(TRUNK, reference_batch_tokens=1000, num_draws=0, num_folds=5).fit(
        batches((1000, 4000), seed=0)
    )
    assert law.params_["batch"] == pytest.approx(0.7, abs=0.1)
    unseen = batches((2000, 8000), seed=1)
    observed = unseen[[f"loss:{name}" for name in SOURCES]].to_numpy()
    blind = DecayLaw(TRUNK, reference_batch_tokens=1000, num_draws=0, num_folds=0).fit(
        batches((1000,), seed=0)
    )
    error, before = (np.abs(each.predict(unseen) - observed).mean() for each in (law, blind))
    assert error < 2.5 * NOISE
    assert error < before
    assert law.evidence_["batch_tokens"] == [1000.0, 4000.0]


def test_one_batch_size_leaves_its_worth_to_the_prior() -> None:
    runs = simulated(20)
    law = DecayLaw(TRUNK, num_draws=0, num_folds=5).fit(runs)
    assert law.params_["batch"] == pytest.approx(0.5)
    other = runs.head(4).assign(batch_tokens=8000)
    here, there = law.predict(runs.head(4), interval=0.9), law.predict(other, interval=0.9)
    assert (there.upper - there.lower).mean() > 1.2 * (here.upper - here.lower).mean()


def test_measured_gains_carry_to_a_size_without_decays() -> None:
    """Neither a jump of the anchor nor a gain that follows no power of the size can be known from other sizes."""
    runs = jumping((100_000, 200_000), seed=1)
    law = DecayLaw(TRUNK, num_draws=0, num_folds=5).fit(runs)
    plain = [column for column in runs if not column.startswith("averaged")]
    without = DecayLaw(TRUNK, num_draws=0, num_folds=0).fit(runs[plain])
    assert law.is_measured_
    assert not without.is_measured_
    unseen = pd.concat([jumping((800_000,), seed=seed) for seed in range(10, 16)], ignore_index=True)
    observed = unseen[[f"loss:{name}" for name in SOURCES]].to_numpy()
    error, before = (np.abs(each.predict(unseen) - observed).mean() for each in (law, without))
    assert error < 0.5 * before
    assert coverage(law.predict(unseen, interval=0.9), observed) > 0.75


def test_a_law_with_measured_gains_asks_for_them() -> None:
    runs = with_averages(simulated(12), 0.1)
    law = DecayLaw(TRUNK, num_draws=0, num_folds=0).fit(runs)
    back = Law.from_dict(json.loads(json.dumps(law.to_dict())))
    np.testing.assert_allclose(back.predict(runs), law.predict(runs))
    with pytest.raises(SchemaError, match="averaged_start_loss:web"):
        law.predict(simulated(4))
    with pytest.raises(InvalidValueError, match="averaged_start_loss:web"):
        law.predict(runs.assign(**{"averaged_start_loss:web": np.nan}))


def test_another_size_gains_what_its_own_checkpoint_shows() -> None:
    runs = jumping((100_000, 200_000), seed=1)
    law = DecayLaw(TRUNK, num_draws=0, num_folds=2).fit(runs)
    plan, other = runs.iloc[0], runs[runs["non_embedding_params"] == 200_000].iloc[:1]
    assert plan["non_embedding_params"] == 100_000
    start, averaged = (
        {name: float(other[f"{prefix}:{name}"].iloc[0]) for name in SOURCES}
        for prefix in ("start_loss", "averaged_start_loss")
    )
    found = law.predict_size(plan, {200_000: start}, averaged_losses={200_000: averaged})
    columns = [each for each in runs if each.startswith(("start_loss:", "averaged_start_loss:"))]
    there = plan.to_frame().T.infer_objects().assign(non_embedding_params=200_000)
    there[columns] = other[columns].to_numpy()
    np.testing.assert_allclose(found["mean"], law.predict(there)[0])
    with pytest.raises(InvalidValueError, match=r"averaged_losses\.200000"):
        law.predict_size(plan, {200_000: start})


def test_gains_are_measured_only_where_every_average_is_below_its_start() -> None:
    runs = with_averages(simulated(12), 0.1)
    runs.loc[3, "averaged_start_loss:code"] = runs.loc[3, "start_loss:code"] + 0.01
    assert not DecayLaw(TRUNK, num_draws=0, num_folds=0).fit(runs).is_measured_


def test_the_staged_fit_alone_is_near_the_truth() -> None:
    runs = simulated(30, noise=1e-3)
    law = DecayLaw(TRUNK, num_draws=0, num_folds=0).fit(runs)
    inputs, observed = law.inputs(runs), runs[[f"loss:{name}" for name in SOURCES]].to_numpy()
    decays = FittedDecays(inputs, observed, law._frame, law.domains_, law.sources_)
    prior = decays.prior()
    staged, joint = law.loss(inputs, decays.staged_start(prior)), law.loss(inputs)
    untaught = law.loss(inputs, prior.mean)
    assert np.abs(staged - observed).mean() < 0.1 * np.abs(untaught - observed).mean()
    assert np.abs(joint - observed).mean() <= np.abs(staged - observed).mean()


def test_forgetting_is_the_rise_against_the_checkpoint(fitted: DecayLaw) -> None:
    plans = pd.DataFrame([planned(np.array([0.0, 0.5, 0.5])), planned(np.array([1.0, 0.0, 0.0]))])
    rise = fitted.forgetting(plans, ["web"])["mean"].to_numpy()
    assert rise[0] > rise[1]
    assert rise[1] < 0


def test_repeats_are_worth_less_than_fresh_data() -> None:
    worth = effective_epochs(np.array([0.0, 0.5, 1.0, 4.0, 1e3]))
    assert worth[:3].tolist() == [0.0, 0.5, 1.0]
    assert 3.5 < worth[3] < 4.0
    assert worth[4] == pytest.approx(1 + 15.3878, rel=1e-6)


def test_baselines_predict_what_they_say() -> None:
    runs = simulated(6, noise=0.0)
    losses = runs[[f"loss:{name}" for name in SOURCES]].to_numpy()
    starts = runs[[f"start_loss:{name}" for name in SOURCES]].to_numpy()
    np.testing.assert_allclose(NearestRun().fit(runs).predict(runs), losses)
    constant = ConstantChange().fit(runs).predict(runs)
    np.testing.assert_allclose(constant - starts, np.tile((losses - starts).mean(axis=0), (len(runs), 1)))
    known = MixtureAlone().fit(simulated(20))
    one, longer = runs.iloc[[0]], runs.iloc[[0]].assign(decay_tokens=400_000, start_lr=1e-4)
    np.testing.assert_array_equal(known.predict(one), known.predict(longer))
    assert (
        known.predict(one.assign(**{"mix:web": 0, "mix:code": 0, "mix:maths": 1}))[0, 2] < starts[0, 2] - 0.1
    )
    control = runs.index[(runs["role"] == "control") & (runs["decay_tokens"] == 100_000)]
    plan = runs.loc[[0]].assign(decay_tokens=100_000, decay_shape="linear")
    np.testing.assert_allclose(
        ControlChange().fit(runs).predict(plan)[0] - starts[0], (losses - starts)[control[0]]
    )


def test_a_missing_column_is_named() -> None:
    with pytest.raises(SchemaError, match="start_lr"):
        DecayLaw(TRUNK).fit(simulated(8).rename(columns={"start_lr": "start_rate"}))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("loss:code", np.nan, "loss:code"),
        ("start_loss:web", -1.0, "start_loss:web"),
        ("decay_tokens", 0, "decay_tokens"),
        ("mix:web", 0.7, "sum to one"),
        ("end_lr", -1e-4, "end_lr"),
    ],
)
def test_bad_values_are_named(column: str, value: float, message: str) -> None:
    runs = simulated(8)
    runs[column] = runs[column].astype(float)
    runs.loc[0, column] = value
    with pytest.raises(InvalidValueError, match=message):
        DecayLaw(TRUNK, num_draws=0, num_folds=0).fit(runs)


def test_other_mistakes_are_clear(fitted: DecayLaw) -> None:
    with pytest.raises(NotFittedError):
        DecayLaw(TRUNK).predict(simulated(4))
    with pytest.raises(InvalidValueError, match="at least 4"):
        DecayLaw(TRUNK).fit(simulated(8).head(3))
    with pytest.raises(InvalidValueError, match="must be one of"):
        DecayLaw(TRUNK, "guess").fit(simulated(8))
    with pytest.raises(InvalidValueError, match="not fitted on"):
        fitted.predict(simulated(4).assign(**{"mix:law": 0.1}))
    with pytest.raises(InvalidValueError, match="domains"):
        fitted.weight_vector({"poetry": 1.0})


def test_a_domain_without_a_source_of_its_own_is_fitted() -> None:
    runs = simulated(16)
    runs["loss:mixed"] = 0.5 * (runs["loss:web"] + runs["loss:code"])
    runs["start_loss:mixed"] = 0.5 * (runs["start_loss:web"] + runs["start_loss:code"])
    law = DecayLaw(TRUNK, domains=["mixed"], num_draws=0, num_folds=0).fit(runs)
    assert np.abs(law.predict(runs)[:, 0] - runs["loss:mixed"]).mean() < 3 * NOISE


@pytest.mark.parametrize("member", list(MEMBERS))
@pytest.mark.parametrize("measured", [False, True])
def test_the_form_at_a_plan_is_the_law_at_that_plan(member: str, measured: bool) -> None:
    runs = with_averages(simulated(40), 0.05)
    runs.loc[7, "batch_tokens"] = 4000
    inputs = inputs_of(runs, measured=measured)
    frame = Frame(MEMBERS[member], np.array(list(TRUNK.values())), 1.2e5, 1e6, np.array([[100_000, 1e6]]))
    theta = np.random.default_rng(2).normal(0, 0.4, ParameterLayout(3, 3, 1).size)
    theta[4] = np.log(40)
    for row in (0, 7, len(inputs) - 1):
        plan = {name: values[row : row + 1] for name, values in vars(inputs).items()}
        repeated = {name: np.repeat(values, len(inputs), axis=0) for name, values in plan.items()}
        mixtures = DecayInputs(**{**repeated, "shares": inputs.shares})
        wanted = evaluate(theta, mixtures, frame, slopes=False)[0]
        found = plan_form(theta, DecayInputs(**plan), frame).losses(inputs.shares, inputs.epochs)
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_a_fit_never_builds_what_all_domains_would_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Domains meet in the shared parameters only, so a fit's cost grows with their number and not with its cube."""

    def refused(self: object) -> np.ndarray:
        raise AssertionError("a dense matrix over all domains")

    monkeypatch.setattr(ArrowSlopes, "dense", refused)
    monkeypatch.setattr("decaylaws.laws.kit.arrow_matrix._DENSE_EIGENVALUES", 0)
    monkeypatch.setattr(ArrowMatrix, "dense", refused)
    runs = simulated(24, noise=0.002, seed=3)
    law = DecayLaw(TRUNK, num_draws=2, num_folds=2).fit(runs)
    assert np.isfinite(law.predict(runs, interval=0.9).upper).all()


class Off:
    """A predictor that errs by so much on each of the first rows and by another amount on the others."""

    def __init__(self, first: float, others: float) -> None:
        self.off = (first, others)

    def predict(self, runs: pd.DataFrame) -> np.ndarray:
        errors = np.where(np.arange(len(runs)) < 4, *self.off)
        return runs[[f"loss:{name}" for name in SOURCES]].to_numpy() + errors[:, None]


def test_votes_show_whether_the_choice_of_the_member_hangs_on_a_few_runs() -> None:
    runs = simulated(20)
    test = np.arange(len(runs)) < 12

    def votes(**members: Off) -> dict[str, float]:
        fits = [HeldOutFits(f"decay:{name}", "mixture", [test], [law], 0.0) for name, law in members.items()]
        return member_votes([*fits, HeldOutFits("regmix", "mixture", [test], [Off(0, 0)], 0.0)], runs)

    sure = votes(a=Off(0.02, 0.02), b=Off(0.01, 0.01))
    assert list(sure) == ["b", "a"]
    assert sure["b"] == pytest.approx(1.0)
    unsure = votes(a=Off(0.05, 0.0), b=Off(0.015, 0.015))
    assert 0.5 < unsure["b"] < 0.9
    assert sum(unsure.values()) == pytest.approx(1.0)


class Erring:
    """A predictor that errs by a size of its own on each run."""

    def __init__(self, size: float, seed: int, count: int) -> None:
        self.errors = size * np.abs(1.0 + 0.5 * np.random.default_rng(seed).standard_normal(count))

    def predict(self, runs: pd.DataFrame) -> np.ndarray:
        observed = runs[[f"loss:{name}" for name in SOURCES]].to_numpy()
        return observed + self.errors[runs.index.to_numpy()][:, None]


@pytest.mark.parametrize("other", [0.01, 0.0055])
def test_the_loss_of_a_third_of_the_runs_does_not_flip_the_member(other: float) -> None:
    """Two members that err alike, and one that errs by half."""
    runs, (default, rival) = simulated(30), list(MEMBERS)
    laws = {default: Erring(0.01, 1, len(runs)), rival: Erring(other, 2, len(runs))}

    def asked(kept: pd.DataFrame) -> tuple[str, str]:
        test = np.ones(len(kept), dtype=bool)
        fits = [HeldOutFits(f"decay:{name}", "mixture", [test], [law], 0.0) for name, law in laws.items()]
        report = held_out_table(fits, kept)
        return best_member(report), chosen_member(report, member_votes(fits, kept))

    rng = np.random.default_rng(0)
    found = [asked(runs.iloc[np.sort(rng.choice(30, 20, replace=False))]) for _ in range(40)]
    best, chosen = zip(*found)
    if other > 0.009:
        assert 10 <= sum(name == rival for name in best) <= 30  # the best of both hangs on the runs
        assert sum(name == rival for name in chosen) <= 4
    else:
        assert set(chosen) == {rival}


def test_every_refit_is_told_to_who_waits() -> None:
    told: dict[str, list[float]] = {}

    def progress(stage: str, done: float, total: float, note: str = "") -> None:
        assert 0 <= done <= total
        told.setdefault(stage, []).append(done)

    runs = simulated(16)
    DecayLaw(TRUNK, num_draws=3, num_folds=2).fit(runs, progress=progress)
    assert told["law"] == [0, 1, 2, 3, 4, 5]
    assert told["bootstrap"] == [1, 2, 3]
    assert told["intervals"] == sorted(told["intervals"])
    assert len(told["intervals"]) >= 3
    held_out_fits({"constant": ConstantChange}, runs, progress=progress)
    assert told["held-out fits"][0] == 0
    assert len(told["held-out fits"]) >= 4


def test_what_speaks_against_a_law_is_said() -> None:
    runs = simulated(20)
    quick = DecayLaw(TRUNK, num_draws=0, num_folds=0)
    law = quick.fit(runs)
    assert law.doubts_ == ()
    law.doubts_ = ("90 % intervals hold only 61 % of the losses on held-out mixture.",)
    assert Law.from_dict(law.to_dict()).doubts_ == law.doubts_
    (control,) = quick.fit(runs[runs["role"] == "simplex"]).doubts_
    assert control.startswith("No run decays on the trunk's own mixture")
    (few,) = quick.fit(runs.iloc[[0, 1, 20, 21]]).doubts_
    assert few == "The law was fitted on 4 runs; 3 sources need at least 5."
    (trunk,) = quick.fit(runs.assign(start_tokens=1000)).doubts_
    assert "start_tokens may be in thousands" in trunk
    (short,) = quick.fit(runs.assign(decay_tokens=runs["decay_tokens"] / 1e3, batch_tokens=1)).doubts_
    assert "decay_tokens may be in thousands" in short
    with pytest.raises(
        InvalidValueError, match=r"decay_tokens of row 0' must be at least the 1,000 tokens of one"
    ):
        quick.fit(runs.assign(decay_tokens=runs["decay_tokens"] / 1e3))


@pytest.mark.parametrize("trunk", [{}, {"web": 0.0}, {"web": 3.0, "code": 1.0}, {"web": 1.2, "code": -0.2}])
def test_a_trunk_mixture_is_a_mixture(trunk: dict[str, float]) -> None:
    with pytest.raises(InvalidValueError, match="'trunk_mixture' must"):
        DecayLaw(trunk).fit(simulated(8))


def test_mixtures_are_told_apart_however_long_the_checkpoints_history_is() -> None:
    """A decay of 1e5 tokens after 2e12 of history forgets as fast as one after 1e6: tokens of history say nothing."""
    runs = simulated(30, sizes=(100_000,)).assign(start_tokens=2_000_000_000_000)
    columns = [f"loss:{name}" for name in SOURCES]
    is_held = (np.arange(len(runs)) % 4 == 0) & (runs["role"] == "simplex").to_numpy()
    law = DecayLaw(TRUNK, num_draws=0, num_folds=0).fit(runs[~is_held])
    errors = np.abs(law.predict(runs[is_held]) - runs.loc[is_held, columns].to_numpy())
    assert errors.mean() < 4 * NOISE
    assert any("decay_tokens may be in thousands" in doubt for doubt in law.doubts_)
    own = DecayLaw(TRUNK, num_draws=0, num_folds=0).fit(runs.assign(numerics=1))
    assert own.doubts_ == ()  # the trainer of a study counts its own tokens
