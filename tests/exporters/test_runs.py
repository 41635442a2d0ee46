"""Recipes of one and of several stages in every target: the written files, read back run by run, or a refusal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml

from decaylaws.errors import NotRepresentableError
from decaylaws.exporters import EXPORTERS, ExportOptions, check_config, export, export_remarks
from decaylaws.exporters.base import max_error_off_path
from decaylaws.recipe import Recipe
from tests.exporters.conftest import MAIN_FILES
from tests.exporters.recipes import BATCH, PEAK, RECIPES, SEEN_STEPS, SEQ_LEN, SEQUENCES

NO_PATH = "no LR path of the form"
ROPE = "only a change of its base"
SHIFT = "off the LR path"
MEGATRONS = ("megatron", "megatron-bridge")
# what a target refuses, and why; everything else is written
REFUSED = {
    "1-sqrt": dict.fromkeys(("llm-foundry", "levanter"), NO_PATH),
    "1-sqrt to a tenth": dict.fromkeys(("llm-foundry", "levanter"), NO_PATH),
    "exponential": dict.fromkeys((*MEGATRONS, "nanotron", "llm-foundry", "levanter"), NO_PATH),
    "megatron-exponential": dict.fromkeys(("nanotron", "llm-foundry", "levanter"), NO_PATH),
    "short warm-up, 1-sqrt": dict.fromkeys(("llm-foundry", "levanter"), NO_PATH),
    "warm-up of one step, to a tenth": dict.fromkeys(
        (*MEGATRONS, "nanotron", "llm-foundry", "levanter"), "the warm-up lasts a single step"
    ),
    "warm-up from a third": dict.fromkeys(("nanotron", "llm-foundry", "levanter"), SHIFT),
    "two decays in one stage": dict.fromkeys((*MEGATRONS, "nanotron", "llm-foundry", "levanter"), NO_PATH),
    # half a cosine is no cosine, and these cannot change the mixture within a run
    "one cosine, cut where the mixture changes": dict.fromkeys((*MEGATRONS, "llm-foundry"), NO_PATH),
    "longer sequences, yarn, more math": dict.fromkeys(set(EXPORTERS) - {"huggingface"}, ROPE),
}


def parts(recipe: Recipe, folder: Path, target: str) -> Iterator[tuple[Recipe, Path]]:
    """Each run that an export wrote below ``folder``: the recipe that it trains, and its main file."""
    main = MAIN_FILES[target]
    if (folder / main).is_file():
        yield recipe, folder / main
        return
    for own in sorted(folder.glob("stage-*")):
        yield Recipe.load(own / "recipe.yaml"), own / main


@pytest.mark.parametrize("target", sorted(EXPORTERS))
@pytest.mark.parametrize("name", RECIPES)
def test_every_run_trains_its_part_of_the_recipe(name: str, target: str, tmp_path: Path) -> None:
    recipe, reason = RECIPES[name], REFUSED.get(name, {}).get(target)
    if reason is not None:
        with pytest.raises(NotRepresentableError, match=f"^{target} cannot express this recipe: .*{reason}"):
            export(recipe, target)
        return
    result = export(recipe, target)
    result.write(tmp_path)
    assert len(result.step_lrs) == recipe.num_steps
    assert result.max_abs_lr_error == np.abs(result.step_lrs - recipe.step_lrs()).max()
    assert max_error_off_path(result.step_lrs, recipe) <= 0.01 * PEAK
    assert dict(result.realised_shares) == pytest.approx(
        {source: share for source, share in recipe.shares().items() if share > 0}, abs=5e-3
    )
    runs = list(parts(recipe, tmp_path, target))
    lrs: list[np.ndarray] = []
    # nanotron counts from the hand-over
    seen_steps = 0 if target == "nanotron" else recipe.handover.tokens // recipe.stages[0].batch_tokens
    seen_samples = recipe.handover.tokens // recipe.stages[0].seq_len
    for part, path in runs:
        first = part.stages[0]
        check = check_config(part, target, path, seen_steps=seen_steps, seen_samples=seen_samples)
        assert check.differences == (), check.describe()
        lrs.append(check.schedule.step_lrs)
        seen_steps += part.num_steps
        seen_samples += part.num_steps * first.batch_tokens // first.seq_len
    assert np.abs(np.concatenate(lrs) - result.step_lrs).max() <= 1e-9 * PEAK
    assert sum(part.tokens for part, _ in runs) == recipe.tokens
    for number, ((before, _), (after, _)) in enumerate(pairwise(runs), start=1):
        assert after.handover.optimizer_state == "load"
        if target == "nanotron" and "stage-" not in str(after.handover.checkpoint):  # data stages of one run
            done = sum(part.num_steps for part, _ in runs[:number])
            assert after.handover.checkpoint == f"outputs/{done}"
            continue
        last = export(before, target).last_checkpoint
        assert after.handover.checkpoint == last.replace("outputs", f"outputs/stage-{number}", 1)


@pytest.mark.parametrize("target", sorted(EXPORTERS))
@pytest.mark.parametrize("name", ["linear to a tenth", "cosine to a tenth", "1-sqrt to a tenth"])
def test_a_decay_that_ends_above_zero_is_exact(name: str, target: str) -> None:
    """Each trainer's own LR lies on the recipe's path, read at one end of the step, or is its mean over the step."""
    recipe = RECIPES[name]
    if target in REFUSED.get(name, {}):
        return
    for rule in ("native", "exact") if target in ("torchtitan", "huggingface", "olmo-core") else ("auto",):
        found = export(recipe, target, ExportOptions(lr_rule=rule))
        # OLMo-core follows a curve by straight lines within the tolerance, unless each step is asked for
        is_path = rule == "exact" or target != "olmo-core" or name == "linear to a tenth"
        assert max_error_off_path(found.step_lrs, recipe) <= (1e-12 if is_path else 0.01) * PEAK
        if rule == "exact":
            assert np.abs(found.step_lrs - recipe.step_lrs()).max() <= 1e-12 * PEAK
        last = recipe.stages[0].lr.step_ranges(BATCH)[0][-1], recipe.stages[0].lr.step_ranges(BATCH)[1][-1]
        assert last[0] - 1e-12 * PEAK <= found.step_lrs[-1] <= last[1] + 0.01 * PEAK
        assert last[0] == pytest.approx(0.1 * PEAK)


def test_counters_go_on_from_run_to_run() -> None:
    """Megatron counts sequences: its second run goes on from those of the first, whatever their length was."""
    recipe = RECIPES["longer sequences, larger base"]
    result = export(recipe, "megatron", ExportOptions(seen_steps=7_000 // SEQUENCES, seen_samples=7_000))
    first, second = recipe.stages
    counted = 7_000 + first.num_steps * SEQUENCES
    flags = [result.files[f"stage-{number}/midtrain_megatron.args"].splitlines() for number in (1, 2)]
    assert f"--train-samples {counted}" in flags[0]
    assert f"--train-samples {counted + second.num_steps * SEQUENCES // 4}" in flags[1]
    assert "--load outputs/stage-1" in flags[1]
    assert "--rotary-base 500000" in flags[1]
    assert not any(line.startswith("--rotary-base") for line in flags[0])
    levanter = export(recipe, "levanter", ExportOptions(seen_steps=123)).files
    cycles = [
        yaml.safe_load(levanter[f"stage-{number}/midtrain_levanter.yaml"])["optimizer"]["cycles"]
        for number in (1, 2)
    ]
    assert cycles == [[123, 123 + first.num_steps], [123 + first.num_steps, 123 + recipe.num_steps]]


@pytest.mark.parametrize("target", MEGATRONS)
def test_megatron_ends_by_its_iterations_whatever_batch_the_checkpoint_counted(target: str) -> None:
    """It divides the samples of the end by the run's own batch and compares with the checkpoint's iterations."""
    recipe = RECIPES["the batch doubles"]
    result = export(recipe, target)
    first, second = recipe.stages
    steps, samples = SEEN_STEPS + first.num_steps, (SEEN_STEPS + first.num_steps) * SEQUENCES
    text = result.files[f"stage-2/{MAIN_FILES[target]}"]
    end = int(re.search(r"train[-_]samples:? (\d+)", text)[1])
    assert end // (2 * SEQUENCES) == steps + second.num_steps
    assert end >= samples + second.num_steps * 2 * SEQUENCES
    # the schedule is read by the samples themselves
    decay_end = int(re.search(r"lr[-_]decay[-_]samples:? (\d+)", text)[1])
    assert decay_end == samples + second.num_steps * 2 * SEQUENCES
    # a checkpoint of larger batches has fewer iterations than its samples make here, and the run would end late
    options = ExportOptions(seen_steps=SEEN_STEPS // 2, seen_samples=SEEN_STEPS * SEQUENCES)
    text = export(RECIPES["linear"], target, options).files[MAIN_FILES[target]]
    end = SEEN_STEPS // 2 + RECIPES["linear"].num_steps
    assert re.search(r"exit[-_]interval:? (\d+)", text)[1] == str(end)
    assert int(re.search(r"train[-_]samples:? (\d+)", text)[1]) // SEQUENCES > end
    assert "exit-interval" not in export(RECIPES["linear"], "megatron").files[MAIN_FILES["megatron"]]
    # only the samples are known, and they do not go with the recipe's batch: the steps are assumed, and said
    (told,) = export(RECIPES["linear"], target, ExportOptions(seen_samples=7_000)).assumptions
    assert f"stand at step {SEEN_STEPS:,}" in told
    assert "--seen-steps" in told


def test_what_is_assumed_of_a_checkpoint_is_said() -> None:
    recipe = RECIPES["linear"]
    for target, unit, option in (
        ("megatron", "sample", "--seen-samples"),
        ("megatron-bridge", "sample", "--seen-samples"),
        ("levanter", "step", "--seen-steps"),
    ):
        seen = SEEN_STEPS * (SEQUENCES if unit == "sample" else 1)
        exported = export(recipe, target)
        (told,) = exported.assumptions
        assert option in told
        assert f"Assumed: {told}" in exported.notes_text()
        assert any(told in line for line in export_remarks(recipe, {target: exported}))
        assert f"from {unit} {seen:,}: the {SEEN_STEPS * BATCH:,} tokens at the hand-over" in told
        count = 900 * (SEQUENCES if unit == "sample" else 1)
        stated = export(recipe, target, ExportOptions(seen_steps=900, seen_samples=900 * SEQUENCES))
        assert f"Its schedule goes on from {unit} {count:,} of the checkpoint." in stated.notes
        assert stated.assumptions == ()


def test_data_stages_of_nanotron() -> None:
    """One run and one schedule; a config for each stage, since nanotron builds the data of the last one only."""
    recipe = RECIPES["one line, cut where the mixture changes"]
    files = export(recipe, "nanotron").files
    first, second = (yaml.safe_load(files[f"stage-{number}/midtrain_nanotron.yaml"]) for number in (1, 2))
    schedule = first["optimizer"]["learning_rate_scheduler"]
    assert schedule == second["optimizer"]["learning_rate_scheduler"]
    assert (schedule["learning_rate"], schedule["lr_decay_steps"], schedule["min_decay_lr"]) == (
        PEAK,
        256,
        0.0,
    )
    assert (first["tokens"]["train_steps"], second["tokens"]["train_steps"]) == (128, 256)
    assert [stage["start_training_step"] for stage in second["data_stages"]] == [1, 129]
    assert second["data_stages"][:1] == first["data_stages"]
    assert second["data_stages"][1]["data"]["dataset"] == {
        "dataset_folder": ["/data/code", "/data/math", "/data/web"],
        "dataset_weights": [0.25, 0.5, 0.25],
    }
    assert first["checkpoints"]["load_lr_scheduler"] is False
    assert second["checkpoints"]["load_lr_scheduler"] is True
    assert second["checkpoints"]["resume_checkpoint_path"] == "outputs/start-2"
    assert "CHECKPOINT = 'outputs/128'" in files["stage-2/start_checkpoint.py"]
    assert first["tokens"]["sequence_length"] == SEQ_LEN


@pytest.mark.parametrize("target", sorted(EXPORTERS))
@pytest.mark.parametrize("name", ["linear", "three stages"])
def test_yaml_holds_floats_for_every_reader(name: str, target: str) -> None:
    """PyYAML's SafeLoader, which nanotron uses, takes 1e-08 for text."""

    def leaves(value: object) -> Iterator[object]:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
        if inner is None:
            yield value
        for item in inner or ():
            yield from leaves(item)

    files = export(RECIPES[name], target).files
    for text in (text for file, text in files.items() if file.endswith(".yaml")):
        texts = [leaf for leaf in leaves(yaml.safe_load(text)) if isinstance(leaf, str)]
        assert texts
        for leaf in texts:
            with pytest.raises(ValueError, match="could not convert"):
                float(leaf)
