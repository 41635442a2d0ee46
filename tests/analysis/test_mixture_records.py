"""The mixture scripts on perturbed records: an error in one line that names the cell, or a named exclusion."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

Table = pd.DataFrame
Change = Callable[[Table], Table]
Run = Callable[..., dict[str, Any]]


def regmix() -> Table:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(3), size=20)
    table = Table(shares, columns=["w_web", "w_code", "w_books"])
    for column, domain in enumerate(("web", "code")):
        table[f"loss_{domain}"] = 3 + 0.4 * (shares[:, column] + 0.01) ** -0.3
    return table.assign(model_size="1M", use=["fit"] * 12 + ["predict"] * 8, mixture_id=range(20))


def joint() -> Table:
    return regmix().assign(params=[1e6, 4e6] * 6 + [16e6] * 8, tokens=1e9).drop(columns="model_size")


def redpajama() -> Table:
    parts = [
        joint().assign(val_domain=domain, loss=lambda rows, d=domain: rows[f"loss_{d}"], step=1000)
        for domain in ("web", "code")
    ]
    long = pd.concat(parts, ignore_index=True).rename(columns={"params": "non_embedding_params"})
    return long.drop(columns=["loss_web", "loss_code", "tokens", "mixture_id"])


def continued() -> Table:
    grid = pd.MultiIndex.from_product(
        [["python", "web", "books"], [0.1, 0.3, 0.5], [1000, 2000, 4000]],
        names=["val_domain", "replay_share", "step"],
    )
    rows = grid.to_frame(index=False)
    rows["loss"] = 2.9 - 0.1 * rows["replay_share"] - 0.02 * rows["step"] / 4000
    return rows.assign(use=np.where(rows["replay_share"] == 0.3, "predict", "fit"))


RECORDS: dict[str, tuple[str, str, Callable[[], Table]]] = {
    "regmix": ("mixture_regression", "runs.csv", regmix),
    "joint": ("joint_law", "runs.csv", joint),
    "redpajama": ("joint_law", "redpajama.csv", redpajama),
    "continued": ("continued_pretraining", "continued_pretraining.csv", continued),
}


@pytest.fixture
def analyse(run_script: Run, tmp_path: Path) -> Run:
    """Writes changed records and runs their script in this process; returns what it wrote."""

    def analysed(kind: str, change: Change = lambda table: table, weights: str = "web,.7\nbooks,.3\n") -> Any:
        script, name, make = RECORDS[kind]
        change(make()).to_csv(tmp_path / name, index=False)
        (tmp_path / "valid_weights.csv").write_text("val_domain,valid_weight\n" + weights, encoding="utf-8")
        return run_script(script, tmp_path)

    return analysed


def cell(column: str, value: object, row: int = 4) -> Change:
    """Puts ``value`` into one cell; row 4 is the fifth."""

    def change(table: Table) -> Table:
        table = table.astype({column: object})
        table.loc[row, column] = value
        return table

    return change


BAD_CELLS = [
    ("regmix", cell("loss_web", "NA?"), "runs.csv: loss_web of row 5' must be a number; got 'NA[?]'"),
    ("regmix", cell("loss_web", -1), "loss_web of row 5'"),
    ("regmix", cell("w_web", "half"), "runs.csv: w_web of row 5' must be a number; got 'half'"),
    ("regmix", cell("w_web", None), "w_web of row 5' must be a finite number, not negative; got nan"),
    ("regmix", cell("w_web", 1.5), "shares of row 5' must sum to 1"),
    ("regmix", cell("model_size", None), "model_size of row 5 is empty"),
    ("regmix", cell("use", None), "runs.csv: use of row 5 is empty"),
    ("joint", cell("loss_code", "NA?"), "runs.csv: loss_code of row 5'"),
    ("joint", cell("loss_code", 0), "loss_code of row 5' must be a finite number, positive; got 0"),
    ("joint", cell("params", None), "params of row 5' must be a finite number, positive; got nan"),
    ("joint", cell("params", "7B"), "params of row 5' must be a number; got '7B'"),
    ("joint", cell("tokens", 0), "tokens of row 5' must be a finite number, positive"),
    ("redpajama", cell("loss", "diverged"), "redpajama.csv: loss of row 5'"),
    ("redpajama", cell("step", -3), "redpajama.csv: step of row 5'"),
    ("redpajama", cell("val_domain", None), "val_domain of row 5 is empty"),
    ("continued", cell("loss", "diverged"), "continued_pretraining.csv: loss of row 5'"),
    ("continued", cell("replay_share", "half"), "replay_share of row 5' must be a number; got 'half'"),
    ("continued", cell("replay_share", None), "replay_share of row 5'"),
    ("continued", cell("replay_share", 1.5), "replay_share of row 5' .*at most 1; got 1.5"),
    ("continued", cell("step", "last"), "step of row 5'"),
]  # fmt: skip
BAD_TABLES = [
    ("regmix", lambda t: t.iloc[:0], "runs.csv holds no rows"),
    ("regmix", lambda t: t[t["use"] == "fit"], "holds no row with use = predict"),
    ("regmix", lambda t: t.drop(columns=["w_web", "w_code", "w_books"]), "missing w_<source>"),
    ("regmix", lambda t: t.iloc[8:], "No target is measured in 8 fit rows"),
    ("joint", lambda t: t.iloc[:0], "runs.csv holds no rows"),
    ("joint", lambda t: t.drop(columns=["w_web", "w_code", "w_books"]), "runs.csv: missing w_<source>"),
    ("joint", lambda t: t.assign(w_web=t["w_web"] + 1), "runs.csv: shares of row 1' must sum to 1; got 2"),
    ("joint", lambda t: t.drop(columns=["loss_web", "loss_code"]), "missing loss_<domain>"),
    ("joint", lambda t: t[t["use"] == "fit"], "must mark rows of both kinds"),
    ("redpajama", lambda t: t.drop(columns=["w_web", "w_code", "w_books"]), "missing w_<source>"),
    ("continued", lambda t: t.iloc[:0], "continued_pretraining.csv holds no rows"),
    ("continued", lambda t: t[t["val_domain"] != "python"], "No row with use = fit and a loss is one of python"),
    ("continued", lambda t: t.replace({"web": "prose", "books": "verse"}), "one of an old domain.*hold python"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "message"), BAD_CELLS + BAD_TABLES)
def test_bad_records_fail_in_one_line(
    analyse: Run, capsys: pytest.CaptureFixture[str], kind: str, change: Change, message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        analyse(kind, change)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert len(said.splitlines()) == 1
    assert said.startswith("error: ")
    assert re.search(message, said), said


def test_a_domain_weighed_twice_is_an_error(analyse: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        analyse("continued", weights="web,.7\nbooks,.3\nweb,.2\n")
    assert "valid_weights.csv weighs web twice" in capsys.readouterr().err


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two regressions instead of nine: these tests are about the records."""
    script = importlib.import_module("mixture_regression")
    kept = {name: script.REGRESSIONS[name] for name in ("linear", "inverse_sum")}
    monkeypatch.setattr(script, "REGRESSIONS", kept)
    monkeypatch.setattr(script, "CURVE_REGRESSIONS", tuple(kept))


@pytest.mark.usefixtures("quick")
def test_mixture_records_that_are_less_than_whole_are_scored_and_say_so(analyse: Run) -> None:
    def change(table: Table) -> Table:
        table["w_books"] = np.where(table["use"] == "fit", 0.0, table["w_books"])
        shares = ["w_web", "w_code", "w_books"]
        table[shares] = table[shares].div(table[shares].sum(axis=1), axis=0)
        table.loc[[2, 15], "loss_web"] = [np.nan, np.inf]
        larger = table[table["use"] == "predict"].assign(model_size="1B", use="predict")
        later = table.iloc[:3].assign(use="later")
        few = table.iloc[:3].assign(model_size="7B")
        return pd.concat([table, table.iloc[:5], larger, later, few]).assign(note="x")

    values = analyse("regmix", change)
    assert values["copied_rows"] == 5
    assert (set(values["learning_curve"]), values["learning_curve_pile_cc"]) == (
        {"linear", "inverse_sum"},
        {},
    )
    assert values["num_fit_runs"] == 12
    assert values["unseen_sources"] == ["books"]
    assert values["rows_without_loss"] == {"loss_web": 3}
    assert values["excluded"] == {
        "use = later": "3 rows, neither fit nor predict",
        "model_size = 7B": "3 fit rows beside those of 1M",
    }
    for scores in values["regressions"].values():
        assert set(scores["sizes"]) == {"1M", "1B"}


@pytest.mark.usefixtures("quick")
def test_regressions_can_be_run_one_by_one(
    analyse: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = analyse("regmix", lambda table: table)
    script, out = importlib.import_module("mixture_regression"), tmp_path / "parts.json"

    def run(*words: str) -> None:
        monkeypatch.setattr(
            sys, "argv", ["mixture_regression", "--data", str(tmp_path), "--json", str(out), *words]
        )
        script.run(script.main)

    run("--only", "linear", "--runs", "8")
    run("--only", "inverse_sum")
    parts = json.loads(out.read_text(encoding="utf-8"))
    assert set(parts["regressions"]) == {"linear", "inverse_sum"}
    assert set(parts["learning_curve"]["linear"]) == {"8", "12"}
    for name, entry in parts["regressions"].items():
        assert entry["sizes"] == whole["regressions"][name]["sizes"]
    table = pd.read_csv(tmp_path / "runs.csv")
    table[table["mixture_id"] > 0].to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(SystemExit):
        run("--only", "linear")
    assert "num_fit_runs" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_no_regression_at_all_is_an_error(
    analyse: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = importlib.import_module("mixture_regression")
    monkeypatch.setattr(script, "REGRESSIONS", {"bimix": script.RIVALS["bimix"]})
    with pytest.raises(SystemExit) as ended:
        analyse("regmix", lambda table: table.rename(columns={"loss_web": "loss_a", "loss_code": "loss_b"}))
    assert ended.value.code == 2
    assert "No regression could be fitted. bimix: 'own.loss_a'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("joint", lambda t: t.assign(params=np.where(t["use"] == "fit", 1e6, 7e9), tokens=t["params"] * 1e3)),
        ("redpajama", lambda t: t.assign(note="x").sample(frac=1, random_state=1)),
    ],
)  # fmt: skip
def test_joint_records_of_other_sizes_tokens_and_sources(analyse: Run, kind: str, change: Change) -> None:
    values = analyse(kind, change)
    errors = values["laws"][values["default"]]["sizes"]
    assert len(errors) == 1
    assert all(np.isfinite(scores["mean"]) for scores in errors.values())
    assert values["copied_rows"] == 0


def test_joint_records_with_copies_gaps_and_a_source_never_sampled(analyse: Run) -> None:
    values = analyse(
        "joint",
        lambda t: pd.concat([t, t.iloc[:4]]).assign(
            w_new=0.0, loss_new=np.nan, loss_web=t["loss_web"].where(t.index != 3)
        ),
    )
    assert values["copied_rows"] == 4
    assert values["excluded_targets"] == ["loss_new"]
    assert values["unseen_sources"] == ["new"]
    assert values["rows_without_loss"] == {"loss_web": 1, "loss_code": 0}


def test_replay_records_beyond_the_fit_are_named(analyse: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    script = importlib.import_module("continued_pretraining")
    monkeypatch.setattr(script, "ALTERNATIVES", {"bimix": script.ALTERNATIVES["bimix"]})

    def change(table: Table) -> Table:
        table.loc[table["use"] == "predict", "replay_share"] = 0.0
        late = table[table["use"] == "predict"].assign(step=9000, replay_share=1.0)
        gap = table.iloc[[0]].assign(loss=np.inf, step=1500)
        return pd.concat([table, late, gap, table.iloc[:2]])

    values = analyse("continued", change)
    assert values["outside_fit"] == {"share": [0.0, 1.0], "steps": [9000.0]}
    assert values["copied_rows"] == 2
    assert values["rows_without_loss"] == 1
    assert set(values["by_share"]) == {"0.0", "1.0"}
    assert np.isfinite(values["weighted_mae"])
    assert values["fit_size"] == "unnamed"


@pytest.mark.parametrize(
    ("script", "files", "said"),
    [
        ("decay_gain", {"cooldown_pairs.csv": "params,tokens_begin,tokens_end,gain,use\n1e8,1e9,none,.1,fit\n"},
         "cooldown_pairs.csv: tokens_end of row 1' must be a number; got 'none'"),
        ("downstream", {"curves.csv": "model_size,run,params_nonemb,tokens,lr,peak_lr,use,bpb_arc,acc_rc_arc\n"
                                      "1B,a,1e9,1e9,1e-4,1e-3,fit,1.0,high\n"},
         "curves.csv: acc_rc_arc of row 1' must be a number; got 'high'"),
        ("schedule_laws", {"runs.csv": "model_size,run,schedule,total_steps,warmup_steps,peak_lr,end_lr,"
                                       "decay_start_step,use\n25M,a,cosine,24k,100,3e-4,3e-5,,fit\n",
                           "curves.csv": "model_size,run,step,loss,use\n25M,a,1,3.0,fit\n"},
         "runs.csv: total_steps of row 1' must be a number; got '24k'"),
        ("decay_grid", {"runs.csv": "run_id,dataset,params,tokens_per_step,peak_lr,scheduler,decay_type,decay_frac,"
                                    "cos_final_lr,warmup_steps,total_steps,final_val_loss,use\n"
                                    "1,s,1e8,1e5,5e-4,wsd,linear,.2,,300,1000,diverged,fit\n"},
         "runs.csv: final_val_loss of row 1' must be a number; got 'diverged'"),
        ("size_token_law", {"points.csv": "params,tokens,loss,use\n1e9,2e10,2.5,fit\n1e9,1e11,2.4 nats,fit\n"},
         "points.csv: loss of row 2' must be a number; got '2.4 nats'"),
    ],
)  # fmt: skip
def test_text_among_numbers_is_named_by_every_script(
    run_script: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    script: str, files: dict[str, str], said: str,
) -> None:  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit):
        run_script(script, tmp_path)
    assert said in capsys.readouterr().err
