"""Studies whose runs another trainer does: which runs there are, and which of them have no result yet."""

from __future__ import annotations

from collections.abc import Sequence

from decaylaws.designs.design import PlannedRun
from decaylaws.errors import StudyError
from decaylaws.progress import Progress, silent
from decaylaws.runs.table import read_runs
from decaylaws.study.directory import Study
from decaylaws.study.overlap import check_overlap
from decaylaws.study.paths import StudyPaths
from decaylaws.study.predictions import find_confirmation, predicted_runs
from decaylaws.study.proposing import learn, open_proposals, propose
from decaylaws.study.question import Question
from decaylaws.study.sweep import PlannedSweep


def wanted_runs(study: Study, sweep: PlannedSweep) -> list[PlannedRun]:
    """The runs that the study asks for now, each once: the plan's, its sampler's, and those that confirm the recipe.

    Args:
        study: the study.
        sweep: what it asks now.

    Raises:
        StudyError: a source repeats too much held-out text.
    """
    check_overlap(study)
    runs = {run.config.run_id: run for run in (*study.design(), *sweep.proposed)}
    try:
        confirmation = find_confirmation(study) if study.runs_file.is_file() else None
    except StudyError:  # runs changed since the recipe was made: there is nothing to confirm now
        confirmation = None
    for role, config in confirmation.runs() if confirmation else ():
        runs.setdefault(config.run_id, PlannedRun(role, config))
    return list(runs.values())


def known_runs(study: Study, sweep: PlannedSweep) -> list[PlannedRun]:
    """As :func:`wanted_runs`, with the runs that were to confirm earlier recipes: their results may be recorded too."""
    runs = {run.config.run_id: run for run in wanted_runs(study, sweep)}
    for role, config in predicted_runs(study.confirm_file):
        runs.setdefault(config.run_id, PlannedRun(role, config))
    return list(runs.values())


def next_runs(study: Study, *, progress: Progress = silent) -> tuple[PlannedSweep, list[PlannedRun]]:
    """As :func:`wanted_runs`, after the sampler has proposed: it does once the whole design has results.

    Args:
        study: the study.
        progress: hears while the storage does not answer.

    Returns:
        What the study asks then, and the runs.

    Raises:
        StudyError: nothing is planned, study.yaml changed since, or a source repeats too much held-out text.
    """
    sweep = study.planned()
    wanted, design = wanted_runs(study, sweep), list(study.design())
    if unrecorded(study, sweep.question, design):
        return sweep, wanted
    storage = study.storage()
    proposals = open_proposals(sweep, storage)
    if proposals is None:
        return sweep, wanted
    queue = storage.open_queue(progress, serves=sweep.inputs)
    learn(queue, proposals, [run.config for run in design])
    propose(queue, proposals, study.proposals_file, sweep.inputs)
    sweep = study.planned()  # whose question holds the new proposals
    return sweep, wanted_runs(study, sweep)


def unrecorded(paths: StudyPaths, question: Question, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Those of the runs that have no result yet, in their order.

    Args:
        paths: of the study.
        question: decides which recorded runs belong to it.
        runs: the runs to look for.
    """
    if not paths.runs_file.is_file():
        return list(runs)
    recorded = set(question.split(read_runs(paths.runs_file))[0]["run_id"])
    return [run for run in runs if run.config.run_id not in recorded]
