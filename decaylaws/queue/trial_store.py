"""The trials of one Optuna study, through a storage that may be away for a while or answer late."""

from __future__ import annotations

import functools
import os
import socket
import warnings
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from decaylaws.progress import Progress, silent
from decaylaws.queue.storage import Patience, change_state, open_storage
from decaylaws.queue.trials import DEATHS, MAX_DEATHS, RUN_ID, TICKET, WORKER, again


class TrialStore:
    """Reads and writes trials; every call waits for a storage that does not answer.

    A storage may do what it is asked and go away before it can say so, so that each call may be made twice.

    Args:
        url: storage URL (``sqlite:///...``, ``postgresql://...``).
        name: name of the Optuna study; it is created where it is missing.
        progress: told when the storage does not answer.
        connect_seconds: how long to wait for the first answer, as long as for any other where it is None.

    Raises:
        InvalidValueError: the URL is none that can be opened.
        StudyError: the storage does not answer within five minutes, or is damaged.
    """

    def __init__(
        self, url: str, name: str, *, progress: Progress = silent, connect_seconds: float | None = None
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # what it warns of, Patience says
        self._patiently = Patience(progress)
        self._storage = Patience(progress, connect_seconds)(lambda: open_storage(url, _give_back_stale))
        self._study = self._patiently(lambda: _load_or_create(self._storage, name))
        self._study_id = self._patiently(lambda: self._storage.get_study_id_from_name(name))

    def all(self) -> list[FrozenTrial]:
        """Every trial of a run in order of their numbers; ended ones come out of a cache."""
        trials = self._patiently(lambda: self._study.get_trials(deepcopy=False))
        return [trial for trial in trials if RUN_ID in trial.user_attrs]

    def in_state(self, state: TrialState) -> list[FrozenTrial]:
        """Trials in one state; asked of the storage itself: the cache reads every trial that has not ended."""
        read = functools.partial(
            self._storage.get_all_trials, self._study_id, deepcopy=False, states=(state,)
        )
        return [trial for trial in self._patiently(read) if RUN_ID in trial.user_attrs]

    def get(self, trial_id: int) -> FrozenTrial:
        """The trial with an id of the storage."""
        return self._patiently(lambda: self._storage.get_trial(trial_id))

    def id_of(self, trial: FrozenTrial) -> int:
        """The storage's id of a trial, which is not its number in the study."""
        return self._patiently(
            lambda: self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
        )

    def add(self, trial: FrozenTrial) -> None:
        """Add a trial once."""
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

    def set(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute of a trial.

        Raises:
            UpdateFinishedTrialError: the trial was closed.
        """
        self._patiently(lambda: self._storage.set_trial_user_attr(trial_id, key, value))

    def report(self, trial_id: int, tokens: int, value: float) -> None:
        """Store an intermediate value.

        Raises:
            UpdateFinishedTrialError: the trial was closed.
        """
        self._patiently(lambda: self._storage.set_trial_intermediate_value(trial_id, tokens, value))

    def beat(self, trial_id: int) -> None:
        """Tell the storage that the worker of a trial lives."""
        self._patiently(lambda: self._storage.record_heartbeat(trial_id))

    def claim(self, trial_id: int) -> bool:
        """Take a waiting trial for this process; False where somebody else had it."""
        # the heart comes before the claim, so that a worker that dies right after it leaves a trial that goes
        # stale; the name comes after it, so that nobody who lost the race signs a trial that he does not hold
        self.beat(trial_id)
        try:
            if not self.change(trial_id, TrialState.RUNNING):
                return False
            self.set(trial_id, WORKER, _this_worker())
        except UpdateFinishedTrialError:
            return False
        return True

    def change(self, trial_id: int, state: TrialState) -> bool:
        """Change the state of a trial that has not ended; False where it was to be claimed and somebody else had it.

        Raises:
            UpdateFinishedTrialError: the trial was closed.
        """
        return self._patiently(lambda: change_state(self._storage, trial_id, state))

    def close(self, trial_id: int, state: TrialState, value: float | None) -> None:
        """Close a trial that this process holds.

        Raises:
            UpdateFinishedTrialError: another worker had closed it.
        """
        tries = 0

        def close() -> None:
            nonlocal tries
            tries += 1
            try:
                change_state(self._storage, trial_id, state, None if value is None else [value])
            except UpdateFinishedTrialError:
                if tries == 1 or not self._closed_here(trial_id, state):
                    raise  # else: the storage did it, then went away before it could say so

        self._patiently(close)

    def _closed_here(self, trial_id: int, state: TrialState) -> bool:
        trial = self._storage.get_trial(trial_id)
        return trial.state == state and trial.user_attrs.get(WORKER) == _this_worker()

    def close_stale(self) -> None:
        """Close the trials of workers whose heart has stopped; their runs go back to the queue."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._patiently(lambda: optuna.storages.fail_stale_trials(self._study))

    def attribute(self, key: str) -> Any:
        """An attribute of the study; None where it has none of this name."""
        return self._patiently(lambda: self._study.user_attrs).get(key)

    def set_attribute(self, key: str, value: Any) -> None:
        """Set an attribute of the study."""
        self._patiently(lambda: self._study.set_user_attr(key, value))


def _load_or_create(storage: BaseStorage, name: str) -> optuna.Study:
    try:
        return optuna.load_study(storage=storage, study_name=name)  # a study that may only be read will do
    except KeyError:
        return optuna.create_study(storage=storage, study_name=name, load_if_exists=True)


def _give_back_stale(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue the run of a trial whose heart stopped, unless it has taken too many workers down."""
    if int(trial.user_attrs[DEATHS]) < MAX_DEATHS:
        study.add_trial(again(trial, deaths=1))


def _this_worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def is_dead_here(worker: str) -> bool:
    """Whether ``worker`` ran on this machine and is gone; a worker elsewhere is judged by its heartbeat."""
    host, _, pid = worker.rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it lives, and belongs to another user
    return False
