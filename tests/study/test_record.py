"""Results of another trainer: what counts, what is excluded by name, and what recording twice does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from decaylaws import study as verbs
from decaylaws.cli import app
from decaylaws.designs.design import PlannedRun
from decaylaws.errors import DataError, InvalidValueError, SchemaError, StudyError
from decaylaws.runs.table import LOSS, START_LOSS
from decaylaws.study import Study
from decaylaws.study.record import Recorded
from tests.study.external import declared_study, log_rows, losses_of, write_rows
from tests.study.tiny import decaylaws

Rows = list[dict[str, Any]]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return declared_study(tmp_path / "study")


@pytest.fixture
def trunk(study: Study) -> PlannedRun:
    return next(iter(study.design()))


@pytest.fixture
def decay(study: Study) -> PlannedRun:
    """A decay on a mixture of all sources."""
    return next(
        run for run in study.design() if run.role == "simplex" and len(run.config.mixture.support) == 3
    )


def record_rows(study: Study, rows: Rows, **options: Any) -> Recorded:
    return verbs.record(study, [write_rows(study.root / "logs" / "metrics.jsonl", rows)], **options)


def test_what_agrees_with_the_plan_is_recorded_with_the_losses_from_which_it_starts(study: Study) -> None:
    rows = [row for run in study.design() for row in log_rows(run)]
    recorded = record_rows(study, rows)
    assert recorded.excluded.empty
    assert recorded.missing.empty
    assert not recorded.notes
    assert set(recorded.outcomes["outcome"]) == {"new"}
    table = study.runs().set_index("run_id")
    for run in study.design():
        for domain, loss in losses_of(run.config).items():
            assert table.at[run.config.run_id, LOSS + domain] == pytest.approx(loss)
            if run.config.start_run_id:
                start = table.at[run.config.start_run_id, LOSS + domain]
                assert table.at[run.config.run_id, START_LOSS + domain] == start
    assert table["reached_target"].all()
    assert table.loc[table["kind"] == "decay", "epochs:maths"].max() > 0
    curves = study.curves()
    assert set(curves["run_id"]) == set(table.index)
    assert curves["loss"].notna().all()


def test_recording_twice_changes_nothing_and_a_corrected_file_says_what_it_replaces(
    study: Study, decay: PlannedRun
) -> None:
    rows = [row for run in study.design() for row in log_rows(run)]
    record_rows(study, rows)
    before = study.runs_file.read_bytes(), study.curves_file.read_bytes()
    again = record_rows(study, rows)
    assert set(again.outcomes["outcome"]) == {"unchanged"}
    assert (study.runs_file.read_bytes(), study.curves_file.read_bytes()) == before
    corrected = log_rows(decay)
    corrected[-1]["loss:web"] = 2.25
    replaced = record_rows(study, corrected).outcomes
    assert replaced["outcome"].tolist() == ["replaced"]
    old = losses_of(decay.config)["web"]
    assert replaced.at[0, "change"].startswith(f"loss:web {old:.4f} -> 2.2500, from ")
    assert replaced.at[0, "change"].endswith("metrics.jsonl")
    assert study.runs().set_index("run_id").at[decay.config.run_id, "loss:web"] == 2.25
    assert len(study.runs()) == len(study.design())


def test_a_corrected_trunk_corrects_the_start_of_its_decays(study: Study, trunk: PlannedRun) -> None:
    record_rows(study, [row for run in study.design() for row in log_rows(run)])
    corrected = log_rows(trunk)
    corrected[-1]["loss:code"] = 5.5
    record_rows(study, corrected)
    table = study.runs()
    own = table[table["start_run_id"] == trunk.config.run_id]
    assert set(own["start_loss:code"]) <= {5.5}


def with_last(rows: Rows, **values: Any) -> Rows:
    return [*rows[:-1], {**rows[-1], **values}]


def everywhere(rows: Rows, **values: Any) -> Rows:
    return [{**row, **values} for row in rows]


def without(rows: Rows, *names: str) -> Rows:
    return [{name: value for name, value in row.items() if name not in names} for row in rows]


CHANGES: dict[str, tuple[Callable[[Rows], Rows], str]] = {
    "twice the LR": (
        lambda rows: [{**row, "lr": 2 * row["lr"]} for row in rows],
        r"its LR at step 1 is 0.01\d+, where the plan has 0\.00\d+ to 0\.01",
    ),
    "a constant LR": (
        lambda rows: everywhere(rows, lr=rows[0]["lr"]),
        r"its LR at step \d+ is 0.00\d+, where the plan has",
    ),
    "half of the tokens at every step": (
        lambda rows: [{**row, "tokens": row["tokens"] // 2} for row in rows],
        r"it had seen 128 tokens at step 1, where the plan has 256",
    ),
    "half of the steps": (
        lambda rows: with_last(rows, step=rows[-1]["step"] // 2, tokens=rows[-1]["tokens"] // 2, lr=rows[1]["lr"]),
        r"no loss of 'web' at step (?:8|16): the last one logged is at step (?:4|8)",
    ),
    "another mixture": (
        lambda rows: everywhere(rows, **{"mix:web": 0.2, "mix:maths": 0.4, "mix:code": 0.4}),
        r"its mixture has 0.\d+ of '\w+', where the plan has 0.\d+",
    ),
    "a source that the plan does not have": (
        lambda rows: everywhere(without(rows, "mix:maths", "mix:code"), **{"mix:web": 1.0}),
        r"its mixture has 1 of 'web', where the plan has 0.\d+",
    ),
    "a loss that is NaN": (
        lambda rows: with_last(rows, **{"loss:maths": math.nan}),
        r"the loss of 'maths' at step \d+ is nan",
    ),
    "a loss that is infinite": (
        lambda rows: with_last(rows, **{"loss:maths": math.inf}),
        r"the loss of 'maths' at step \d+ is inf",
    ),
    "a loss below 0": (
        lambda rows: with_last(rows, **{"loss:maths": -1.0}),
        r"the loss of 'maths' at step \d+ is -1, and a cross-entropy is above 0",
    ),
    "a domain without a loss": (
        lambda rows: without(rows, "loss:code"),
        r"no loss of 'code' at step \d+: none is logged",
    ),
    "another seed": (lambda rows: everywhere(rows, seed=7), r"its seed is 7, where the plan has 0"),
    "another batch": (
        lambda rows: everywhere(rows, batch_tokens=512),
        r"its batch_tokens is 512, where the plan has 256",
    ),
    "another size": (
        lambda rows: everywhere(rows, non_embedding_params=2700),
        r"its non_embedding_params is 2700, where the plan has 2608",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_that_contradicts_its_plan_is_excluded_by_name(
    study: Study, decay: PlannedRun, name: str
) -> None:
    change, reason = CHANGES[name]
    recorded = record_rows(study, change(log_rows(decay)))
    assert recorded.outcomes.empty
    assert recorded.excluded["run_id"].tolist()[:1] == [decay.config.run_id]
    assert recorded.excluded["reason"].str.contains(reason, regex=True).any(), recorded.excluded[
        "reason"
    ].tolist()
    assert decay.config.run_id in set(recorded.missing["run_id"])
    assert not study.runs_file.is_file() or decay.config.run_id not in set(study.recorded_runs()["run_id"])


def test_an_unknown_id_is_excluded_and_the_others_are_recorded(
    study: Study, decay: PlannedRun, trunk: PlannedRun
) -> None:
    unknown = everywhere(log_rows(decay), run_id="0123456789abcdef")
    nameless = everywhere(log_rows(decay), run_id="my best run")
    recorded = record_rows(study, [*unknown, *nameless, *log_rows(trunk)])
    assert recorded.outcomes["run_id"].tolist() == [trunk.config.run_id]
    assert recorded.excluded["reason"].tolist() == [
        "'0123456789abcdef' names no run that the study asks for",
        "'my best run' names no run that the study asks for",
    ]
    assert len(recorded.missing) == len(study.design()) - 1


def test_what_was_not_logged_is_not_compared_and_the_verb_says_so(study: Study, decay: PlannedRun) -> None:
    bare = without(log_rows(decay), "lr", "tokens", "mix:web", "mix:maths", "mix:code")
    recorded = record_rows(study, bare)
    assert len(recorded.outcomes) == 1
    assert recorded.notes == tuple(
        f"1 of 1 runs did not log their {what}, so it was not compared with the plan."
        for what in ("LR", "tokens", "mixture")
    )


def test_a_counter_that_goes_on_from_the_trunk_is_read_as_the_export_says(
    study: Study, decay: PlannedRun, tmp_path: Path
) -> None:
    verbs.export_runs(study, "levanter", tmp_path / "runs")  # takes over the step count with the moments
    start = study.settings.trunk.tokens
    rows = [
        {**row, "step": row["step"] + start // 256, "tokens": row["tokens"] + start}
        for row in log_rows(decay)
    ]
    assert record_rows(study, rows).excluded.empty
    # the same counters from a trainer that was told to begin at zero are those of another run
    fresh = declared_study(tmp_path / "fresh")
    assert "no loss of 'web' at step" in " ".join(record_rows(fresh, rows).excluded["reason"])


def test_files_about_one_run_are_put_together_and_must_not_disagree(
    study: Study, decay: PlannedRun, tmp_path: Path
) -> None:
    rows = log_rows(decay)
    parts = [
        write_rows(tmp_path / "train.jsonl", without(rows, "loss:web", "loss:maths", "loss:code")),
        write_rows(
            tmp_path / "web.jsonl", [{name: rows[-1][name] for name in ("run_id", "step", "loss:web")}]
        ),
        write_rows(
            tmp_path / "rest.jsonl",
            [{name: rows[-1][name] for name in ("run_id", "step", "loss:maths", "loss:code")}],
        ),
    ]
    assert len(verbs.record(study, parts).outcomes) == 1
    other = write_rows(tmp_path / "other.jsonl", [{**rows[-1], "loss:web": 9.0}])
    reason = verbs.record(study, [*parts, other]).excluded.at[0, "reason"]
    assert reason.startswith(f"files disagree on the loss of 'web' at step {decay.config.num_steps}: ")
    assert "other.jsonl" in reason


def test_a_run_that_was_resumed_counts_by_what_it_logged_last(study: Study, decay: PlannedRun) -> None:
    rows = log_rows(decay)
    first = with_last(rows, **{"loss:web": 7.0})
    recorded = record_rows(study, [*first, *rows])
    assert recorded.excluded.empty
    assert study.runs().at[0, "loss:web"] == pytest.approx(losses_of(decay.config)["web"])


def test_columns_and_losses_are_found_by_the_names_that_are_given(
    study: Study, decay: PlannedRun, tmp_path: Path
) -> None:
    last = log_rows(decay)[-1]
    table = pd.DataFrame(
        [
            {
                "Name": f"simplex-{decay.config.run_id}", "State": "crashed", "iter": last["step"],
                "val/web/nll": last["loss:web"], "val/maths/nll": last["loss:maths"], "python": last["loss:code"],
                "mix:web": f"{100 * last['mix:web']:.4f}%",
                "mix:maths": last["mix:maths"], "mix:code": last["mix:code"],
            }
        ]
    )  # fmt: skip
    path = tmp_path / "wandb.csv"
    table.to_csv(path, index=False)
    columns = {"step": "iter", "loss:code": "python"}
    recorded = verbs.record(study, [path], columns=columns, loss="val/{domain}/nll")
    assert recorded.excluded.empty
    assert len(recorded.outcomes) == 1
    with pytest.raises(SchemaError, match=r"missing itre"):
        verbs.record(study, [path], columns={"step": "itre"})
    with pytest.raises(
        InvalidValueError, match=r"'column' is not a name that a log can hold; got 'loss:german'"
    ):
        verbs.record(study, [path], columns={"loss:german": "python"})
    with pytest.raises(InvalidValueError, match=r"'loss' must hold \{domain\} once"):
        verbs.record(study, [path], loss="val/nll")


def test_a_run_whose_file_names_nothing_can_be_named(study: Study, decay: PlannedRun, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", without(log_rows(decay), "run_id"))
    assert (
        verbs.record(study, [path]).excluded.at[0, "reason"]
        == "its path names no run that the study asks for"
    )
    assert len(verbs.record(study, [path], run_id=decay.config.run_id).outcomes) == 1
    with pytest.raises(InvalidValueError, match="'run' is no run that the study asks for"):
        verbs.record(study, [path], run_id="0123456789abcdef")


def test_the_command_lists_what_it_excluded_and_what_is_missing(
    study: Study, decay: PlannedRun, tmp_path: Path
) -> None:
    wrong = [{**row, "lr": 2 * row["lr"]} for row in log_rows(decay)]
    trunks = [row for run in study.design() if run.role == "trunk" for row in log_rows(run)]
    path = write_rows(tmp_path / "all.jsonl", [*wrong, *trunks])
    printed = decaylaws("record", str(study.root), str(path))
    assert "3 runs recorded" in printed
    assert f"{decay.config.run_id}: its LR at step 1 is" in printed
    assert f"{len(study.design()) - 3} runs have no result yet:" in printed
    answer = json.loads(CliRunner().invoke(app, ["record", str(study.root), str(path), "--json"]).stdout)
    assert [row["outcome"] for row in answer["outcomes"]] == ["unchanged"] * 3
    assert answer["excluded"][0]["run_id"] == decay.config.run_id
    with pytest.raises(StudyError, match=r"Only 0 microanneals.*Train them, and record .*decaylaws record"):
        verbs.fit(study)
    with pytest.raises(InvalidValueError, match="'lr_tolerance' must be a fraction from 0 to 1; got -1"):
        verbs.record(study, [path], lr_tolerance=-1)


def test_losses_in_bits_per_byte_are_told_and_not_mixed_with_others(
    study: Study, decay: PlannedRun, tmp_path: Path
) -> None:
    results = {f"{domain}": {"bits_per_byte,none": 0.8} for domain in study.settings.domains}
    folder = tmp_path / decay.config.run_id / f"checkpoint-{decay.config.num_steps}"
    folder.mkdir(parents=True)
    path = folder / "results_1.json"
    path.write_text(json.dumps({"results": results, "config": {}}), encoding="utf-8")
    recorded = verbs.record(study, [path])
    assert len(recorded.outcomes) == 1
    assert "code, maths, web are bits per byte. Every run of the study, trunks included" in " ".join(
        recorded.notes
    )
    log = write_rows(tmp_path / "metrics.jsonl", log_rows(decay))
    with pytest.raises(InvalidValueError, match=r"in another unit.*--loss '\{domain\}/bits_per_byte,none'"):
        verbs.record(study, [log, path])
    assert not verbs.record(study, [log], loss="loss:{domain}").excluded.shape[0]


def test_tables_of_another_format_and_empty_ones_are_named(study: Study, tmp_path: Path) -> None:
    (tmp_path / "semi.csv").write_text("run_id;step;loss:web\n1;2;3,5\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"separated by semicolons\. Separate by commas"):
        verbs.record(study, [tmp_path / "semi.csv"])
    (tmp_path / "empty.csv").write_text("run_id,step\n", encoding="utf-8")
    excluded = verbs.record(study, [tmp_path / "empty.csv"]).excluded
    assert excluded["reason"].tolist() == ["it holds no rows"]


def test_only_a_planned_study_of_another_trainer_records(study: Study, tmp_path: Path) -> None:
    study.plan_file.unlink()
    with pytest.raises(StudyError, match="has no plan yet"):
        record_rows(study, [])
