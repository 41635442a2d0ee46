"""Planned runs as folders for another trainer: what they hold, who starts from whom, and what is refused by name."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decaylaws import study as verbs
from decaylaws.errors import InvalidValueError, NotRepresentableError, StudyError
from decaylaws.exporters import EXPORTERS, ExportOptions
from decaylaws.exporters.base import max_error_off_path
from decaylaws.recipe import Recipe
from decaylaws.settings.study import parse_settings
from decaylaws.study import Study
from decaylaws.study.export import with_counters
from tests.study.external import CHECKPOINT_SETTINGS, DECLARED_SETTINGS, declared_study
from tests.study.simulated import make_sources, prepare
from tests.study.tiny import TINY_SETTINGS


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return declared_study(tmp_path / "study")


def with_sources(**changes: Any) -> dict[str, Any]:
    sources = {name: {**source} for name, source in DECLARED_SETTINGS["sources"].items()}
    sources["web"] |= changes
    return {"sources": sources}


def test_a_sweep_of_large_models_costs_what_its_runs_cost(tmp_path: Path) -> None:
    """Together the runs of one role cost more FLOPs than a 64-bit integer holds, and each of them less."""
    models = CHECKPOINT_SETTINGS["checkpoints"]["models"]
    large = {name: {**model, "non_embedding_params": "300M"} for name, model in models.items()}
    checkpoints = CHECKPOINT_SETTINGS["checkpoints"] | {"models": large}
    sources = {name: {**each, "tokens": "4T"} for name, each in CHECKPOINT_SETTINGS["sources"].items()}
    design = CHECKPOINT_SETTINGS["design"] | {"decay_tokens": ["2B"], "num_mixtures": 8}
    target = CHECKPOINT_SETTINGS["target"] | {"max_decay_tokens": "2B"}
    changes = {"checkpoints": checkpoints, "sources": sources, "design": design, "target": target}
    planned = verbs.plan(declared_study(tmp_path / "study", CHECKPOINT_SETTINGS | changes))
    largest = planned.cost["train_flops"].max()
    assert largest > 2**63 > max(run.config.train_flops for run in planned.design)
    assert planned.cost["train_flops"].min() >= 0
    assert planned.cost["train_flops"].sum() == pytest.approx(planned.design.train_flops)
    assert planned.hours == pytest.approx(planned.design.train_flops / 1e9 / 3600)


def test_a_recipe_goes_on_where_the_exported_trunk_ends(study: Study, tmp_path: Path) -> None:
    """A trainer fills the last batch of a trunk: its counters are not the tokens over the batch."""
    written = {run.config.run_id: run for run in verbs.export_runs(study, "megatron", tmp_path / "runs").runs}
    recipe = next(run.recipe for run in written.values() if run.recipe.handover.run_id)
    trunk = written[str(recipe.handover.run_id)].export
    options = with_counters(study, recipe, None)
    assert (options.seen_steps, options.seen_samples) == (trunk.last_step, trunk.last_sample)
    asked = ExportOptions(seen_samples=7)
    assert with_counters(study, recipe, asked) == asked
    elsewhere = recipe.model_copy(
        update={"handover": recipe.handover.model_copy(update={"run_id": "0" * 16})}
    )
    assert with_counters(study, elsewhere, None) == ExportOptions()


@pytest.mark.parametrize("target", sorted(EXPORTERS))
def test_every_planned_run_is_a_folder_that_says_what_the_plan_says(
    study: Study, tmp_path: Path, target: str
) -> None:
    written = verbs.export_runs(study, target, tmp_path / "runs")
    design = {run.config.run_id: run for run in study.design()}
    assert {run.config.run_id for run in written.runs} == set(design)
    for run in written.runs:
        planned, folder = design[run.config.run_id], tmp_path / "runs" / run.name
        recipe, stage = Recipe.load(folder / "recipe.yaml"), run.recipe.stages[0]
        assert run.name.endswith(planned.config.run_id)
        assert json.loads((folder / "run.json").read_text())["config"] == planned.config.to_dict()
        assert recipe == run.recipe
        assert stage.lr == planned.config.schedule
        assert stage.mixture == planned.config.mixture
        assert (recipe.seed, stage.tokens) == (planned.config.seed, planned.config.tokens)
        # a target that takes a table has the plan's LR; others read their schedule at one end of the step
        if target in ("huggingface", "torchtitan", "olmo-core"):
            assert run.export.max_abs_lr_error <= 1e-12
        assert max_error_off_path(run.export.step_lrs, recipe) <= 1e-12
        launch = (folder / "launch.sh").read_text()
        assert f"WANDB_RUN_GROUP={study.settings.name}" in launch
        assert f"WANDB_NAME={run.name}" in launch
        assert f"DECAYLAWS_RUN_ID={planned.config.run_id}" in launch
        for name in re.findall(rf"{run.name}/([\w.-]+)", launch):
            assert (folder / name).is_file()


@pytest.mark.parametrize("target", sorted(EXPORTERS))
def test_a_decay_starts_where_its_trunk_ends(study: Study, tmp_path: Path, target: str) -> None:
    written = verbs.export_runs(study, target, tmp_path / "runs")
    ends = {run.config.run_id: run.export.last_checkpoint for run in written.runs if run.role == "trunk"}
    for run in written.runs:
        handover = run.recipe.handover
        if run.role == "trunk":
            assert handover.checkpoint is None
            assert run.name in run.export.last_checkpoint
        else:
            assert handover.checkpoint == ends[str(run.config.start_run_id)]
            assert handover.optimizer_state == "load"
            assert handover.tokens == study.settings.trunk.tokens


@pytest.mark.parametrize("target", sorted(EXPORTERS))
def test_decays_that_end_above_zero_are_exact_in_every_target(tmp_path: Path, target: str) -> None:
    design = {**DECLARED_SETTINGS["design"], "end_lr_factors": [0.0, 0.1]}
    written = verbs.export_runs(declared_study(tmp_path / "study", design=design), target, tmp_path / "runs")
    ends = set()
    for run in written.runs:
        schedule = run.config.schedule
        assert max_error_off_path(run.export.step_lrs, run.recipe) <= 1e-12
        if run.config.kind == "decay" and schedule.end_lr < schedule.start_lr:
            ends.add(round(schedule.end_lr / schedule.start_lr, 9))
    assert ends == {0.0, 0.1}


def test_what_a_target_cannot_express_is_refused_with_the_name_of_the_run(tmp_path: Path) -> None:
    study = declared_study(
        tmp_path / "study", design={**DECLARED_SETTINGS["design"], "shapes": ["linear", "1-sqrt"]}
    )
    with pytest.raises(
        NotRepresentableError, match=r"levanter cannot .*run simplex-[0-9a-f]{16}: its schedulers have"
    ):
        verbs.export_runs(study, "levanter", tmp_path / "runs")
    assert verbs.export_runs(study, "megatron", tmp_path / "runs").runs


def test_names_of_models_reach_the_target_and_can_be_replaced(study: Study, tmp_path: Path) -> None:
    written = verbs.export_runs(
        study, "torchtitan", tmp_path / "runs", models={"medium": "mine.models:other"}
    )
    texts = {
        run.config.shape.non_embedding_params: run.export.files["midtrain_torchtitan.py"]
        for run in written.runs
    }
    assert "tiny_models.registry" in texts[2_608]
    assert "mine.models" in texts[5_832]
    with pytest.raises(InvalidValueError, match="'model' must be one of the shapes small, medium, target"):
        verbs.export_runs(study, "torchtitan", tmp_path / "runs", models={"large": "x:y"})


def test_one_script_submits_the_trunks_and_then_the_decays_that_wait_for_them(
    study: Study, tmp_path: Path
) -> None:
    written = verbs.export_runs(study, "megatron", tmp_path / "runs")
    tools = tmp_path / "bin"
    tools.mkdir()
    sbatch = tools / "sbatch"
    sbatch.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/calls\necho "77;cluster"\n')
    sbatch.chmod(sbatch.stat().st_mode | stat.S_IXUSR)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    subprocess.run(
        ["bash", str(written.script), "--partition=gpu"], check=True, env=environment, cwd=tmp_path
    )
    first, second = (tmp_path / "calls").read_text().splitlines()
    last = len(written.runs) - 1
    assert first == "--parsable --array=0-2 --partition=gpu array.sh"
    assert second == f"--dependency=afterok:77 --array=3-{last} --partition=gpu array.sh"
    # a task of the array starts the run of its number
    trunk = next(run for run in written.runs if run.role == "trunk")
    names = re.findall(r"^  (\S+)$", written.script.read_text(), re.MULTILINE)
    assert names[0] == trunk.name
    (written.directory / names[4] / "launch.sh").write_text(f"echo started > {tmp_path}/started")
    task = {**environment, "SLURM_ARRAY_TASK_ID": "4", "SLURM_SUBMIT_DIR": str(written.directory)}
    subprocess.run(["bash", str(written.script)], check=True, env=task, cwd=tmp_path)
    assert (tmp_path / "started").is_file()


def test_a_run_in_the_target_is_named_and_seeded_apart(study: Study, tmp_path: Path) -> None:
    written = verbs.export_runs(study, "huggingface", tmp_path / "runs", ExportOptions(output="scratch"))
    for run in written.runs:
        arguments = json.loads(run.export.files["training_arguments.json"])
        assert arguments["run_name"] == run.name
        assert arguments["output_dir"] == f"scratch/{run.name}"
        assert arguments["seed"] == run.config.seed
        assert arguments["save_steps"] == arguments["max_steps"]
        assert np.array_equal(run.export.step_lrs, run.config.schedule.step_lrs(run.config.batch_tokens))


@pytest.mark.parametrize("target", sorted(EXPORTERS))
def test_decays_start_from_checkpoints_that_the_trainer_has(tmp_path: Path, target: str) -> None:
    study = declared_study(tmp_path / "study", CHECKPOINT_SETTINGS)
    written = verbs.export_runs(study, target, tmp_path / "runs")
    assert not any(run.role in ("trunk", "checkpoint") for run in written.runs)
    for run in written.runs:
        handover = run.recipe.handover
        name = {2_608: "small", 5_832: "medium", 20_640: "target"}[run.config.shape.non_embedding_params]
        assert (handover.checkpoint, handover.tokens) == (f"s3://ours/{name}/step90", 23_040)
        assert (handover.lr, handover.optimizer_state) == (0.01, "load")
    measured = [note for note in written.notes if "at step 0" in note]
    assert len(measured) == 3
    assert "checkpoint 'target'" in " ".join(measured)


def test_where_a_checkpoint_lies_decides_nothing_and_its_version_does(tmp_path: Path) -> None:
    def ids(**changes: Any) -> set[str]:
        checkpoints = CHECKPOINT_SETTINGS["checkpoints"]
        models = {name: {**model, **changes} for name, model in checkpoints["models"].items()}
        study = declared_study(
            tmp_path / "study", CHECKPOINT_SETTINGS, checkpoints={**checkpoints, "models": models}
        )
        return {run.config.run_id for run in study.design()}

    first = ids()
    assert ids(path="elsewhere") == first
    for changes in ({"fingerprint": "v2"}, {"tokens": 46_080}, {"lr": 0.02}):
        assert not ids(**changes) & first


def test_declared_checkpoints_need_an_external_trainer(tmp_path: Path) -> None:
    settings = {**TINY_SETTINGS, "checkpoints": CHECKPOINT_SETTINGS["checkpoints"], "tokenizer": {}}
    del settings["trunk"], settings["shapes"]
    with pytest.raises(InvalidValueError, match=r"checkpoints.models.small.model.*needs trainer: external"):
        parse_settings(settings)


def test_the_template_plans_and_exports_as_it_stands(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "study", template="external")
    assert study.settings.trainer == "external"
    planned = verbs.plan(study)
    assert 1 < planned.hours < 24
    for target in ("olmo-core", "megatron"):
        assert len(verbs.export_runs(study, target, tmp_path / target).runs) == len(planned.design)


def test_the_tracker_of_the_study_is_that_of_its_runs(tmp_path: Path) -> None:
    study = declared_study(tmp_path / "study", tracker={"kind": "trackio", "project": "decays"})
    run = verbs.export_runs(study, "huggingface", tmp_path / "runs").runs[0]
    arguments = json.loads(run.export.files["training_arguments.json"])
    assert (arguments["report_to"], arguments["project"]) == ("trackio", "decays")
    assert "export WANDB_PROJECT=decays\n" in (tmp_path / "runs" / run.name / "launch.sh").read_text()


def test_proxies_that_must_repeat_their_text_need_a_path_to_the_part_that_they_may_read(
    tmp_path: Path,
) -> None:
    target = {**DECLARED_SETTINGS["target"], "repetition_scale": 4}
    study = declared_study(tmp_path / "study", target=target)
    with pytest.raises(
        InvalidValueError, match=r"sources.web.proxy_path.*249,984 tokens lie that a proxy may read"
    ):
        verbs.export_runs(study, "olmo-core", tmp_path / "runs")
    sources = {
        name: {**source, "proxy_path": f"pool/{name}"}
        for name, source in DECLARED_SETTINGS["sources"].items()
    }
    study = declared_study(tmp_path / "study", target=target, sources=sources)
    for run in verbs.export_runs(study, "olmo-core", tmp_path / "runs").runs:
        paths = {name: source.path for name, source in run.recipe.sources.items()}
        # trunks read everything, decays the part
        assert paths["web"] == ("text/web" if run.role == "trunk" else "pool/web")


def test_a_declared_source_whose_parts_have_paths_is_repeated_ever_more_often(tmp_path: Path) -> None:
    scarce = with_sources(tokens=640, max_epochs=None)
    assert not [
        run for run in declared_study(tmp_path / "a", **scarce).planner().sweep() if run.role == "repetition"
    ]
    cut = with_sources(tokens=640, max_epochs=None, proxy_path="pools/web-{tokens}")
    study = declared_study(tmp_path / "study", **cut)
    design = {run.config.run_id: run for run in study.design()}
    written = verbs.export_runs(study, "olmo-core", tmp_path / "runs")
    repeating = [run for run in written.runs if run.role == "repetition"]
    assert len(repeating) == study.settings.design.repetition_runs
    for run in repeating:
        kept = design[run.config.run_id].config.pool_tokens["web"]
        whole = kept >= 640 - study.settings.seq_len
        assert run.recipe.sources["web"].available_tokens == kept
        assert run.recipe.sources["web"].path == ("text/web" if whole else f"pools/web-{kept}")
    shortest = min(run.recipe.sources["web"].available_tokens for run in repeating)
    assert f"Put the first {shortest:,} tokens of web at pools/web-{shortest}." in written.notes


def test_whether_a_declared_source_can_be_cut_is_part_of_the_question(tmp_path: Path) -> None:
    asked = [
        declared_study(tmp_path / f"{number}", **with_sources(proxy_path=path)).plan_inputs()
        for number, path in enumerate([None, "pools/web", "pools/web-{tokens}", "elsewhere/{tokens}"])
    ]
    assert asked[0] == asked[1]
    assert asked[2] == asked[3]
    assert asked[1] != asked[2]


def test_text_that_is_prepared_here_goes_to_targets_that_read_arrays_of_tokens(tmp_path: Path) -> None:
    make_sources(tmp_path)
    settings = {key: value for key, value in TINY_SETTINGS.items() if key != "backend"}
    (tmp_path / "study.yaml").write_text(json.dumps({**settings, "trainer": "external"}), encoding="utf-8")
    study = Study.open(tmp_path)
    prepare(study)
    verbs.plan(study)
    with pytest.raises(NotRepresentableError, match="'prepare' has written the text as arrays of tokens"):
        verbs.export_runs(study, "megatron", tmp_path / "runs")


def test_verbs_that_train_refuse_and_say_what_does(study: Study) -> None:
    for verb in (verbs.run, verbs.launch):
        with pytest.raises(StudyError, match="says trainer: external"):
            verb(study)
    with pytest.raises(StudyError, match="there is nothing to prepare"):
        verbs.prepare(study)
    assert verbs.status(study).next_verb == "run"
    assert verbs.status(study).next_command == f"decaylaws export-runs '{study.root}' --target NAME --out DIR"


def test_runs_of_the_built_in_trainer_are_not_handed_out(tmp_path: Path) -> None:
    make_sources(tmp_path)
    (tmp_path / "study.yaml").write_text(json.dumps(TINY_SETTINGS), encoding="utf-8")
    with pytest.raises(StudyError, match="'export-runs' is for runs of another trainer"):
        verbs.export_runs(Study.open(tmp_path), "megatron", tmp_path / "runs")


def test_the_plan_counts_flops_by_declared_parameters_and_hours_by_the_speed_that_is_given(
    tmp_path: Path,
) -> None:
    planned = verbs.plan(declared_study(tmp_path / "a"))
    trunks = planned.cost[planned.cost["role"] == "trunk"].set_index("non_embedding_params")
    assert trunks.at[20_640, "train_flops"] == 6 * 20_640 * 16_384
    assert planned.hours == pytest.approx(planned.design.train_flops / 1e9 / 3600)
    unknown = verbs.plan(declared_study(tmp_path / "b", external={}))
    assert np.isnan(unknown.hours)
    assert unknown.cost["train_flops"].tolist() == planned.cost["train_flops"].tolist()


def test_the_trainer_and_the_declared_text_are_part_of_a_runs_identity(tmp_path: Path) -> None:
    def ids(**changes: Any) -> set[str]:
        return {run.config.run_id for run in declared_study(tmp_path / "study", **changes).design()}

    first = ids()
    assert ids(external={"flops_per_second": 5e9}) == first
    assert ids(**with_sources(path="elsewhere")) == first
    assert not ids(**with_sources(fingerprint="v2")) & first
    assert not ids(**with_sources(tokens="2M")) & first
    run = next(iter(declared_study(tmp_path / "study").design())).config
    assert run.with_changes(trainer="built-in").run_id != run.run_id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": "built-in", "external": {}}, "sources.web.format.*needs trainer: external"),
        (with_sources(tokens=None), "sources.web.*needs tokens"),
        (with_sources(heldout_fraction=0.2), "sources.web.*heldout_fraction would do nothing"),
        (with_sources(format="jsonl", tokens=None), "sources.web.format.*must be 'declared' as that of maths"),
        (with_sources(format="jsonl"), "only a source of format 'declared' has tokens"),
        ({"backend": {"workers": 3}}, "'backend' is about the built-in trainer"),
        ({"train": {"precision": "float32"}}, "'train' is about the built-in trainer"),
        ({"sampler": {"kind": "tpe", "prune": 50}}, "sampler.prune.*not possible with trainer: external"),
        ({"design": {**DECLARED_SETTINGS["design"], "read_outs": 2}}, "design.read_outs.*must be 0"),
        ({"external": {"flops": 1}}, "external.flops.*is not a known key"),
        (
            {"shapes": {**DECLARED_SETTINGS["shapes"], "small": {"model": "x"}}},
            "'shapes.small.non_embedding_params' is required",
        ),
        (
            {"shapes": {**DECLARED_SETTINGS["shapes"], "small": {"d_model": 16}}},
            "'shapes.small.num_layers' is required",
        ),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_here_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        parse_settings({**DECLARED_SETTINGS, **changes})


def test_declared_models_need_an_external_trainer() -> None:
    settings = {
        **TINY_SETTINGS,
        "shapes": {**TINY_SETTINGS["shapes"], "small": DECLARED_SETTINGS["shapes"]["small"]},
    }
    with pytest.raises(InvalidValueError, match=r"shapes.small.model.*needs trainer: external"):
        parse_settings(settings)
