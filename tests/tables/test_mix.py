"""From a table of runs to a mixture: its gain, its certainty, its page, and its recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from decaylaws.cli import app
from decaylaws.errors import InfeasibleError, InvalidValueError
from decaylaws.laws.mixing import InverseSum
from decaylaws.recipe import Recipe
from decaylaws.settings.mix import MixSettings
from decaylaws.tables import Mixed, RunTable, mix, read_run_table
from decaylaws.tables.held_out import MEAN, NEAREST, HeldOutRuns
from decaylaws.tables.mixture import _parts
from decaylaws.tables.mixture_words import doubts_of
from tests.laws.test_mixture_harm import ONSET, PASSES
from tests.laws.test_mixture_harm import runs as repeated_runs
from tests.tables.planted import SOURCES, best_objective, runs, truth

pytestmark = pytest.mark.slow

FAST = {"law": "inverse_sum"}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "runs.csv"
    runs().to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def table(planted: Path) -> RunTable:
    return read_run_table(planted)


@pytest.fixture(scope="module")
def found(table: RunTable) -> Mixed:
    return mix(table)


def at(mixed: Mixed) -> float:
    """The true objective of what was recommended."""
    return float(truth(mixed.mixture.array(SOURCES)[None]).mean())


def test_the_mixture_is_near_the_true_optimum_and_says_what_it_rests_on(found: Mixed) -> None:
    assert at(found) - best_objective() < 0.02
    assert found.objective.lower < at(found) < found.objective.upper
    assert all(share * 1000 == pytest.approx(round(share * 1000)) for share in found.mixture.weights.values())
    assert found.shares["share"].sum() == pytest.approx(1)
    assert found.shares["share"].is_monotonic_decreasing
    assert (found.shares["low"] <= found.shares["high"]).all()
    best = found.rivals.iloc[0]
    assert best["rival"].startswith("best observed run: run-")
    assert best["lower"] < best["gain"] < best["upper"]
    assert best["observed"] == pytest.approx(runs()[["loss_web", "loss_code"]].mean(axis=1).min())
    assert 0 <= found.expected_regret <= found.regret_upper
    held = found.held_out.set_index("regression")
    assert held.index[0] == "blend"
    assert {"linear", "log_linear", "lightgbm_regmix", MEAN, NEAREST} < set(held.index)
    assert held.loc["blend", "rmse"] < 0.5 * held.loc[MEAN, "rmse"]
    assert 0.5 <= held.loc["blend", "coverage_90"] <= 1
    errors = np.abs(found.predicted["predicted"] - found.predicted["observed"])
    # intervals of so few runs are too narrow: the objective's holds as many of the left-out runs as it says
    assert (errors < found.objective.upper - found.objective.mean).mean() >= 0.9
    assert found.predicted["predicted"].notna().all()


def test_a_gain_that_the_runs_do_not_support_is_not_promised() -> None:
    """The best run lies at the optimum already, and losses are noisy: nothing better can be told."""
    noisy = runs(24, seed=5, noise=0.05)
    table = _table(noisy)
    answer = mix(table, MixSettings.checked(FAST))
    assert not answer.supported
    assert answer.verdict.startswith("The evidence does not support a gain over the best observed run")
    wide = answer.rivals.iloc[0]
    assert wide["lower"] < 0 < wide["upper"]


def test_a_law_that_errs_as_much_as_the_mean_promises_nothing() -> None:
    """Losses that do not depend on the mixture."""
    blind = runs(30, seed=7)
    rng = np.random.default_rng(0)
    blind[["loss_web", "loss_code"]] = 3 * np.exp(0.05 * rng.standard_normal((30, 2)))
    answer = mix(_table(blind), MixSettings.checked(FAST))
    assert not answer.supported
    assert "errs no less than the mean of the runs" in answer.verdict


def test_runs_of_several_plans_support_no_gain() -> None:
    """Length is confounded with nothing here, but a regression of mixtures could not tell."""
    lengths = runs(30).assign(decay_tokens=[10**9, 2 * 10**9] * 15, start_lr=3e-4)
    table = _table(lengths)
    assert table.differing == ("decay_tokens",)
    answer = mix(table, MixSettings.checked(FAST))
    assert not answer.supported
    assert "also differ in decay_tokens" in answer.verdict
    assert _table(runs(30).assign(train_tokens=10**9, lr=3e-4)).differing == ()


def test_a_diverged_run_is_left_out_by_name_and_changes_little(table: RunTable) -> None:
    spoilt = runs()
    spoilt.loc[3, ["loss_web", "loss_code"]] *= 1.6
    answer = mix(_table(spoilt), MixSettings.checked(FAST))
    assert answer.excluded["run"].tolist() == ["run-3"]
    assert "diverged" in answer.excluded["reason"].iloc[0]
    clean = mix(_table(runs().drop(index=3)), MixSettings.checked(FAST))
    assert answer.mixture.distance(clean.mixture) < 0.01


def test_runs_on_their_way_count_by_the_error_of_their_forecast() -> None:
    """Twenty runs have ended; of twenty more only the curves are known, one of them far too good to be true."""
    on_the_way = runs(40).assign(state="finished")
    late = on_the_way.index >= 20
    noise = np.random.default_rng(1).normal(size=(20, 1)) * 0.15
    noise[0] = -0.6
    on_the_way.loc[late, ["loss_web", "loss_code"]] += noise
    errors = {"loss_error:web": np.where(late, 0.15, 0.0), "loss_error:code": np.where(late, 0.15, 0.0)}
    on_the_way = on_the_way.assign(state=np.where(late, "running", "finished"), **errors)
    settings = MixSettings.checked(FAST)
    weighed = mix(_table(on_the_way), settings)
    dropped = mix(_table(on_the_way[~late].drop(columns=list(errors))), settings)
    assert weighed.num_runs == len(weighed.predicted) == 20
    assert weighed.excluded.empty
    assert any("20 runs have not reached their end" in note for note in weighed.notes)
    assert weighed.rivals["rival"].iloc[0] == dropped.rivals["rival"].iloc[0]
    assert at(weighed) - best_objective() < 0.02
    held = [each.held_out.set_index("regression")["rmse"] for each in (weighed, dropped)]
    assert held[0]["inverse_sum"] < 1.1 * held[1]["inverse_sum"]
    assert held[0][NEAREST] > 0  # of finished runs alone
    few = on_the_way[on_the_way.index >= 13]
    with pytest.raises(InvalidValueError, match="at least 8 that have ended"):
        mix(_table(few), settings)


def test_limits_groups_guards_and_a_prior_are_kept(table: RunTable) -> None:
    free = mix(table, MixSettings.checked({**FAST, "weights": {"code": 1.0}}))
    assert free.mixture.share("code") > 0.5
    question = {
        **FAST, "weights": {"code": 1.0}, "guards": {"web": 0.05}, "decay_tokens": "10B",
        "sources": {"web": {"available_tokens": "100B", "lower": 0.1},
                    "code": {"available_tokens": "500M", "max_epochs": 4},
                    "maths": {"available_tokens": "5B"}, "books": {"available_tokens": "5B"}},
        "groups": {"formal": {"members": ["code", "maths"], "upper": 0.6}},
    }  # fmt: skip
    kept = mix(table, MixSettings.checked(question))
    shares = kept.mixture
    assert shares.share("code") <= 0.2 + 1e-9
    assert shares.share("web") >= 0.1
    assert shares.share("code") + shares.share("maths") <= 0.6 + 1e-9
    assert {"max_epochs"} <= set(kept.shares["limit"])
    guard = kept.guards.iloc[0]
    assert guard["change"] <= guard["limit"]
    assert guard["margin"] > 0
    assert "in proportion to tokens" in kept.rivals["rival"].tolist()
    near = mix(table, MixSettings.checked({**FAST, "weights": {"code": 1.0}, "kl_strength": 0.3}))
    assert near.divergence < 0.8 * free.mixture.kl(_mean(table))
    with pytest.raises(InfeasibleError):
        mix(table, MixSettings.checked({**FAST, "sources": {name: {"upper": 0.2} for name in SOURCES}}))


def test_a_lower_bound_beyond_every_run_is_said_and_the_best_run_is_no_way_out(table: RunTable) -> None:
    most = float(table.shares["maths"].max())
    far = mix(table, MixSettings.checked({**FAST, "sources": {"maths": {"lower": most + 0.1}}}))
    assert any(
        f"maths ({far.mixture.share('maths'):.4g}, at most {most:.4g} in any run)" in note
        for note in far.notes
    )
    assert not far.supported
    assert far.verdict.endswith("Train it before the real run.")
    assert any("does not keep the limits" in note for note in far.notes)
    inside = mix(table, MixSettings.checked({**FAST, "sources": {"maths": {"lower": most - 0.1}}}))
    assert not any("beyond every run" in note for note in inside.notes)


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"law": "kaplan"}, "must be one of"),
        ({"sources": {"law": {"upper": 0.1}}}, "not a source of the table"),
        ({"sources": {"web": {"available_tokens": "1B"}}}, "must be given where that of another source is"),
        ({"sources": {"web": {"max_epochs": 4}}}, "needs available_tokens and decay_tokens"),
        ({"control": "nobody"}, "must be mean, available or the name of a run"),
        ({"prior": "available", "kl_strength": 0.1}, "needs the available_tokens"),
    ],
)
def test_a_question_that_cannot_be_answered_is_one_error(
    table: RunTable, question: dict[str, object], words: str
) -> None:
    with pytest.raises(InvalidValueError, match=words):
        mix(table, MixSettings.checked(question))


def test_few_runs_are_refused_or_doubted() -> None:
    with pytest.raises(InvalidValueError, match="at least 8"):
        mix(_table(runs(7)))
    nine = mix(_table(runs(9)), MixSettings.checked(FAST))
    assert nine.num_runs == 9
    assert len(nine.held_out)
    eight = mix(_table(runs(8)), MixSettings.checked(FAST))
    assert eight.held_out.empty
    assert not eight.supported
    assert "too few runs to hold some out: 8 on 8 different mixtures." in " ".join(eight.notes)
    assert "with an error that no left-out run could show" in eight.verdict


def test_many_targets_are_regressed_in_groups_and_many_runs_left_out_without_refits() -> None:
    table = runs(100, seed=2)
    rng = np.random.default_rng(3)
    for k in range(20):
        base = table["loss_web" if k % 2 else "loss_code"]
        table[f"loss_task{k}"] = base * np.exp(0.01 * rng.standard_normal(100))
    answer = mix(_table(table), MixSettings.checked(FAST))
    assert len(answer.targets) <= 16
    assert answer.targets["targets"].sum() == 22
    assert answer.targets["weight"].sum() == pytest.approx(1)
    assert answer.held_out["coverage_90"].isna().all()
    assert answer.held_out["regression"].iloc[0] == "inverse_sum"
    assert at(answer) - best_objective() < 0.03


def test_scores_are_raised_and_stated_as_the_table_states_them() -> None:
    scores = runs().rename(columns={"loss_web": "acc_web", "loss_code": "acc_code"})
    scores[["acc_web", "acc_code"]] = 1 - scores[["acc_web", "acc_code"]] / 12
    settings = MixSettings.checked({**FAST, "direction": "higher"})
    answer = mix(_table(scores, settings), settings)
    assert at(answer) - best_objective() < 0.03
    targets = answer.targets.set_index("target")
    assert targets.loc["code", "predicted"] == pytest.approx(
        1 - truth(answer.mixture.array(SOURCES)[None])[0, 1] / 12, abs=0.01
    )
    assert answer.rivals["observed"].iloc[0] == pytest.approx(
        (1 - scores[["acc_web", "acc_code"]].mean(axis=1)).min()
    )


def test_the_command_prints_json_a_page_and_a_recipe_that_exports(planted: Path, tmp_path: Path) -> None:
    page, recipe = tmp_path / "mix.html", tmp_path / "recipe.yaml"
    asked = ["mix", str(planted), "--law", "inverse_sum", "--upper", "code=0.3", "--report", str(page)]
    asked += [
        "--recipe",
        str(recipe),
        "--schedule",
        "Constant(3e-4, 80M) -> Linear(0, 20M)",
        "--batch-tokens",
        "1M",
    ]
    result = CliRunner().invoke(app, [*asked, "--seq-len", "1000", "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert answer["mixture"]["code"] <= 0.3
    assert {"rivals", "held_out", "shares", "verdict", "excluded", "regret_upper"} <= set(answer)
    assert answer["verdict"] in result.stderr
    text = page.read_text()
    assert "<svg" in text
    assert "://" not in text.replace("http://www.w3.org", "")
    written = Recipe.load(recipe)
    assert written.stages[0].mixture.to_dict() == pytest.approx(
        {name: share for name, share in answer["mixture"].items() if share}
    )
    assert written.provenance.laws[0].heldout_error["rmse:inverse_sum"] > 0
    assert len(written.provenance.evidence.run_ids) == 40
    out = CliRunner().invoke(
        app,
        ["export", str(recipe), "--target", "megatron", "--out", str(tmp_path / "out")],
        catch_exceptions=False,
    )
    assert out.exit_code == 0
    assert (tmp_path / "out" / "megatron").is_dir()


def test_a_best_run_that_breaks_a_guard_is_no_way_out(table: RunTable) -> None:
    asked = MixSettings.checked({"law": "log_linear", "weights": {"code": 1.0}, "guards": {"web": 0.001}})
    found = mix(table, asked)
    best = found.shares.set_index("source")["best_run"][list(SOURCES)].to_numpy()
    mean = found.shares.set_index("source")["mean_of_runs"][list(SOURCES)].to_numpy()
    change = truth(best[None])[0, 0] - truth(mean[None])[0, 0]
    assert (
        change > 0.01
    )  # the run that is best for code is worse for web than the mean, by more than its guard allows
    assert not found.supported
    assert found.verdict.endswith("Train it before the real run.")
    assert any(note.endswith("does not keep the guard of web.") for note in found.notes)


def test_margins_above_their_limit_do_not_recommend_what_is_worse_than_the_control() -> None:
    """They leave only mixtures that lower the guarded loss; the control is the best mixture and keeps every guard."""
    grid = np.random.default_rng(0).dirichlet(np.ones(4), 20_000)
    best = grid[truth(grid).mean(axis=1).argmin()]
    row = dict(zip([f"w_{name}" for name in SOURCES], best)) | dict(
        zip(("loss_web", "loss_code"), truth(best[None])[0])
    )
    table = _table(pd.concat([runs(), pd.DataFrame([{"run": "best", **row}])], ignore_index=True))
    found = mix(table, MixSettings.checked({"law": "log_linear", "guards": {"web": 0.0}, "control": "best"}))
    control = found.choice.law.predict_objective(
        pd.DataFrame([best], columns=list(SOURCES)), {"web": 0.5, "code": 0.5}
    )
    assert found.guards["margin"].iloc[0] > 0
    assert found.choice.objective.mean <= control[0] + 1e-4
    assert any(
        "better than the control. This one keeps them by its prediction" in note for note in found.notes
    )


_RECIPE = ["--recipe", "recipe.yaml", "--seq-len", "4096", "--batch-tokens", "4096"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--recipe", "recipe.yaml"], "needs --schedule, --batch-tokens, --seq-len"),
        (["--recipe", "recipe.txt"], "must end in .yaml or .yml or .json"),
        ([*_RECIPE, "--schedule", "Lin(0, 1B)"], "a stage that cannot be read"),
        ([*_RECIPE[:-1], "5000", "--schedule", "Linear(0, 1B, start=3e-4)"], "multiple of --seq-len 4096"),
        (["--upper", "code"], "must read NAME=VALUE"),
        (["--upper", "code=half"], "must be a number"),
        (["--direction", "up"], "direction"),
        (["--available", "web=lots"], "available_tokens"),
        (["--weight", "code=1", "--weight", "code=2"], "each name once"),
    ],
)
def test_options_that_cannot_be_are_one_error_before_any_fit(
    planted: Path, options: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("decaylaws.tables.mixture.regression_with_intervals", None)
    result = CliRunner().invoke(app, ["mix", str(planted), *options])
    assert isinstance(result.exception, InvalidValueError)
    assert words in str(result.exception)


@pytest.mark.parametrize(
    ("records", "rows", "asked"),
    [
        ("marin_two_phase", 1000, {}),
        # a regression of 61 sources takes a second: of two of its hundred tasks, where its grouping has 16
        ("olmix_swarm", 80, {"weights": {"arc_easy:rc::olmes": 1.0, "winogrande:rc::olmes": 1.0}}),
    ],
)
def test_published_records_are_read_as_they_are(
    shared_data: Path, tmp_path: Path, records: str, rows: int, asked: dict[str, Any]
) -> None:
    pd.read_csv(shared_data / records / "runs.csv").head(rows).to_csv(tmp_path / "runs.csv", index=False)
    settings = MixSettings.checked(FAST | asked)
    table = read_run_table(tmp_path / "runs.csv", settings=settings)
    answer = mix(table, settings)
    assert answer.phases == (("phase_0", "phase_1") if records == "marin_two_phase" else ())
    assert answer.shares["share"].sum() == pytest.approx(1)
    assert np.isfinite(answer.rivals["gain"]).all()


def test_a_hundred_published_tasks_are_regressed_in_sixteen_groups(shared_data: Path) -> None:
    table = read_run_table(shared_data / "olmix_swarm" / "runs.csv")
    assert len(table.targets) > 90
    measured = table.losses * 0.0  # errors of losses that were expected: none
    parts, errors, weights, groups = _parts(table.losses, measured, dict.fromkeys(table.targets, 0.5), ())
    assert list(parts) == list(errors) == list(weights) == list(groups)
    assert len(groups) == 16
    assert sorted(name for members in groups.values() for name in members) == sorted(table.targets)


def _table(frame: pd.DataFrame, settings: MixSettings | None = None) -> RunTable:
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        frame.to_csv(file.name, index=False)
        return read_run_table(file.name, settings=settings)


def _mean(table: RunTable):
    from decaylaws.mixtures import Mixture

    return Mixture.normalised(table.shares.mean().to_dict())


def test_intervals_that_miss_left_out_runs_speak_against_a_gain(table: RunTable) -> None:
    law = InverseSum().fit(table.shares, table.losses)
    scores = {"regression": ["inverse_sum"], "rmse": [0.01], "coverage_90": [0.6]}

    def doubts(**changes: list[float]) -> tuple[str, ...]:
        held = HeldOutRuns("inverse_sum", pd.DataFrame(scores | changes), np.zeros(3), ())
        return doubts_of(law, held, len(table.runs), 0.1)

    assert doubts() == ("90 % intervals hold only 60 % of the left-out runs.",)
    assert doubts(coverage_90=[0.85]) == ()
    assert doubts(coverage_90=[float("nan")]) == ()


def test_harm_from_repetition_is_found_and_said(tmp_path: Path) -> None:
    """A table that states its length, and tokens by source: from six passes on books cost, and a note says so."""
    shares, observed = repeated_runs(3, 0.25)
    rows = pd.concat([shares.add_prefix("mix:"), observed.add_prefix("loss:")], axis=1)
    rows.insert(0, "run", [f"run-{number}" for number in range(len(rows))])
    rows["train_tokens"] = 10**9
    rows.to_csv(tmp_path / "runs.csv", index=False)
    sources = {name: {"available_tokens": round(10**9 / value)} for name, value in PASSES.items()}
    settings = MixSettings.checked({"law": "inverse_sum", "sources": sources, "decay_tokens": 2 * 10**9})
    found = mix(read_run_table(tmp_path / "runs.csv", settings=settings), settings)
    (said,) = [note for note in found.notes if note.startswith("Repeating 'books' more than")]
    (onset,) = found.choice.law.onsets_  # type: ignore[attr-defined]
    assert onset.lower <= ONSET <= onset.upper
    assert said.endswith(f"makes as many at a share of {onset.epochs / 50:.3f}.")
    stated = {name: {"run_epochs": 0.1 * value} for name, value in PASSES.items()}
    seldom = MixSettings.checked({"law": "inverse_sum", "sources": stated})
    without = mix(read_run_table(tmp_path / "runs.csv", settings=seldom), seldom)
    assert not any("Repeating" in note for note in without.notes)
