"""The outer search: Optuna over mixture, decay tokens, hand-over LR, shape and batch size together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
import pandas as pd

from decaylaws.laws.decay import DecayLaw
from decaylaws.laws.kit.law import Array
from decaylaws.mixtures import Mixture, MixtureSpace
from decaylaws.mixtures.geometry import stick_breaking
from decaylaws.progress import Progress
from decaylaws.search.optimise import polish_pairs
from decaylaws.search.problem import Choices, DecayProblem, Goal, Plan, Target
from decaylaws.search.quiet import quiet_optuna

_STAGE = "search"


class Explorer:
    """Draws candidates with Optuna and values them with the law.

    The mixture enters as stick-breaking coordinates in the unit cube, which spread uniformly over the
    simplex, and is projected onto what the trial's decay length affords: every trial is feasible in its
    limits; broken guards are constraints of the sampler.
    """

    def __init__(
        self, law: DecayLaw, space: MixtureSpace, target: Target, goal: Goal, choices: Choices
    ) -> None:
        self.law, self.space, self.target, self.goal, self.choices = law, space, target, goal, choices
        self.batch_sizes = choices.batch_tokens or (target.batch_tokens,)

    def problem(self, plan: Plan) -> DecayProblem:
        """The problem of one plan."""
        return DecayProblem(self.law, self.space, self.target, self.goal, plan)

    def run(
        self,
        trials: int,
        seed: int,
        *,
        sampler: optuna.samplers.BaseSampler | None = None,
        storage: optuna.storages.BaseStorage | str | None = None,
        known: Sequence[Mixture] = (),
        progress: Progress,
    ) -> pd.DataFrame:
        """Run the trials.

        Args:
            trials: how many.
            seed: of the default sampler (TPE).
            sampler: another sampler of Optuna's.
            storage: where the trials are kept; in memory by default.
            known: mixtures to try first, such as the control, under the longest decay.
            progress: called after every trial.

        Returns:
            One row per trial: ``decay_tokens``, ``start_lr``, ``end_lr_factor``, ``shape``, ``batch_tokens``,
            ``objective``, ``slack`` (smallest guard slack, infinite without guards), ``shares`` (array in the space's
            order).
        """
        study = _quiet_study(storage, sampler or _tpe(trials, seed))
        rows = [self._tried(mixture) for mixture in known]
        for index in range(trials):
            trial = study.ask()
            row = self._trial(trial)
            trial.set_constraint("guards", -min(row["slack"], 1e9))
            study.tell(trial, row["objective"])
            rows.append(row)
            progress(_STAGE, index + 1, trials)
        return pd.DataFrame(rows)

    def _trial(self, trial: optuna.Trial) -> dict[str, Any]:
        choices = self.choices
        decay_tokens = trial.suggest_categorical("decay_tokens", list(choices.decay_tokens))
        start_lr = trial.suggest_float("start_lr", *choices.start_lr, log=True)
        factor = choices.end_lr_factors[0]
        if len(choices.end_lr_factors) > 1:  # a choice of one would move the sampler's random numbers
            factor = trial.suggest_categorical("end_lr_factor", list(choices.end_lr_factors))
        plan = Plan(
            decay_tokens=decay_tokens,
            start_lr=start_lr,
            end_lr=factor * start_lr,
            shape=trial.suggest_categorical("shape", list(choices.shapes)),
            batch_tokens=trial.suggest_categorical("batch_tokens", list(self.batch_sizes)),
            warmup_tokens=self.target.warmup_tokens,
        )
        polytope = self.space.polytope(plan.decay_tokens)
        unit = np.array([trial.suggest_float(f"stick_{k}", 0.0, 1.0) for k in range(len(polytope.lower) - 1)])
        blocks = polytope.project(stick_breaking(unit[None])[0]) if len(unit) else np.ones(1)
        return self._row(plan, factor, blocks @ self.space.blocks)

    def _tried(self, mixture: Mixture) -> dict[str, Any]:
        choices = self.choices
        plan = Plan(
            decay_tokens=max(choices.decay_tokens),
            start_lr=choices.start_lr[1],
            end_lr=choices.end_lr_factors[0] * choices.start_lr[1],
            shape=choices.shapes[0],
            batch_tokens=self.batch_sizes[0],
            warmup_tokens=self.target.warmup_tokens,
        )
        nearest = self.space.project(mixture, plan.decay_tokens)
        return self._row(plan, choices.end_lr_factors[0], nearest.array(self.space.names))

    def _row(self, plan: Plan, end_lr_factor: float, shares: Array) -> dict[str, Any]:
        problem = self.problem(plan)
        slack = problem.robust_slack(shares[None])
        return {
            "decay_tokens": plan.decay_tokens, "start_lr": plan.start_lr, "end_lr_factor": end_lr_factor,
            "shape": plan.shape, "batch_tokens": plan.batch_tokens,
            "objective": float(problem.objective(shares[None])[0]),
            "slack": float(slack.min()) if slack.size else float("inf"), "shares": shares,
        }  # fmt: skip


def search_mixture(
    value: Callable[[Array], Array],
    space: MixtureSpace,
    decay_tokens: float | None,
    known: Sequence[Array],
    *,
    trials: int,
    seed: int,
) -> Array:
    """Minimise a function of the mixture that need not be smooth; the best shares ``[m]``.

    Moves between pairs of sources descend from the best known mixture, Optuna's TPE looks around where they end, and
    moves between pairs descend again from the best that it met.

    Args:
        value: maps mixtures ``[k, m]`` to values ``[k]``.
        space: what is feasible.
        decay_tokens: length of the decay, which sets the caps on epochs.
        known: feasible mixtures ``[m]``, of which the best is descended from.
        trials: how many.
        seed: of the sampler.
    """
    polytope = space.polytope(decay_tokens)
    centre = polish_pairs(
        value, space, decay_tokens, min(known, key=lambda shares: float(value(shares[None])[0]))
    )
    best = float(value(centre[None])[0])
    answer, study = centre, _quiet_study(None, _tpe(trials, seed))
    for _ in range(trials):
        trial = study.ask()
        far = trial.suggest_float("distance", 1e-3, 1.0, log=True)
        unit = np.array([trial.suggest_float(f"stick_{k}", 0.0, 1.0) for k in range(len(polytope.lower) - 1)])
        end = polytope.project(stick_breaking(unit[None])[0]) if len(unit) else np.ones(1)
        shares = centre + far * (end @ space.blocks - centre)
        reached = float(value(shares[None])[0])
        study.tell(trial, reached)
        if reached < best:
            best, answer = reached, shares
    return polish_pairs(value, space, decay_tokens, answer)


def _tpe(trials: int, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=max(trials // 5, 10))


def _quiet_study(
    storage: optuna.storages.BaseStorage | str | None, sampler: optuna.samplers.BaseSampler
) -> optuna.Study:
    with quiet_optuna():
        return optuna.create_study(storage=storage, sampler=sampler)
