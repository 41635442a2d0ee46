"""What a report is made from, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from decaylaws.designs.planner import Planner
from decaylaws.evaluation import Evaluation, read_evaluation
from decaylaws.evaluation.records import FILE_NAME as EVALUATION_NAME
from decaylaws.laws.decay import DecayLaw
from decaylaws.mixtures import Mixture
from decaylaws.recipe import Guard, Recipe, Stage
from decaylaws.runs.noise import Noise
from decaylaws.runs.objective import normalised
from decaylaws.schedules import DecayTerms
from decaylaws.search import DecayProblem, Goal, Plan, StableStage
from decaylaws.settings.study import StudySettings
from decaylaws.study import Study
from decaylaws.study.fit import Fit, load_law
from decaylaws.study.near_copies import copies_words, read_copies
from decaylaws.study.objective import Objective, noise_at
from decaylaws.study.paths import StudyPaths
from decaylaws.study.predictions import candidate_stages, scales, without_other_confirmations
from decaylaws.study.problem import decay_target
from decaylaws.study.read_outs import read_out_errors
from decaylaws.study.recommend import Recommended, read_recommendation, read_recommended
from decaylaws.study.verdict import Outcome, find_outcome


@dataclass(frozen=True)
class ReportInputs:
    """What the sections of a report are made from.

    Attributes:
        paths: where the files of the study lie.
        recommended: the recommended recipe with what it rests on.
        law: the fitted decay law.
        found: what the search stored (``Recommendation.to_dict``); keys that an older version did not write
            are absent, so sections ask for them with ``get``.
        outcome: what the confirming runs came to; None before ``confirm`` has predicted for this recipe.
        read_outs: errors of merged read-outs; empty where none were made.
        evaluations: evaluations in the study's folder for them, by the name of their own folder, in its order.
        evaluation_counts: documents (or questions) and tokens of evaluation domains and question sets, by name.
        near_copies: how many near copies of held-out text the target's decay reads, in sentences; may be empty.
    """

    paths: StudyPaths
    recommended: Recommended
    law: DecayLaw
    found: Mapping[str, Any]
    outcome: Outcome | None
    read_outs: pd.DataFrame
    evaluations: Mapping[str, Evaluation]
    evaluation_counts: Mapping[str, tuple[int, int]]
    near_copies: str

    @classmethod
    def of(cls, study: Study) -> ReportInputs:
        """Read a study.

        Raises:
            StudyError: there is no recommendation yet.
        """
        recommended = read_recommended(study)
        sweep, recipe = recommended.sweep, recommended.recipe
        shares = recipe.shares() if len(recipe.stages) > 1 else recipe.decay.mixture.to_dict()
        read_outs = pd.DataFrame()
        if study.read_outs_file.is_file():
            read_outs = read_out_errors(study.read_outs_file, study.design(), sweep)
        return cls(
            paths=study,
            recommended=recommended,
            law=load_law(study.law_file, recommended.inputs),
            found=read_recommendation(study.recommendation_file, sweep.settings),
            outcome=find_outcome(study, recommended),
            read_outs=read_outs,
            evaluations=read_evaluations(study.evaluation_dir),
            evaluation_counts=study.evaluation_counts(),
            near_copies=copies_words(read_copies(study), sweep.planner, shares, "the recommended mixture"),
        )

    @property
    def planner(self) -> Planner:
        """Makes the run configs of the study."""
        return self.recommended.sweep.planner

    @property
    def settings(self) -> StudySettings:
        """The checked ``study.yaml``."""
        return self.planner.settings

    @property
    def recipe(self) -> Recipe:
        """The recommended recipe."""
        return self.recommended.recipe

    @property
    def fit(self) -> Fit:
        """Held-out errors of the law and its rivals."""
        return self.recommended.fit

    @property
    def objective(self) -> Objective:
        """What the search minimised and kept, in its own unit too."""
        return self.recommended.objective

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The runs that belong to the present question, without those that confirmed another recipe."""
        predictions = None if self.outcome is None else self.outcome.predictions
        runs = without_other_confirmations(self.recommended.sweep.runs, predictions)
        return runs.astype({"train_flops": float})  # sums of whole numbers end at 9.2e18

    @cached_property
    def weights(self) -> dict[str, float]:
        """Weights of the objective by domain, summing to one."""
        return normalised(self.objective.weights)

    @cached_property
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
        stage, planner = self.recipe.decay, self.planner
        path, first = DecayTerms.of(stage.lr), self.stable
        target = decay_target(planner, self.recommended.sweep.runs)
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
                guard_nats=self.settings.objective.guard_nats,
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
        stages = candidate_stages(self.recommended, self.runs)
        return {name: decay for name, (_, decay) in stages.items()}

    @property
    def scales(self) -> tuple[str, ...]:
        """Scales at which the recipe is confirmed."""
        return scales(self.settings)

    @cached_property
    def noise(self) -> Mapping[str, Noise | None]:
        """Seed noise of the objective by scale; None where no plan finished under two seeds."""
        weights = self.objective.weights
        return {scale: noise_at(self.planner, weights, scale, self.runs) for scale in ("proxy", "target")}

    def noise_sd(self, scale: str) -> float:
        """Standard deviation of the objective between seeds at a scale, nats per token; NaN where not measured."""
        noise = self.noise[scale]
        return float("nan") if noise is None else noise.sd

    @property
    def confirmation(self) -> pd.DataFrame:
        """Predicted beside observed by candidate and scale; empty before ``confirm`` has predicted for this recipe."""
        if self.outcome is None:
            return pd.DataFrame(columns=["scale", "candidate", "observed"])
        return self.outcome.candidates

    @property
    def observed_domains(self) -> pd.DataFrame:
        """Predicted beside observed loss of every domain in the confirming runs; empty before they are predicted."""
        return pd.DataFrame() if self.outcome is None else self.outcome.domains

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


def read_evaluations(directory: Path) -> dict[str, Evaluation]:
    """Evaluations of checkpoints by the name of their folder, in its order.

    Args:
        directory: the folders of all, which need not exist.
    """
    files = sorted(directory.glob(f"*/{EVALUATION_NAME}"))
    return {file.parent.name: read_evaluation(file.parent) for file in files}


def guard_margin(guard: Guard) -> float:
    """Nats by which the prediction of a guarded domain had to stay clear of its limit."""
    return 0.0 if guard.upper is None else guard.upper - guard.predicted
