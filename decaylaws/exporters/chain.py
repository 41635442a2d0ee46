"""Recipes of several stages: one run where the target can change on the way, else one run after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from decaylaws.errors import NotRepresentableError
from decaylaws.exporters.base import NOTES_FILE, Export, ExportOptions
from decaylaws.recipe import Recipe, Stage
from decaylaws.recipe.files import to_yaml

RECIPE_FILE = "recipe.yaml"
ExportRun = Callable[[Recipe, ExportOptions], Export]


def export_runs(recipe: Recipe, options: ExportOptions | None, export_run: ExportRun) -> Export:
    """The recipe in as few runs of the target as it needs.

    First the whole recipe is tried as one run, then one run for every change of mixture, batch, sequence length or
    RoPE, then one for every stage. A run starts from the last checkpoint of the one before it, with the optimiser's
    state, at the LR where the recipe's next stage begins.

    Args:
        recipe: the recipe.
        options: the defaults if left out.
        export_run: writes one run; refuses what the target cannot do within one.

    Raises:
        NotRepresentableError: some stage has no expression in the target, also as a run of its own.
    """
    options = options or ExportOptions()
    if len(recipe.stages) == 1:
        return export_run(recipe, options)
    stages: list[tuple[Stage, ...]] = [(stage,) for stage in recipe.stages]
    alike = [tuple(group) for _, group in groupby(recipe.stages, key=_held_by_a_run)]
    divisions = [[recipe.stages], alike, stages]
    attempts = [(runs, replace(options, on_inexpressible="refuse")) for runs in divisions]
    if options.on_inexpressible == "approximate":
        # only for what no division into runs can express, and from the finest on, which leaves least to approximate
        attempts += [(runs, options) for runs in reversed(divisions)]
    refusals = []
    for runs, attempt in attempts:
        try:
            return _chain(recipe, runs, attempt, export_run)
        except NotRepresentableError as error:
            refusals.append(error)
    raise refusals[len(divisions) - 1]


def _held_by_a_run(stage: Stage) -> tuple[object, ...]:
    return tuple(sorted(stage.mixture.weights.items())), stage.batch_tokens, stage.seq_len, stage.rope


def _chain(
    recipe: Recipe, runs: Sequence[tuple[Stage, ...]], options: ExportOptions, export_run: ExportRun
) -> Export:
    if len(runs) == 1:
        return export_run(recipe, options)
    parts: list[Recipe] = []
    exports: list[Export] = []
    for number, stages in enumerate(runs, start=1):
        own = replace(options, output=f"{options.output}/stage-{number}")
        if exports:
            last = exports[-1]
            own = replace(own, seen_steps=last.last_step, seen_samples=last.last_sample)
        checkpoint = exports[-1].last_checkpoint if exports else ""
        # each run starts its sources anew, in another order
        parts.append(part_recipe(recipe, runs, number, checkpoint, recipe.seed + number - 1))
        try:
            exports.append(export_run(parts[-1], own))
        except NotRepresentableError as error:
            told = f"stage {number} ({stages[0].name!r}) as a run of its own: "
            raise NotRepresentableError(error.target, [told + "; ".join(error.gaps)]) from error
    return _joined(parts, exports)


def part_recipe(
    recipe: Recipe, runs: Sequence[tuple[Stage, ...]], number: int, checkpoint: str, seed: int
) -> Recipe:
    """The recipe of run ``number``, counted from 1: its stages, and the hand-over from the run before it.

    Args:
        recipe: the whole recipe.
        runs: stages of each run.
        number: which of them.
        checkpoint: where the run before leaves its last checkpoint; not used for the first.
        seed: keys the order of the run's data.
    """
    stages = [stage.model_dump(mode="json", by_alias=True, exclude_none=True) for stage in runs[number - 1]]
    values = recipe.to_dict() | {"stages": stages, "seed": seed}
    for source in values["sources"].values():
        source.pop("epochs", None)  # filled in anew, for this run
    if number > 1:
        trained = [stage for run in runs[: number - 1] for stage in run]
        values["handover"] = {
            "checkpoint": checkpoint,
            "tokens": recipe.handover.tokens + sum(stage.num_steps * stage.batch_tokens for stage in trained),
            "lr": trained[-1].lr.end_lr,
            "lr_source": f"end of stage {number - 1}",
            "optimizer_state": "load",
            "lr_jump": True,
        }
    return Recipe.from_dict(values)


def _joined(parts: Sequence[Recipe], exports: Sequence[Export]) -> Export:
    """The runs as one export: a folder each, and what holds for all of them."""
    files: dict[str, str] = {}
    notes, approximations, restarts = [], [], []
    for number, (part, exported) in enumerate(zip(parts, exports), start=1):
        folder = f"stage-{number}"
        files |= {f"{folder}/{name}": text for name, text in exported.files.items()}
        files[f"{folder}/{NOTES_FILE}"] = exported.notes_text()
        files[f"{folder}/{RECIPE_FILE}"] = to_yaml(part.to_dict())
        start = "" if number == 1 else f" from {exports[number - 2].last_checkpoint}"
        if number > 1 and exported.last_step > part.num_steps:
            before = exports[number - 2]
            start += f" (--seen-steps {before.last_step} --seen-samples {before.last_sample})"
        notes.append(
            f"Run {folder} ({', '.join(stage.name for stage in part.stages)}): {part.num_steps:,} steps{start}, LR "
            f"{exported.step_lrs[0]:.4g} to {exported.step_lrs[-1]:.4g}. Its own notes are in {folder}/{NOTES_FILE}."
        )
        approximations += [f"{folder}: {told}" for told in exported.approximations]
        restarts.append(f"- {folder}: {exported.restart}")
    tokens = [part.tokens for part in parts]
    names = sorted({name for exported in exports for name in exported.realised_shares})
    return Export(
        target=exports[0].target,
        target_version=exports[0].target_version,
        files=files,
        step_lrs=np.concatenate([exported.step_lrs for exported in exports]),
        max_abs_lr_error=max(exported.max_abs_lr_error for exported in exports),
        realised_shares={
            name: sum(own.realised_shares.get(name, 0.0) * part for own, part in zip(exports, tokens))
            / sum(tokens)
            for name in names
        },
        approximations=tuple(approximations),
        assumptions=exports[0].assumptions,  # of the later runs the counters are known
        notes=(
            f"One run cannot hold what changes between the stages: {len(exports)} runs follow one another. Launch "
            "them in the order of their folders, all from the same place.",
            *notes,
            "Each run reads its sources from the beginning, in an order of its own: documents of an earlier run "
            "can come again. The recipe's caps on epochs count the tokens of all runs.",
            f"{RECIPE_FILE} in each folder is the part of the recipe that the run trains: for the doctor between two "
            "runs, and for export --check.",
        ),
        restart="\n".join(restarts),
        last_checkpoint=exports[-1].last_checkpoint,
        last_step=exports[-1].last_step,
        last_sample=exports[-1].last_sample,
        launch=" && ".join(
            exported.launch.replace("{folder}", f"{{folder}}/stage-{number}")
            for number, exported in enumerate(exports, start=1)
        ),
    )
