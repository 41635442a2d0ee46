"""The loss after decays of several checkpoints: planted truths, intervals, refusals, and the published records."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import InvalidValueError
from decaylaws.laws.scaling import MidtrainingLaw
from tests.laws.test_contract import decayed_checkpoints


def planted(seed: int, checkpoint_sd: float = 3e-3) -> pd.DataFrame:
    """Six checkpoints along compute, each off the trend by a draw of its own, and five lengths of decay."""
    rng = np.random.default_rng(seed)
    flops = np.geomspace(3e18, 3e20, 6)
    params = np.sqrt(flops / 6 / 10) * np.exp(rng.normal(0, 0.15, 6))
    rows = []
    for compute, size in zip(flops, params):
        offset = rng.normal(0, checkpoint_sd)
        for length in (5e8, 1e9, 2e9, 4e9, 8e9):
            log_loss = (
                0.2
                - 0.045 * np.log(compute / 3e19)
                - (0.09 + 0.004 * np.log(compute / 3e19)) * np.log(length / 2e9)
            )
            rows.append(
                (size, compute / 6 / size, length, float(np.exp(log_loss + offset + rng.normal(0, 5e-4))))
            )
    return pd.DataFrame(rows, columns=["params", "pretrain_tokens", "decay_tokens", "loss"])


def split(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    largest = table["params"] * table["pretrain_tokens"] > 2e19  # the two largest of the six
    return table[~largest], table[largest]


def test_a_larger_checkpoint_is_predicted_within_its_interval() -> None:
    errors, held = [], []
    for seed in range(12):
        fit, rest = split(planted(seed))
        found = MidtrainingLaw().fit(fit).predict(rest, interval=0.9)
        errors.append(np.abs(found.mean / rest["loss"] - 1).mean())
        held += ((found.lower <= rest["loss"]) & (rest["loss"] <= found.upper)).tolist()
    assert np.mean(errors) < 0.012
    assert np.mean(held) >= 0.8


def test_the_transfer_of_pretraining_tokens_is_found() -> None:
    table = decayed_checkpoints()
    small = table["params"] < 3e9
    law = MidtrainingLaw().fit(table[small])
    assert np.abs(law.predict(table[~small]) / table["loss"][~small] - 1).max() < 0.012
    assert set(law.origins_) == {"largest_flops", "predicted_flops", "error", "mae"}
    assert law.origins_["predicted_flops"].tolist() == pytest.approx([6 * 1.6e9 * 1.4e10])


def test_intervals_widen_with_compute_and_beyond_the_lengths() -> None:
    table = decayed_checkpoints()
    law = MidtrainingLaw().fit(table)
    ask = pd.DataFrame(
        {"params": [3e9, 6e9, 2.4e10, 3e9], "pretrain_tokens": [2e10, 4e10, 1.6e11, 2e10],
         "decay_tokens": [2e9, 2e9, 2e9, 3.2e10]}
    )  # fmt: skip
    found = law.predict(ask, interval=0.9)
    inside, twice, far, long = (found.upper / found.mean).tolist()
    assert inside < twice < far
    assert inside < long


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"params": 1e9, "pretrain_tokens": 1e10}, "params, pretrain_tokens"),
        ({"decay_tokens": 1e9}, "decay_tokens"),
        ({"loss": -1.0}, "loss"),
    ],
)
def test_tables_that_decide_nothing_are_refused(change: dict[str, float], field: str) -> None:
    with pytest.raises(InvalidValueError) as found:
        MidtrainingLaw().fit(decayed_checkpoints().assign(**change))
    assert found.value.field.startswith(field)


@pytest.fixture
def script(run_script: Any) -> Any:
    """Run the script on a folder and return what it wrote."""
    return partial(run_script, "midtraining")


def test_published_records(script: Any, shared_data: Path) -> None:
    result = script(shared_data / "marin_delphi")
    default = result["laws"][result["default"]]
    assert default["mean_relative_error"] <= 0.006
    assert default["coverage_90"] >= 0.85
    assert set(default["series"]) >= {"tok500m", "tok8b", "k0p20"}
    assert default["mean_relative_error"] < result["laws"]["copy_nearest"]["mean_relative_error"] / 5
    origins = pd.DataFrame(result["rolling_origin"])
    assert (origins["predicted_flops"] > origins["fitted_up_to_flops"]).all()
    assert set(origins["law"]) == set(result["laws"])


def test_records_of_two_mixtures_are_refused(script: Any, tmp_path: Path, capsys: Any) -> None:
    table = (
        planted(0).rename(columns={"loss": "math_val_loss"}).assign(series="tok", use="fit", math_share=0.5)
    )
    table.loc[0, "math_share"] = 0.7
    table.to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(SystemExit):
        script(tmp_path)
    assert "math_share" in capsys.readouterr().err
