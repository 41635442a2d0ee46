"""Runs that were ended on their way become rows of a fit, with the losses that their curves lead to expect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from decaylaws import study as verbs
from decaylaws.designs.design import PlannedRun
from decaylaws.errors import DataError, StudyError
from decaylaws.runs.config import RunConfig
from decaylaws.study import Study
from decaylaws.study.fit import load_fit
from decaylaws.study.fit_inputs import read_fit_inputs
from decaylaws.study.unfinished import unfinished_rows
from tests.study.external import DECLARED_SETTINGS, declared_study, losses_of, write_rows

DOMAINS = ("web", "maths")
TOKENS = np.arange(0, 1001, 100)


def study_of(count: int, *, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A runs table and its curves: decays of one kind on mixtures of their own."""
    rng = np.random.default_rng(seed)
    rows, points = [], []
    for number in range(count):
        share, run_id = rng.uniform(), f"run{number}"
        row: dict[str, Any] = {
            "run_id": run_id, "kind": "decay", "status": "finished", "reached_target": True, "start_run_id": "trunk",
            "start_tokens": 5000, "decay_tokens": 1000, "start_lr": 1e-3, "end_lr": 0.0, "decay_shape": "linear",
            "batch_tokens": 100, "non_embedding_params": 1000, "warmup_tokens": np.nan, "mix:maths": share,
        }  # fmt: skip
        for domain, weight in zip(DOMAINS, (1 - share, share)):
            done = TOKENS / 1000
            losses = (
                3 - 0.6 * weight * (1 - np.exp(-3 * done)) - 0.1 * done**2 + rng.normal(0, 0.003, len(done))
            )
            row[f"loss:{domain}"] = losses[-1]
            points += [
                {"run_id": run_id, "domain": domain, "tokens": at, "loss": loss}
                for at, loss in zip(TOKENS, losses)
            ]
        rows.append(row)
    return pd.DataFrame(rows), pd.DataFrame(points)


def ended(runs: pd.DataFrame, curves: pd.DataFrame, status: str, names: list[str]) -> tuple[Any, ...]:
    """These runs without their second half, and what they would have reached."""
    cut = runs["run_id"].isin(names)
    truth = runs[cut].set_index("run_id")[[f"loss:{name}" for name in DOMAINS]]
    runs = runs.assign(
        status=runs["status"].where(~cut, status), reached_target=~cut,
        **{f"loss:{name}": runs[f"loss:{name}"].where(~cut) for name in DOMAINS},
    )  # fmt: skip
    return runs, curves[~curves["run_id"].isin(names) | (curves["tokens"] <= 500)], truth


def test_expected_losses_and_their_errors() -> None:
    names = [f"run{number}" for number in range(12)]
    runs, curves, truth = ended(*study_of(24), "pruned", names)
    found = unfinished_rows(runs, runs[runs["reached_target"]], curves, DOMAINS).set_index("run_id")
    assert list(found.index) == names
    errors = found[truth.columns] - truth
    assert np.abs(errors).to_numpy().mean() < 0.01  # the losses of the finished runs lie .1 apart
    said = found[[f"loss_error:{name}" for name in DOMAINS]].to_numpy()
    assert (said > 0).all()
    assert 0.5 < np.sqrt(np.mean(errors.to_numpy() ** 2)) / np.sqrt(np.mean(said**2)) < 1.5


def test_only_runs_that_were_ended_count_and_only_beside_enough_others() -> None:
    runs, curves, _ = ended(*study_of(24), "diverged", ["run0"])
    assert unfinished_rows(runs, runs[runs["reached_target"]], curves, DOMAINS).empty
    runs, curves, _ = ended(*study_of(5), "interrupted", ["run0"])
    assert unfinished_rows(runs, runs[runs["reached_target"]], curves, DOMAINS).empty
    runs, curves, _ = ended(*study_of(6), "interrupted", ["run0"])
    assert len(unfinished_rows(runs, runs[runs["reached_target"]], curves, DOMAINS)) == 1
    of_web = curves[(curves["run_id"] != "run0") | (curves["domain"] == "web")]
    assert unfinished_rows(runs, runs[runs["reached_target"]], of_web, DOMAINS).empty


# A study of an external trainer, whose logs have losses on the way ---------------------------------------------


def logged(run: PlannedRun, starts: dict[str, dict[str, float]], upto: float = 1.0) -> list[dict[str, Any]]:
    """Losses after every quarter of a run that were logged until a share of its steps."""
    config, losses = run.config, losses_of(run.config)
    first = starts.get(str(config.start_run_id), losses)
    steps = [config.num_steps * quarter // 4 for quarter in range(1, 5)]
    return [
        {
            "run_id": config.run_id,
            "step": step,
            "tokens": min(step * config.batch_tokens, config.tokens),
            **{
                f"loss:{name}": first[name] + (losses[name] - first[name]) * (step / config.num_steps) ** 0.5
                for name in losses
            },
        }
        for step in steps
        if step <= upto * config.num_steps
    ]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    design = {**DECLARED_SETTINGS["design"], "num_mixtures": 12, "decay_tokens": [4096]}
    return declared_study(tmp_path / "study", design=design)


def record(study: Study, short: Sequence[str], *, whole: bool = True, **options: Any) -> Any:
    """Record the runs of a plan, those of ``short`` until half of their steps."""
    starts = {
        run.config.run_id: losses_of(run.config) for run in study.design() if run.config.kind != "decay"
    }
    rows = [
        row
        for run in study.design()
        if whole or run.config.run_id in short
        for row in logged(run, starts, 0.5 if run.config.run_id in short else 1.0)
    ]
    return verbs.record(study, [write_rows(study.root / "logs" / "metrics.jsonl", rows)], **options)


def mixtures(study: Study) -> list[PlannedRun]:
    return [run for run in study.design() if run.role == "simplex"]


def test_interrupted_runs_of_another_trainer_enter_the_law_and_leave_it_when_they_are_whole(
    study: Study,
) -> None:
    short = [run.config.run_id for run in mixtures(study)[:3]]
    refused = record(study, short)
    assert set(refused.excluded["run_id"]) == set(short)
    recorded = record(study, short, unfinished=True)
    assert recorded.excluded.empty
    assert recorded.missing.empty
    runs = study.runs().set_index("run_id")
    assert set(runs.loc[short, "status"]) == {"interrupted"}
    assert not runs.loc[short, "reached_target"].any()
    found, _ = verbs.fit(study)
    assert not set(short) & set(found.excluded["run_id"])
    assert any(note.startswith("3 runs have not reached their end.") for note in found.notes)
    expected = read_fit_inputs(study).unfinished.set_index("run_id")
    for run in mixtures(study)[:3]:
        for name, loss in losses_of(run.config).items():
            row = expected.loc[run.config.run_id]
            assert abs(row[f"loss:{name}"] - loss) < 4 * row[f"loss_error:{name}"] + 1e-6
    inputs, (_, law) = read_fit_inputs(study).digest, load_fit(study)
    assert law.domains_ == list(study.settings.domains)
    record(study, [])  # whole now
    assert read_fit_inputs(study).unfinished.empty
    assert read_fit_inputs(study).digest != inputs
    late = record(study, short, whole=False, unfinished=True)
    assert set(late.excluded["run_id"]) == set(short)  # a part of a whole run corrects nothing
    assert study.runs()["reached_target"].all()


def test_a_partial_fit_counts_the_runs_that_have_begun(study: Study) -> None:
    begun = mixtures(study)[0].config
    record(study, [begun.run_id])  # refused: the run has no result
    with pytest.raises(StudyError, match=r"1 planned runs .* have no result yet"):
        verbs.fit(study)
    starts = {begun.start_run_id: study.runs().set_index("run_id").loc[begun.start_run_id]}
    first = {name: float(starts[begun.start_run_id][f"loss:{name}"]) for name in study.settings.domains}
    queue = study.storage().open_queue(serves=study.plan_inputs())
    queue.enqueue([("simplex", begun)])
    (claim,) = queue.claim(1, lambda config: config == begun)
    for done in (0.25, 0.5):
        final = losses_of(begun)
        losses = {name: first[name] + (final[name] - first[name]) * done**0.5 for name in first}
        queue.note(claim, int(done * begun.tokens), losses)
    found, new = verbs.fit(study, partial=True)
    assert new
    assert any(note.startswith("1 run has not reached its end.") for note in found.notes)
    (row,) = read_fit_inputs(study).unfinished.to_dict("records")
    assert RunConfig.from_dict(queue.open_curves()[0]["config"]).run_id == row["run_id"] == begun.run_id
    assert all(abs(row[f"loss:{name}"] - loss) < 0.05 for name, loss in losses_of(begun).items())
    assert not verbs.fit(study, partial=True)[1]
    load_fit(study)
    study.on_the_way_file.write_text('{"runs": [{"role": "simplex", "config": {}, "curve": []}]}')
    (study.on_the_way_file.parent / ".sha256" / "on_the_way.json").unlink()
    with pytest.raises(DataError, match=r"on_the_way.json is damaged .* fit .* --partial"):
        load_fit(study)
