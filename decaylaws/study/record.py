"""The verb ``record``: what another trainer has logged, compared with the plan, as results of the study.

A run counts only if the loss of every domain was logged at its last step, and if nothing that was logged contradicts
the plan. Whatever does not count is named with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from decaylaws.designs.design import PlannedRun
from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.progress import Progress, silent
from decaylaws.runs.columns import (
    DIVERGED,
    EVALUATION,
    EVALUATION_SETS,
    FINISHED,
    INTERRUPTED,
    LOSS,
    START_LOSS,
    config_row,
)
from decaylaws.runs.logs import Log, Names, read_logs
from decaylaws.runs.objective import objective_value
from decaylaws.runs.table import read_runs
from decaylaws.study.compared import Compared, compare_with_plan
from decaylaws.study.directory import Study
from decaylaws.study.export_runs import read_exported_runs
from decaylaws.study.external import known_runs, unrecorded, wanted_runs
from decaylaws.study.sweep import PlannedSweep
from decaylaws.study.tables import write_results
from decaylaws.study.trainer import refuse_built_in

LR_TOLERANCE = 0.01
"""How far a logged LR may be from the plan's, as a fraction of the run's peak LR."""
_RUN_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{16}(?![0-9a-f])")


@dataclass(frozen=True)
class Recorded:
    """What became of the files.

    Attributes:
        outcomes: one row per run that counts: ``run_id``, ``role``, ``outcome`` (``new``, ``unchanged`` or
            ``replaced``) and ``change`` (what a replaced result was, and from which file the new one is).
        excluded: one row per run or file that does not count: ``run_id`` (empty where none is named), ``file``,
            ``reason``.
        missing: ``run_id`` and ``role`` of the runs that the study asks for and that have no result yet.
        runs: the runs table, with the rows of earlier plans.
        notes: sentences on what could not be compared because it was not logged.
    """

    outcomes: pd.DataFrame
    excluded: pd.DataFrame
    missing: pd.DataFrame
    runs: pd.DataFrame
    notes: tuple[str, ...]


def record(
    study: Study,
    files: Iterable[str | Path],
    *,
    columns: Mapping[str, str] | None = None,
    loss: str | None = None,
    kind: str | None = None,
    run_id: str | None = None,
    lr_tolerance: float = LR_TOLERANCE,
    unfinished: bool = False,
    progress: Progress = silent,
) -> Recorded:
    """Record what another trainer has logged about the runs of a study.

    Recording again what is recorded changes nothing. A file that corrects a result replaces it.

    Args:
        study: the study; study.yaml names an external trainer.
        files: logs and tables, or folders of them. What several files say of one run is put together.
        columns: our name to the files' (``{"loss:web": "val/web"}``), see :class:`decaylaws.runs.logs.Names`.
        loss: how the files call the loss of a domain, with ``{domain}`` in it.
        kind: format of the files, one of ``decaylaws.runs.logs.FORMATS``; None goes by their names.
        run_id: the run that all files are about, where neither their content nor their paths say it.
        lr_tolerance: how far a logged LR may be from the plan's, as a fraction of the run's peak LR.
        unfinished: also record decays that ended early, with their curves so far. ``fit`` counts them with what these
            lead to expect, and a later record of the whole run replaces them.
        progress: hears of every file, and while the storage does not answer.

    Raises:
        StudyError: the study's runs are not of another trainer, nothing is planned, or something changed since.
        DataError, SchemaError, InvalidValueError: a file cannot be read, or holds what it must not.
    """
    refuse_built_in(study.root, study.settings, "record")
    if not 0 <= lr_tolerance < 1:
        raise InvalidValueError("lr_tolerance", lr_tolerance, "must be a fraction from 0 to 1")
    sweep, settings = study.planned(), study.settings
    known = {run.config.run_id: run for run in known_runs(study, sweep)}
    if run_id is not None and run_id not in known:
        raise InvalidValueError("run", run_id, "is no run that the study asks for")
    names = Names.of(settings.domains, sources=settings.sources, columns=columns, pattern=loss)
    paths = [Path(file) for file in files]
    logs: list[Log] = []
    nothing = []
    for done, path in enumerate(paths, start=1):
        found_logs = read_logs(path, names, kind=kind)
        logs += found_logs
        if not found_logs:
            nothing.append({"run_id": "", "file": str(path), "reason": "it holds no rows"})
        progress("files read", done, len(paths))
    if unused := sorted(set(names.columns) - names.used):
        raise SchemaError(
            "the files", missing=[names.columns[each] for each in unused], remedy="Correct --column."
        )
    by_run, excluded = _by_run(logs, known, run_id)
    excluded += nothing
    whole: set[str] = set()
    if unfinished and study.runs_file.is_file():  # what is logged of a part of a whole run corrects nothing
        recorded = read_runs(study.runs_file)
        whole = set(recorded.loc[recorded["reached_target"].astype(bool), "run_id"])
    ends = {each: found["last_step"] for each, found in read_exported_runs(study.exported_runs_file).items()}
    compared = []
    for each, own in by_run.items():
        config = known[each].config
        found = compare_with_plan(
            config, own, settings.domains, last_step=ends.get(each), lr_tolerance=lr_tolerance
        )
        if found.ended_early and (not unfinished or each in whole):
            found = replace(found, ended_early=False)
        compared.append(found)
        if found.reasons and not found.ended_early:
            where = ", ".join(dict.fromkeys(str(log.file) for log in own))
            excluded += [{"run_id": each, "file": where, "reason": reason} for reason in found.reasons]
    counted = [found for found in compared if not found.reasons or found.ended_early]
    results = [(known[found.config.run_id], result_of(sweep, found)) for found in counted]
    files_of = {each: ", ".join(dict.fromkeys(str(log.file) for log in own)) for each, own in by_run.items()}
    outcomes, runs = store(study, sweep, results, files_of, progress)
    missing = unrecorded(study, sweep.question, wanted_runs(study, sweep))
    return Recorded(
        outcomes,
        pd.DataFrame(excluded, columns=["run_id", "file", "reason"]),
        pd.DataFrame(
            [(run.config.run_id, run.role) for run in missing], columns=["run_id", "role"], dtype=object
        ),
        runs,
        (*_notes(counted), *_units(names)),
    )


def _by_run(
    logs: Sequence[Log], known: Mapping[str, PlannedRun], run_id: str | None
) -> tuple[dict[str, list[Log]], list[dict[str, str]]]:
    """The logs of every run that the study asks for, and those of no such run with the reason."""
    by_run: dict[str, list[Log]] = {}
    excluded = []
    for log in logs:
        ids = [each for each in dict.fromkeys(_RUN_ID.findall(log.name)) if each in known]
        if run_id is not None:
            ids = [run_id]
        if len(ids) == 1:
            by_run.setdefault(ids[0], []).append(log)
            continue
        named = log.name if log.name != str(log.file) else ""
        what = f"'{named}' names" if named else "its path names"
        reason = f"{what} no run that the study asks for" if not ids else f"{what} the runs {', '.join(ids)}"
        excluded.append({"run_id": "", "file": str(log.file), "reason": reason})
    return by_run, excluded


def result_of(sweep: PlannedSweep, found: Compared) -> dict[str, Any]:
    """A run that counts as the queue keeps results: its row of the runs table and its curve.

    Args:
        sweep: what the study asks now.
        found: the run, with a finite loss of every domain at its last step. Without losses it was interrupted, where
            only its end is missing, or has diverged.
    """
    config = found.config
    measured: dict[str, Any] = {EVALUATION: sweep.question.evaluation_tokens}
    if sweep.question.evaluation_sets:
        measured[EVALUATION_SETS] = sweep.question.evaluation_sets
    reached, status, reason = True, FINISHED, ""
    if found.ended_early:
        reached, status, reason = False, INTERRUPTED, f"ended at step {max(found.curve)}"
    elif not found.losses:
        reached, status, reason = False, DIVERGED, "no finite loss at the end"
    row = {
        **config_row(config, sweep.planner.corpus.available_tokens),
        "status": status,
        "reason": reason,
        "reached_target": reached,
        **{LOSS + domain: loss for domain, loss in found.losses.items()},
        **measured,
    }
    curve = [
        {
            "run_id": config.run_id,
            "tokens": min(step * config.batch_tokens, config.tokens),
            "step": step,
            "lr": float(config.schedule.lr(min(step * config.batch_tokens, config.tokens))),
            "domain": domain,
            "loss": loss,
            **measured,
        }
        for step, losses in sorted(found.curve.items())
        for domain, loss in losses.items()
    ]
    return {"row": row, "curve": curve}


def store(
    study: Study,
    sweep: PlannedSweep,
    results: Sequence[tuple[PlannedRun, dict[str, Any]]],
    files: Mapping[str, str],
    progress: Progress = silent,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Put results into the study's storage and write its tables.

    Args:
        study: the study, whose storage and tables are written.
        sweep: what it asks now.
        results: runs and what :func:`result_of` made of them.
        files: where a run's result comes from, for the account of what was replaced.
        progress: hears while the storage does not answer.

    Returns:
        The outcomes as in :class:`Recorded`, and the runs table.
    """
    queue = study.storage().open_queue(progress, serves=sweep.inputs)
    before = {result["row"]["run_id"]: result["row"] for result in queue.results()}
    settings, outcomes = sweep.settings, []
    for done, (run, result) in enumerate(results, start=1):
        row, old = result["row"], before.get(run.config.run_id)
        row["role"] = run.role if old is None else old["role"]
        value = (
            objective_value(row, settings.objective_weights, settings.objective_unit)
            if row["reached_target"]
            else None
        )
        outcome = queue.record(run.role, run.config, result, value)
        change = _change(old, row, files.get(run.config.run_id, "")) if outcome == "replaced" and old else ""
        outcomes.append((run.config.run_id, run.role, outcome, change))
        progress("results recorded", done, len(results))
    runs = write_results(study, with_starts(queue.every_result()))
    return pd.DataFrame(outcomes, columns=["run_id", "role", "outcome", "change"], dtype=object), runs


def with_starts(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results whose rows also say from which losses the runs start: those at the end of the runs they start from.

    Args:
        results: as the queue holds them.
    """
    ends = {(each["row"]["run_id"], *_measured(each["row"])): each["row"] for each in results}
    found = []
    for each in results:
        row = each["row"]
        start = ends.get((row["start_run_id"], *_measured(row)), {})
        losses = {
            START_LOSS + name.removeprefix(LOSS): loss
            for name, loss in start.items()
            if name.startswith(LOSS)
        }
        found.append({**each, "row": {**row, **losses}})
    return found


def _change(old: Mapping[str, Any], new: Mapping[str, Any], file: str) -> str:
    """What a corrected result changes, and where it comes from."""
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    shown = [
        f"{name} {_shown(old.get(name))} -> {_shown(new.get(name))}"
        for name in names
        if name.startswith(LOSS)
    ]
    return f"{', '.join(shown) or 'the curve'}, from {file}" if file else ", ".join(shown) or "the curve"


def _shown(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "none"


def _notes(found: Sequence[Compared]) -> tuple[str, ...]:
    """What could not be compared with the plan, by how many of the recorded runs did not log it."""
    notes = []
    for what in ("LR", "tokens", "mixture"):
        silent_runs = sum(what not in each.compared for each in found)
        if silent_runs:
            notes.append(
                f"{silent_runs} of {len(found)} runs did not log their {what}, so it was not compared with the plan."
            )
    return tuple(notes)


def _units(names: Names) -> tuple[str, ...]:
    """That losses are in bits per byte, where they are."""
    bits = sorted(domain for domain, is_bits in names.in_bits.items() if is_bits)
    if not bits:
        return ()
    return (
        f"The losses of {', '.join(bits)} are bits per byte. Every run of the study, trunks included, needs them in "
        "this unit, and what other verbs call nats per token is then bits per byte.",
    )


def _measured(row: Mapping[str, Any]) -> tuple[Any, Any]:
    """What a row was measured on."""
    return row[EVALUATION], row.get(EVALUATION_SETS)
