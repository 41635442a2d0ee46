"""``decaylaws export``: a study's recipe or a recipe file for other trainers, and the way back."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from decaylaws import study as verbs
from decaylaws.cli.answers import No
from decaylaws.cli.console import frame_table, make_console, say
from decaylaws.cli.steps import open_study, say_next
from decaylaws.errors import InvalidValueError
from decaylaws.exporters import (
    EXPORTERS,
    ExportOptions,
    check_config,
    export_all,
    export_remarks,
    export_table,
)
from decaylaws.recipe import Recipe
from decaylaws.study.recommend import load_recipe
from decaylaws.study.status import verb_after

console = make_console()


class LrRule(StrEnum):
    """Choices of ``--lr-rule``."""

    auto = "auto"
    native = "native"
    exact = "exact"


def export(
    source: Annotated[
        Path, typer.Argument(help="a study directory, or recipe.yaml or recipe.json", show_default=False)
    ],
    target: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(EXPORTERS)}; can be repeated; all by default")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for the exports; 'exports' in the study by default")
    ] = None,
    lr_rule: Annotated[
        LrRule,
        typer.Option(
            help="native: the target's own scheduler; exact: the LR of every step; auto: native within the tolerance, "
            "else exact"
        ),
    ] = LrRule.auto,
    tolerance: Annotated[
        float,
        typer.Option(help="largest LR error of a native scheduler, as a fraction of the peak LR"),
    ] = 0.01,
    approximate: Annotated[
        bool,
        typer.Option(
            help="if a target cannot express the schedule, write the nearest one and state its error"
        ),
    ] = False,
    ranks: Annotated[int, typer.Option(help="data-parallel ranks that share a batch", min=1)] = 1,
    local_batch_size: Annotated[int, typer.Option(help="sequences of a rank in a forward pass", min=1)] = 1,
    model: Annotated[str | None, typer.Option(help="the target's name for the model")] = None,
    seen_steps: Annotated[
        int | None,
        typer.Option(
            help="steps that the checkpoint's counter holds, if the checkpoint cannot be read", min=0
        ),
    ] = None,
    seen_samples: Annotated[
        int | None,
        typer.Option(
            help="sequences that the checkpoint's counter holds, if the checkpoint cannot be read", min=0
        ),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            help="compare this configuration of --target with the recipe and write nothing (FILE or FILE.py:FUNCTION)"
        ),
    ] = None,
) -> object:
    """Write the recipe as configuration for other trainers, or check an existing one (exit code 1 if it differs)."""
    study = open_study(console, source) if source.is_dir() else None
    recipe = Recipe.load(source) if study is None else load_recipe(study)
    if check is not None:
        return _check(recipe, target or [], check, seen_steps, seen_samples)
    options = ExportOptions(
        lr_rule=lr_rule.value,
        tolerance=tolerance,
        on_inexpressible="approximate" if approximate else "refuse",
        data_parallel_ranks=ranks,
        local_batch_size=local_batch_size,
        model=model,
        seen_steps=seen_steps,
        seen_samples=seen_samples,
    )
    directory = out or (source.parent / "exports" if study is None else study.export_dir)
    if study is None:
        outcomes = export_all(recipe, directory, target, options)
    else:
        outcomes = verbs.export(study, target, options, directory=out, recipe=recipe)
    table, remarks = export_table(outcomes), export_remarks(recipe, outcomes)
    if not table.empty:
        console.print(frame_table(table, title=f"written, a folder each with NOTES.md, in {directory}"))
    say(console, remarks)
    if study is not None:
        say_next(console, study, verb_after("export"))
    return {"folder": directory, "exports": outcomes, "remarks": remarks}


def _check(
    recipe: Recipe, targets: list[str], path: Path, seen_steps: int | None, seen_samples: int | None
) -> object:
    if len(targets) != 1:
        raise InvalidValueError(
            "target", targets, "must name the one trainer that --check is a configuration of"
        )
    result = check_config(recipe, targets[0], path, seen_steps=seen_steps, seen_samples=seen_samples)
    typer.echo(result.describe(), nl=False)
    answer = {"agrees": result.agrees, "differences": result.differences, "check": result}
    return answer if result.agrees else No(answer)
