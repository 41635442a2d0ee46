"""Which recorded runs belong to the present question, and what happens to results that answer an older one."""

from __future__ import annotations

import copy
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import StudyError
from decaylaws.runs.columns import EVALUATION, NUMERICS, POOLS
from decaylaws.runs.config import NUMERICS_VERSION
from decaylaws.runs.table import write_table
from decaylaws.settings.study import parse_settings
from decaylaws.study import Study
from decaylaws.study.export import export
from decaylaws.study.fit import fit
from decaylaws.study.plan import plan_runs
from decaylaws.study.predictions import predict
from decaylaws.study.question import EARLIER_PLAN, Question, left_out_words
from decaylaws.study.recommend import load_recipe, recommend
from decaylaws.study.status import State, next_verb, steps
from decaylaws.study.tables import write_results
from tests.study.simulated import (
    ANSWERS,
    SETTINGS,
    VERBS,
    MemoryStorage,
    Storages,
    make_sources,
    open_study,
    simulate,
)

QUESTION = Question(
    planned={"trunk": "trunk", "a": "simplex"},
    proposed={"b": "tpe"},
    data_fingerprint="corpus",
    evaluation_tokens=512,
    pools="all",
    sources=("web",),
    domains=("web",),
)
ROW: dict[str, Any] = {
    **{"run_id": "other", "kind": "decay", "role": "simplex", "reached_target": True},
    **{"start_run_id": "trunk", "start_tokens": 64, "decay_tokens": 32, "data_fingerprint": "corpus"},
    **{
        EVALUATION: 512,
        NUMERICS: NUMERICS_VERSION,
        POOLS: "all",
        "loss:web": 2.0,
        "averaged_loss:web": np.nan,
    },
}
TRUNK = {
    **ROW,
    "run_id": "trunk",
    "kind": "trunk",
    "role": "trunk",
    "start_run_id": None,
    "decay_tokens": 64,
} | {"averaged_loss:web": 1.5}


def settings(**changes: Any) -> dict[str, Any]:
    """The settings with other values of some sections."""
    values = copy.deepcopy(SETTINGS)
    for name, value in changes.items():
        values[name] = {**values[name], **value} if isinstance(value, dict) else value
    return values


@pytest.fixture(scope="module")
def storages() -> Iterator[Storages]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield simulate(monkeypatch)


@pytest.fixture(scope="module")
def whole(storages: Storages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study after its last verb."""
    root = tmp_path_factory.mktemp("whole") / "study"
    root.mkdir()
    make_sources(root)
    for verb in VERBS:
        ANSWERS[verb](open_study(root, SETTINGS))
    return root


@pytest.fixture
def root(whole: Path, storages: Storages, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(whole, tmp_path / "study")
    storages.copy(whole, tmp_path / "study")
    return tmp_path / "study"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"run_id": "a"}, ""),
        ({"run_id": "b", "role": "tpe"}, ""),
        ({"role": "confirm:control:proxy"}, ""),
        ({}, EARLIER_PLAN),
        ({POOLS: "1234abcd"}, "trained with another target.repetition_scale"),
        ({"start_run_id": "older"}, "of a trunk or checkpoint that study.yaml no longer describes"),
        (
            {"start_run_id": "older", "role": "confirm:control:proxy"},
            "of a trunk or checkpoint that study.yaml no longer describes",
        ),
        (
            {"run_id": "older", "kind": "trunk"},
            "of a trunk or checkpoint that study.yaml no longer describes",
        ),
        ({"data_fingerprint": "older"}, "trained on another corpus"),
        ({NUMERICS: NUMERICS_VERSION + 1}, "trained by a version of the trainer with other numerics"),
        ({"run_id": "a", EVALUATION: 4096}, "evaluated on 4,096 tokens per domain, not on 512"),
        (
            {EVALUATION: None},
            "recorded by an earlier version, which did not say on how many tokens it was evaluated",
        ),
    ],
)
def test_a_row_belongs_or_is_left_out_by_name(change: dict[str, Any], reason: str) -> None:
    kept, left_out = QUESTION.split(pd.DataFrame([TRUNK, {**ROW, **change}]))
    assert left_out["reason"].tolist() == ([reason] if reason else [])
    assert len(kept) == (1 if reason else 2)
    assert left_out_words(left_out) == (
        f"1 recorded run does not belong to the present question and is left out: 1 {reason}."
        if reason
        else ""
    )


def test_roles_columns_and_averages_are_those_of_the_question() -> None:
    rows = [
        TRUNK,
        {
            **ROW,
            "run_id": "a",
            "role": "confirm:control:proxy",
            "loss:gone": 1.0,
            "averaged_start_loss:web": 9.0,
        },
    ]
    older = {
        **TRUNK,
        "run_id": "older",
        "averaged_loss:web": np.nan,
    }  # a trunk without an average, which is not asked
    kept, _ = QUESTION.split(pd.DataFrame([*rows, older]))
    decay = kept.set_index("run_id").loc["a"]
    assert decay["role"] == "simplex"
    assert "loss:gone" not in kept
    assert decay["averaged_start_loss:web"] == 1.5


def test_earlier_decays_count_where_the_study_asks_for_them(root: Path) -> None:
    for verb in ("plan", "run"):
        ANSWERS[verb](open_study(root, settings(design={"seed": 2})))
    alone = open_study(root, settings())
    ANSWERS["plan"](alone)
    assert set(alone.measured().left_out["reason"]) == {EARLIER_PLAN}
    kept = open_study(root, settings(design={"keep_earlier": True}))
    earlier = set(alone.measured().left_out["run_id"])
    assert earlier <= set(kept.runs()["run_id"])
    # the controls of both plans share length, LR and batch size: each candidate still finds one control
    for verb in ("fit", "recommend", "confirm"):
        ANSWERS[verb](kept)
    recipe = load_recipe(kept)
    assert set(recipe.provenance.evidence.run_ids) >= earlier
    fitted = kept.runs().set_index("run_id").loc[list(recipe.provenance.evidence.run_ids)]
    assert recipe.seed not in set(fitted["seed"])  # what confirms the recipe was never fitted


def test_one_run_measured_twice_has_two_rows_and_a_verb_sees_one(root: Path) -> None:
    before = Study.open(root).recorded_runs()
    study = open_study(root, settings(evaluation={"tokens_per_domain": 4096}))
    for verb in ("plan", "run"):
        ANSWERS[verb](study)
    recorded, runs = study.recorded_runs(), study.runs()
    planned = {item.config.run_id for item in study.design()}
    assert planned <= set(before["run_id"])  # the same trainings
    assert recorded["run_id"].isin(planned).sum() == 2 * len(planned)
    assert set(runs[EVALUATION]) == {4096}
    assert len(recorded) == len(before) + len(planned)
    assert set(study.curves()[EVALUATION]) == {4096}


def test_a_table_never_loses_what_the_storage_has_lost(root: Path, storages: Storages) -> None:
    study = Study.open(root)
    tables = [study.runs_file.read_bytes(), study.curves_file.read_bytes()]
    storages.by_url[study.storage().url] = MemoryStorage()
    for verb in ("run", "confirm"):
        with pytest.raises(
            StudyError, match=r"does not hold \d+ of the \d+ finished runs .*'storage' or 'name'"
        ):
            ANSWERS[verb](study)
    write_results(study, [])
    assert [study.runs_file.read_bytes(), study.curves_file.read_bytes()] == tables
    renamed = open_study(root, settings(name="renamed"))
    with pytest.raises(StudyError, match=r"'name' in study\.yaml changed"):
        ANSWERS["run"](renamed)
    assert study.runs_file.read_bytes() == tables[0]


def test_rows_of_earlier_plans_stay_in_the_table(root: Path, storages: Storages) -> None:
    before = Study.open(root).recorded_runs()
    study = open_study(root, settings(trunk={"peak_lr": 5e-3}))
    storages.by_url[study.storage().url] = (
        MemoryStorage()
    )  # even where the storage that recorded them is gone
    for verb in ("plan", "run"):
        ANSWERS[verb](study)
    after = study.recorded_runs().set_index("run_id")
    assert set(before["run_id"]) < set(after.index)
    columns = [name for name in before if name.startswith("loss:")]
    pd.testing.assert_frame_equal(after.loc[before["run_id"], columns], before.set_index("run_id")[columns])


def test_a_fit_of_the_same_runs_leaves_recipe_and_predictions_as_they_were(root: Path) -> None:
    study = Study.open(root)
    kept = [path.read_bytes() for path in (study.recipe_file, study.recommendation_file, study.confirm_file)]
    shutil.rmtree(study.law_file.parent / ".sha256", ignore_errors=True)
    law = study.law_file.read_bytes()
    study.law_file.unlink()
    _, new = fit(study)
    assert new
    assert study.law_file.read_bytes() != law  # it says how long the fit took
    assert recommend(study)[1] is False
    assert predict(study)[1] is False
    assert [
        path.read_bytes() for path in (study.recipe_file, study.recommendation_file, study.confirm_file)
    ] == kept


def test_predictions_are_added_and_never_replaced(root: Path) -> None:
    before = json.loads(Study.open(root).confirm_file.read_text())["confirmations"]
    study = open_study(
        root, settings(objective={"guard_nats": 0.9, "weights": {"web": 1, "maths": 5, "code": 1}})
    )
    recommend(study)
    predict(study)
    after = json.loads(study.confirm_file.read_text())["confirmations"]
    assert after[: len(before)] == before
    assert len(after) == len(before) + 1
    recorded = {entry["run_id"]: entry["recorded_before"] for entry in after[-1]["entries"]}
    assert recorded == {run_id: run_id in set(study.runs()["run_id"]) for run_id in recorded}


def test_status_tells_what_is_stale_and_what_comes_next(root: Path) -> None:
    assert next_verb(steps(Study.open(root))) == "report"
    study = open_study(root, settings(objective={"guard_nats": 0.1}))
    found = {step.verb: step for step in steps(study)}
    states = [found[verb].state for verb in ("run", "fit", "recommend", "confirm", "export", "launch")]
    assert states == [State.DONE, State.DONE, *[State.STALE] * 4]
    assert "answers an older question" in found["recommend"].why
    assert found["launch"].why == "It rests on 'recommend'."
    assert next_verb(list(found.values())) == "recommend"
    replanned = open_study(root, settings(design={"num_mixtures": 6}))
    assert next_verb(steps(replanned)) == "plan"
    plan_runs(replanned)
    found = {step.verb: step for step in steps(replanned)}
    assert (found["run"].state, found["fit"].state) == (State.BEGUN, State.STALE)


def test_a_recommendation_asks_for_a_fit_of_the_runs_that_are_there_now(root: Path) -> None:
    study = Study.open(root)
    runs = study.recorded_runs()
    runs.loc[runs["role"] == "simplex", "loss:web"] += 0.5
    write_table(runs, study.runs_file, recorded=True)
    for use in (recommend, predict, export):
        with pytest.raises(StudyError, match="decaylaws fit"):
            use(study)


def test_what_was_read_stays_as_it_was_and_a_study_reads_its_files_anew(root: Path) -> None:
    study = Study.open(root)
    before = study.measured()
    kept = before.runs.copy()
    assert fit(study)[1] is False
    runs = study.recorded_runs()
    runs.loc[runs["role"] == "simplex", "loss:web"] += 0.5
    write_table(runs, study.runs_file, recorded=True)
    pd.testing.assert_frame_equal(before.runs, kept)
    assert not study.measured().runs.equals(kept)
    assert fit(study)[1] is True
    assert fit(study)[1] is False


def test_a_fit_waits_for_the_planned_runs_or_is_told_not_to(root: Path) -> None:
    study = open_study(
        root, settings(design={"runs_at_other_sizes": 3, "num_replicates": 4, "decay_tokens": [4096]})
    )
    plan_runs(study)
    missing = {item.config.run_id for item in study.design()} - set(study.runs()["run_id"])
    with pytest.raises(
        StudyError, match=rf"{len(missing)} planned runs .*no result yet.*decaylaws run.*--partial"
    ):
        fit(study)
    assert fit(study, partial=True)[1]


# storages that are shared ------------------------------------------------------------------------------------


def test_the_path_of_a_storage_starts_from_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def study(storage: str | None) -> Study:
        return Study(tmp_path, parse_settings({**SETTINGS, "storage": storage}))

    monkeypatch.chdir("/")
    assert study("sqlite:///sweep.db").storage().url == f"sqlite:///{tmp_path}/sweep.db"
    assert study(None).storage().url == f"sqlite:///{tmp_path}/storage.sqlite3"
    assert study("sqlite:////elsewhere/sweep.db").storage().url == "sqlite:////elsewhere/sweep.db"
    assert study("postgresql://host/runs").storage().url == "postgresql://host/runs"
    urls = (None, "sqlite:///a.db", "sqlite:////b.db", "postgresql://h/d")
    assert [study(url).storage().is_shared for url in urls] == [False, False, True, True]


def planned_at(root: Path, shared: dict[str, Any]) -> Study:
    root.mkdir()
    make_sources(root)
    for verb in ("prepare", "plan"):
        ANSWERS[verb](open_study(root, shared))
    return open_study(root, shared)


def test_two_studies_of_one_name_do_not_share_a_storage(storages: Storages, tmp_path: Path) -> None:
    shared = {**SETTINGS, "storage": "postgresql://host/same-name"}
    first, second = (planned_at(tmp_path / name, shared) for name in ("first", "second"))
    ANSWERS["run"](first)
    with pytest.raises(StudyError, match=rf"another study named 'tiny', in {first.root}.*another 'name'"):
        ANSWERS["run"](second)
    assert not second.runs_file.exists()
    ANSWERS["run"](first)  # its own folder goes on
    renamed = open_study(second.root, {**shared, "name": "other"})
    ANSWERS["run"](renamed)


def test_a_machine_without_the_folder_does_not_train_trunks_of_another_again(
    storages: Storages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {**SETTINGS, "storage": "postgresql://host/two-machines"}
    study = planned_at(tmp_path / "here", shared)
    ANSWERS["run"](study)
    there = tmp_path / "there"
    shutil.copytree(study.root, there)
    shutil.rmtree(there / "checkpoints")
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    with pytest.raises(StudyError, match=r"trained on the machine '.*must share the study's folder"):
        ANSWERS["run"](open_study(there, shared))


def test_a_queue_claims_nothing_of_an_older_plan(storages: Storages, tmp_path: Path) -> None:
    root = tmp_path / "study"
    old = planned_at(root, SETTINGS)
    waiting = [(item.role, item.config) for item in old.design()]
    old.storage().open_queue(serves=old.plan_inputs()).enqueue(waiting)  # Ctrl-C while they wait
    changed = settings(sources={"web": {**SETTINGS["sources"]["web"], "max_bytes": 9_000}})
    for verb in ("prepare", "plan", "run"):
        ANSWERS[verb](open_study(root, changed))
    study = open_study(root, changed)
    assert set(study.recorded_runs()["run_id"]) == {item.config.run_id for item in study.design()}
    # the same corpus: runs that both plans hold are trained, the others wait on
    replanned = settings(design={"num_replicates": 3}, sources=changed["sources"])
    for verb in ("plan", "run"):
        ANSWERS[verb](open_study(root, replanned))
    counts = study.storage().open_queue().counts({config.run_id for _, config in waiting})
    assert (counts.waiting, counts.finished) == (len(waiting), 0)
