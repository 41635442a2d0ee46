"""A sweep as the files of its study say it at one moment: what is asked, and the rows that answer it.

A verb reads one of these once (``Study.planned``, ``Study.measured``) and hands its parts on. Nothing here reads files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd

from decaylaws.designs.design import PlannedRun
from decaylaws.designs.planner import Planner
from decaylaws.runs.table import EVALUATION, measured_on
from decaylaws.settings.study import StudySettings
from decaylaws.study.question import Question


@dataclass(frozen=True)
class PlannedSweep:
    """What a study asks, its plan being the present one.

    Attributes:
        planner: makes its run configs; holds the settings, the facts of the corpus, the arithmetic and the checkpoints.
        question: decides which recorded runs belong.
        proposed: runs that the sampler of the present plan proposed so far.
        inputs: hash of what decides the runs and their numbers.
    """

    planner: Planner
    question: Question
    proposed: tuple[PlannedRun, ...]
    inputs: str

    @property
    def settings(self) -> StudySettings:
        """The checked ``study.yaml``."""
        return self.planner.settings


@dataclass(frozen=True)
class MeasuredSweep(PlannedSweep):
    """A planned sweep with its finished runs.

    Attributes:
        runs: the rows of the runs table that belong to the question.
        left_out: the rows that do not: ``run_id``, ``role``, ``reason``.
    """

    runs: pd.DataFrame
    left_out: pd.DataFrame

    def after(self, recorded: pd.DataFrame) -> MeasuredSweep:
        """The same sweep with the rows of a runs table that has grown since.

        Args:
            recorded: the whole table (``Study.recorded_runs``).
        """
        runs, left_out = self.question.split(recorded)
        return replace(self, runs=runs, left_out=left_out)

    def own(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Those rows of another table of runs, such as the curves, that belong to the question.

        Args:
            rows: a table with a column ``run_id``.
        """
        own = rows["run_id"].isin(self.runs["run_id"])
        if EVALUATION in rows:
            own &= measured_on(rows) == self.question.measured_on
        return rows[own].reset_index(drop=True)
