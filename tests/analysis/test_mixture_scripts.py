"""``joint_law`` and ``continued_pretraining`` on tables that are less complete than the published ones."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import DataError, SchemaError


@pytest.fixture
def joint() -> ModuleType:
    return importlib.import_module("joint_law")


@pytest.fixture
def continued() -> ModuleType:
    return importlib.import_module("continued_pretraining")


def joint_rows() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    web = rng.uniform(0.1, 0.9, 30).round(3)
    size = np.repeat([1e6, 4e6, 16e6], 10)
    loss = 2.0 + 0.3 * (web + 0.01) ** -0.3 + 40 * size**-0.3
    return pd.DataFrame(
        {"params": size, "tokens": 1e9, "w_web": web, "w_code": 1 - web, "loss_web": loss, "loss_code": loss + 1,
         "use": np.where(size < 16e6, "fit", "predict"), "note": "x"}
    )  # fmt: skip


def test_targets_are_named_by_their_columns(joint: ModuleType, tmp_path: Path) -> None:
    joint_rows().to_csv(tmp_path / "runs.csv", index=False)
    rows, targets, _ = joint.read_records(tmp_path)
    assert targets == ["loss_web", "loss_code"]
    rows.loc[rows["use"] == "predict", "loss_code"] = np.nan
    fit, predict = rows[rows["use"] == "fit"], rows[rows["use"] == "predict"]
    sizes = joint.evaluate("additive", fit, predict, targets)["sizes"]
    assert set(sizes) == {"16000000"}
    assert np.isnan(sizes["16000000"]["loss_code"])
    assert sizes["16000000"]["mean"] == sizes["16000000"]["loss_web"] < 0.05


def test_long_records_need_no_name_of_run_or_size(joint: ModuleType, tmp_path: Path) -> None:
    wide = joint_rows()
    wide["step"] = range(1, len(wide) + 1)
    long = pd.concat([
        wide.assign(val_domain=domain, loss=wide[f"loss_{domain}"], non_embedding_params=wide["params"])
        for domain in ("web", "code")
    ]).drop(columns=["loss_web", "loss_code", "params", "tokens"])  # fmt: skip
    long.sample(frac=1, random_state=0).to_csv(tmp_path / "redpajama.csv", index=False)
    rows, targets, _ = joint.read_records(tmp_path)
    assert targets == ["code", "web"]
    assert len(rows) == 30
    assert (rows["tokens"] == rows["step"] * 1_000_000).all()
    long.drop(columns="non_embedding_params").to_csv(tmp_path / "redpajama.csv", index=False)
    with pytest.raises(SchemaError, match="non_embedding_params"):
        joint.read_records(tmp_path)
    with pytest.raises(DataError, match=r"neither runs\.csv"):
        joint.read_records(tmp_path / "none")


def replay_rows() -> pd.DataFrame:
    grid = pd.MultiIndex.from_product(
        [["python", "web", "books", "new"], [0.1, 0.5], [1000, 2000, 4000], ["70M", "1B"]],
        names=["domain", "share", "steps", "model_size"],
    )
    rows = grid.to_frame(index=False)
    rows["loss"] = 2.5 - 0.1 * rows["share"] + (rows["model_size"] == "1B") * -0.5
    rows["use"] = np.where((rows["model_size"] == "70M") & (rows["domain"] != "books"), "fit", "predict")
    return rows


def test_domains_that_cannot_be_fitted_are_left_out_by_name(continued: ModuleType) -> None:
    fit, predict, excluded = continued.split(replay_rows(), {"web": 0.7, "books": 0.3, "rare": 0.0})
    assert excluded == {"books": "no row to fit", "new": "no positive valid_weight"}
    assert set(fit["domain"]) == {"python", "web"} == set(predict["domain"])
    assert set(predict["model_size"]) == {"1B"}
    assert continued.unfitted(fit, {"web": 0.7, "books": 0.2, "lost": 0.1, "rare": 0.0}) == ["books", "lost"]
    with pytest.raises(DataError, match="one of python"):
        continued.split(replay_rows().query("domain != 'python'"), {"web": 1.0})
    with pytest.raises(DataError, match="one of an old domain"):
        continued.split(replay_rows().query("domain == 'python'"), {"web": 1.0})


def test_sizes_are_never_averaged_into_one_general_loss(continued: ModuleType) -> None:
    rows = replay_rows().query("domain == 'web'").assign(predicted=2.0)
    general = continued.general(rows, {"web": 1.0})
    assert general.groupby("model_size")["loss"].mean().diff().abs().max() == pytest.approx(0.5)
    by_size = continued.errors_by(general.assign(error=general["loss"] - general["predicted"]), "model_size")
    assert set(by_size) == {"70M", "1B"}
