"""Studies whose runs another trainer does: which runs there are, and which of them have no result yet."""

from __future__ import annotations

from collections.abc import Sequence

from decaylaws.designs.planner import PlannedRun
from decaylaws.progress import Progress, silent
from decaylaws.study.confirm import find_confirmation
from decaylaws.study.directory import Study
from decaylaws.study.plan import current_plan
from decaylaws.study.run import learn, open_proposals, open_queue, propose


def next_runs(study: Study, *, progress: Progress = silent) -> list[PlannedRun]:
    """The runs that the study asks for now, each once: the plan's, its sampler's, and those that confirm the recipe.

    The sampler proposes once the whole design has results, a batch at a time.

    Args:
        study: the study.
        progress: hears while the storage does not answer.

    Raises:
        StudyError: nothing is planned, or study.yaml changed since.
    """
    design = list(current_plan(study))
    runs = {run.config.run_id: run for run in design}
    proposals = None if unrecorded(study, design) else open_proposals(study)
    if proposals is not None:
        queue = open_queue(study, progress, serves=study.plan_inputs())
        learn(queue, proposals, [run.config for run in design])
        propose(study, queue, proposals)
    runs |= {run.config.run_id: run for run in study.proposed()}
    confirmation = find_confirmation(study) if study.runs_file.is_file() else None
    for role, config in confirmation.runs() if confirmation else ():
        runs.setdefault(config.run_id, PlannedRun(role, config))
    return list(runs.values())


def unrecorded(study: Study, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Those of the runs that have no result yet, in their order.

    Args:
        study: the study.
        runs: the runs to look for.
    """
    recorded = set(study.runs()["run_id"]) if study.runs_file.is_file() else set()
    return [run for run in runs if run.config.run_id not in recorded]
