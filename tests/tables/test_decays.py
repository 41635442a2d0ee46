"""From a table of decays that differ in length to a mixture and a schedule: near the truth, on a page, as a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from decaylaws.cli import app
from decaylaws.errors import InvalidValueError
from decaylaws.recipe import Recipe
from decaylaws.settings.mix import MixSettings
from decaylaws.tables import DecayMixed, Mixed, mix_decay, mix_or_decay, read_run_table
from decaylaws.tables.decay_reading import lacking, read_decays
from tests.laws.test_decay_law import SOURCES, TRUNK, planned, planted_loss, simulated

LENGTHS, SHAPES = (50_000, 100_000, 200_000), ("linear", "1-sqrt")


def decays(count: int = 24) -> pd.DataFrame:
    """Finished decays of one size from one checkpoint, with a name each."""
    runs = simulated(count, sizes=(100_000,))
    runs.insert(0, "run", [f"decay-{k}" for k in range(len(runs))])
    return runs


def saved(table: pd.DataFrame, folder: Path) -> Path:
    path = folder / "decays.csv"
    table.to_csv(path, index=False)
    return path


def truth(shares: np.ndarray, **plan: object) -> float:
    row = planned(shares, **plan)
    return float(np.mean([planted_loss(row, name) for name in SOURCES]))


def best_truth(most_tokens: int) -> float:
    """The smallest objective of any mixture, length within the budget and shape, nearly."""
    grid = np.random.default_rng(0).dirichlet(np.ones(3), 1500)
    return min(
        truth(shares, decay_tokens=length, decay_shape=shape)
        for shares in grid
        for length in LENGTHS
        for shape in SHAPES
        if length <= most_tokens
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(decays(), tmp_path_factory.mktemp("decays"))


def answer(path: Path, **question: object) -> Mixed | DecayMixed:
    settings = MixSettings.checked(question)
    return mix_or_decay(read_run_table(path, settings=settings), settings)


@pytest.fixture(scope="module")
def found(path: Path) -> DecayMixed:
    free = answer(path)
    assert isinstance(free, DecayMixed)
    return free


def test_mixture_and_schedule_are_near_the_true_optimum(found: DecayMixed) -> None:
    reached = truth(
        found.mixture.array(SOURCES), decay_tokens=found.decay_tokens, decay_shape=found.decay_shape,
        start_lr=found.start_lr, end_lr=found.end_lr,
    )  # fmt: skip
    assert reached - best_truth(200_000) < 0.01
    assert (found.decay_tokens, found.decay_shape) == (200_000, "linear")
    assert found.objective.lower < reached < found.objective.upper
    assert found.schedule.tokens == 200_000
    own = truth(np.array(list(TRUNK.values())), decay_tokens=200_000)
    gain = found.rivals.iloc[0]
    assert gain["rival"] == "trunk's mixture"
    assert gain["lower"] < own - reached < gain["upper"]
    assert found.supported
    assert "better than control" in found.verdict
    assert 0 <= found.expected_regret <= found.regret_upper
    assert found.shares["share"].sum() == pytest.approx(1)
    assert len(found.schedules) == len(LENGTHS) * len(SHAPES)


def test_the_law_stands_beside_baselines_on_runs_that_it_did_not_see(found: DecayMixed) -> None:
    for kind in ("mixture", "tokens"):
        mae = found.held_out[found.held_out["held_out"] == kind].set_index("law")["mae"]
        assert {"regmix", "inverse_sum", "nearest_run", "constant", "control"} < set(mae.index)
        assert mae[found.law] == mae.min() < 0.3 * mae["constant"]
    left_out = found.predicted.dropna()
    assert len(left_out) == 24
    assert np.abs(left_out["predicted"] - left_out["observed"]).max() < 0.05


def test_decays_on_their_way_enter_the_law_and_are_not_scored(tmp_path: Path) -> None:
    table = decays(16)
    late = np.isin(np.arange(len(table)), [1, 4, 7, 10])
    errors = {f"loss_error:{name}": np.where(late, 0.03, 0.0) for name in SOURCES}
    read = answer(saved(table.assign(**errors, reached_target=~late), tmp_path))
    assert isinstance(read, DecayMixed)
    assert read.excluded.empty
    assert read.num_runs == len(read.predicted) == len(table) - 4
    assert len(read.table.runs) == len(table)
    assert read.fitted.noise_.shape == (len(SOURCES),)
    assert any("4 runs have not reached their end" in note for note in read.notes)
    assert read.held_out["num_runs"].max() <= len(table) - 4


def test_budget_limits_guards_and_control_are_kept(path: Path) -> None:
    kept = answer(
        path, decay_tokens=120_000, guards={"web": 0.05}, control="mean", weights={"code": 1, "web": 1},
        kl_strength=0.01, sources={"code": {"upper": 0.3}},
    )  # fmt: skip
    assert isinstance(kept, DecayMixed)
    # lengths between those of the table are within what its runs span
    assert kept.decay_tokens == 120_000
    assert kept.mixture.share("code") <= 0.3 + 1e-9
    guard = kept.guards.iloc[0]
    assert guard["change"] <= 0.05 + 1e-6
    assert guard["margin"] > 0
    assert kept.divergence > 0
    assert kept.rivals["rival"].iloc[0] == "mean of the runs"
    assert "The control is the mean of the runs." in kept.verdict
    assert set(kept.targets["target"]) == {"web", "code"}
    with pytest.raises(InvalidValueError, match="at least the 50,000 tokens of the shortest decay"):
        answer(path, decay_tokens=10_000)


def test_what_the_law_lacks_is_said_by_name_and_the_regression_answers(tmp_path: Path) -> None:
    poor = decays().drop(columns=["start_loss:code", "role"])
    poor.loc[3, "batch_tokens"] = np.nan
    path = saved(poor, tmp_path)
    regression = answer(path)
    assert isinstance(regression, Mixed)
    assert not regression.supported
    words = "also needs batch_tokens in 1 of 29 runs, start_loss:code, trunk (the mixture before the decays)"
    assert words in regression.verdict
    with pytest.raises(InvalidValueError, match=r"needs batch_tokens in 1 of 29 runs, start_loss:code"):
        answer(path, law="decay")
    with pytest.raises(InvalidValueError, match="belongs to the decay law"):
        answer(path, law="inverse_sum", trunk=TRUNK)


def test_a_named_regression_is_taken_in_place_of_the_law(path: Path) -> None:
    regression = answer(path, law="inverse_sum")
    assert isinstance(regression, Mixed)
    assert "--law decay" in regression.verdict


def test_constants_and_a_trunk_stand_in_for_columns(tmp_path: Path) -> None:
    columns = ["role", "batch_tokens", "start_tokens", "non_embedding_params", "start_loss:web"]
    bare = (
        decays()
        .drop(columns=columns)
        .rename(columns={"start_loss:code": "start_loss_code", "start_lr": "lr"})
    )
    settings = MixSettings.checked({
        "columns": {"start_lr": "lr"}, "trunk": TRUNK,
        "constants": {"batch_tokens": "1K", "start_tokens": "1M", "non_embedding_params": "100_000".replace("_", ""),
                      "start_loss:web": 3.2},
    })  # fmt: skip
    table = read_run_table(saved(bare, tmp_path), settings=settings)
    assert lacking(table, settings) == ()
    whole = MixSettings()
    expected = read_decays(read_run_table(saved(decays(), tmp_path), settings=whole), whole)
    read = read_decays(table, settings)
    pd.testing.assert_frame_equal(
        read.runs[sorted(read.runs)], expected.runs[sorted(read.runs)], check_dtype=False
    )
    assert read.target == expected.target
    assert read.choices == expected.choices
    assert dict(read.trunk.weights) == pytest.approx(dict(expected.trunk.weights))
    for wrong, words in (
        ({"constants": {"colour": "red"}}, "is not a column of the decay law"),
        ({"constants": {"end_lr": "low"}}, "must be a number"),
        ({"trunk": {"law": 1.0}}, "is not a source of the table"),
        ({"trunk": {"web": 0.5}}, "trunk"),
    ):
        asked = MixSettings.checked({**settings.model_dump(exclude_unset=True), **wrong})
        with pytest.raises(InvalidValueError, match=words):
            read_decays(table, asked)


def test_of_several_checkpoints_the_one_with_most_tokens_is_planned_for(tmp_path: Path) -> None:
    two = decays()
    two.loc[:9, ["start_tokens", "start_loss:web"]] = [500_000, 3.3]
    table = read_run_table(saved(two, tmp_path))
    read = read_decays(table, MixSettings())
    assert read.target.start_tokens == 1_000_000
    assert read.target.start_loss["web"] == 3.2
    assert "19 of 29 start from this one" in " ".join(read.notes)


def test_too_few_mixtures_or_an_unknown_shape_are_said_by_name(tmp_path: Path) -> None:
    alike = decays()
    alike.loc[:23, [f"mix:{name}" for name in SOURCES]] = [[0.2, 0.4, 0.4], [0.5, 0.3, 0.2]] * 12
    table = read_run_table(saved(alike, tmp_path))
    assert lacking(table, MixSettings()) == ("runs on at least 3 mixtures beside the trunk's",)
    table = read_run_table(saved(decays().assign(decay_shape="straight"), tmp_path))
    with pytest.raises(
        InvalidValueError, match=r"decay_shape of run 'decay-0'.*must be one of constant, linear"
    ):
        read_decays(table, MixSettings())


def test_counts_are_read_with_units_as_everywhere_else(tmp_path: Path) -> None:
    plain = decays()
    units = plain.assign(
        decay_tokens=(plain["decay_tokens"] // 1000).map("{}K".format), start_tokens="1M",
        non_embedding_params="100K", batch_tokens="1,000",
    )  # fmt: skip
    read = read_decays(read_run_table(saved(units, tmp_path)), MixSettings())
    expected = read_decays(read_run_table(saved(plain, tmp_path)), MixSettings())
    pd.testing.assert_frame_equal(read.runs, expected.runs)
    assert read.target == expected.target
    assert read.choices == expected.choices
    named = read_run_table(saved(plain.assign(start_tokens="1 M x"), tmp_path))
    assert lacking(named, MixSettings()) == (
        f"start_tokens in {len(plain)} of {len(plain)} runs (a cell holds '1 M x')",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.assign(decay_tokens=table["decay_tokens"] // 1000),
         r"decay_tokens of run 'decay-0'' must be at least the 1,000 tokens of a batch; got '50'. Count single"),
        (lambda table: table.assign(end_lr=2e-3), r"end_lr of run 'decay-0'' must be at most its start_lr, 0.001"),
        (lambda table: table.assign(**{"start_loss:web": -1.0}), r"start_loss:web of row 1' must be .* positive"),
    ],
)  # fmt: skip
def test_plans_that_no_trainer_makes_are_refused(tmp_path: Path, change, words: str) -> None:
    table = read_run_table(saved(change(decays()), tmp_path))
    with pytest.raises(InvalidValueError, match=words):
        read_decays(table, MixSettings())


def test_few_or_broken_runs_are_one_error_or_left_out_by_name(tmp_path: Path) -> None:
    broken = decays()
    broken.loc[2, "loss:web"] = np.nan
    table = read_run_table(saved(broken, tmp_path))
    assert table.excluded["run"].tolist() == ["decay-2"]
    with pytest.raises(InvalidValueError, match="must be at least 8"):
        mix_decay(read_run_table(saved(broken.iloc[[3, 4, 5, 6, 24]], tmp_path)))


def test_the_command_prints_json_a_page_and_a_recipe_that_exports(path: Path, tmp_path: Path) -> None:
    page, recipe, out = tmp_path / "mix.html", tmp_path / "recipe.yaml", tmp_path / "out"
    asked = ["mix", str(path), "--tokens", "100K", "--upper", "maths=0.4", "--guard", "web=0.3"]
    asked += [
        "--report",
        str(page),
        "--recipe",
        str(recipe),
        "--seq-len",
        "100",
        "--checkpoint",
        "runs/step-1000",
    ]
    result = CliRunner().invoke(app, [*asked, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["decay_tokens"] == 100_000
    assert told["mixture"]["maths"] <= 0.4
    assert told["schedule"].startswith("Linear(0, 100K")
    assert {"rivals", "held_out", "schedules", "guards", "targets", "regret_upper", "excluded", "law"} <= set(
        told
    )
    assert told["verdict"] in " ".join(result.stderr.split())
    text = page.read_text()
    assert "Which mixture and schedule" in text
    assert "://" not in text.replace("http://www.w3.org", "")
    written = Recipe.load(recipe)
    assert written.stages[0].lr.tokens == 100_000
    assert written.stages[0].batch_tokens == 1000
    assert written.handover.tokens == 1_000_000
    assert written.handover.lr == 1e-3
    assert written.predictions["code"].mean < written.predictions["code"].control
    assert written.guards["web"].limit == 0.3
    assert written.provenance.laws[0].heldout_error["mae:mixture"] > 0
    assert len(written.provenance.evidence.run_ids) == 29
    exported = ["export", str(recipe), "--target", "olmo-core", "--out", str(out)]
    assert CliRunner().invoke(app, exported, catch_exceptions=False).exit_code == 0
    assert (out / "olmo-core").is_dir()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--recipe", "recipe.yaml"], "needs --checkpoint, --seq-len"),
        (
            ["--recipe", "recipe.yaml", "--schedule", "Linear(0, 1K)", "--seq-len", "100"],
            "takes no --schedule",
        ),
        (["--constant", "start_lr=1e-3"], "start_lr"),
        (["--available", "web=1M"], "must be given where that of another source is"),
        (["--upper", "law=0.5"], "is not a source of the table"),
    ],
)
def test_options_that_cannot_be_are_one_error_before_any_fit(
    path: Path, options: list[str], words: str
) -> None:
    result = CliRunner().invoke(app, ["mix", str(path), *options])
    assert result.exception is not None
    assert words in str(result.exception)


def test_checkpoints_of_several_lrs_are_compared_by_factors_of_their_own(tmp_path: Path) -> None:
    two = decays().assign(handover_lr=1e-3)
    falls = two["decay_shape"] != "constant"
    two.loc[~falls, "handover_lr"] = 1e-4
    older = two.index[:9]
    two.loc[older, ["start_tokens", "handover_lr", "start_lr"]] = [500_000, 2e-3, 1e-3]
    two.loc[~falls, "start_tokens"] = 900_000
    read = read_decays(read_run_table(saved(two, tmp_path)), MixSettings())
    assert read.target.handover_lr == 1e-3
    # half and the whole of the checkpoint's LR were run, at LRs that were all 1e-3
    assert read.choices.start_lr == pytest.approx((5e-4, 1e-3))


def test_epochs_of_the_runs_count_where_tokens_are_known(path: Path) -> None:
    known = {name: {"available_tokens": tokens} for name, tokens in zip(SOURCES, (10**7, 20_000, 40_000))}
    table = read_run_table(path)
    runs = read_decays(table, MixSettings.checked({"sources": known})).runs
    assert runs["epochs:code"].to_numpy() == pytest.approx(runs["mix:code"] * runs["decay_tokens"] / 20_000)
    assert not any(name.startswith("epochs:") for name in read_decays(table, MixSettings()).runs)
