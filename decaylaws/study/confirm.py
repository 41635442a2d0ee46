"""The verb ``confirm``: store predictions for the recipe and its rivals, run them, and say who won."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from decaylaws.errors import StudyError
from decaylaws.io.values import AS_JSON
from decaylaws.progress import Progress, silent
from decaylaws.study.directory import Study
from decaylaws.study.predictions import Confirmation, predict
from decaylaws.study.recommend import read_recommended
from decaylaws.study.run import PoolDisplay, train
from decaylaws.study.trainer import how_to_go_on
from decaylaws.study.verdict import Outcome


@dataclass(frozen=True)
class Confirmed:
    """What the confirming runs have come to.

    Attributes:
        predictions: what was stored before the runs started.
        table: predicted beside observed, one row per candidate and scale (``Outcome.candidates``).
        verdict: who won, in sentences.
        left_out: recorded runs that do not belong to the present question (``MeasuredSweep.left_out``).
    """

    predictions: Confirmation
    table: pd.DataFrame
    verdict: tuple[str, ...]
    left_out: pd.DataFrame = field(repr=False, metadata={AS_JSON: None})


def confirm(
    study: Study,
    *,
    workers: int | None = None,
    progress: Progress = silent,
    display: PoolDisplay | None = None,
) -> Confirmed:
    """Store predictions for the recipe and its rivals, run them at the proxy's and the target's scale, and say who won.

    Args:
        study: the study.
        workers: processes; None takes the study's setting.
        progress: hears of every stage.
        display: shows what the workers are doing.

    Raises:
        StudyError: nothing has been recommended, something changed since, or runs failed for good. Or an external
            trainer does the runs and some have no result yet; the predictions are stored then.
    """
    recommended = read_recommended(study)
    stored, is_new = predict(study, recommended)
    when = (
        f"{'stored' if is_new else 'were stored'} at {stored.created}, before the runs: {study.confirm_file}"
    )
    progress("predictions", len(stored.entries), len(stored.entries), when)
    if study.settings.trainer == "external":
        _check_recorded(study, stored)
    else:
        train(
            study,
            recommended.sweep.planner,
            stored.runs(),
            workers=workers,
            serves=stored.serves,
            progress=progress,
            display=display,
        )
    sweep = recommended.sweep.after(study.recorded_runs())
    outcome = Outcome.of(stored, sweep, recommended.objective)
    return Confirmed(stored, outcome.candidates, outcome.verdict, sweep.left_out)


def _check_recorded(study: Study, stored: Confirmation) -> None:
    recorded = set(study.runs()["run_id"])
    missing = [config.run_id for _, config in stored.runs() if config.run_id not in recorded]
    if missing:
        raise StudyError(
            f"The predictions are stored in {study.confirm_file}. {len(missing)} of the {len(stored.runs())} "
            f"confirming runs have no result yet. {how_to_go_on(study.root)} "
            f"Then run 'decaylaws confirm {study.root}' again."
        )
