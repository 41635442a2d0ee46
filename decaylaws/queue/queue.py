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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from decaylaws.errors import StudyError
from decaylaws.progress import Progress, silent
from decaylaws.queue.trial_store import is_dead_here
from decaylaws.queue.trials import (
    ATTEMPT,
    CURVE,
    LOG,
    MAX_ATTEMPTS,
    MEASURE,
    RESULT,
    ROLE,
    RUN_ID,
    SERVES,
    WORKER,
    again,
    config_of,
    fits,
    is_owed,
    is_poor,
    is_retried,
    result_of,
    sealed,
    waiting_trial,
)
from decaylaws.queue.view import FOLDER, QueueView
from decaylaws.runs.columns import Unit
from decaylaws.runs.config import RunConfig


@dataclass(frozen=True)
class Claim:
    """A run that this worker holds."""

    trial_id: int
    role: str
    config: RunConfig
    result: dict[str, Any] | None
    is_retried: bool


class RunQueue(QueueView):
    """The runs of one study, to be queued, claimed, given back and recorded.

    The storage keeps the runs of every plan that the study ever had; a queue claims those alone that it serves. It is
    opened as a :class:`~decaylaws.queue.view.QueueView` is.
    """

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
            self._store.add(waiting_trial(role, config, serves=self._serves, measure=self._measure))
            progress("queue", done, len(new))
        taken = [self._take_over(held[c.run_id], role) for role, c in runs if c.run_id in held]
        self._close_doubles()
        return len(new) + sum(taken)

    def _take_over(self, trial: FrozenTrial, role: str) -> bool:
        """Let an open run that was queued for something else serve this queue; whether it waits."""
        if trial.state.is_finished() or self._is_served(trial):
            return False
        trial_id = self._store.id_of(trial)
        with contextlib.suppress(UpdateFinishedTrialError):  # it ended meanwhile, which is as well
            self._store.set(trial_id, ROLE, role)
            self._store.set(trial_id, SERVES, self._serves)
        return trial.state == TrialState.WAITING

    def _close_doubles(self) -> None:
        """Close waiting trials that do not count, since machines that started together queued their runs at once."""
        counted = {trial.number for trial in self._latest()}
        for trial in self._store.in_state(TrialState.WAITING):
            if trial.number not in counted:
                with contextlib.suppress(UpdateFinishedTrialError):
                    self._store.change(self._store.id_of(trial), TrialState.FAIL)

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

    def claimable(self, ready: Callable[[RunConfig], bool]) -> bool:
        """Whether any waiting run is ``ready``."""
        return any(ready(config_of(trial)) for trial in self._open(TrialState.WAITING))

    def beat(self, claims: Sequence[Claim]) -> None:
        """Tell the storage that the claims' worker lives; called every few seconds while it works."""
        for claim in claims:
            self._store.beat(claim.trial_id)

    def report(self, claim: Claim, tokens: int, value: float) -> None:
        """Store the objective of a run after ``tokens`` of its own, which Optuna knows as an intermediate value.

        Args:
            claim: the claimed run.
            tokens: its own tokens so far.
            value: its objective there.
        """
        with contextlib.suppress(UpdateFinishedTrialError):  # it was given to another worker meanwhile
            self._store.report(claim.trial_id, tokens, value)

    def note(self, claim: Claim, tokens: int, losses: Mapping[str, float]) -> None:
        """Store an evaluation of a run on its way, for those who ask what it will reach.

        Args:
            claim: the claimed run.
            tokens: its own tokens so far.
            losses: by domain, nats per token.
        """
        attrs = self._store.get(claim.trial_id).user_attrs
        # a run that was resumed from an older checkpoint measures again what an earlier attempt has measured
        before = [point for point in attrs.get(CURVE, []) if point["tokens"] < tokens]
        now = [{"tokens": tokens, "domain": domain, "loss": loss} for domain, loss in losses.items()]
        with contextlib.suppress(UpdateFinishedTrialError):  # it was given to another worker meanwhile
            self._store.set(claim.trial_id, CURVE, [*before, *now])

    def is_poor(
        self,
        claim: Claim,
        percentile: float,
        objective: Mapping[str, float],
        unit: Unit = "nats_per_token",
    ) -> bool:
        """Whether a run that reported will hardly end among the best ``percentile`` percent of its kind."""
        trial = self._store.get(claim.trial_id)
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
            # first the result: where a worker dies before it closes the trial, the next attempt finds it there
            self._store.set(claim.trial_id, RESULT, sealed(result, claim.config.run_id, self._measure))
            self._store.close(
                claim.trial_id, TrialState.COMPLETE if value is not None else TrialState.PRUNED, value
            )
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
            self._store.add(waiting_trial(role, config, serves=self._serves, measure=self._measure))
        # asked again: another machine may have queued the run at the same time, and then the first trial counts
        trial = self._trial_of(config.run_id)
        if trial is None:
            raise StudyError(f"The storage lost run {config.run_id} while it was recorded. Record it again.")
        waits = trial.state == TrialState.WAITING
        claim = self._claim_one(trial) if waits else _claim(trial, self._store.id_of(trial))
        if claim is None or not self.finish(claim, result, value):
            raise StudyError(
                f"Another process is recording run {config.run_id} now. Record the run again when it has ended."
            )
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
        trial = self._store.get(claim.trial_id)
        attempt = int(trial.user_attrs.get(ATTEMPT, 1))
        try:
            self._store.set(claim.trial_id, LOG, log[-20_000:])
            self._store.close(claim.trial_id, TrialState.FAIL, None)
        except UpdateFinishedTrialError:
            return False
        if attempt >= MAX_ATTEMPTS:
            return False
        serves, measure = (trial.user_attrs.get(name, "") for name in (SERVES, MEASURE))
        self._store.add(
            waiting_trial(claim.role, claim.config, attempt=attempt + 1, serves=serves, measure=measure)
        )
        return True

    def give_back(self, claim: Claim) -> None:
        """Return a run that was interrupted to the queue; its checkpoints let it go on where it was."""
        try:
            self._store.close(claim.trial_id, TrialState.FAIL, None)
        except UpdateFinishedTrialError:
            return
        self._store.add(again(self._store.get(claim.trial_id)))

    def reclaim(self) -> int:
        """Return the runs of dead workers to the queue; returns how many there were."""
        held = self._store.in_state(TrialState.RUNNING)
        for (
            trial
        ) in held:  # who died on this machine is known at once, who died elsewhere when its heart stops
            if is_dead_here(trial.user_attrs.get(WORKER, "")):
                self.give_back(_claim(trial, self._store.id_of(trial)))
        self._store.close_stale()
        return len(held) - len(self._store.in_state(TrialState.RUNNING))

    def retry_failed(self, run_ids: Collection[str] | None = None) -> int:
        """Queue those of the runs, of all without ids, again whose last attempt failed; returns how many."""
        return self._repeat(self._failed(run_ids))

    def repeat(self, run_ids: Collection[str]) -> int:
        """Queue finished runs again, whose checkpoints are gone; returns how many.

        Their results stay; the new ones, which equal them, take their place.
        """
        finished = self._latest(TrialState.COMPLETE)
        return self._repeat([trial for trial in finished if trial.user_attrs[RUN_ID] in run_ids])

    def _repeat(self, trials: Sequence[FrozenTrial]) -> int:
        for trial in trials:
            self._store.add(
                waiting_trial(
                    trial.user_attrs[ROLE],
                    config_of(trial),
                    repeats=trial.number,
                    serves=self._serves,
                    measure=self._measure,
                )
            )
        return len(trials)

    def set_folder(self, folder: Mapping[str, str]) -> None:
        """Say which folder holds the checkpoints of these runs."""
        self._store.set_attribute(FOLDER, dict(folder))

    def _claim_one(self, trial: FrozenTrial) -> Claim | None:
        trial_id = self._store.id_of(trial)
        return _claim(trial, trial_id) if self._store.claim(trial_id) else None


def _claim(trial: FrozenTrial, trial_id: int) -> Claim:
    attrs = trial.user_attrs
    result = result_of(trial) if RESULT in attrs else None
    return Claim(trial_id, attrs[ROLE], config_of(trial), result, is_retried(trial))
