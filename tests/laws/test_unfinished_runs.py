"""Unfinished runs in a decay law: they help, by their standard error, and show neither noise nor coverage."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import InvalidValueError
from decaylaws.laws.decay import DecayLaw
from tests.laws.test_decay_law import SOURCES, TRUNK, simulated

LOSSES = [f"loss:{name}" for name in SOURCES]
ERRORS = [f"loss_error:{name}" for name in SOURCES]


def cut_short(runs: pd.DataFrame, *, error: float, seed: int) -> tuple[pd.DataFrame, pd.Index]:
    """Half of the mixtures end early: their final losses are known to ``error`` only."""
    rng = np.random.default_rng(seed)
    mixtures = runs.index[runs["role"] == "simplex"]
    cut = pd.Index(rng.permutation(mixtures)[: len(mixtures) // 2])
    known = runs.copy()
    known.loc[cut, LOSSES] += rng.normal(0, error, (len(cut), len(SOURCES)))
    errors = np.where(runs.index.isin(cut), error, np.nan)
    return known.assign(**dict.fromkeys(ERRORS, errors)), cut


def test_a_fit_with_unfinished_runs_is_better_than_one_without_them_and_than_one_that_takes_them_as_measured() -> (
    None
):
    found: dict[str, list[float]] = {"with": [], "without": [], "as measured": []}
    for seed in range(5):
        runs, test = (
            simulated(24, seed=seed, sizes=(100_000,)),
            simulated(40, seed=99, sizes=(100_000,), noise=0),
        )
        known, cut = cut_short(runs, error=0.06, seed=seed)
        tables = {"with": known, "without": runs.drop(cut), "as measured": known.drop(columns=ERRORS)}
        for name, table in tables.items():
            law = DecayLaw(TRUNK, num_draws=0, num_folds=0).fit(table)
            found[name].append(np.abs(law.predict(test) - test[LOSSES].to_numpy()).mean())
    assert np.mean(found["with"]) < np.mean(found["without"])
    assert np.mean(found["with"]) < 0.8 * np.mean(found["as measured"])


def test_they_change_neither_the_noise_nor_the_rows_on_which_intervals_are_calibrated() -> None:
    runs = simulated(24, sizes=(100_000,))
    known, cut = cut_short(runs, error=0.2, seed=0)
    law, without = (DecayLaw(TRUNK, num_draws=0).fit(table) for table in (known, runs.drop(cut)))
    assert law.noise_ == pytest.approx(without.noise_, rel=0.5)
    assert law.evidence_ == without.evidence_
    for kind, held_out in without._held_out.items():
        assert len(law._held_out[kind].errors) == len(held_out.errors)
    test = simulated(40, seed=7, sizes=(100_000,))
    inside = law.predict(test, interval=0.9)
    held = (inside.lower <= test[LOSSES]) & (test[LOSSES] <= inside.upper)
    assert held.to_numpy().mean() > 0.8


def test_an_error_of_zero_is_a_measured_loss() -> None:
    runs = simulated(12, sizes=(100_000,))
    zero = runs.assign(**dict.fromkeys(ERRORS, 0.0))
    laws = [DecayLaw(TRUNK, num_draws=4).fit(table) for table in (runs, zero)]
    said = [{name: value for name, value in law.to_dict().items() if name != "report"} for law in laws]
    assert said[0] == said[1]


def test_bad_errors_and_too_few_finished_runs_are_refused() -> None:
    runs = simulated(12, sizes=(100_000,))
    with pytest.raises(InvalidValueError, match="loss_error"):
        DecayLaw(TRUNK).fit(runs.assign(**dict.fromkeys(ERRORS, -1.0)))
    with pytest.raises(InvalidValueError, match="at least 4 finished"):
        DecayLaw(TRUNK).fit(runs.assign(**dict.fromkeys(ERRORS, 0.1)))
