"""Intervals of the decay law away from its runs: the misfit of its form, and radii by kind of extrapolation."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import InvalidValueError
from decaylaws.laws.decay import DecayLaw
from decaylaws.laws.decay.intervals import HeldOut, radii
from decaylaws.laws.decay.misfit import Distances, Errors, Misfit, estimate
from decaylaws.laws.decay.optimism import Optimism
from decaylaws.laws.kit.draws import coverage, normal_radius
from decaylaws.laws.kit.law import Law
from tests.laws.test_decay_law import SOURCES, TRUNK, planned, simulated

LENGTHS = (50_000, 100_000)


def sudden_loss(row: dict, domain: str) -> float:
    """A truth outside the family: a new domain is learnt by a logistic curve in the log of its own tokens."""
    own = SOURCES.index(domain)
    shares = [row[f"mix:{name}"] for name in SOURCES]
    tokens = row["decay_tokens"] * {"linear": 0.5, "1-sqrt": 1 / 3}[row["decay_shape"]] / row["start_tokens"]
    if own == 0:
        return row[f"start_loss:{domain}"] - 0.05 + 0.3 * (1 - np.exp(-8 * tokens)) * (1 - shares[0])
    return row[f"start_loss:{domain}"] - 0.05 - 1.5 / (1 + 0.02 / (tokens * (shares[own] + 0.02)))


def sudden(count: int, lengths: tuple[int, ...], seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [
        planned(
            rng.dirichlet([1.2, 0.8, 0.8]),
            decay_tokens=lengths[index % len(lengths)],
            decay_shape=("linear", "1-sqrt")[(index // 3) % 2],
        )
        for index in range(count)
    ]
    rows += [planned(np.array(list(TRUNK.values())), decay_tokens=each, role="control") for each in lengths]
    for row in rows:
        row.update({f"loss:{name}": sudden_loss(row, name) + rng.normal(0, 0.01) for name in SOURCES})
    return pd.DataFrame(rows)


def losses(runs: pd.DataFrame) -> np.ndarray:
    return runs[[f"loss:{name}" for name in SOURCES]].to_numpy()


@pytest.fixture(scope="module")
def misfitting() -> DecayLaw:
    return DecayLaw(TRUNK, num_draws=0, num_folds=5).fit(sudden(30, LENGTHS, seed=0))


def test_intervals_hold_on_longer_decays_of_a_truth_outside_the_family(misfitting: DecayLaw) -> None:
    other = DecayLaw(TRUNK, num_draws=0, num_folds=5).fit(sudden(30, LENGTHS, seed=1))
    longer = sudden(12, (2 * LENGTHS[-1],), seed=70)
    inside = [coverage(law.predict(longer, interval=0.9), losses(longer)) for law in (misfitting, other)]
    assert 0.78 <= np.mean(inside) <= 0.98  # 0.65 by the spread of the parameters alone


def test_an_interval_widens_with_every_doubling_and_away_from_seen_mixtures(misfitting: DecayLaw) -> None:
    runs = sudden(30, LENGTHS, seed=0)
    row = runs[runs["decay_tokens"] == LENGTHS[-1]].iloc[[0]]
    lengths = [
        misfitting.predict(row.assign(decay_tokens=n * LENGTHS[-1]), interval=0.9) for n in (1, 2, 4, 8)
    ]
    assert misfitting.misfit_.by_length > 0.04
    widths = [float((each.upper - each.lower).mean()) for each in lengths]
    assert widths == sorted(widths)
    assert widths[1] > 1.3 * widths[0]
    corner = misfitting.predict(
        row.assign(**{"mix:web": 0.0, "mix:code": 1.0, "mix:maths": 0.0}), interval=0.9
    )
    assert (corner.upper - corner.lower).mean() > 1.3 * widths[0]


def test_the_misfit_survives_json(misfitting: DecayLaw) -> None:
    again = Law.from_dict(json.loads(json.dumps(misfitting.to_dict(), default=lambda value: value.tolist())))
    assert isinstance(again, DecayLaw)
    assert again.misfit_ == misfitting.misfit_
    runs = sudden(4, (3 * LENGTHS[-1],), seed=5)
    np.testing.assert_array_equal(again.predict(runs, 0.9).upper, misfitting.predict(runs, 0.9).upper)


def test_intervals_can_be_had_later_and_are_the_same(misfitting: DecayLaw) -> None:
    plain = DecayLaw(TRUNK, num_draws=0, num_folds=0).fit(sudden(30, LENGTHS, seed=0))
    later, unseen = plain.with_intervals(5), sudden(4, (3 * LENGTHS[-1],), seed=5)
    np.testing.assert_array_equal(later.predict(unseen, 0.9).upper, misfitting.predict(unseen, 0.9).upper)
    with pytest.raises(InvalidValueError, match="num_folds"):
        plain.predict(unseen, 0.9)
    stored = json.loads(json.dumps(plain.to_dict(), default=lambda value: value.tolist()))
    read = Law.from_dict(stored)
    assert isinstance(read, DecayLaw)
    with pytest.raises(InvalidValueError, match="read from a file"):
        read.with_intervals(5)


def test_a_planted_misfit_is_estimated_and_none_is_found_where_there_is_none() -> None:
    rng = np.random.default_rng(0)
    distances = Distances(rng.uniform(0.1, 0.6, (150, 4)), rng.choice([0.0, 1.0, 2.0], (150, 4)))
    slopes, truth = rng.uniform(0.2, 1.0, (150, 3)), Misfit(by_mixture=0.5, by_length=0.2)
    noise = rng.normal(0, 0.01, (150, 3))
    errors = noise + truth.of(slopes, distances) * rng.normal(size=(150, 3))
    found = estimate([Errors(errors, np.full((150, 3), 1e-4), slopes, distances)])
    assert found.by_mixture == pytest.approx(truth.by_mixture, rel=0.4)
    assert found.by_length == pytest.approx(truth.by_length, rel=0.5)
    none = estimate([Errors(noise, np.full((150, 3), 1e-4), slopes, distances)])
    assert max(none.by_mixture, none.by_length) <= 0.03


def test_one_held_out_length_does_not_rule_out_a_misfit_that_many_do() -> None:
    def exact(count: int) -> Errors:
        none, doublings = np.zeros((count, 1)), np.ones((count, 1))
        return Errors(none, np.full((count, 1), 1e-4), np.ones((count, 1)), Distances(none, doublings))

    assert estimate([exact(200)]) == Misfit()
    one = estimate([exact(1)])
    assert one.by_mixture == 0.0
    # the largest of the grid whose surprise is at most two nats more: log(1 + b^2 / 1e-4) / 2 and the weak prior
    assert 0.05 < one.by_length < 0.073


def test_the_nearest_run_decides_and_held_out_runs_are_out_of_reach() -> None:
    distances = Distances(
        np.array([[0.0, 0.4], [0.4, 0.0]]),
        np.array([[0.0, -1.0], [1.0, 0.0]]),
    )
    slopes, misfit = np.array([[1.0], [-2.0]]), Misfit(by_mixture=0.5, by_length=0.1)
    np.testing.assert_array_equal(misfit.of(slopes, distances), 0.0)
    alone = distances.hiding([np.array([True, False]), np.array([False, True])])
    expected = np.hypot(0.5 * 0.4, 0.1)
    np.testing.assert_allclose(misfit.of(slopes, alone), [[expected], [2 * expected]])


def held_out(size: float, num_groups: int) -> HeldOut:
    ones = np.ones((40, 1))
    return HeldOut(size * ones, np.zeros((40, 1, 1)), ones, 0 * ones, 0 * ones, num_groups)


def test_a_kind_that_was_not_tested_takes_the_widest_radius() -> None:
    beyond = {
        "ratio": np.array([False, True, False, False]),
        "tokens": np.array([False, False, True, False]),
        "size": np.array([False, False, False, True]),
    }
    weights = np.eye(1)
    found = radii({"ratio": held_out(3.0, 40), "tokens": held_out(1.0, 1)}, beyond, weights, 0.9)
    inside, ratio, tokens, size = found
    assert 1.0 < tokens < inside < ratio < 3.0
    assert size == ratio
    np.testing.assert_array_equal(radii({}, beyond, weights, 0.9), normal_radius(0.9))


def under_seeds(runs: pd.DataFrame, seeds: list[int], sd: float) -> pd.DataFrame:
    """The rows with what the order of each row's seed does to its losses: relative, and the same in every run."""
    effects = {seed: np.random.default_rng(1000 + seed).normal(0, sd, len(SOURCES)) for seed in set(seeds)}
    names = [f"loss:{name}" for name in SOURCES]
    factors = 1 + np.array([effects[seed] for seed in seeds])
    return runs.assign(seed=seeds, **dict(zip(names, (runs[names].to_numpy() * factors).T)))


def test_intervals_count_what_another_order_of_the_data_changes() -> None:
    held: dict[str, list[float]] = {"one seed": [], "several": []}
    for world in range(4):
        plan = simulated(30, seed=world, sizes=(100_000,), noise=2e-3)
        control = plan[plan["role"] == "control"].iloc[[0, 0, 0, 0]]
        seeds = 100 * world + np.array([*[0] * len(plan), 1, 2, 3, 4])
        table = under_seeds(pd.concat([plan, control], ignore_index=True), seeds.tolist(), sd=0.01)
        unseen = under_seeds(simulated(20, seed=9, sizes=(100_000,), noise=0), [*range(1000, 1025)], sd=0.01)
        tables = {"one seed": table[: len(plan)], "several": table}
        laws = {name: DecayLaw(TRUNK, num_draws=0, num_folds=4).fit(rows) for name, rows in tables.items()}
        for name, law in laws.items():
            held[name].append(coverage(law.predict(unseen, interval=0.9), losses(unseen)))
    assert (laws["one seed"].order_noise_ == 0).all()
    assert laws["several"].order_noise_ == pytest.approx(0.01, rel=0.6)
    assert np.mean(held["one seed"]) < 0.3
    assert 0.8 <= np.mean(held["several"]) <= 0.98
    of_its_order = unseen.assign(seed=seeds[0])
    found = [laws["several"].predict(rows, interval=0.9) for rows in (unseen, of_its_order)]
    new, known = ((each.upper - each.lower).mean() for each in found)
    assert new > 2 * known
    again = Law.from_dict(
        json.loads(json.dumps(laws["several"].to_dict(), default=lambda value: value.tolist()))
    )
    assert isinstance(again, DecayLaw)
    np.testing.assert_array_equal(again.predict(unseen, 0.9).upper, found[0].upper)


def test_replicates_that_agree_add_nothing() -> None:
    plan = simulated(30, seed=0, sizes=(100_000,), noise=2e-3)
    control = plan[plan["role"] == "control"].iloc[[0, 0]]
    table = pd.concat([plan.assign(seed=0), control.assign(seed=[1, 2])], ignore_index=True)
    assert (DecayLaw(TRUNK, num_draws=0, num_folds=0).fit(table).order_noise_ == 0).all()


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_what_held_out_runs_do_not_confirm_of_a_predicted_gain_is_found(slope: float) -> None:
    rng = np.random.default_rng(0)
    changes = rng.normal(-0.1, 0.05, 200)
    errors = slope * changes + rng.normal(0, 0.005, 200)
    errors[:4] += 2.0  # runs that diverged
    found = Optimism.of(changes, errors)
    assert abs(found.slope - slope) < 2.5 * found.slope_sd < 0.05
    far = np.array([-0.3, 0.2])
    np.testing.assert_allclose(found.lost(far, chosen=False), [found.slope * (found.centre + 0.3), 0.0])
    further = found.lost(far) - found.lost(far, chosen=False)
    np.testing.assert_allclose(further, [2 * found.slope_sd * (changes.min() + 0.3), 0.0])
    # held-out runs were predicted as well as that: no search went further
    near = np.array([changes.min() + 0.01])
    np.testing.assert_array_equal(found.lost(near), found.lost(near, chosen=False))


def test_predictions_are_drawn_up_only_and_by_no_more_than_the_way_to_the_mean_of_the_runs() -> None:
    changes = np.linspace(-1.0, 1.0, 30)
    noise = np.where(np.arange(30) % 2, 0.05, -0.05)
    assert Optimism.of(changes, -0.5 * changes + noise).slope == 0.0
    gone = Optimism.of(changes, 1.5 * changes + noise)
    assert gone.slope == 1.0
    assert gone.lost(np.array([-0.8]))[0] == pytest.approx(gone.centre + 0.8)
    assert Optimism.of(changes[:5], changes[:5]) == Optimism()
    assert Optimism.of(np.zeros(30), noise) == Optimism()
    assert Optimism.of(changes, 0 * changes).lost(np.array([-2.0])) == 0.0
