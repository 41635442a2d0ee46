"""The objective: only the ratios of its weights mean anything."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.runs.objective import normalised, objective_value, objective_values


@pytest.mark.parametrize("scale", [0.5, 1.0, 10.0])
def test_weights_times_any_number_are_the_same_objective(scale: float) -> None:
    runs = pd.DataFrame({"loss:web": [3.0, 2.0], "loss:code": [1.0, np.nan]})
    weights = {"web": 3 * scale, "code": scale}
    assert normalised(weights) == pytest.approx({"web": 0.75, "code": 0.25})
    np.testing.assert_allclose(objective_values(runs, weights), [2.5, np.nan])
    assert objective_value(runs.iloc[0], weights) == pytest.approx(2.5)


@pytest.mark.parametrize("weights", [{}, {"web": 0.0}, {"web": -1.0, "code": 2.0}, {"web": float("nan")}])
def test_weights_that_weigh_nothing_are_named(weights: dict[str, float]) -> None:
    with pytest.raises(InvalidValueError, match="'weights' must not be negative, and one must be positive"):
        normalised(weights)


def test_a_domain_without_losses_is_named() -> None:
    with pytest.raises(SchemaError, match="missing loss:code"):
        objective_values(pd.DataFrame({"loss:web": [3.0]}), {"code": 1.0})


def test_a_worker_reads_its_objective_without_pandas() -> None:
    code = "import decaylaws.runs.objective, sys; print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
