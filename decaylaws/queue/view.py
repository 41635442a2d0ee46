"""What can be read of the runs of a study: how many stand where, their results, what the others will reach."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from decaylaws.progress import Progress, silent
from decaylaws.queue.trial_store import TrialStore
from decaylaws.queue.trials import (
    CONFIG,
    CURVE,
    LOG,
    MEASURE,
    PRUNE_LEVEL,
    ROLE,
    RUN_ID,
    SERVES,
    WORKER,
    config_of,
    finished_curves,
    is_pruned,
    replaces,
    result_of,
)
from decaylaws.runs.columns import Unit, config_row
from decaylaws.runs.config import RunConfig
from decaylaws.runs.forecast import forecast_run

FOLDER = "folder"
"""Attribute of the Optuna study that names the folder of the checkpoints."""


@dataclass(frozen=True)
class OnTheWay:
    """A run that has not ended.

    Attributes:
        run_id: the run.
        role: the question that it answers.
        done: share of its tokens at its last evaluation.
        expected: final objective that its curve leads to expect; None where too few runs of its kind have finished.
        lower: lower end of the 90 % interval of it.
        upper: upper end.
    """

    run_id: str
    role: str
    done: float
    expected: float | None
    lower: float | None
    upper: float | None


@dataclass(frozen=True)
class QueueCounts:
    """How many runs stand where."""

    waiting: int
    running: int
    finished: int
    diverged: int
    failed: int
    pruned: int

    @property
    def total(self) -> int:
        """All runs, each counted once however often it was tried."""
        return self.waiting + self.running + self.finished + self.diverged + self.failed + self.pruned


class QueueView:
    """The runs of one study in Optuna's storage, to be read.

    Args:
        url: storage URL (``sqlite:///...``, ``postgresql://...``).
        name: name of the Optuna study; it is created where it is missing.
        serves: what the runs are wanted for, such as a fingerprint of the present plan.
        measure: what besides a config decides the numbers of its run; the queue sees only trials of the same.
        progress: told when the storage does not answer and the queue waits for it.
        connect_seconds: how long to wait for the first answer, as long as for any other where it is None. A verb
            that a person has just typed asks for less: its URL may be wrong.

    Raises:
        InvalidValueError: the URL is none that can be opened.
        StudyError: the storage does not answer within five minutes, or is damaged.
    """

    def __init__(
        self,
        url: str,
        name: str,
        *,
        serves: str = "",
        measure: str = "",
        progress: Progress = silent,
        connect_seconds: float | None = None,
    ) -> None:
        self._serves, self._measure = serves, measure
        self._store = TrialStore(url, name, progress=progress, connect_seconds=connect_seconds)

    def open_runs(self) -> list[RunConfig]:
        """Configs of the runs that are not closed yet, whoever holds them."""
        trials = self._open(TrialState.WAITING, TrialState.RUNNING)
        return [config_of(trial) for trial in trials]

    def on_the_way(self, objective: Mapping[str, float], unit: Unit = "nats_per_token") -> list[OnTheWay]:
        """The runs that workers train now and have evaluated, with the final objective that is to be expected.

        Args:
            objective: weights by domain.
            unit: what these weights weigh.
        """
        running = [trial for trial in self._latest(TrialState.RUNNING) if trial.intermediate_values]
        finished = finished_curves(self._latest(), objective, unit) if running else []
        found = []
        for trial in running:
            row, tokens = config_row(config_of(trial)), max(trial.intermediate_values)
            expected = forecast_run(row, trial.intermediate_values, finished)
            lower, upper = expected.interval(PRUNE_LEVEL) if expected else (None, None)
            mean = expected.mean if expected else None
            done = tokens / row["decay_tokens"]
            found.append(OnTheWay(row["run_id"], trial.user_attrs[ROLE], done, mean, lower, upper))
        return found

    def open_curves(self) -> list[dict[str, Any]]:
        """``{"role", "config", "curve"}`` of decays that have begun and have no result, whoever holds them."""
        trials = self._latest(TrialState.WAITING, TrialState.RUNNING, TrialState.FAIL)
        return [
            {
                "role": trial.user_attrs[ROLE],
                "config": trial.user_attrs[CONFIG],
                "curve": trial.user_attrs[CURVE],
            }
            for trial in trials
            if CURVE in trial.user_attrs and config_of(trial).kind == "decay"
        ]

    def worker_of(self, run_ids: Collection[str]) -> dict[str, str]:
        """``host:process`` of the worker that finished each of these runs, where one did."""
        return {
            trial.user_attrs[RUN_ID]: trial.user_attrs.get(WORKER, "")
            for trial in self._latest(TrialState.COMPLETE)
            if trial.user_attrs[RUN_ID] in run_ids
        }

    def folder(self) -> dict[str, str]:
        """What the first machine said of the folder with the checkpoints of these runs; empty before any did."""
        return dict(self._store.attribute(FOLDER) or {})

    def results(self) -> list[dict[str, Any]]:
        """``{"row", "curve", "role"}`` of every recorded run of this measure, each once, in order of their ids."""
        return _recorded(self._trials())

    def every_result(self) -> list[dict[str, Any]]:
        """The same of every measure: a run that was measured in two ways comes twice."""
        return _recorded(self._store.all())

    def pruned(self) -> dict[str, float]:
        """Objective of the runs that were pruned, where they stood then, by their ids."""
        pruned = [trial for trial in self._latest() if is_pruned(trial) and trial.intermediate_values]
        return {trial.user_attrs[RUN_ID]: trial.intermediate_values[trial.last_step] for trial in pruned}

    def failures(self, run_ids: Collection[str] | None = None) -> list[tuple[str, str]]:
        """``(run_id, log)`` of those of the runs, of all without ids, that failed for good."""
        failed = self._failed(run_ids)
        return [(trial.user_attrs[RUN_ID], trial.user_attrs.get(LOG, "no log")) for trial in failed]

    def _failed(self, run_ids: Collection[str] | None) -> list[FrozenTrial]:
        failed = self._latest(TrialState.FAIL)
        return [trial for trial in failed if run_ids is None or trial.user_attrs[RUN_ID] in run_ids]

    def counts(self, run_ids: Collection[str] | None = None) -> QueueCounts:
        """How many of the runs with these ids stand where; without ids, of those that ended or that are served here."""
        trials = [
            trial
            for trial in self._latest()
            if (
                trial.user_attrs[RUN_ID] in run_ids
                if run_ids is not None
                else trial.state.is_finished() or self._is_served(trial)
            )
        ]
        states = [trial.state for trial in trials]
        pruned = sum(is_pruned(trial) for trial in trials)
        return QueueCounts(
            waiting=states.count(TrialState.WAITING),
            running=states.count(TrialState.RUNNING),
            finished=states.count(TrialState.COMPLETE),
            diverged=states.count(TrialState.PRUNED) - pruned,
            failed=states.count(TrialState.FAIL),
            pruned=pruned,
        )

    def _latest(self, *states: TrialState) -> list[FrozenTrial]:
        """The trial that counts of each run, in queue order: its last attempt, but none that was queued twice."""
        by_run: dict[str, FrozenTrial] = {}
        for trial in self._trials():
            before = by_run.get(trial.user_attrs[RUN_ID])
            if before is None or replaces(trial, before):
                by_run[trial.user_attrs[RUN_ID]] = trial
        counted = sorted(by_run.values(), key=lambda trial: trial.number)
        return [trial for trial in counted if not states or trial.state in states]

    def _open(self, *states: TrialState) -> list[FrozenTrial]:
        """As ``_latest``, of the runs that this queue serves."""
        return [trial for trial in self._latest(*states) if self._is_served(trial)]

    def _trials(self) -> list[FrozenTrial]:
        """All trials of this measure, attempts that were given back included; ended ones come out of a cache."""
        return [trial for trial in self._store.all() if trial.user_attrs.get(MEASURE, "") == self._measure]

    def _is_served(self, trial: FrozenTrial) -> bool:
        return bool(trial.user_attrs.get(SERVES, "") == self._serves)


def _recorded(trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    ended = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    by_run = {
        (t.user_attrs[RUN_ID], t.user_attrs.get(MEASURE, "")): {
            **result_of(t),
            ROLE: t.user_attrs[ROLE],
        }
        for t in ended
    }
    return [by_run[key] for key in sorted(by_run)]
