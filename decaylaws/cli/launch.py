"""``decaylaws launch``: train a recipe at full scale."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from decaylaws import study
from decaylaws.cli.console import ConsoleProgress, frame_table, make_console, say
from decaylaws.cli.steps import open_study, say_next
from decaylaws.errors import InvalidValueError
from decaylaws.io.yaml import load_yaml
from decaylaws.recipe.files import SUFFIXES
from decaylaws.study.launch import launch_settings
from decaylaws.study.status import verb_after

SETTING_NAMES = (
    "dtype, micro_batch_sequences, replicas, activation_checkpointing, compile, z_loss, router_aux_loss_coef, "
    "checkpoint_interval, checkpoint_seconds, save_model, keep_last, async_checkpoints, eval_points, "
    "eval_tokens_per_domain, eval_at_ends, max_skipped_steps, max_loss_jump, average_last_steps, log_interval, "
    "tensorboard, wandb_project, trackio_project, device, recipe, corpus, start, output"
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
            "--set", help=f"NAME=VALUE for a setting of the trainer; can be repeated. Names: {SETTING_NAMES}"
        ),
    ] = None,
    slurm_nodes: Annotated[
        int | None,
        typer.Option(help="write a Slurm script for this number of nodes instead of training here", min=1),
    ] = None,
    slurm_gpus: Annotated[int, typer.Option(help="GPUs of a node", min=1)] = 8,
    slurm_hours: Annotated[
        float,
        typer.Option(help="time limit of a job; at the limit it saves a checkpoint and is queued again"),
    ] = 24.0,
) -> object:
    """Train the recipe at full scale with torchrun and FSDP2; save DCP and a Hugging Face checkpoint.

    Reads recipe.yaml, the corpus and the trunk's checkpoint of a study; or any
    recipe file, with --start and --corpus.
    Writes launch/: checkpoints, metrics, result.json and hf/; started again, it goes on.
    Next: decaylaws report, or evaluate launch/hf.
    """
    given = {"start": start, "corpus": corpus, "output": output}
    wanted: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    wanted |= dict(_setting(text) for text in changes or [])
    is_recipe = target.suffix.lower() in SUFFIXES and not target.is_dir()
    source = target if is_recipe else open_study(console, target)
    if slurm_nodes is not None:
        from proxy_runs.fsdp.launch import write_slurm_job

        script = write_slurm_job(
            launch_settings(source, wanted), nodes=slurm_nodes, ranks_per_node=slurm_gpus, hours=slurm_hours
        )
        console.print(f"Submit it with: sbatch {script}", highlight=False, soft_wrap=True)
        return {"script": script}
    with ConsoleProgress(console) as progress:
        launched = study.launch(source, processes=processes, settings=wanted, progress=progress)
    title = f"launched run on {launched.ranks} ranks, final loss, nats per token"
    console.print(frame_table(launched.losses, title=title))
    say(console, launched.notes)
    folder = f"Checkpoints and Hugging Face folder: {launched.folder}"
    console.print(folder, highlight=False, markup=False, soft_wrap=True)
    if isinstance(source, study.Study):
        say_next(console, source, verb_after("launch"))
    return launched


def _setting(text: str) -> tuple[str, object]:
    name, separator, value = text.partition("=")
    if not separator:
        raise InvalidValueError("set", text, "must read NAME=VALUE", f"Names: {SETTING_NAMES}.")
    return name.strip(), load_yaml(value, f"The value of '--set {name.strip()}'")
