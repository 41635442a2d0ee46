"""What a report is made from, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd

from decaylaws.evaluation import Evaluation, read_evaluation
from decaylaws.evaluation.records import FILE_NAME as EVALUATION_NAME
from decaylaws.laws.decay import DecayLaw
from decaylaws.mixtures import Mixture
from decaylaws.recipe import Guard, Recipe, Stage
from decaylaws.runs.noise import Noise
from decaylaws.runs.objective import normalised
from decaylaws.schedules import DecayTerms
from decaylaws.search import DecayProblem, Goal, Plan, StableStage
from decaylaws.study import Study
from decaylaws.study.fit import Fit, load_fit
from decaylaws.study.objective import Objective, noise_at, objective
from decaylaws.study.predictions import candidate_mixtures, find_confirmation, present_runs, scales
from decaylaws.study.problem import decay_target
from decaylaws.study.recommend import load_recipe, load_recommendation
from decaylaws.study.verdict import confirmation_table


@dataclass(frozen=True)
class ReportInputs:
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
    def of(cls, study: Study) -> ReportInputs:
        """Read a study.

        Raises:
            StudyError: there is no recommendation yet.
        """
        return cls(study, load_recipe(study), load_recommendation(study))

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The runs that belong to the present question."""
        return present_runs(self.study)

    @cached_property
    def weights(self) -> dict[str, float]:
        """Weights of the objective by domain, summing to one."""
        return normalised(self.objective.weights)

    @cached_property
    def objective(self) -> Objective:
        """What the search minimised and kept, in its own unit too."""
        return objective(self.study)

    @cached_property
    def fit(self) -> Fit:
        """Held-out errors of the law and its rivals."""
        return self._fit_and_law[0]

    @cached_property
    def law(self) -> DecayLaw:
        """The fitted decay law."""
        return self._fit_and_law[1]

    @property
    def stable(self) -> Stage | None:
        """The stable stage of the recipe, before its decay; None where it has none."""
        return self.recipe.stages[0] if len(self.recipe.stages) > 1 else None

    @cached_property
    def problem(self) -> DecayProblem:
        """The losses of any mixture under the recommended length and LR path, at the target.

        A guard that the recipe keeps counts as kept at its rounded shares, which may lie a hair within the margin.
        """
        problem, margins = self._problem, {}
        shares = self.recipe.decay.mixture.array(problem.space.names)[None]
        for (domain, guard), slack in zip(
            self.recipe.guards.items(), problem.guard_slack(shares)[0].tolist()
        ):
            margins[domain] = guard_margin(guard)
            if guard.holds:
                margins[domain] = max(min(margins[domain], slack), 0.0)
        return replace(problem, goal=replace(problem.goal, guard_margins=margins))

    @cached_property
    def _problem(self) -> DecayProblem:
        study, stage = self.study, self.recipe.decay
        asked, planner, path = study.settings.objective, study.planner(), DecayTerms.of(stage.lr)
        target, first = decay_target(study), self.stable
        if first is not None:
            target = replace(target, stable=StableStage(tokens=first.tokens, mixture=first.mixture))
        return DecayProblem(
            law=self.law,
            space=planner.space_after(first.mixture if first else None),
            target=target,
            goal=Goal(
                weights=self.weights,
                control=planner.control_mixture,
                guard_domains=list(self.recipe.guards),
                guard_nats=asked.guard_nats,
                guard_limits={domain: guard.limit for domain, guard in self.recipe.guards.items()},
            ),
            plan=Plan(
                decay_tokens=path.tokens,
                start_lr=path.start_lr,
                end_lr=path.end_lr,
                shape=path.shape,
                batch_tokens=stage.batch_tokens,
                warmup_tokens=path.warmup_tokens,
            ),
        )

    @cached_property
    def candidates(self) -> dict[str, Mixture]:
        """The recommended mixture and its rivals, by name."""
        return candidate_mixtures(self.study, self.recipe, self.runs)

    @property
    def scales(self) -> tuple[str, ...]:
        """Scales at which the recipe is confirmed."""
        return scales(self.study.settings)

    @cached_property
    def noise(self) -> Mapping[str, Noise | None]:
        """Seed noise of the objective by scale; None where no plan finished under two seeds."""
        return {scale: noise_at(self.study, scale, self.runs) for scale in ("proxy", "target")}

    def noise_sd(self, scale: str) -> float:
        """Standard deviation of the objective between seeds at a scale, nats per token; NaN where not measured."""
        noise = self.noise[scale]
        return float("nan") if noise is None else noise.sd

    @cached_property
    def _fit_and_law(self) -> tuple[Fit, DecayLaw]:
        return load_fit(self.study)

    @cached_property
    def confirmation(self) -> pd.DataFrame:
        """Predicted beside observed by candidate and scale; empty before ``confirm`` has predicted for this recipe."""
        if find_confirmation(self.study) is None:
            return pd.DataFrame(columns=["scale", "candidate", "observed"])
        return confirmation_table(self.study)

    @cached_property
    def evaluations(self) -> dict[str, Evaluation]:
        """Evaluations in the study's folder for them, by the name of their own folder, in its order."""
        files = sorted(self.study.evaluation_dir.glob(f"*/{EVALUATION_NAME}"))
        return {file.parent.name: read_evaluation(file.parent) for file in files}

    @cached_property
    def confirmed(self) -> bool:
        """Whether every confirming run has finished."""
        table = self.confirmation
        return len(table) > 0 and bool(table["observed"].notna().all())

    def confirmed_row(self, candidate: str, scale: str) -> pd.Series:
        """What was predicted and observed of one candidate."""
        table = self.confirmation
        return table[(table["candidate"] == candidate) & (table["scale"] == scale)].iloc[0]

    def observed_gain_over(self, rival: str, scale: str) -> float:
        """Observed objective of a rival minus that of the recommendation, nats; NaN where one was not run."""
        table = self.confirmation
        observed = table[table["scale"] == scale].set_index("candidate")["observed"]
        if rival not in observed or "recommended" not in observed:
            return float("nan")
        return float(observed[rival] - observed["recommended"])


def guard_margin(guard: Guard) -> float:
    """Nats by which the prediction of a guarded domain had to stay clear of its limit."""
    return 0.0 if guard.upper is None else guard.upper - guard.predicted
