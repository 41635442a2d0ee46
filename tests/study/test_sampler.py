"""A sampler goes on after the design, through the command line and the same workers."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import optuna
import pandas as pd
import pytest
import yaml

from decaylaws.report.inputs import ReportInputs
from decaylaws.report.page import render
from decaylaws.report.sections.read_outs import read_outs
from decaylaws.study import Study
from decaylaws.study.read_outs import read_out_errors
from tests.study.tiny import TINY_SETTINGS, decaylaws, make_tiny_study


def assert_shown(errors: pd.DataFrame) -> None:
    """The report shows these errors of the read-outs, and no section where there are none."""
    section = read_outs(cast(ReportInputs, SimpleNamespace(read_outs=errors)))
    assert section is not None
    page = render("tiny", "", [section])
    body = page[page.index("<tbody") : page.index("</tbody>")]
    cells = [
        re.sub(r"<[^>]*>", "", each).strip() for each in re.findall(r"<t[hd].*?</t[hd]>", body, re.DOTALL)
    ]
    expected = errors.iloc[0]
    assert cells[:2] == [expected["decay_shape"], "3"]
    assert [float(each) for each in cells[2:]] == pytest.approx(
        [float(expected[name]) for name in ("mean_error", "mae", "spearman")], abs=5e-5
    )
    assert "The laws and the recommendation do not use them." in page
    assert read_outs(cast(ReportInputs, SimpleNamespace(read_outs=errors.head(0)))) is None


@pytest.mark.slow
def test_proposals_are_trained_recorded_and_resumed(tmp_path: Path) -> None:
    make_tiny_study(tmp_path)
    design = {**TINY_SETTINGS["design"], "num_mixtures": 4, "read_outs": 3}
    shapes = {name: TINY_SETTINGS["shapes"][name] for name in ("small", "target")}
    sampler: dict[str, Any] = {"kind": "tpe", "trials": 4, "batch": 2, "promote": 2}
    settings = {**TINY_SETTINGS, "design": design, "shapes": shapes, "sampler": sampler}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    for verb in ("prepare", "plan"):
        decaylaws(verb, str(tmp_path))
    said = decaylaws("run", str(tmp_path))
    assert "merged read-outs minus the real decays" in said
    assert "best after 4 proposals of tpe" in said
    runs = Study.open(tmp_path).runs()
    assert (runs["role"] == "read_out").sum() == 3
    study = Study.open(tmp_path)
    errors = read_out_errors(study.read_outs_file, study.design(), study.measured())
    assert errors["decays"].tolist() == [3]
    assert_shown(errors)
    assert read_out_errors(tmp_path / "missing.csv", study.design(), study.measured()).empty
    assert 4 <= (runs["role"] == "tpe").sum() <= 8
    assert runs["reached_target"].all()
    url = Study.open(tmp_path).storage().url
    (name,) = (each for each in optuna.get_all_study_names(url) if "/tpe/" in each)
    assert all(trial.state.is_finished() for trial in optuna.load_study(study_name=name, storage=url).trials)
    table = Study.open(tmp_path).runs_file.read_bytes()
    assert "train again" not in decaylaws("run", str(tmp_path))
    next(Study.open(tmp_path).checkpoint_dir.iterdir()).unlink()
    assert "trunks to train again: 1/1" in decaylaws("run", str(tmp_path))
    assert Study.open(tmp_path).runs_file.read_bytes() == table
