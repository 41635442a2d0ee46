"""Recommended shares are readable and still shares; margins of guards come from the runs that matter to them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from decaylaws.laws.decay.trust import GUARD_RUNS, margin_near
from decaylaws.search.optimise import rounded_shares


@pytest.mark.parametrize(
    "shares",
    [
        {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3},
        {"a": 0.14249, "b": 0.44151, "c": 0.416},
        {"a": 1.0, "b": 0.0},
        {"a": 0.9996, "b": 0.0002, "c": 0.0002},
    ],
)
def test_rounded_shares_sum_to_one_and_move_less_than_a_step(shares: dict[str, float]) -> None:
    rounded = rounded_shares(shares, 1000)
    assert sum(round(share * 1000) for share in rounded.values()) == 1000
    assert all(abs(rounded[name] - share) < 1e-3 for name, share in shares.items())
    assert all(share == round(share, 3) for share in rounded.values())


def test_a_margin_rests_on_the_runs_predicted_nearest_the_limit() -> None:
    near = pd.DataFrame({"predicted": np.linspace(0.0, 0.2, GUARD_RUNS)})
    near["observed"] = near["predicted"] + np.linspace(-0.02, 0.03, GUARD_RUNS)
    far = pd.DataFrame({"predicted": [0.6, 0.9, 1.2], "observed": [0.9, 1.5, 2.0]})
    assert margin_near(pd.concat([near, far], ignore_index=True), 0.1) == pytest.approx(0.03)
    assert margin_near(far, 0.1) == pytest.approx(0.8)  # too few to choose from: all of them


def test_a_pessimistic_law_needs_no_margin() -> None:
    assert margin_near(pd.DataFrame({"predicted": [0.1, 0.2], "observed": [0.0, 0.1]}), 0.1) == 0.0
    assert margin_near(pd.DataFrame({"predicted": [], "observed": []}), 0.1) == 0.0
