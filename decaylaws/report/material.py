"""What a report is made from, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from decaylaws.laws.decay import DecayLaw
from decaylaws.mixtures import Mixture
from decaylaws.recipe import Recipe
from decaylaws.search import DecayProblem, Goal, Plan
from decaylaws.study import Study, confirm
from decaylaws.study.decision import decay_target, load_recipe
from decaylaws.study.evidence import Fit, load_fit
from decaylaws.study.layout import read_json


@dataclass(frozen=True)
class Material:
    """The files of a study that sections read.

    Attributes:
        study: the study.
        recipe: the recommended recipe.
        found: what the search stored (``Recommendation.to_dict``); keys that an older version did not write
            are absent, so sections ask for them with ``get``.
    """

    study: Study
    recipe: Recipe
    found: Mapping[str, Any]

    @classmethod
    def of(cls, study: Study) -> Material:
        """Read a study.

        Raises:
            StudyError: there is no recommendation yet.
        """
        return cls(study, load_recipe(study), read_json(study.recommendation_file))

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The runs table."""
        return self.study.runs()

    @cached_property
    def fit(self) -> Fit:
        """Held-out errors of the law and its rivals."""
        return self._fit_and_law[0]

    @cached_property
    def law(self) -> DecayLaw:
        """The fitted decay law."""
        return self._fit_and_law[1]

    @cached_property
    def problem(self) -> DecayProblem:
        """The losses of any mixture under the recommended length and LR path, at the target."""
        study, stage = self.study, self.recipe.stages[0]
        objective, planner = study.settings.objective, study.planner()
        return DecayProblem(
            law=self.law,
            space=planner.space,
            target=decay_target(study),
            goal=Goal(
                weights=objective.weights,
                control=planner.control_mixture,
                guard_domains=objective.guard_domains,
                guard_nats=objective.guard_nats,
            ),
            plan=Plan(
                decay_tokens=stage.tokens,
                start_lr=stage.lr.start_lr,
                end_lr=stage.lr.end_lr,
                shape=stage.lr.segments[-1].shape,
            ),
        )

    @cached_property
    def candidates(self) -> dict[str, Mixture]:
        """The recommended mixture and its rivals, by name."""
        return confirm.candidate_mixtures(self.study, self.recipe, self.runs)

    @cached_property
    def noise_sd(self) -> float:
        """Standard deviation of the objective between seeds, nats per token; NaN where no run was repeated."""
        return confirm.noise_sd(self.study, self.runs)

    @cached_property
    def _fit_and_law(self) -> tuple[Fit, DecayLaw]:
        return load_fit(self.study)

    @cached_property
    def confirmed(self) -> bool:
        """Whether every confirming run has finished."""
        if not self.study.confirm_file.is_file():
            return False
        return bool(confirm.confirmation_table(self.study)["observed"].notna().all())
