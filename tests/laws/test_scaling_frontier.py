"""Compute-optimal allocation: the minimum of a law is the known frontier, with intervals that hold it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import InvalidValueError, NotFittedError
from decaylaws.laws.scaling import (
    PUBLISHED,
    Chinchilla,
    DataConstrained,
    optimal_allocation,
)

TRUTH = Chinchilla.from_params(PUBLISHED["chinchilla_epoch"])
EXPONENT = TRUTH.params_["beta"] / (TRUTH.params_["alpha"] + TRUTH.params_["beta"])


def best_size(flops: float) -> float:
    """The closed form for Chinchilla's law."""
    p = TRUTH.params_
    ratio = p["alpha"] * p["A"] / (p["beta"] * p["B"])
    return ratio ** (1 / (p["alpha"] + p["beta"])) * (flops / 6) ** EXPONENT


def isoflop_runs(seed: int, noise: float = 3e-3) -> pd.DataFrame:
    """Six budgets with nine sizes each, a factor of four around the optimum."""
    rng = np.random.default_rng(seed)
    flops = np.repeat(np.geomspace(1e18, 1e21, 6), 9)
    spread = np.tile(np.geomspace(1 / 4, 4, 9), 6) * np.exp(rng.normal(0, 0.05, 54))
    params = np.array([best_size(c) for c in flops]) * spread
    table = pd.DataFrame({"params": params, "tokens": flops / 6 / params, "flops": flops})
    return table.assign(loss=TRUTH.predict(table) * np.exp(rng.normal(0, noise, len(table))))


class TestOptimalAllocation:
    def test_agrees_with_the_closed_form(self) -> None:
        budgets = np.array([1e18, 5.76e23, 1e26])
        table = optimal_allocation(TRUTH, budgets)
        np.testing.assert_allclose(table["params"], [best_size(c) for c in budgets], rtol=1e-3)
        np.testing.assert_allclose(6 * table["params"] * table["tokens"], budgets, rtol=1e-12)

    def test_no_other_split_is_better(self) -> None:
        best = optimal_allocation(TRUTH, 1e22).iloc[0]
        for factor in (0.7, 0.95, 1.05, 1.4):
            other = pd.DataFrame({"params": [best["params"] * factor], "tokens": [best["tokens"] / factor]})
            assert TRUTH.predict(other)[0] > best["loss"]

    def test_scarce_data_favour_smaller_growth_of_tokens_over_epochs(self) -> None:
        law = DataConstrained.from_params(PUBLISHED["data_constrained"])
        free = optimal_allocation(law, 1e22).iloc[0]
        scarce = optimal_allocation(law, 1e22, unique_tokens=1e9).iloc[0]
        assert scarce["loss"] > free["loss"]
        assert scarce["tokens"] > free["tokens"]  # epochs of scarce data pay better than parameters for them

    def test_a_budget_in_another_unit_is_refused(self) -> None:
        with pytest.raises(InvalidValueError, match="Check its unit"):
            optimal_allocation(TRUTH, 1e3)
        with pytest.raises(NotFittedError):
            optimal_allocation(Chinchilla(), 1e20)

    def test_interval_holds_the_point(self) -> None:
        runs = isoflop_runs(0)
        table = optimal_allocation(Chinchilla().fit(runs), [1e20, 1e22], interval=0.9)
        assert np.all(table["params_lower"] <= table["params"])
        assert np.all(table["params"] <= table["params_upper"])
        assert np.all(table["tokens_lower"] <= table["tokens"])
        assert table["params_lower"][1] < best_size(1e22) < table["params_upper"][1]

    def test_given_parameters_have_no_intervals(self) -> None:
        with pytest.raises(InvalidValueError, match="draws"):
            optimal_allocation(TRUTH, 1e20, interval=0.9)
