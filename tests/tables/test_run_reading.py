"""Tables of runs as teams have them: what is read, what is left out by name, what is one error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import DataError, InvalidValueError, SchemaError
from decaylaws.settings.mix import MixSettings
from decaylaws.tables import read_run_table
from tests.tables.planted import SOURCES, TARGETS, runs


def written(table: pd.DataFrame, path: Path) -> Path:
    table.to_csv(path, index=False)
    return path


def test_columns_are_found_by_their_names(tmp_path: Path) -> None:
    table = runs()
    found = read_run_table(written(table, tmp_path / "runs.csv"))
    assert found.sources == SOURCES
    assert found.targets == TARGETS
    assert found.direction == "lower"
    assert found.excluded.empty
    np.testing.assert_allclose(found.shares.to_numpy(), table[[f"w_{name}" for name in SOURCES]])
    table.to_parquet(tmp_path / "runs.parquet")
    same = read_run_table(tmp_path / "runs.parquet")
    pd.testing.assert_frame_equal(same.losses, found.losses)
    assert same.runs == found.runs
    titled = read_run_table(written(table.rename(columns={"run": "Run Name"}), tmp_path / "titled.csv"))
    assert titled.runs == found.runs


def test_a_tracker_export_with_every_usual_fault_names_what_it_leaves_out(tmp_path: Path) -> None:
    table = runs(30)
    export = pd.DataFrame({"Name": table["run"], "State": "finished", "Runtime": 3600})
    for name in SOURCES:
        export[f"data.{name} share"] = [f"{100 * share:.2f}%" for share in table[f"w_{name}"]]
    for name in TARGETS:
        export[f"eval/{name}/nll"] = table[f"loss_{name}"].astype(object)
    export.loc[3, "State"] = "crashed"
    export.loc[4, "eval/code/nll"] = None
    export.loc[5, "eval/code/nll"] = "NaN"
    export.loc[6, "eval/web/nll"] = "Infinity"
    export.loc[7, "data.web share"] = "half"
    export.loc[8, "data.web share"] = "5%"
    export.loc[9, "data.web share"] = "-5%"
    export.loc[10, "eval/web/nll"] = -1.0
    export.loc[30] = export.loc[0]  # a row that the export holds twice
    export.loc[31] = {**export.loc[1].to_dict(), "eval/web/nll": 9.0}  # and one with another result
    settings = MixSettings.checked({
        "columns": {"run": "Name", **{f"mix:{name}": f"data.{name} share" for name in SOURCES},
                    **{f"loss:{name}": f"eval/{name}/nll" for name in TARGETS}}
    })  # fmt: skip
    found = read_run_table(written(export, tmp_path / "wandb.csv"), settings=settings)
    reasons: dict[str, list[str]] = {}
    for run, reason in found.excluded.itertuples(index=False):
        reasons.setdefault(run, []).append(reason)
    assert reasons["run-3"] == ["its state is 'crashed'"]
    assert reasons["run-4"] == reasons["run-5"] == ["no finite value of code"]
    assert reasons["run-6"] == ["no finite value of web"]
    assert reasons["run-7"] == [f"the share of 'web' is no number ({export.loc[7, 'data.web share']})"]
    assert reasons["run-8"][0].endswith("not to 1")
    assert reasons["run-9"] == ["the share of 'web' is negative (-5%)"]
    assert "not positive" in reasons["run-10"][0]
    assert reasons["run-0"] == ["an exact copy of run run-0"]
    assert len(reasons["run-1"]) == 2
    assert "more than once" in reasons["run-1"][0]
    assert len(found.runs) + len(found.excluded) == 32
    assert found.runs[0] == "run-0"
    np.testing.assert_allclose(found.shares.iloc[0].sum(), 1.0)
    np.testing.assert_allclose(found.shares.iloc[0, 0], table["w_web"].iloc[0], atol=1e-4)


def test_expected_losses_come_with_their_errors(tmp_path: Path) -> None:
    table = runs(12).assign(**{"loss_error:web": 0.0, "loss_error:code": np.nan, "state": "finished"})
    table.loc[3, ["loss_error:web", "loss_error:code", "state"]] = [0.05, 0.02, "running"]
    table.loc[4, ["loss_error:web", "state"]] = [
        0.05,
        "running",
    ]  # of code it holds what was logged on the way
    table.loc[5, "loss_error:web"] = -0.05
    found = read_run_table(written(table, tmp_path / "runs.csv"))
    assert found.targets == TARGETS
    assert found.runs == tuple(table["run"].drop(index=[4, 5]))
    assert found.errors.loc[3, ["web", "code"]].tolist() == [0.05, 0.02]
    assert found.finished.tolist() == [k != 3 for k in range(10)]
    reasons = dict(found.excluded.itertuples(index=False))
    assert reasons[table["run"][4]] == "its state is 'running'"
    assert "not a finite number of 0 or more" in reasons[table["run"][5]]


def test_an_error_that_is_no_number_or_of_no_target_does_not_pass_for_a_measured_loss(tmp_path: Path) -> None:
    table = runs(12).assign(**{"loss_error:web": "0.0", "loss_error:codes": 0.0})
    table.loc[3, "loss_error:web"] = "0,05"
    table.loc[4, "loss_error:codes"] = 0.05
    table.loc[5, ["loss_error:web", "loss_error:codes"]] = ["0.05", 0.05]
    found = read_run_table(written(table, tmp_path / "runs.csv"))
    assert found.runs == tuple(table["run"].drop(index=[3, 4]))
    reasons = dict(found.excluded.itertuples(index=False))
    assert "not a finite number of 0 or more" in reasons[table["run"][3]]
    assert reasons[table["run"][4]].endswith("no target has the name in loss_error:codes")


def test_pairs_of_files_are_joined_by_run(tmp_path: Path) -> None:
    table = runs(12)
    shares = table[[f"w_{name}" for name in SOURCES]]
    regmix = shares.set_axis([f"train_the_pile_{name}" for name in SOURCES], axis=1).round(3)
    losses = table[[f"loss_{name}" for name in TARGETS]]
    theirs = losses.set_axis([f"metric/the_pile_{name}_val_loss" for name in TARGETS], axis=1)
    left = written(regmix.assign(index=range(12)), tmp_path / "mixtures.csv")
    right = written(theirs.assign(index=range(12)).iloc[::-1].iloc[:11], tmp_path / "losses.csv")
    found = read_run_table(left, right)
    assert found.sources == SOURCES
    assert found.targets == TARGETS
    assert found.excluded.to_dict("records") == [{"run": "0", "reason": f"it is only in {left}"}]
    np.testing.assert_allclose(found.losses["code"], table["loss_code"].iloc[1:])

    labels = {"run": [f"r{k}" for k in range(12)], "name": "swarm", "index": range(12)}
    ratios = written(shares.set_axis(SOURCES, axis=1).assign(**labels), tmp_path / "ratios.csv")
    metrics = written(losses.set_axis(["arc", "mbpp"], axis=1).assign(**labels), tmp_path / "metrics.csv")
    with pytest.raises(InvalidValueError, match="direction"):
        read_run_table(ratios, metrics)
    olmix = read_run_table(ratios, metrics, settings=MixSettings(direction="lower"))
    assert olmix.sources == SOURCES
    assert olmix.targets == ("arc", "mbpp")


def test_scores_need_a_direction_and_become_a_distance_from_the_best(tmp_path: Path) -> None:
    table = runs(12).rename(columns={f"loss_{name}": f"acc_{name}" for name in TARGETS})
    table[["acc_web", "acc_code"]] /= 10
    path = written(table, tmp_path / "scores.csv")
    with pytest.raises(InvalidValueError, match=r"must be stated for acc_web.*--direction higher"):
        read_run_table(path)
    found = read_run_table(path, settings=MixSettings(direction="higher"))
    assert found.best == 1.0
    np.testing.assert_allclose(found.losses["web"], 1 - table["acc_web"])
    assert found.stated(0.25) == 0.75
    percent = table.assign(acc_web=100 * table["acc_web"], acc_code=100 * table["acc_code"])
    assert read_run_table(written(percent, path), settings=MixSettings(direction="higher")).best == 100.0
    odd = table.assign(acc_web=table["acc_web"] - 3)
    with pytest.raises(InvalidValueError, match="best"):
        read_run_table(written(odd, path), settings=MixSettings(direction="higher"))
    told = read_run_table(path, settings=MixSettings(direction="higher", best=5.0))
    assert told.losses["web"].min() > 5
    with pytest.raises(InvalidValueError, match="best"):
        read_run_table(written(runs(12), path), settings=MixSettings(best=5.0))


def test_percentages_a_rest_and_phases_are_shares(tmp_path: Path) -> None:
    table = runs(12)
    percent = table.assign(**{f"w_{name}": 100 * table[f"w_{name}"] for name in SOURCES})
    found = read_run_table(written(percent, tmp_path / "runs.csv"))
    np.testing.assert_allclose(found.shares["code"], table["w_code"])
    assert "percentages" in " ".join(found.notes)
    rest = read_run_table(
        written(table.drop(columns="w_web"), tmp_path / "runs.csv"), settings=MixSettings(rest="web")
    )
    np.testing.assert_allclose(rest.shares["web"], table["w_web"], atol=1e-12)
    assert "empty" not in " ".join(rest.notes)
    nothing_left = read_run_table(written(table, tmp_path / "runs.csv"), settings=MixSettings(rest="other"))
    assert nothing_left.sources == SOURCES
    assert "No run holds other" in " ".join(nothing_left.notes)
    phased = pd.DataFrame({"run": range(12), "share_phase_0": np.linspace(0, 1, 12), "share_phase_1": 0.5,
                           "code_bpb": np.linspace(1, 2, 12)})  # fmt: skip
    two = read_run_table(written(phased, tmp_path / "phases.csv"))
    assert two.sources == ("scarce@phase_0", "rest@phase_0", "scarce@phase_1", "rest@phase_1")
    assert two.targets == ("code",)
    np.testing.assert_allclose(two.shares.sum(axis=1), 1.0)
    assert two.blocks["phase_1"] == (("scarce@phase_1", "rest@phase_1"), 0.5)


def test_empty_shares_are_nought_where_the_others_make_the_whole(tmp_path: Path) -> None:
    table = runs(12)
    table.loc[0, [f"w_{name}" for name in SOURCES]] = [0.6, 0.4, np.nan, np.nan]
    found = read_run_table(written(table, tmp_path / "runs.csv"))
    assert found.shares.iloc[0].tolist() == [0.6, 0.4, 0.0, 0.0]
    assert found.excluded.empty


def test_other_sizes_rare_targets_and_unused_sources_are_named(tmp_path: Path) -> None:
    table = runs(24).assign(model_size=["1M"] * 20 + ["60M"] * 4, loss_rare=np.nan, w_none=0.0)
    table.loc[:4, "loss_rare"] = 3.0
    found = read_run_table(written(table, tmp_path / "runs.csv"))
    assert len(found.runs) == 20
    assert set(found.excluded["reason"]) == {"its model_size is 60M, and most runs have 1M"}
    assert found.targets == TARGETS
    notes = " ".join(found.notes)
    assert "'rare' was measured in 5 of 20 runs" in notes
    assert "No run holds none" in notes
    asked = read_run_table(tmp_path / "runs.csv", settings=MixSettings(weights={"rare": 1.0}))
    assert asked.targets == ("rare",)
    assert len(asked.runs) == 5


@pytest.mark.parametrize(
    ("change", "settings", "error", "words"),
    [
        (
            lambda table: table.drop(columns=[f"w_{name}" for name in SOURCES]),
            {},
            SchemaError,
            "columns of shares",
        ),
        (lambda table: table[["run", "w_web", "loss_web"]], {}, SchemaError, "second source"),
        (lambda table: table.drop(columns=["loss_web", "loss_code"]), {}, SchemaError, "losses or scores"),
        (lambda table: table, {"where": {"use": "fit"}}, SchemaError, "missing use"),
        (lambda table: table, {"columns": {"run": "nobody"}}, SchemaError, "missing nobody"),
        (lambda table: table, {"weights": {"law": 1.0}}, InvalidValueError, "not a target of the table"),
        (lambda table: table, {"rest": "code"}, InvalidValueError, "must not be a source"),
        (
            lambda table: table.assign(loss_web="2,71", loss_code="2,5"),
            {},
            InvalidValueError,
            r"loss_(web|code)' must be a number; got '2,71?'?5?'?\. Write numbers with a decimal point",
        ),
        (lambda table: table.assign(loss_web=np.nan, loss_code=np.nan), {}, InvalidValueError, "in some row"),
        (lambda table: table.assign(w_web="0,5"), {}, DataError, r"'web' is no number \(0,5\)"),
        (lambda table: table.iloc[:0], {}, DataError, "a header and no rows"),
    ],
)
def test_a_table_that_cannot_be_understood_is_one_error(
    tmp_path: Path, change, settings: dict[str, object], error: type[Exception], words: str
) -> None:
    path = written(change(runs(12)), tmp_path / "runs.csv")
    with pytest.raises(error, match=words):
        read_run_table(path, settings=MixSettings.checked(settings))


def test_json_lines_are_read_as_csv_is(tmp_path: Path) -> None:
    table = runs(12).assign(run=[f"{k:04d}" for k in range(12)])
    table.to_json(tmp_path / "runs.jsonl", orient="records", lines=True, double_precision=15)
    found = read_run_table(tmp_path / "runs.jsonl")
    expected = read_run_table(written(table, tmp_path / "runs.csv"))
    assert found.runs == expected.runs == tuple(table["run"])
    np.testing.assert_allclose(found.shares, expected.shares, atol=1e-12)
    np.testing.assert_allclose(found.losses, expected.losses)
    (tmp_path / "bad.jsonl").write_text('{"run": 1}\n{"run": \n')
    with pytest.raises(DataError, match=r"bad.jsonl:2 is not valid JSON"):
        read_run_table(tmp_path / "bad.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty.jsonl holds no rows. Write one JSON object per line."):
        read_run_table(tmp_path / "empty.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("runs.json", b'[{"run": 1, "w_a": 1}]', "it holds JSON. JSON Lines is read from files named .jsonl"),
        ("runs.xlsx", b"PK\x03\x04\x14\x00\x06\x00", "Save the sheet with the runs as CSV"),
        ("runs.csv", "run,w_wéb\n".encode("latin-1"), "not a CSV file in UTF-8. Save it again"),
        ("runs.csv", b"run;w_a\n1;0,5\n", "by semicolons. Separate by commas, and write numbers with a decimal point"),
    ],
)  # fmt: skip
def test_files_of_another_format_are_named_with_the_remedy(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_run_table(tmp_path / name)


def test_seeds_tell_replicates_apart_and_logged_steps_are_named(tmp_path: Path) -> None:
    table = runs(12)
    seeds = pd.concat([table.assign(seed=0), table.assign(seed=1, loss_web=table["loss_web"] + 0.01)])
    found = read_run_table(written(seeds, tmp_path / "seeds.csv"))
    assert len(found.runs) == 24
    assert {"run-0, seed 0", "run-0, seed 1"} <= set(found.runs)
    steps = pd.concat([table.assign(step=10, loss_web=table["loss_web"] + 1), table.assign(step=20)])
    with pytest.raises(DataError, match=r"run-0: .* more than once.*\(--where step=20\)$"):
        read_run_table(written(steps, tmp_path / "steps.csv"))
    last = MixSettings.checked({"where": {"step": "20"}})
    assert len(read_run_table(tmp_path / "steps.csv", settings=last).runs) == 12


def test_lists_in_cells_and_an_index_of_names_are_read(tmp_path: Path) -> None:
    table = runs(12)
    odd = table.assign(seed=[["a", "b"]] * 12, lr=[[1e-3]] * 12, config=[{"lr": 1e-3}] * 12)
    odd.to_parquet(tmp_path / "lists.parquet", index=False)
    assert read_run_table(tmp_path / "lists.parquet").runs == tuple(table["run"])
    table.set_index("run").to_parquet(tmp_path / "index.parquet")
    assert read_run_table(tmp_path / "index.parquet").runs == tuple(table["run"])
    table.set_index("run", drop=False).to_parquet(tmp_path / "twice.parquet")
    assert read_run_table(tmp_path / "twice.parquet").runs == tuple(table["run"])
    table.set_index(["run", "w_web"]).to_parquet(tmp_path / "two.parquet")
    assert read_run_table(tmp_path / "two.parquet").sources == SOURCES
    table[table["w_web"] > 0.1].to_parquet(tmp_path / "plain.parquet")  # an index without a name is none
    assert "index" not in read_run_table(tmp_path / "plain.parquet").others


def test_pairs_without_a_common_run_and_files_in_the_wrong_order_are_said(tmp_path: Path) -> None:
    table = runs(12)
    shares = table[["run", *(f"w_{name}" for name in SOURCES)]].rename(
        columns=lambda name: name.removeprefix("w_")
    )
    metrics = table[["run", "loss_web", "loss_code"]]
    first, second = written(shares, tmp_path / "shares.csv"), written(metrics, tmp_path / "metrics.csv")
    other = written(metrics.assign(run="x" + metrics["run"]), tmp_path / "other.csv")
    with pytest.raises(DataError, match=r"no run in common. The first names 'run-0', the second 'xrun-0'"):
        read_run_table(first, other)
    with pytest.raises(DataError, match=r"shares sum to [0-9.]+, not to 1(;|$)"):
        read_run_table(second, first, settings=MixSettings.checked({"direction": "lower"}))


def test_columns_beside_the_targets_are_told(tmp_path: Path) -> None:
    table = runs(12).assign(loss_web_std=0.01, loss_train=2.0, start_loss_web=3.0)
    found = read_run_table(written(table.assign(**{"eval/books/loss": 2.5}), tmp_path / "runs.csv"))
    assert found.targets == TARGETS
    told = " ".join(found.notes)
    assert "loss_web_std state how uncertain" in told
    assert "loss_train is no target" in told
    assert "eval/books/loss may hold losses too. The targets are loss_web, loss_code." in told
    assert "start_loss" not in told


def test_names_of_columns_are_read_whatever_their_case_and_blanks(tmp_path: Path) -> None:
    table = runs(12)
    found = read_run_table(
        written(table.rename(columns={"w_web": "W_ web", "w_code": "W_code"}), tmp_path / "runs.csv")
    )
    assert found.sources == SOURCES
    shares = table[["run", *(f"w_{name}" for name in SOURCES)]].rename(columns=lambda name: name.capitalize())
    losses = written(table[["run", "loss_web", "loss_code"]], tmp_path / "losses.csv")
    pair = read_run_table(written(shares, tmp_path / "shares.csv"), losses)
    assert (pair.sources, pair.targets) == (SOURCES, TARGETS)


def test_a_row_of_fractions_amid_percentages_is_named_in_the_words_of_the_table(tmp_path: Path) -> None:
    table = runs(12)
    shares = [f"w_{name}" for name in SOURCES]
    table.loc[1:, shares] *= 100
    found = read_run_table(written(table, tmp_path / "runs.csv"))
    assert found.excluded["reason"].tolist() == ["shares sum to 1, not to 100"]


def test_files_that_are_no_tables_are_one_error(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "bad.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("bad.parquet", "bad.csv", "none.csv", "none.parquet"):
        with pytest.raises(DataError):
            read_run_table(tmp_path / name)
    (tmp_path / "mix.yaml").write_text("direction: up\n")
    with pytest.raises(InvalidValueError, match="direction"):
        MixSettings.load(tmp_path / "mix.yaml")
    (tmp_path / "mix.yaml").write_text("wieghts: {a: 1}\n")
    with pytest.raises(InvalidValueError, match="not a known key"):
        MixSettings.load(tmp_path / "mix.yaml")
