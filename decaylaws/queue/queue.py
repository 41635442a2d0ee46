"""Runs as trials of an Optuna study: queued, claimed, given back and recorded in Optuna's own storage.

One trial is one run. A trial carries the run's config and role as user attributes and its design variables as
parameters, so that Optuna's dashboard, samplers and plots work on a study as it is. Several workers, on one
machine or many, share the storage:

* a run that machines queue at once, since they started together, is trained once: its first trial counts;
* a claim is Optuna's change of state from WAITING to RUNNING, in a transaction that locks before it reads;
* a worker beats its heart for what it holds; trials of a dead worker go back to the queue;
* a trial that raised goes back once, and is recorded as failed, with its log, the second time;
* the result is stored before the trial is closed, so a crash in between loses nothing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from decaylaws.errors import StudyError
from decaylaws.progress import Progress, silent
from decaylaws.queue.storage import Patience, change_state, open_storage
from decaylaws.queue.trials import (
    ATTEMPT,
    CONFIG,
    CURVE,
    DEATHS,
    LOG,
    MAX_ATTEMPTS,
    MAX_DEATHS,
    MEASURE,
    PRUNE_LEVEL,
    RESULT,
    ROLE,
    RUN_ID,
    SERVES,
    TICKET,
    WORKER,
    again,
    config_of,
    finished_curves,
    fits,
    is_owed,
    is_poor,
    is_pruned,
    is_retried,
    replaces,
    result_of,
    sealed,
    waiting_trial,
)
from decaylaws.runs.columns import Unit, config_row
from decaylaws.runs.config import RunConfig
from decaylaws.runs.forecast import forecast_run

FOLDER = "folder"
"""Attribute of the Optuna study that names the folder of the checkpoints."""


@dataclass(frozen=True)
class Claim:
    """A run that this worker holds."""

    trial_number: int
    trial_id: int
    role: str
    config: RunConfig
    result: dict[str, Any] | None
    is_retried: bool


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


class RunQueue:
    """The runs of one study in Optuna's storage.

    The storage keeps the runs of every plan that the study ever had; a queue claims those alone that it serves.

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
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # what it warns of, Patience says
        self._patiently = Patience(progress)
        self._storage = Patience(progress, connect_seconds)(lambda: open_storage(url, _give_back_stale))
        self._study = self._patiently(lambda: _load_or_create(self._storage, name))
        self._study_id = self._patiently(lambda: self._storage.get_study_id_from_name(name))

    def enqueue(self, runs: Sequence[tuple[str, RunConfig]], *, progress: Progress = silent) -> int:
        """Queue the runs that the study does not hold yet, and those that a crash took out of the queue.

        Args:
            runs: role and config of each.
            progress: told how many are queued; a storage takes some 30 ms for each.

        Returns:
            How many were queued, with those that waited for an earlier plan and now wait for this one.
        """
        held = {trial.user_attrs[RUN_ID]: trial for trial in self._latest() if not is_owed(trial)}
        new = [(role, config) for role, config in runs if config.run_id not in held]
        for done, (role, config) in enumerate(new, start=1):
            self._add(waiting_trial(role, config, serves=self._serves, measure=self._measure))
            progress("queue", done, len(new))
        taken = [self._take_over(held[c.run_id], role) for role, c in runs if c.run_id in held]
        self._close_doubles()
        return len(new) + sum(taken)

    def _take_over(self, trial: FrozenTrial, role: str) -> bool:
        """Let an open run that was queued for something else serve this queue; whether it waits."""
        if trial.state.is_finished() or self._is_served(trial):
            return False
        trial_id = self._trial_id(trial.number)
        with contextlib.suppress(UpdateFinishedTrialError):  # it ended meanwhile, which is as well
            self._set(trial_id, ROLE, role)
            self._set(trial_id, SERVES, self._serves)
        return trial.state == TrialState.WAITING

    def _is_served(self, trial: FrozenTrial) -> bool:
        return bool(trial.user_attrs.get(SERVES, "") == self._serves)

    def _close_doubles(self) -> None:
        """Close waiting trials that do not count, since machines that started together queued their runs at once."""
        counted = {trial.number for trial in self._latest()}
        for trial in self._in_state(TrialState.WAITING):
            if trial.number not in counted:
                with contextlib.suppress(UpdateFinishedTrialError):
                    trial_id = self._trial_id(trial.number)
                    self._patiently(functools.partial(change_state, self._storage, trial_id, TrialState.FAIL))

    def claim(
        self,
        count: int | Callable[[RunConfig], int],
        ready: Callable[[RunConfig], bool],
        *,
        like: RunConfig | None = None,
    ) -> list[Claim]:
        """Claim up to ``count`` waiting runs that can train as one stack and are ``ready``, in queue order.

        A run that raised before is claimed alone: should it raise again, it takes no other with it.

        Args:
            count: how many at most; a function says it for the first run that is claimed.
            ready: whether a run could start now.
            like: a run that is in training, whose stack they are to join; none are claimed where the next one cannot.
        """
        claims: list[Claim] = []
        first = like
        for trial in self._open(TrialState.WAITING):
            limit = count if isinstance(count, int) else count(first) if first is not None else 1
            if len(claims) >= limit or (claims and claims[0].is_retried):
                break
            config = config_of(trial)
            if not ready(config):
                continue
            if first is not None and not fits(first, config, trial):
                if like is not None:
                    break  # a stack that is always refilled must not hold back what was queued before
                continue
            claim = self._claim_one(trial)
            if claim is not None:
                claims.append(claim)
                first = first or config
        return claims

    def open_runs(self) -> list[RunConfig]:
        """Configs of the runs that are not closed yet, whoever holds them."""
        trials = self._open(TrialState.WAITING, TrialState.RUNNING)
        return [config_of(trial) for trial in trials]

    def claimable(self, ready: Callable[[RunConfig], bool]) -> bool:
        """Whether any waiting run is ``ready``."""
        return any(ready(config_of(trial)) for trial in self._open(TrialState.WAITING))

    def _claim_one(self, trial: FrozenTrial) -> Claim | None:
        trial_id = self._trial_id(trial.number)
        # the heart comes before the claim, so that a worker that dies right after it leaves a trial that goes
        # stale; the name comes after it, so that nobody who lost the race signs a trial that he does not hold
        self._patiently(lambda: self._storage.record_heartbeat(trial_id))
        try:
            if not self._patiently(lambda: change_state(self._storage, trial_id, TrialState.RUNNING)):
                return None
            self._set(trial_id, WORKER, _this_worker())
        except UpdateFinishedTrialError:
            return None
        return _claim(trial, trial_id)

    def beat(self, claims: Sequence[Claim]) -> None:
        """Tell the storage that the claims' worker lives; called every few seconds while it works."""
        for claim in claims:
            self._patiently(functools.partial(self._storage.record_heartbeat, claim.trial_id))

    def report(self, claim: Claim, tokens: int, value: float) -> None:
        """Store the objective of a run after ``tokens`` of its own, which Optuna knows as an intermediate value.

        Args:
            claim: the claimed run.
            tokens: its own tokens so far.
            value: its objective there.
        """
        with contextlib.suppress(UpdateFinishedTrialError):  # it was given to another worker meanwhile
            self._patiently(lambda: self._storage.set_trial_intermediate_value(claim.trial_id, tokens, value))

    def note(self, claim: Claim, tokens: int, losses: Mapping[str, float]) -> None:
        """Store an evaluation of a run on its way, for those who ask what it will reach.

        Args:
            claim: the claimed run.
            tokens: its own tokens so far.
            losses: by domain, nats per token.
        """
        attrs = self._patiently(lambda: self._storage.get_trial(claim.trial_id)).user_attrs
        before = [point for point in attrs.get(CURVE, []) if point["tokens"] < tokens]
        now = [{"tokens": tokens, "domain": domain, "loss": loss} for domain, loss in losses.items()]
        with contextlib.suppress(UpdateFinishedTrialError):  # it was given to another worker meanwhile
            self._set(claim.trial_id, CURVE, [*before, *now])

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

    def is_poor(
        self,
        claim: Claim,
        percentile: float,
        objective: Mapping[str, float],
        unit: Unit = "nats_per_token",
    ) -> bool:
        """Whether a run that reported will hardly end among the best ``percentile`` percent of its kind."""
        trial = self._patiently(lambda: self._storage.get_trial(claim.trial_id))
        return is_poor(trial, self._trials(), percentile, objective, unit)

    def finish(self, claim: Claim, result: dict[str, Any], value: float | None) -> bool:
        """Record a result and close the trial.

        Args:
            claim: the run.
            result: ``{"row": ..., "curve": [...]}``, plain JSON.
            value: objective of the run; None for a run that diverged or was pruned, whose row says why.

        Returns:
            False where the run had been given to another worker meanwhile; its result counts then.
        """
        try:
            self._set(claim.trial_id, RESULT, sealed(result, claim.config.run_id, self._measure))
            self._close(claim, TrialState.COMPLETE if value is not None else TrialState.PRUNED, value)
        except UpdateFinishedTrialError:
            return False
        return True

    def record(self, role: str, config: RunConfig, result: dict[str, Any], value: float | None) -> str:
        """Record a result that was measured elsewhere, whether the run was queued, claimed, recorded or none of it.

        Args:
            role: the question that the run answers.
            config: the run.
            result: as for :meth:`finish`.
            value: as for :meth:`finish`.

        Returns:
            ``new``, ``unchanged`` where the storage holds just this result, or ``replaced`` where it held another one,
            which stays in the storage and counts no more.
        """
        outcome, held = "new", self._trial_of(config.run_id)
        if held is not None and held.state in (TrialState.COMPLETE, TrialState.PRUNED):
            if result_of(held) == result:
                return "unchanged"
            outcome = "replaced"
            self._repeat([held])
        elif held is None or held.state == TrialState.FAIL:
            self._add(waiting_trial(role, config, serves=self._serves, measure=self._measure))
        trial = self._trial_of(config.run_id)
        if trial is None:
            raise StudyError(f"The storage lost run {config.run_id} while it was recorded. Record it again.")
        waits = trial.state == TrialState.WAITING
        claim = self._claim_one(trial) if waits else _claim(trial, self._trial_id(trial.number))
        if claim is None or not self.finish(claim, result, value):
            raise StudyError(f"Another process records run {config.run_id} now. Record it again to compare.")
        return outcome

    def hand_out(self, run_ids: Sequence[str], count: int, *, again: bool = False) -> list[str]:
        """Claim up to ``count`` of these runs for somebody who beats no heart, in their order; returns their ids.

        Nobody takes such a claim back: :meth:`record` ends it.

        Args:
            run_ids: runs that the queue holds.
            count: at most so many.
            again: also those that were handed out before.
        """
        latest = {trial.user_attrs[RUN_ID]: trial for trial in self._latest()}
        handed: list[str] = []
        for run_id in run_ids:
            trial = latest.get(run_id)
            if trial is None or len(handed) == count:
                continue
            waits = trial.state == TrialState.WAITING
            if (waits and self._claim_one(trial)) or (again and trial.state == TrialState.RUNNING):
                handed.append(run_id)
        return handed

    def _trial_of(self, run_id: str) -> FrozenTrial | None:
        return next((trial for trial in self._latest() if trial.user_attrs[RUN_ID] == run_id), None)

    def fail(self, claim: Claim, log: str) -> bool:
        """Record that a run raised; returns whether it goes back to the queue for another attempt."""
        trial = self._patiently(lambda: self._storage.get_trial(claim.trial_id))
        attempt = int(trial.user_attrs.get(ATTEMPT, 1))
        try:
            self._set(claim.trial_id, LOG, log[-20_000:])
            self._close(claim, TrialState.FAIL, None)
        except UpdateFinishedTrialError:
            return False
        if attempt >= MAX_ATTEMPTS:
            return False
        serves, measure = (trial.user_attrs.get(name, "") for name in (SERVES, MEASURE))
        self._add(
            waiting_trial(claim.role, claim.config, attempt=attempt + 1, serves=serves, measure=measure)
        )
        return True

    def give_back(self, claim: Claim) -> None:
        """Return a run that was interrupted to the queue; its checkpoints let it go on where it was."""
        try:
            self._close(claim, TrialState.FAIL, None)
        except UpdateFinishedTrialError:
            return
        self._add(again(self._patiently(lambda: self._storage.get_trial(claim.trial_id))))

    def reclaim(self) -> int:
        """Return the runs of dead workers to the queue; returns how many there were."""
        held = self._in_state(TrialState.RUNNING)
        for trial in held:
            if _is_dead_here(trial.user_attrs.get(WORKER, "")):
                self.give_back(_claim(trial, self._trial_id(trial.number)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._patiently(lambda: optuna.storages.fail_stale_trials(self._study))
        return len(held) - len(self._in_state(TrialState.RUNNING))

    def retry_failed(self, run_ids: Collection[str] | None = None) -> int:
        """Queue those of the runs, of all without ids, again whose last attempt failed; returns how many."""
        return self._repeat(self._failed(run_ids))

    def _failed(self, run_ids: Collection[str] | None) -> list[FrozenTrial]:
        failed = self._latest(TrialState.FAIL)
        return [trial for trial in failed if run_ids is None or trial.user_attrs[RUN_ID] in run_ids]

    def repeat(self, run_ids: Collection[str]) -> int:
        """Queue finished runs again, whose checkpoints are gone; returns how many.

        Their results stay; the new ones, which equal them, take their place.
        """
        finished = self._latest(TrialState.COMPLETE)
        return self._repeat([trial for trial in finished if trial.user_attrs[RUN_ID] in run_ids])

    def _repeat(self, trials: Sequence[FrozenTrial]) -> int:
        for trial in trials:
            self._add(
                waiting_trial(
                    trial.user_attrs[ROLE],
                    config_of(trial),
                    repeats=trial.number,
                    serves=self._serves,
                    measure=self._measure,
                )
            )
        return len(trials)

    def worker_of(self, run_ids: Collection[str]) -> dict[str, str]:
        """``host:process`` of the worker that finished each of these runs, where one did."""
        return {
            trial.user_attrs[RUN_ID]: trial.user_attrs.get(WORKER, "")
            for trial in self._latest(TrialState.COMPLETE)
            if trial.user_attrs[RUN_ID] in run_ids
        }

    def folder(self) -> dict[str, str]:
        """What the first machine said of the folder with the checkpoints of these runs; empty before any did."""
        return dict(self._patiently(lambda: self._study.user_attrs).get(FOLDER, {}))

    def set_folder(self, folder: Mapping[str, str]) -> None:
        """Say which folder holds the checkpoints of these runs."""
        self._patiently(lambda: self._study.set_user_attr(FOLDER, dict(folder)))

    def results(self) -> list[dict[str, Any]]:
        """``{"row", "curve", "role"}`` of every recorded run of this measure, each once, in order of their ids."""
        return _recorded(self._trials())

    def every_result(self) -> list[dict[str, Any]]:
        """The same of every measure: a run that was measured in two ways comes twice."""
        return _recorded(self._every_trial())

    def pruned(self) -> dict[str, float]:
        """Objective of the runs that were pruned, where they stood then, by their ids."""
        pruned = [trial for trial in self._latest() if is_pruned(trial) and trial.intermediate_values]
        return {trial.user_attrs[RUN_ID]: trial.intermediate_values[trial.last_step] for trial in pruned}

    def failures(self, run_ids: Collection[str] | None = None) -> list[tuple[str, str]]:
        """``(run_id, log)`` of those of the runs, of all without ids, that failed for good."""
        return [
            (trial.user_attrs[RUN_ID], trial.user_attrs.get(LOG, "no log")) for trial in self._failed(run_ids)
        ]

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
        return [trial for trial in self._every_trial() if trial.user_attrs.get(MEASURE, "") == self._measure]

    def _every_trial(self) -> list[FrozenTrial]:
        trials = self._patiently(lambda: self._study.get_trials(deepcopy=False))
        return [trial for trial in trials if RUN_ID in trial.user_attrs]

    def _in_state(self, state: TrialState) -> list[FrozenTrial]:
        """Trials in one state; asked of the storage itself: the cache reads every trial that has not ended."""
        read = functools.partial(
            self._storage.get_all_trials, self._study_id, deepcopy=False, states=(state,)
        )
        return [trial for trial in self._patiently(read) if RUN_ID in trial.user_attrs]

    def _trial_id(self, number: int) -> int:
        return self._patiently(
            lambda: self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        )

    def _add(self, trial: FrozenTrial) -> None:
        tries = 0

        def add() -> None:
            nonlocal tries
            tries += 1
            if tries == 1 or not self._holds(trial):  # the answer may be lost where the trial is not
                self._study.add_trial(trial)

        self._patiently(add)

    def _holds(self, trial: FrozenTrial) -> bool:
        ticket = trial.user_attrs[TICKET]
        return any(each.user_attrs.get(TICKET) == ticket for each in self._study.get_trials(deepcopy=False))

    def _set(self, trial_id: int, key: str, value: Any) -> None:
        self._patiently(lambda: self._storage.set_trial_user_attr(trial_id, key, value))

    def _close(self, claim: Claim, state: TrialState, value: float | None) -> None:
        """Close a trial.

        Raises:
            UpdateFinishedTrialError: another worker had closed it.
        """
        tries = 0

        def close() -> None:
            nonlocal tries
            tries += 1
            try:
                change_state(self._storage, claim.trial_id, state, None if value is None else [value])
            except UpdateFinishedTrialError:
                if tries == 1 or not self._closed_here(claim, state):
                    raise  # else: the storage did it, then went away before it could say so

        self._patiently(close)

    def _closed_here(self, claim: Claim, state: TrialState) -> bool:
        trial = self._storage.get_trial(claim.trial_id)
        return trial.state == state and trial.user_attrs.get(WORKER) == _this_worker()


def _load_or_create(storage: BaseStorage, name: str) -> optuna.Study:
    try:
        return optuna.load_study(storage=storage, study_name=name)  # a study that may only be read will do
    except KeyError:
        return optuna.create_study(storage=storage, study_name=name, load_if_exists=True)


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


def _claim(trial: FrozenTrial, trial_id: int) -> Claim:
    attrs = trial.user_attrs
    result = result_of(trial) if RESULT in attrs else None
    return Claim(trial.number, trial_id, attrs[ROLE], config_of(trial), result, is_retried(trial))


def _give_back_stale(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue the run of a trial whose heart stopped, unless it has taken too many workers down."""
    if int(trial.user_attrs[DEATHS]) < MAX_DEATHS:
        study.add_trial(again(trial, deaths=1))


def _this_worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _is_dead_here(worker: str) -> bool:
    """Whether ``worker`` ran on this machine and is gone; a worker elsewhere is judged by its heartbeat."""
    host, _, pid = worker.rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
