"""Runs that Optuna proposes after the design: each is trained, and what it reaches guides the next ones.

The design spreads runs so that laws can be fitted; a sampler spends further runs where they promise most. Its
trials live in a study of their own beside the study of the runs, in the same storage, so that a sweep that
stopped goes on and several machines may ask. A trial's parameters are log-ratio coordinates of the mixture (a group
of fixed proportions counts as one source) and, where the design leaves a choice, decay tokens, the factor on the LR,
the shape, the end LR and the batch size; the run is a pure function of them, so a crash between asking and queuing
loses nothing.

With ``promote``, every proposal runs the shortest decay first; of those that came as far, the best one in
``promote`` goes on to the next length (successive halving: Li et al. 2018, arXiv:1810.05934). A longer decay is
another run from the trunk, not the shorter one continued, since its LR falls more slowly from the start.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from decaylaws.designs.design import PlannedRun
from decaylaws.designs.planner import Planner
from decaylaws.mixtures import MixtureSpace
from decaylaws.mixtures.coordinates import from_log_ratios, to_log_ratios
from decaylaws.runs.config import RunConfig
from decaylaws.runs.objective import objective_value
from decaylaws.schedules import DecayTerms
from decaylaws.search.quiet import quiet_optuna
from decaylaws.settings.design import SamplerSettings

LOG_RATIO_BOUND = 3.5
"""Coordinates run from minus to plus this: shares that differ up to 100-fold."""

HALF_ASKED_SECONDS = 600.0

_RUN_ID = "run_id"
_LENGTH, _FACTOR, _SHAPE, _BATCH = "decay_tokens", "start_lr_factor", "shape", "batch_tokens"
_END = "end_lr_factor"

Row = Mapping[str, Any]


class Proposals:
    """Asks Optuna for runs of the proxy and tells it what they reached.

    Args:
        planner: makes the runs; its settings hold the sampler, the design's choices and the objective.
        sampler: which sampler and how many proposals.
        storage: Optuna storage, without heartbeats.
        name: of the Optuna study; kind and search space are added, so that only like is learnt from.
    """

    def __init__(
        self,
        planner: Planner,
        sampler: SamplerSettings,
        storage: optuna.storages.BaseStorage | str,
        name: str,
    ) -> None:
        self.planner, self.sampler = planner, sampler
        self.lengths = sorted(planner.settings.design.decay_tokens)
        self._space = self._search_space()
        key = planner.start(planner.settings.proxy).config.run_id
        with quiet_optuna():
            self.study = optuna.create_study(
                storage=storage,
                study_name=f"{name}/{sampler.kind}/{key}{_frozen_key(planner.space)}",
                directions=["minimize"] * (2 if self.has_two_goals else 1),
                pruner=optuna.pruners.SuccessiveHalvingPruner(
                    min_resource=1, reduction_factor=sampler.promote or 2
                ),
                load_if_exists=True,
            )

    @property
    def has_two_goals(self) -> bool:
        """Whether general and specialised loss are weighed by a Pareto front instead of by weights."""
        return self.sampler.kind == "nsga2"

    def _search_space(self) -> dict[str, BaseDistribution]:
        design, bound = self.planner.settings.design, LOG_RATIO_BOUND
        space: dict[str, BaseDistribution] = {
            f"log_ratio_{index}": FloatDistribution(-bound, bound)
            for index in range(1, len(self.planner.space.blocks))
        }
        if len(self.lengths) > 1 and self.sampler.promote is None:
            space[_LENGTH] = CategoricalDistribution(self.lengths)
        low, high = min(design.start_lr_factors), max(design.start_lr_factors)
        if low < high:
            space[_FACTOR] = FloatDistribution(low, high, log=True)
        if len(design.shapes) > 1:
            space[_SHAPE] = CategoricalDistribution(design.shapes)
        if len(design.batch_tokens) > 1:
            space[_BATCH] = CategoricalDistribution(design.batch_tokens)
        if len(design.end_lr_factors) > 1:
            space[_END] = CategoricalDistribution(design.end_lr_factors)
        return space

    # Asking ------------------------------------------------------------------------------------------------

    def ask(self) -> list[PlannedRun]:
        """Runs of all open proposals, after new ones were asked for until a batch is open."""
        for _ in range(min(self.sampler.batch - len(self._open()), self.sampler.trials - self.asked)):
            # a sampler that is made anew must not draw the same again
            seed = self.planner.settings.design.seed * 1_000_003 + len(self._trials())
            self.study.sampler = _sampler(self.sampler.kind, seed, self.sampler.batch)
            # at its level of warnings, Optuna tells how fast it finds a proposal
            with quiet_optuna(optuna.logging.ERROR), warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                self.study.ask(self._space)
        return [self._run(trial) for trial in self._open()]

    @property
    def asked(self) -> int:
        """Proposals made so far, ended ones included; runs of the design do not count."""
        return sum(1 for trial in self._trials() if self._is_whole(trial) and _RUN_ID not in trial.user_attrs)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or None)

    def _open(self) -> list[FrozenTrial]:
        return [trial for trial in self._trials(TrialState.RUNNING) if self._is_whole(trial)]

    def _is_whole(self, trial: FrozenTrial) -> bool:
        return trial.params.keys() == self._space.keys()

    def runs(self) -> list[PlannedRun]:
        """Every run that was proposed so far, with those of proposals that have ended.

        With ``promote`` also the next length of proposals that were not promoted, which is never trained.
        """
        proposed = [
            self._run(trial, rung)
            for trial in self._trials()
            if self._is_whole(trial) and _RUN_ID not in trial.user_attrs
            for rung in self._rungs(trial)
        ]
        return list({run.config.run_id: run for run in proposed}.values())

    def _rungs(self, trial: FrozenTrial) -> list[int]:
        """Numbers of the lengths that a proposal has come to."""
        last = self._rung(trial)
        return list(range(min(last, len(self.lengths) - 1) + 1)) if self.sampler.promote else [last]

    def _run(self, trial: FrozenTrial, rung: int | None = None) -> PlannedRun:
        """The run of a proposal at the length of a rung, by default the one that it has come to."""
        design, params = self.planner.settings.design, trial.params
        length = int(params.get(_LENGTH, self.lengths[self._rung(trial) if rung is None else rung]))
        space = self.planner.space
        blocks = from_log_ratios([params[f"log_ratio_{k}"] for k in range(1, len(space.blocks))])
        proxy = self.planner.settings.proxy
        schedule = self.planner.decay_schedule(
            proxy,
            length,
            params.get(_FACTOR, design.start_lr_factors[0]),
            params.get(_SHAPE, design.shapes[0]),
            params.get(_END),
        )
        mixture = space.project(blocks @ space.blocks, length)
        return self.planner.microanneal(
            self.sampler.kind, proxy, schedule, mixture, seed=design.seed, batch_tokens=params.get(_BATCH)
        )

    def _rung(self, trial: FrozenTrial) -> int:
        if self.sampler.promote is None or trial.state == TrialState.COMPLETE:
            return len(self.lengths) - 1
        return len(trial.intermediate_values)

    # Telling -----------------------------------------------------------------------------------------------

    def tell(
        self, rows: Collection[Row], failed: Collection[str] = (), pruned: Mapping[str, float] | None = None
    ) -> None:
        """Tell Optuna what the open proposals reached.

        Args:
            rows: recorded rows of the runs table.
            failed: ids of the runs that failed for good.
            pruned: by id, objective at which a run was ended on its way.
        """
        by_run, pruned = {row["run_id"]: row for row in rows}, pruned or {}
        for trial in self._open():
            run_id = self._run(trial).config.run_id
            if run_id in pruned:
                self._prune(trial, pruned[run_id])
            elif run_id in failed or (run_id in by_run and not by_run[run_id]["reached_target"]):
                self._close(trial, state=TrialState.FAIL)
            elif run_id in by_run:
                self._advance(trial, self.values(by_run[run_id]))
        self._close_half_asked()

    def _advance(self, trial: FrozenTrial, values: list[float]) -> None:
        if self.sampler.promote:
            live = optuna.trial.Trial(self.study, trial._trial_id)
            rung = self._rung(trial)
            live.report(values[0], step=self.sampler.promote**rung)
            if rung + 1 < len(self.lengths):
                if live.should_prune():
                    self._close(trial, state=TrialState.PRUNED)
                return
        self._close(trial, values=values)

    def _prune(self, trial: FrozenTrial, value: float) -> None:
        if self.sampler.promote is None:  # else the values reported so far are those of whole runs
            optuna.trial.Trial(self.study, trial._trial_id).report(value, step=0)
        self._close(trial, state=TrialState.PRUNED)

    def _close(self, trial: FrozenTrial, **outcome: Any) -> None:
        # another machine may have told the same; the first one counts
        self.study.tell(trial.number, skip_if_finished=True, **outcome)

    def _close_half_asked(self) -> None:
        """Close trials whose asker died before it had drawn every coordinate."""
        for trial in self._trials(TrialState.RUNNING):
            started = trial.datetime_start
            if (
                not self._is_whole(trial)
                and started
                and time.time() - started.timestamp() > HALF_ASKED_SECONDS
            ):
                self._close(trial, state=TrialState.FAIL)

    def learn(self, runs: Collection[tuple[RunConfig, Row]]) -> int:
        """Give Optuna what the design has measured with the proxy; returns how many runs were new to it.

        With ``promote`` only runs of the longest decay count: losses of other lengths are no rivals.
        """
        known = {trial.user_attrs.get(_RUN_ID) for trial in self._trials()}
        new = 0
        for config, row in runs:
            params = self._params(config)
            if params is None or not row["reached_target"] or config.run_id in known:
                continue
            self.study.add_trial(
                optuna.create_trial(
                    params=params,
                    distributions=self._space,
                    values=self.values(row),
                    user_attrs={_RUN_ID: config.run_id},
                )
            )
            new += 1
        return new

    def _params(self, config: RunConfig) -> dict[str, Any] | None:
        """Parameters of a run of the design; None for one that no proposal could be."""
        design, proxy = self.planner.settings.design, self.planner.settings.proxy
        start, path = self.planner.start(proxy).config, DecayTerms.of(config.schedule)
        length, shape = config.tokens, path.shape
        factor = path.start_lr / self.planner.handover_lr(proxy)
        end = next((each for each in design.end_lr_factors if each * path.start_lr == path.end_lr), None)
        if shape == "constant":  # keeps its LR, whatever was proposed
            end = design.end_lr_factors[0]
        lengths = self.lengths[-1:] if self.sampler.promote else self.lengths
        ratios = to_log_ratios(self.planner.space.block_shares(config.mixture))
        if (
            config.start_run_id != start.run_id
            or not self.planner.space.keeps_frozen(config.mixture)
            or len(config.schedule.segments) != 1 + (self.planner.warmup_tokens(proxy) > 0)
            or length not in lengths
            or shape not in design.shapes
            or end is None
            or config.batch_tokens not in self.planner.batch_sizes
            or not min(design.start_lr_factors) <= factor <= max(design.start_lr_factors)
            or max(abs(ratios)) > LOG_RATIO_BOUND
        ):
            return None
        every: dict[str, Any] = {f"log_ratio_{k}": float(ratio) for k, ratio in enumerate(ratios, start=1)}
        every |= {_LENGTH: length, _FACTOR: factor, _SHAPE: shape, _BATCH: config.batch_tokens, _END: end}
        return {name: every[name] for name in self._space}

    # Values ------------------------------------------------------------------------------------------------

    def values(self, row: Row) -> list[float]:
        """What a finished run is worth: its objective, or with two goals general and specialised loss."""
        settings = self.planner.settings
        if not self.has_two_goals:
            return [objective_value(row, settings.objective_weights, settings.objective_unit)]
        general = set(settings.general_domains)
        parts = [
            {name: 1.0 for name in settings.domains if (name in general) == wanted}
            for wanted in (True, False)
        ]
        return [objective_value(row, weights, settings.objective_unit) for weights in parts]

    def best(self) -> pd.DataFrame:
        """The best trial, or the Pareto front: values (in the unit of the objective) and what reached them."""
        names = ["general", "specialised"] if self.has_two_goals else ["objective"]
        done = self._trials(TrialState.COMPLETE)
        if not done:
            return pd.DataFrame(columns=names)
        rows = [
            {
                **dict(zip(names, trial.values)),
                **{k: v for k, v in trial.params.items() if not k.startswith("log_ratio")},
                **self._run(trial).config.mixture.weights,
            }
            for trial in self.study.best_trials
        ]
        return pd.DataFrame(rows).sort_values(names[0], ignore_index=True)


def _frozen_key(space: MixtureSpace) -> str:
    """What tells trials apart whose coordinates stand for other fixed proportions; empty where nothing is fixed."""
    if np.array_equal(space.blocks, np.eye(len(space.names))):
        return ""
    return f"/{hashlib.sha256(space.blocks.round(9).tobytes()).hexdigest()[:8]}"


def _sampler(kind: str, seed: int, batch: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if kind == "tpe":
            return TPESampler(seed=seed, multivariate=True, constant_liar=True)
        if kind == "gp":
            return GPSampler(seed=seed, warn_independent_sampling=False)
        return NSGAIISampler(seed=seed, population_size=max(batch, 4))
