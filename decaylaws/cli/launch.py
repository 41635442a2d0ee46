"""``decaylaws launch``: train a recipe at full scale."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from decaylaws.cli.console import ConsoleProgress, frame_table, make_console, open_study, say_next
from decaylaws.errors import InvalidValueError
from decaylaws.io.yaml import load_yaml
from decaylaws.recipe import Recipe
from decaylaws.study import Study, decision
from decaylaws.study.confirm import is_confirmed, launch_table
from decaylaws.study.status import verb_after

if TYPE_CHECKING:
    from proxy_runs.fsdp.settings import TrainSettings

RECIPE_SUFFIXES = (".yaml", ".yml", ".json")
SETTING_NAMES = (
    "dtype, micro_batch_sequences, replicas, activation_checkpointing, compile, z_loss, router_aux_loss_coef, "
    "checkpoint_interval, keep_last, async_checkpoints, eval_points, eval_tokens_per_domain, max_skipped_steps, "
    "max_loss_jump, average_last_steps, log_interval, tensorboard, wandb_project, device, recipe, corpus, start, output"
)
console = make_console()


def launch(
    target: Annotated[Path, typer.Argument(help="the study directory, or a recipe file", show_default=False)],
    start: Annotated[
        Path | None,
        typer.Option(
            help="checkpoint to start from: a Hugging Face folder, or a study's .safetensors file; the trunk's "
            "checkpoint by default"
        ),
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="folder of a prepared corpus; the study's own by default")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="folder of the run; 'launch' in the study or beside the recipe by default"),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(help="ranks on this machine; one for each GPU, or 2 without one, by default", min=1),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help=f"NAME=VALUE for a setting of the trainer; repeat. Names: {SETTING_NAMES}"
        ),
    ] = None,
    slurm_nodes: Annotated[
        int | None,
        typer.Option(help="write a Slurm script for so many nodes instead of training here", min=1),
    ] = None,
    slurm_gpus: Annotated[int, typer.Option(help="GPUs of a node", min=1)] = 8,
    slurm_hours: Annotated[
        float, typer.Option(help="time limit of a job, which then saves and is queued again")
    ] = 24.0,
) -> None:
    """Train the recipe at full scale with torchrun and FSDP2; save DCP and a Hugging Face checkpoint.

    Reads recipe.yaml, the corpus and the trunk's checkpoint of a study; or any
    recipe file, with --start and --corpus.
    Writes launch/: checkpoints, metrics, result.json and hf/; started again, it goes on.
    Next: decaylaws report, or evaluate launch/hf.
    """
    from proxy_runs.fsdp import launch as launcher

    given = {"start": start, "corpus": corpus, "output": output}
    wanted: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    wanted |= dict(_setting(text) for text in changes or [])
    study = None if target.suffix in RECIPE_SUFFIXES and not target.is_dir() else open_study(console, target)
    settings = _of_recipe(target, wanted) if study is None else _of_study(study, wanted)
    if slurm_nodes is not None:
        script = launcher.write_slurm_job(
            settings, nodes=slurm_nodes, ranks_per_node=slurm_gpus, hours=slurm_hours
        )
        console.print(f"Submit it with: sbatch {script}", highlight=False, soft_wrap=True)
        return
    ranks = processes or launcher.default_ranks(settings.device)
    with ConsoleProgress(console) as progress:
        result = launcher.launch(settings, ranks=ranks, progress=progress)
    recipe = Recipe.load(settings.recipe)
    table = launch_table(study, recipe, result["losses"])
    console.print(frame_table(table, title=f"launched run on {ranks} ranks, final loss, nats per token"))
    for note in [*result.get("notes", []), *_notes(study, recipe)]:
        console.print(f"  {note}", highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"Checkpoints and Hugging Face folder: {settings.output}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if study is not None:
        say_next(console, study, verb_after("launch"))


def _setting(text: str) -> tuple[str, object]:
    name, separator, value = text.partition("=")
    if not separator:
        raise InvalidValueError("set", text, "must read NAME=VALUE", f"Names: {SETTING_NAMES}.")
    return name.strip(), load_yaml(value, f"The value of '--set {name.strip()}'")


def _of_study(study: Study, wanted: Mapping[str, object]) -> TrainSettings:
    from proxy_runs.fsdp.settings import TrainSettings
    from proxy_runs.weights.checkpoint_files import final_checkpoint

    recipe = Recipe.load(str(wanted["recipe"])) if "recipe" in wanted else decision.load_recipe(study)
    handover = recipe.handover
    if handover.run_id is None and "start" not in wanted:
        raise InvalidValueError(
            "handover.run_id", None, "names no trunk of the study", "Give --start, or recommend again."
        )
    values = {
        "recipe": study.recipe_file,
        "corpus": study.corpus_dir,
        "start": final_checkpoint(study.checkpoint_dir, str(handover.run_id)),
        "output": study.launch_dir,
        "device": study.settings.backend.device,
        "eval_tokens_per_domain": study.settings.evaluation.tokens_per_domain,
    }
    return TrainSettings.checked(**{**values, **wanted})


def _of_recipe(recipe: Path, wanted: Mapping[str, object]) -> TrainSettings:
    from proxy_runs.fsdp.settings import TrainSettings

    for name, what in (
        ("start", "the checkpoint to start from"),
        ("corpus", "the folder of a prepared corpus"),
    ):
        if name not in wanted:
            raise InvalidValueError(
                name, None, "is required to launch a recipe file", f"Give --{name}, {what}."
            )
    return TrainSettings.checked(**{"recipe": recipe, "output": recipe.parent / "launch", **wanted})


def _notes(study: Study | None, recipe: Recipe) -> list[str]:
    """Why the column 'confirmed' is empty, or is not quite the same run."""
    if study is None or not study.confirm_file.is_file():
        return []
    if not is_confirmed(study, recipe):
        return [
            "The column 'confirmed' is empty: this recipe is not the one that was confirmed. 'decaylaws confirm' "
            "tests the study's present recipe."
        ]
    if recipe.handover.optimizer_state == "fresh":
        return [
            "The confirming run took the optimiser's moments over from its trunk; this run began with fresh ones "
            "(handover.optimizer_state)."
        ]
    return []
