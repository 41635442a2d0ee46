"""The verbs ``ask`` and ``tell``: a scheduler of one's own drives the sweep.

::

    from decaylaws import study

    mine = study.Study.open("my-study")             # trainer: external
    while runs := study.ask(mine, 8):
        for run in runs:                            # on whatever cluster
            losses = train(run.config)              # {"web": 2.71, "maths": 1.93}, nats per token
            study.tell(mine, run.config.run_id, losses)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral
from typing import SupportsFloat

from decaylaws.designs.design import PlannedRun
from decaylaws.errors import InvalidValueError
from decaylaws.progress import Progress, silent
from decaylaws.study.compared import Compared
from decaylaws.study.directory import Study
from decaylaws.study.external import known_runs, next_runs, unrecorded
from decaylaws.study.record import result_of, store
from decaylaws.study.trainer import refuse_built_in


def ask(
    study: Study, count: int = 1, *, again: bool = False, progress: Progress = silent
) -> list[PlannedRun]:
    """The next runs to train, which nobody else is given: the plan's, then what the sampler proposes.

    A run is given out once the run that it starts from has a result, so its checkpoint exists. A checkpoint of
    study.yaml comes as a run of which nothing is trained (``run.config.is_trained``): tell the losses that it has.
    Runs that confirm a recipe come after ``confirm`` has stored what is expected of them.

    Args:
        study: the study; study.yaml names an external trainer.
        count: at most so many.
        again: also give out runs that were given out before and have no result yet, as after a scheduler has died.
        progress: hears while the storage does not answer.

    Returns:
        Role and config of each; fewer than ``count``, or none, where the others wait for a result.

    Raises:
        StudyError: the study's runs are not of another trainer, nothing is planned, or something changed since.
        InvalidValueError: ``count`` is not positive.
    """
    refuse_built_in(study.root, study.settings, "ask")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InvalidValueError("count", count, "must be a whole number of at least 1")
    sweep, wanted = next_runs(study, progress=progress)
    open_runs = {run.config.run_id: run for run in unrecorded(study, sweep.question, wanted)}
    recorded = {run.config.run_id for run in wanted} - set(open_runs)
    ready = {
        run_id: run
        for run_id, run in open_runs.items()
        if run.config.start_run_id is None or run.config.start_run_id in recorded
    }
    queue = study.storage().open_queue(progress, serves=sweep.inputs)
    queue.enqueue([(run.role, run.config) for run in ready.values()])
    return [ready[run_id] for run_id in queue.hand_out(list(ready), count, again=again)]


def tell(
    study: Study,
    run_id: str,
    losses: Mapping[str, SupportsFloat] | None,
    curve: Mapping[int, Mapping[str, SupportsFloat]] | None = None,
    *,
    progress: Progress = silent,
) -> str:
    """Record the result of a run; telling the same again changes nothing, another result replaces it.

    Args:
        study: the study; study.yaml names an external trainer.
        run_id: a run that the study asks for, given out or not.
        losses: final held-out loss of every domain in nats per token; None for a run that diverged.
        curve: losses by domain at steps of the run on its way, counted from its own start.
        progress: hears while the storage does not answer.

    Returns:
        ``new``, ``unchanged`` or ``replaced``.

    Raises:
        StudyError: as :func:`ask`.
        InvalidValueError: the study does not ask for such a run, a domain has no finite loss or is unknown, or a step
            lies outside the run.
    """
    refuse_built_in(study.root, study.settings, "tell")
    sweep = study.planned()
    known = {run.config.run_id: run for run in known_runs(study, sweep)}
    if run_id not in known:
        raise InvalidValueError(
            "run_id", run_id, "is no run that the study asks for", "Take it from ask, or from plan.json."
        )
    run, domains = known[run_id], study.settings.domains
    final = {} if losses is None else _numbers(losses, domains, "losses")
    if losses is not None and (missing := [domain for domain in domains if domain not in final]):
        raise InvalidValueError(
            "losses", sorted(final), f"must hold the loss of every domain; {missing[0]!r} is missing"
        )
    if curve is not None and not isinstance(curve, Mapping):
        raise InvalidValueError("curve", curve, "must map steps to losses by domain")
    points = {}
    for step, on_the_way in (curve or {}).items():
        if not isinstance(step, Integral) or not 0 <= step <= run.config.num_steps:
            raise InvalidValueError("curve", step, f"must hold steps of the run, 0 to {run.config.num_steps}")
        points[int(step)] = _numbers(on_the_way, domains, f"curve.{step}")
    if losses is not None:
        points[run.config.num_steps if run.config.is_trained else 0] = final
    found = Compared(run.config, final, points)
    outcomes, _ = store(study, sweep, [(run, result_of(sweep, found))], {}, progress)
    return str(outcomes.at[0, "outcome"])


def _numbers(losses: Mapping[str, SupportsFloat], domains: tuple[str, ...], field: str) -> dict[str, float]:
    """The losses as plain numbers; those of numpy and torch are numbers too."""
    if not isinstance(losses, Mapping):
        raise InvalidValueError(field, losses, "must map domains to losses")
    found = {}
    for domain, loss in losses.items():
        if domain not in domains:
            raise InvalidValueError(f"{field}.{domain}", loss, f"is no domain; they are {', '.join(domains)}")
        is_number = isinstance(loss, SupportsFloat) and not isinstance(loss, bool)
        try:
            found[domain] = float(loss) if is_number else math.nan
        except (TypeError, ValueError, OverflowError, RuntimeError):
            found[domain] = math.nan  # an array of several losses, or a number beyond all floats
        if not (math.isfinite(found[domain]) and found[domain] > 0):
            raise InvalidValueError(
                f"{field}.{domain}",
                loss,
                "must be a finite number above 0",
                "Tell a run that diverged with losses=None.",
            )
    return found
