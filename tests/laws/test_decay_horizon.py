"""How far a decay law is to be believed: errors by distance, what is missing to know them, and what lies beyond."""

from __future__ import annotations

import functools
import json

import numpy as np
import pandas as pd
import pytest

from decaylaws.laws.decay import DecayLaw
from decaylaws.laws.decay.horizon import Trust, measured_trust, mixture_distance
from decaylaws.laws.kit.horizon import Horizon, Reach
from decaylaws.runs.table import MIX, names_with
from tests.laws.test_decay_law import TRUNK, simulated


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    table = simulated(24)
    return table.assign(run_id=[f"run-{number}" for number in range(len(table))])


@pytest.fixture(scope="module")
def trust(runs: pd.DataFrame) -> Trust:
    held_out = pd.DataFrame({"run_id": runs["run_id"], "predicted": 3.0, "observed": 3.01})
    return measured_trust(functools.partial(DecayLaw, TRUNK, num_draws=0, num_folds=0), runs, held_out)


def test_three_lengths_give_an_error_by_distance_and_two_sizes_say_what_is_missing(trust: Trust) -> None:
    size, tokens, compute = trust.horizon.reaches
    assert (size.steps, size.origins) == (2, 0)
    assert (tokens.steps, tokens.factor, tokens.trusted) == (3, 2.0, 4e5)
    assert 0 < tokens.error < 0.02
    assert compute.origins > 0
    assert set(trust.errors["law"]) == {"decay", "copy_nearest"}
    means = trust.errors.groupby("law")["mae"].mean()
    assert means["decay"] < 0.5 * means["copy_nearest"]
    words = trust.sentences()
    assert any("Runs with 400,000 parameters would give it." in line for line in words)
    assert any("Its error is known up to 400,000 decay tokens." in line for line in words)
    assert not any("parameters" in line for line in trust.sentences(without=("size",)))


def test_only_what_lies_beyond_is_named(trust: Trust) -> None:
    inside = {"size": 2e5, "tokens": 4e5, "compute": 4.8e11}
    assert trust.beyond(inside, 0.0, "linear") == []
    assert trust.sentences_at(inside) == [line for line in trust.sentences() if "fewer decay tokens" in line]
    (longer,) = trust.beyond({**inside, "tokens": 8e5}, 0.0, "linear")
    assert longer == (
        "800,000 decay tokens is 4.0 times the largest fitted value; rolling origins tested the law up to 2.0 times."
    )
    (larger,) = trust.beyond({**inside, "size": 4e5}, 0.0, "linear")
    assert "no rolling origin could test" in larger
    (other,) = trust.beyond(inside, 0.99, "linear")
    assert other.startswith("Its mixture lies 0.99")


def test_distance_of_a_mixture_is_that_of_the_nearest_run(runs: pd.DataFrame) -> None:
    sources = names_with(runs, MIX)
    first = {name: float(runs[MIX + name].iloc[0]) for name in sources}
    assert mixture_distance(first, runs) == pytest.approx(0.0, abs=1e-9)
    assert mixture_distance({"unknown": 1.0}, runs) == pytest.approx(1.0)


def test_it_survives_its_json(trust: Trust) -> None:
    again = Trust.from_dict(json.loads(json.dumps(trust.to_dict(), allow_nan=False)))
    assert again.sentences() == trust.sentences()
    assert again.to_dict() == trust.to_dict()
    assert Trust().sentences() == []
    assert Trust.from_dict(Trust().to_dict()).beyond({"size": 1.0}, 1.0, "linear") == []


def test_a_law_that_a_simple_copy_beats_says_so(trust: Trust) -> None:
    worse = trust.errors.assign(mae=np.where(trust.errors["law"] == "decay", 1.0, trust.errors["mae"]))
    words = Trust(trust.horizon, trust.mixture, worse).sentences()
    assert sum("copying the nearest run errs less than the law" in line for line in words) == 2


def test_intervals_of_the_law_take_the_horizon(runs: pd.DataFrame) -> None:
    law = DecayLaw(TRUNK, num_draws=2, num_folds=2).fit(runs)
    longer = runs.head(3).assign(decay_tokens=lambda table: 8 * table["decay_tokens"].max())
    narrow = law.predict(longer, interval=0.9)
    tokens = Reach("tokens", 5e4, 2e5, 3, 1, 2.0, 0.3, 0.3, rate=0.3, gap=0.7)
    law.horizon_ = Horizon((tokens,))
    wide, same = law.predict(longer, interval=0.9), law.predict(runs, interval=0.9)
    assert (wide.upper > narrow.upper).all()
    np.testing.assert_array_equal(wide.mean, narrow.mean)
    law.horizon_ = Horizon()
    np.testing.assert_array_equal(law.predict(runs, interval=0.9).upper, same.upper)  # nothing changes inside
    law.horizon_ = Horizon((tokens,))
    copy = DecayLaw.from_dict(json.loads(json.dumps(law.to_dict())))
    np.testing.assert_array_equal(copy.predict(longer, interval=0.9).lower, wide.lower)
