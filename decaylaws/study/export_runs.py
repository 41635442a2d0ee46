"""The verb ``export-runs``: the runs of a study as configuration of the trainer that is to do them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from decaylaws.errors import InvalidValueError
from decaylaws.exporters import EXPORTERS, ExportOptions
from decaylaws.exporters.planned import (
    ARRAY_FILE,
    ExportedRun,
    write_array,
)
from decaylaws.progress import Progress, silent
from decaylaws.study import held
from decaylaws.study.directory import Study
from decaylaws.study.external import next_runs, unrecorded
from decaylaws.study.files import read_json, write_json
from decaylaws.study.run_writer import RunWriter, open_store
from decaylaws.study.stored import StoredExportedRuns
from decaylaws.study.trainer import refuse_built_in


@dataclass(frozen=True)
class ExportedRuns:
    """What was written.

    Attributes:
        directory: the folder of all runs.
        runs: the runs, those from which others start first.
        recorded: how many runs of the study were left out because they have a result.
        script: starts every run.
        notes: sentences on what a person must do or know before the runs are started.
    """

    directory: Path
    runs: tuple[ExportedRun, ...]
    recorded: int
    script: Path
    notes: tuple[str, ...]


def export_runs(
    study: Study,
    target: str,
    directory: Path,
    options: ExportOptions | None = None,
    *,
    models: Mapping[str, str] | None = None,
    again: bool = False,
    progress: Progress = silent,
) -> ExportedRuns:
    """Write every run that the study asks for and that has no result yet as a folder of its own.

    These are the runs of the plan, then what the study's sampler proposes, and the confirming runs once their
    predictions are stored. Writing them again changes nothing but what changed in the study.

    Args:
        study: the study; study.yaml names an external trainer.
        target: name of that trainer, one of ``decaylaws.exporters.EXPORTERS``.
        directory: the folders of the runs go here; the runs are started from it.
        options: ranks, local batch, folder of the checkpoints and the like.
        models: by shape, what the target calls its model; those of study.yaml where left out.
        again: also write the runs that have a result.
        progress: hears of every run.

    Raises:
        StudyError: the study's runs are not for another trainer, or nothing is planned.
        InvalidValueError: the target is unknown, a model or a path of text has no name.
        NotRepresentableError: the target cannot express a run.
    """
    refuse_built_in(study.root, study.settings, "export-runs")
    if target not in EXPORTERS:
        raise InvalidValueError("target", target, f"must be one of {', '.join(EXPORTERS)}")
    options = replace(options or ExportOptions(), saves=1)
    if tracker := study.settings.tracker:
        options = replace(options, tracker=tracker.kind, project=tracker.project or study.settings.name)
    sweep, asked = next_runs(study)
    wanted = [run for run in asked if run.config.is_trained]
    chosen = wanted if again else unrecorded(study, sweep.question, wanted)
    checkpoints = held.paths(sweep.settings.checkpoints, study.root, sweep.planner.held)
    store = None if sweep.settings.is_declared else open_store(study.corpus_dir, target)
    writer = RunWriter(sweep.planner, checkpoints, store, target, directory, options, dict(models or {}))
    exported = []
    for done, run in enumerate(chosen, start=1):
        exported.append(writer.write(run))
        progress("runs written", done, len(chosen))
    script = directory / ARRAY_FILE
    if exported:
        script = write_array(exported, directory, group=study.settings.name)
    _remember(study.exported_runs_file, target, exported)
    notes = [
        f"Measure the held-out losses of checkpoint '{writer.name_of(run.config)}' as it is, and record them under run "
        f"{run.config.run_id} at step 0: its decays start from them."
        for run in unrecorded(study, sweep.question, asked)
        if not run.config.is_trained
    ]
    return ExportedRuns(
        directory, tuple(exported), len(wanted) - len(chosen), script, (*writer.notes(), *notes)
    )


def _remember(path: Path, target: str, runs: Sequence[ExportedRun]) -> None:
    """Note in the study where the target's counters stand when each run ends, which its logs will count by."""
    known = read_exported_runs(path)
    for run in runs:
        known[run.config.run_id] = {
            "target": target,
            "last_step": run.export.last_step,
            "last_sample": run.export.last_sample,
        }
    write_json(path, known)


def read_exported_runs(path: Path) -> StoredExportedRuns:
    """What is known of the runs that were written for an external trainer, by their ids.

    Args:
        path: the study's ``exported_runs.json``, which need not exist.
    """
    found: StoredExportedRuns = read_json(path, StoredExportedRuns) if path.is_file() else {}
    return found


def runs_table(written: ExportedRuns) -> pd.DataFrame:
    """What was written: one row per role and size.

    Args:
        written: the runs.

    Returns:
        ``role``, ``N``, ``runs``, ``tokens`` of all of them and ``largest LR error`` against the plan.
    """
    rows = pd.DataFrame(
        [
            {
                "role": run.role,
                "N (non-embedding)": run.config.shape.non_embedding_params,
                "tokens": run.config.tokens,
                "error": run.export.max_abs_lr_error / (run.export.step_lrs.max() or 1.0),
            }
            for run in written.runs
        ]
    )
    if rows.empty:
        return rows
    table = rows.groupby(["role", "N (non-embedding)"], sort=False).agg(
        runs=("tokens", "size"), tokens=("tokens", "sum"), error=("error", "max")
    )
    table["largest LR error"] = [f"{error:.2%} of the peak" for error in table.pop("error")]
    return table.reset_index()
