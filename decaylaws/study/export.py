"""The verb ``export``: the study's recipe as configuration of other trainers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from decaylaws.errors import NotRepresentableError
from decaylaws.exporters import Export, ExportOptions, export_all
from decaylaws.recipe import Recipe
from decaylaws.study.directory import Study
from decaylaws.study.export_runs import read_exported_runs
from decaylaws.study.files import read_json, write_json
from decaylaws.study.recommend import load_recipe

EXPORTED = "exported.json"


def export(
    study: Study,
    targets: Sequence[str] | None = None,
    options: ExportOptions | None = None,
    *,
    directory: Path | None = None,
    recipe: Recipe | None = None,
) -> dict[str, Export | NotRepresentableError]:
    """Write the study's recipe for other trainers, see :func:`decaylaws.exporters.export_all`.

    Args:
        study: the study.
        targets: names of trainers; all that can express the recipe if ``None``.
        options: ranks, LR rule and the like; defaults if ``None``.
        directory: folder of the targets' folders; that of the study if ``None``.
        recipe: the study's recipe, where it has been read already.

    Raises:
        StudyError: nothing has been recommended, or something changed since.
        NotRepresentableError: a target that was asked for by name cannot express the recipe.
    """
    recipe = recipe or load_recipe(study)
    outcomes = export_all(
        recipe, directory or study.export_dir, targets, with_counters(study, recipe, options)
    )
    if directory is None:
        written = {name: recipe.sha256 for name, outcome in outcomes.items() if isinstance(outcome, Export)}
        write_json(study.export_dir / EXPORTED, {**read_exported(study.export_dir), **written})
    return outcomes


def with_counters(study: Study, recipe: Recipe, options: ExportOptions | None) -> ExportOptions:
    """The options with the counters at which the trunk ends from which the recipe starts.

    They are known where ``export-runs`` wrote that trunk for a trainer, and are not the trunk's tokens over the batch:
    a trainer fills the last batch.

    Args:
        study: the study.
        recipe: its recipe.
        options: as the user gave them; what they say of counters stays.
    """
    options = options or ExportOptions()
    written = read_exported_runs(study.exported_runs_file).get(str(recipe.handover.run_id))
    if written is None or options.seen_steps is not None or options.seen_samples is not None:
        return options
    return replace(options, seen_steps=written["last_step"], seen_samples=written["last_sample"])


def read_exported(directory: Path) -> dict[str, str]:
    """Digest of the recipe that each target's folder was written for.

    Args:
        directory: folder of the targets' folders.
    """
    path = directory / EXPORTED
    return dict(read_json(path, dict[str, str])) if path.is_file() else {}
