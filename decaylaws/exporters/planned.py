"""Planned runs for another trainer: a run becomes a recipe, and goes through the same exporter as any recipe.

Every run is a folder of its own, and one script starts them all.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from decaylaws.errors import NotRepresentableError
from decaylaws.exporters import Export, ExportOptions, export
from decaylaws.exporters.base import LrRule
from decaylaws.exporters.chain import RECIPE_FILE
from decaylaws.exporters.templates import render
from decaylaws.io.files import write_text
from decaylaws.recipe import HandOver, OptimizerSettings, Recipe, Source, Stage
from decaylaws.recipe.files import to_json, to_yaml
from decaylaws.recipe.model import HANDOVER_TOLERANCE, as_invalid_value
from decaylaws.runs.config import RunConfig

LAUNCH_FILE, ARRAY_FILE, RUN_FILE = "launch.sh", "array.sh", "run.json"


@dataclass(frozen=True)
class ExportedRun:
    """A run as a folder for another trainer.

    Attributes:
        name: of the folder and of the run in the trainer's records; it ends with the run's id.
        role: the question that the run answers.
        config: the run.
        recipe: the run as a recipe.
        export: what the exporter made of it.
    """

    name: str
    role: str
    config: RunConfig
    recipe: Recipe
    export: Export


def run_name(role: str, run_id: str) -> str:
    """Name of a run's folder: its role and its id."""
    return f"{re.sub(r'[^A-Za-z0-9_]+', '-', role)}-{run_id}"


def run_recipe(
    name: str, config: RunConfig, sources: Mapping[str, Source], handover: HandOver | None = None
) -> Recipe:
    """A planned run as a recipe of one stage.

    Args:
        name: of the run.
        config: the run.
        sources: what is known of each source: tokens, and where the trainer finds it.
        handover: the checkpoint from which the run starts; random weights without one.

    Raises:
        InvalidValueError: a recipe cannot hold the run; names the field.
    """
    first = config.schedule.start_lr
    start = handover or HandOver(lr=first, optimizer_state="fresh")
    jumps = abs(first - start.lr) > HANDOVER_TOLERANCE * max(first, start.lr)
    try:
        return Recipe(
            name=name,
            handover=start.model_copy(update={"lr_jump": jumps}),
            stages=(
                Stage(
                    name=config.kind,
                    lr=config.schedule,
                    mixture=config.mixture,
                    batch_tokens=config.batch_tokens,
                    seq_len=config.shape.seq_len,
                ),
            ),
            sources=dict(sources),
            optimizer=OptimizerSettings(**asdict(config.optimizer)),
            seed=config.seed,
        )
    except ValidationError as error:
        raise as_invalid_value(error) from error


def export_run(
    role: str, config: RunConfig, recipe: Recipe, target: str, options: ExportOptions
) -> ExportedRun:
    """Export a planned run: with the LR of every step where the target takes a table, by its own scheduler elsewhere.

    Args:
        role: the question that the run answers.
        config: the run.
        recipe: the run as a recipe.
        target: name of the trainer.
        options: where ``output`` is the folder for the checkpoints of this run.

    Raises:
        NotRepresentableError: the target cannot express the run; names the run.
    """
    own = replace(options, run_name=recipe.name, run_id=config.run_id)
    rules: tuple[LrRule, ...] = ("exact", "auto") if options.lr_rule == "auto" else (options.lr_rule,)
    for rule in rules:
        try:
            exported = export(recipe, target, replace(own, lr_rule=rule))
        except NotRepresentableError as error:
            refusal = error
        else:
            return ExportedRun(recipe.name, role, config, recipe, exported)
    raise NotRepresentableError(target, [f"run {recipe.name}: {gap}" for gap in refusal.gaps]) from refusal


def write_run(run: ExportedRun, directory: Path, *, group: str, project: str | None = None) -> Path:
    """Write the folder of a run: the trainer's files, ``run.json``, ``recipe.yaml`` and ``launch.sh``.

    Args:
        run: the run.
        directory: the folder of all runs, from which each is launched.
        group: name under which trackers gather the runs.
        project: project of the tracker; the trainer's own choice without it.
    """
    folder = directory / run.name
    run.export.write(folder)
    write_text(folder / RECIPE_FILE, to_yaml(run.recipe.to_dict()))
    content = {
        "run_id": run.config.run_id,
        "role": run.role,
        "name": run.name,
        "config": run.config.to_dict(),
    }
    write_text(folder / RUN_FILE, to_json(content))
    launch = run.export.launch.replace("{folder}", shlex.quote(run.name))
    tags = ["decaylaws", run.role, run.config.kind]
    text = render(
        "launch.sh.j2",
        run_id=run.config.run_id,
        name=run.name,
        group=group,
        project=project,
        tags=tags,
        launch=launch,
    )
    write_text(folder / LAUNCH_FILE, text)
    return folder


def write_array(runs: Sequence[ExportedRun], directory: Path, *, group: str) -> Path:
    """Write the script that starts every run: as Slurm array jobs, or here one after the other.

    Args:
        runs: the runs.
        directory: the folder of all runs.
        group: name of the job.
    """
    ordered = sorted(runs, key=lambda run: run.config.start_run_id is not None)
    starts = sum(run.config.start_run_id is None for run in ordered)
    path = directory / ARRAY_FILE
    write_text(path, render("array.sh.j2", group=group, runs=[run.name for run in ordered], starts=starts))
    return path
