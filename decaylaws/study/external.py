"""Studies whose runs another trainer does: which runs there are, and which of them have no result yet."""

from __future__ import annotations

from collections.abc import Sequence

from decaylaws.designs.design import PlannedRun
from decaylaws.errors import StudyError
from decaylaws.progress import Progress, silent
from decaylaws.study.directory import Study
from decaylaws.study.plan import current_plan
from decaylaws.study.predictions import find_confirmation, predicted_runs
from decaylaws.study.run import learn, open_proposals, open_queue, propose


def wanted_runs(study: Study) -> list[PlannedRun]:
    """The runs that the study asks for now, each once: the plan's, its sampler's, and those that confirm the recipe.

    Raises:
        StudyError: nothing is planned, or study.yaml changed since.
    """
    runs = {run.config.run_id: run for run in (*current_plan(study), *study.proposed())}
    try:
        confirmation = find_confirmation(study) if study.runs_file.is_file() else None
    except StudyError:  # runs changed since the recipe was made: there is nothing to confirm now
        confirmation = None
    for role, config in confirmation.runs() if confirmation else ():
        runs.setdefault(config.run_id, PlannedRun(role, config))
    return list(runs.values())


def known_runs(study: Study) -> list[PlannedRun]:
    """As :func:`wanted_runs`, with the runs that were to confirm earlier recipes: their results may be recorded too."""
    runs = {run.config.run_id: run for run in wanted_runs(study)}
    for role, config in predicted_runs(study):
        runs.setdefault(config.run_id, PlannedRun(role, config))
    return list(runs.values())


def next_runs(study: Study, *, progress: Progress = silent) -> list[PlannedRun]:
    """As :func:`wanted_runs`, after the sampler has proposed: it does once the whole design has results.

    Args:
        study: the study.
        progress: hears while the storage does not answer.

    Raises:
        StudyError: nothing is planned, or study.yaml changed since.
    """
    design = list(current_plan(study))
    proposals = None if unrecorded(study, design) else open_proposals(study)
    if proposals is not None:
        queue = open_queue(study, progress, serves=study.plan_inputs())
        learn(queue, proposals, [run.config for run in design])
        propose(study, queue, proposals)
    return wanted_runs(study)


def unrecorded(study: Study, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Those of the runs that have no result yet, in their order.

    Args:
        study: the study.
        runs: the runs to look for.
    """
    recorded = set(study.runs()["run_id"]) if study.runs_file.is_file() else set()
    return [run for run in runs if run.config.run_id not in recorded]
