"""``decaylaws export-runs`` and ``decaylaws record``: the runs of a study that another trainer does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from decaylaws import study as verbs
from decaylaws.cli.console import ConsoleProgress, frame_table, make_console, say
from decaylaws.cli.export import LrRule
from decaylaws.cli.options import StudyDir, pairs
from decaylaws.cli.steps import open_study, say_next
from decaylaws.exporters import EXPORTERS, ExportOptions
from decaylaws.runs.logs import FORMATS
from decaylaws.study.export_runs import ExportedRuns, runs_table
from decaylaws.study.record import LR_TOLERANCE, Recorded
from decaylaws.study.status import next_verb, steps

console = make_console()


def export_runs(
    directory: StudyDir,
    target: Annotated[str, typer.Option(help=f"the trainer: {', '.join(EXPORTERS)}", show_default=False)],
    out: Annotated[Path, typer.Option(help="folder for the runs, a folder each", show_default=False)],
    ranks: Annotated[int, typer.Option(help="data-parallel ranks that share a batch", min=1)] = 1,
    local_batch_size: Annotated[int, typer.Option(help="sequences of a rank in a forward pass", min=1)] = 1,
    checkpoints: Annotated[
        str, typer.Option(help="folder for the checkpoints of all runs, as the trainer sees it from --out")
    ] = "outputs",
    model: Annotated[
        list[str] | None,
        typer.Option(help="SHAPE=NAME: the trainer's name for the model of a shape; can be repeated"),
    ] = None,
    lr_rule: Annotated[
        LrRule,
        typer.Option(
            help="auto: the LR of every step where the trainer takes a table, else its own scheduler; exact or native: "
            "only that"
        ),
    ] = LrRule.auto,
    tolerance: Annotated[
        float, typer.Option(help="largest LR error of a native scheduler, as a fraction of the peak LR")
    ] = 0.01,
    again: Annotated[bool, typer.Option(help="also write the runs that have a result")] = False,
) -> ExportedRuns:
    """Write the runs of a study with trainer: external as configuration of that trainer.

    Reads plan.json, the recorded runs and, after confirm, the confirming runs.
    Writes a folder for every run that has no result yet, with the trainer's files,
    run.json, NOTES.md and launch.sh, and array.sh, which starts all of them.
    Next: train the runs, then decaylaws record.
    """
    study = open_study(console, directory)
    options = ExportOptions(
        lr_rule=lr_rule.value,
        tolerance=tolerance,
        data_parallel_ranks=ranks,
        local_batch_size=local_batch_size,
        output=checkpoints,
    )
    with ConsoleProgress(console) as progress:
        written = verbs.export_runs(
            study, target, out, options, models=pairs(model, "model"), again=again, progress=progress
        )
    table = runs_table(written)
    if not table.empty:
        console.print(
            frame_table(table, title=f"written for {target}, a folder each with NOTES.md, in {out}")
        )
    if written.recorded:
        console.print(f"{written.recorded} runs have a result and were left out.", highlight=False)
    say(console, written.notes)
    if written.runs:
        start = (
            f"Next: bash '{written.script}' (Slurm) or bash '{written.script}' here, then decaylaws record "
        )
        console.print(f"{start}'{study.root}' FILES", highlight=False, soft_wrap=True)
    return written


def record(
    directory: StudyDir,
    files: Annotated[
        list[Path], typer.Argument(help="logs and tables, or folders of them", show_default=False)
    ],
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="OURS=THEIRS: what the files call step, tokens, lr, loss:DOMAIN, ...; can be repeated"
        ),
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="what the files call the loss of a domain, such as 'val/{domain}/nll'")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help=f"{', '.join(FORMATS)}; by the files' names if left out")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="id of the run that the files are about, if nothing in them says it")
    ] = None,
    lr_tolerance: Annotated[
        float, typer.Option(help="how far a logged LR may be from the plan's, as a fraction of the peak LR")
    ] = LR_TOLERANCE,
    unfinished: Annotated[
        bool,
        typer.Option("--unfinished", help="also record decays that ended early, with their curves so far"),
    ] = False,
) -> Recorded:
    """Record what another trainer has logged about the runs of a study.

    Reads CSV, JSON Lines and Parquet tables, exports of Weights & Biases, TensorBoard's
    event files, logs of OLMo-core, Megatron-LM and Hugging Face's Trainer, and results
    of lm-eval. A run is known by the id in its name or path. It counts if the loss of
    every domain was logged at its last step and its LR, tokens and mixture are the
    plan's. Everything else is listed with the reason. With --unfinished a decay that
    only lacks its end counts too: fit weighs it by what its curve leads to expect.
    Writes runs.csv and curves.csv.
    Next: decaylaws fit.
    """
    study = open_study(console, directory)
    with ConsoleProgress(console) as progress:
        recorded = verbs.record(
            study,
            files,
            columns=pairs(column, "column"),
            loss=loss,
            kind=format,
            run_id=run,
            lr_tolerance=lr_tolerance,
            unfinished=unfinished,
            progress=progress,
        )
    counts = recorded.outcomes["outcome"].value_counts()
    words = ", ".join(f"{counts.get(word, 0)} {word}" for word in ("new", "unchanged", "replaced"))
    console.print(f"{len(recorded.outcomes)} runs recorded in {study.runs_file}: {words}.", highlight=False)
    replaced = recorded.outcomes[recorded.outcomes["outcome"] == "replaced"]
    say(console, [f"{row.role} {row.run_id} replaced: {row.change}." for row in replaced.itertuples()])
    if not recorded.excluded.empty:
        console.print(f"{len(recorded.excluded)} excluded:", highlight=False)
        say(console, [_excluded_words(row) for row in recorded.excluded.itertuples()])
    say(console, recorded.notes)
    if not recorded.missing.empty:
        by_role = recorded.missing.groupby("role", sort=False)["run_id"]
        listed = [f"{role}: {', '.join(ids)}" for role, ids in by_role]
        console.print(f"{len(recorded.missing)} runs have no result yet:", highlight=False)
        say(console, listed)
    say_next(console, study, next_verb(steps(study)))
    return recorded


def _excluded_words(row: Any) -> str:
    return f"{row.run_id or row.file}: {row.reason}." + (f" ({row.file})" if row.run_id else "")
