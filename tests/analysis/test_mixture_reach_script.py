"""The script of intervals outside the fitted mixtures: planted runs, formats of records, worlds."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest


def swarm(folder: Path) -> Path:
    """Forty mixtures of three sources and a loss of the default's own form."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(3), 40)
    table = pd.DataFrame(shares, columns=["w_web", "w_code", "w_books"])
    table["loss_web"] = (2.0 + 0.4 / (shares[:, 0] + 0.3 * shares[:, 2] + 0.1)) * np.exp(
        rng.normal(0, 0.005, 40)
    )
    folder.mkdir()
    table.assign(model_size="1M", use=["fit"] * 32 + ["predict"] * 8).to_csv(folder / "runs.csv", index=False)
    return folder


def test_the_inner_runs_are_asked_about_the_outer_ones(
    run_script: Callable[..., Any], tmp_path: Path
) -> None:
    folder = swarm(tmp_path / "swarm")
    found = run_script("mixture_reach", folder)
    questions = {each["question"]: each for each in found["questions"]}
    assert set(questions) == {"half, next quarter", "half, outermost", "three quarters, outermost"}
    assert all(
        0 < each["asked"] <= 8 for each in questions.values()
    )  # of 32 fit rows; rows to predict stay unseen
    assert np.mean([each["held"] for each in questions.values()]) > 0.8
    assert all(each["half_width"] >= 0.005 for each in questions.values())
    # a folder of such folders is the same, others beside it are passed over
    (tmp_path / "other").mkdir()
    assert run_script("mixture_reach", tmp_path)["questions"] == found["questions"]


def test_other_formats_are_known_by_their_columns(tmp_path: Path) -> None:
    from mixture_reach import records_of

    rng = np.random.default_rng(0)
    first, second = rng.uniform(0, 1, (2, 20))
    phases = pd.DataFrame(
        {"share_phase_0": first, "share_phase_1": second, "code_bpb": 1 + first, "use": "fit"}
    )
    shares = rng.dirichlet(np.ones(2), 40)
    sizes = pd.DataFrame({
        "params": np.repeat([1e6, 4e6], 20), "tokens": 1e9, "w_a": shares[:, 0], "w_b": shares[:, 1],
        "loss_a": 2.0 + shares[:, 0], "use": "fit",
    })  # fmt: skip
    for name, table in (("phases", phases), ("sizes", sizes)):
        (tmp_path / name).mkdir()
        table.to_csv(tmp_path / name / "runs.csv", index=False)
    found = {each.name: each for each in records_of(tmp_path)}
    assert set(found) == {"phases", "sizes, 1M", "sizes, 4M"}
    np.testing.assert_allclose(found["phases"].shares.sum(axis=1), 1.0)
    assert found["phases"].shares.shape == (20, 4)
    assert found["sizes, 4M"].losses.shape == (20, 1)


def test_worlds_are_asked_towards_single_sources_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import mixture_reach

    out, table = tmp_path / "out.json", tmp_path / "table.md"
    monkeypatch.setattr(mixture_reach, "MOST_TARGETS", 1)
    words = ["--worlds", "5", "5", "--only", "log_quadratic", "--json", str(out), "--table", str(table)]
    monkeypatch.setattr(sys, "argv", ["mixture_reach", *words])
    mixture_reach.run(mixture_reach.main)
    found = json.loads(out.read_text())["questions"]
    assert [each["question"] for each in found][-1] == "all, towards one source"
    assert {each["record"] for each in found} == {"log_quadratic"}
    assert found[-1]["asked"] > 30  # of 200, those that lie outside
    assert table.read_text().count("\n") == 2 + len(found)
    monkeypatch.setattr(
        sys, "argv", ["mixture_reach", "--worlds", "5", "5", "--only", "none", "--json", str(out)]
    )
    with pytest.raises(SystemExit):
        mixture_reach.run(mixture_reach.main)
    assert "Nothing there" in capsys.readouterr().err
