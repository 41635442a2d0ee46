"""A scheduler of one's own drives a sweep: which runs it is given, in which order, and what it may tell."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decaylaws import study as verbs
from decaylaws.errors import InvalidValueError, StudyError
from decaylaws.study import Study
from tests.study.external import (
    CHECKPOINT_SETTINGS,
    DECLARED_SETTINGS,
    declared_study,
    losses_of,
    write_rows,
)

pytestmark = pytest.mark.slow


def tell_all(study: Study, count: int = 100) -> list[str]:
    """Ask and tell until nothing is left; the roles in the order of asking."""
    roles = []
    while runs := verbs.ask(study, count):
        for run in runs:
            roles.append(run.role)
            verbs.tell(study, run.config.run_id, losses_of(run.config))
    return roles


def test_trunks_come_first_and_nobody_is_given_what_another_has(tmp_path: Path) -> None:
    study = declared_study(tmp_path)
    first = verbs.ask(study, 2)
    second = verbs.ask(study, 5)
    assert [run.role for run in (*first, *second)] == ["trunk"] * 3
    assert len({run.config.run_id for run in (*first, *second)}) == 3
    assert verbs.ask(study, 5) == []  # decays wait for their trunks
    assert [run.config.run_id for run in verbs.ask(study, 1, again=True)] == [first[0].config.run_id]
    small = next(run for run in (*first, *second) if run.config.shape.non_embedding_params == 2_608)
    assert verbs.tell(study, small.config.run_id, losses_of(small.config)) == "new"
    decays = verbs.ask(study, 100)
    assert {run.config.start_run_id for run in decays} == {small.config.run_id}
    assert verbs.status(study).counts.running == 2 + len(decays)


def test_the_design_comes_first_then_the_samplers_proposals(tmp_path: Path) -> None:
    sampler = {"kind": "tpe", "trials": 5, "batch": 3}
    study = declared_study(tmp_path, sampler=sampler)
    roles = tell_all(study)
    planned = len(study.design())
    assert "tpe" not in roles[:planned]
    assert roles[planned:] == ["tpe"] * 5
    assert set(study.runs()["run_id"]) == {
        run.config.run_id for run in (*study.design(), *study.planned().proposed)
    }
    # the sampler has learnt what was told: the losses of the design and of its own runs
    from decaylaws.study.proposing import open_proposals

    proposals = open_proposals(study.planned(), study.storage())
    assert proposals.asked == 5
    assert len(proposals.best()) == 1


def test_telling_again_changes_nothing_and_a_correction_replaces(tmp_path: Path) -> None:
    study = declared_study(tmp_path)
    run = verbs.ask(study)[0]
    losses, curve = losses_of(run.config), {8: {"web": 5.0}, 16: {"web": 4.5, "code": 4.0}}
    assert verbs.tell(study, run.config.run_id, losses, curve) == "new"
    assert verbs.tell(study, run.config.run_id, losses, curve) == "unchanged"
    assert verbs.tell(study, run.config.run_id, {**losses, "web": 3.0}, curve) == "replaced"
    assert study.runs().at[0, "loss:web"] == 3.0
    points = study.curves().set_index(["step", "domain"])["loss"]
    assert points[8, "web"] == 5.0
    assert points[run.config.num_steps, "web"] == 3.0


def test_a_run_that_diverged_is_told_without_losses(tmp_path: Path) -> None:
    study = declared_study(tmp_path)
    for run in verbs.ask(study, 3):
        verbs.tell(study, run.config.run_id, losses_of(run.config))
    run = verbs.ask(study)[0]
    assert verbs.tell(study, run.config.run_id, None) == "new"
    row = study.runs().set_index("run_id").loc[run.config.run_id]
    assert (row["status"], bool(row["reached_target"])) == ("diverged", False)
    assert run.config.run_id not in {other.config.run_id for other in verbs.ask(study, 100, again=True)}


@pytest.mark.parametrize(
    ("losses", "curve", "message"),
    [
        ({"web": 1.0, "maths": 2.0}, None, "'losses' must hold the loss of every domain; 'code' is missing"),
        ({"web": math.nan, "maths": 2.0, "code": 1.0}, None, "losses.web.*must be a finite number"),
        ({"web": -3.0, "maths": 2.0, "code": 1.0}, None, r"losses.web.*above 0; got -3\.0"),
        ({"web": 1.0, "maths": 2.0, "code": 1.0, "law": 1.0}, None, "losses.law.*is no domain"),
        ({"web": 1.0, "maths": 2.0, "code": 1.0}, {65: {"web": 1.0}}, "'curve' must hold steps of the run, 0 to 64"),
        ({"web": 1.0, "maths": 2.0, "code": 1.0}, {"9": {"web": 1.0}}, "'curve' must hold steps of the run, 0 to 64"),
        ({"web": 1.0, "maths": 2.0, "code": 1.0}, {9: 1.0}, r"'curve\.9' must map domains to losses; got 1\.0"),
        ({"web": "1.0", "maths": 2.0, "code": 1.0}, None, r"losses\.web.*above 0; got '1\.0'"),
        ({"web": np.array([1.0, 2.0]), "maths": 2.0, "code": 1.0}, None, r"losses\.web.*above 0; got array"),
        ({"web": 10**400, "maths": 2.0, "code": 1.0}, None, r"losses\.web.*above 0; got 1000"),
        (1.5, None, r"'losses' must map domains to losses; got 1\.5"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_result_is_refused_by_name(
    tmp_path: Path, losses: Any, curve: dict | None, message: str
) -> None:
    study = declared_study(tmp_path)
    run = verbs.ask(study)[0]
    with pytest.raises(InvalidValueError, match=message):
        verbs.tell(study, run.config.run_id, losses, curve)
    with pytest.raises(InvalidValueError, match="'run_id' is no run that the study asks for"):
        verbs.tell(study, "0123456789abcdef", losses)
    with pytest.raises(InvalidValueError, match="'count' must be a whole number of at least 1"):
        verbs.ask(study, 0)


def test_losses_of_numpy_are_numbers(tmp_path: Path) -> None:
    study = declared_study(tmp_path)
    run = verbs.ask(study)[0].config
    losses = {"web": 1.5, "maths": 2.0, "code": 1.25}
    told = {domain: np.float32(loss) for domain, loss in losses.items()}
    assert verbs.tell(study, run.run_id, told, {np.int64(1): {"web": np.array(3.0)}}) == "new"
    assert verbs.tell(study, run.run_id, losses, {1: {"web": 3.0}}) == "unchanged"


def test_checkpoints_are_measured_before_decays_start_from_them(tmp_path: Path) -> None:
    study = declared_study(tmp_path, CHECKPOINT_SETTINGS)
    first = verbs.ask(study, 100)
    assert [run.role for run in first] == ["checkpoint"] * 3
    assert not any(run.config.is_trained for run in first)
    for run in first[:2]:
        verbs.tell(study, run.config.run_id, losses_of(run.config))
    row = {"run_id": first[2].config.run_id, "step": 0}
    row |= {f"loss:{domain}": loss for domain, loss in losses_of(first[2].config).items()}
    recorded = verbs.record(study, [write_rows(tmp_path / "checkpoint.jsonl", [row])])
    assert (recorded.outcomes["outcome"].tolist(), recorded.notes) == (["new"], ())
    roles = tell_all(study)
    assert len(roles) == len(study.design()) - 3
    table = study.runs().set_index("run_id")
    decays = table[table["kind"] == "decay"]
    starts = table.loc[decays["start_run_id"], "loss:web"].to_numpy()
    assert (decays["start_loss:web"].to_numpy() == starts).all()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A declared study whose whole design has results."""
    design = {**DECLARED_SETTINGS["design"], "num_mixtures": 8, "runs_at_other_sizes": 3}
    study = declared_study(tmp_path_factory.mktemp("told"), design=design)
    tell_all(study)
    return study


def test_a_declared_study_is_fitted_recommended_and_confirmed(told: Study) -> None:
    assert verbs.status(told).next_verb == "fit"
    fitted, _ = verbs.fit(told)
    assert fitted.errors["mae"].min() < 0.1
    recipe, _ = verbs.recommend(told)
    assert recipe.sources["maths"].path == "text/maths"
    assert recipe.provenance.data_fingerprint == told.corpus().fingerprint
    with pytest.raises(StudyError, match=r"8 of the 8 confirming runs have no result yet.*export-runs"):
        verbs.confirm(told)
    stored = told.confirm_file.read_text()
    roles = tell_all(told)
    assert len(roles) == len(set(roles)) == 8
    assert all(role.startswith("confirm:") for role in roles)
    confirmed = verbs.confirm(told)
    assert told.confirm_file.read_text() == stored
    assert confirmed.table["observed"].notna().all()
    by_step = {step.verb: step.state for step in verbs.status(told).steps}
    assert "prepare" not in by_step
    assert "launch" not in by_step
    assert set(verbs.export(told, ["olmo-core"])) == {"olmo-core"}
    from decaylaws.report import write_report

    assert write_report(told).stat().st_size > 10_000
    assert verbs.status(told).next_verb is None
