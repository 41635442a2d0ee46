"""``train``: runs in, results out; stoppable at any moment, and it goes on where it was."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decaylaws.errors import DataError, DecaylawsError
from decaylaws.progress import Progress, silent
from decaylaws.runs.columns import DIVERGED, FINISHED, PRUNED
from decaylaws.runs.config import TRAINED_STARTS, RunConfig
from decaylaws.settings.evaluation import EvaluationSettings
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine.backend import Backend
from proxy_runs.engine.heldout import EvaluationSet
from proxy_runs.engine.run import Run, RunResult
from proxy_runs.engine.saves import Saves
from proxy_runs.engine.stack import Stack, StepOutcome
from proxy_runs.weights.checkpoint_files import (
    final_checkpoint,
    kept_checkpoint,
    resume_checkpoint,
    start_checkpoint,
)
from proxy_runs.weights.checkpoints import MemberState, load_checkpoint
from proxy_runs.weights.held import HeldCheckpoints

SAVE_SECONDS = 30.0
REPORT_SECONDS = 0.5
NOTABLE_WAIT = 0.01
"""Share of the time waiting for data from which on it is told."""


def train(
    configs: Sequence[RunConfig],
    store: TokenStore,
    *,
    checkpoint_dir: Path,
    evaluation: EvaluationSettings,
    on_result: Callable[[RunResult], Future[Any] | None],
    start_checkpoints: Mapping[str, Path] | None = None,
    held: HeldCheckpoints | None = None,
    keep_at: Callable[[RunConfig], Sequence[int]] = lambda _: (),
    more: Callable[[RunConfig, int], Sequence[RunConfig]] = lambda *_: (),
    slots: int = 1,
    device: str = "auto",
    progress: Progress = silent,
    should_stop: Callable[[], bool] = lambda: False,
    should_prune: Callable[[RunConfig, int, Mapping[str, float]], bool] = lambda *_: False,
    on_losses: Callable[[RunConfig, int, Mapping[str, float]], None] = lambda *_: None,
    save_seconds: float = SAVE_SECONDS,
) -> None:
    """Train runs, ``slots`` of one shape at a time as one stack; a run that ends makes room for the next.

    On a CPU with one thread every number is the same to the last bit whatever the slots, the neighbours and
    the interruptions. A run whose loss or gradient is not finite ends as ``diverged``.

    Args:
        configs: the plans; a decay's trunk checkpoint must exist when its turn comes.
        store: the prepared corpus.
        checkpoint_dir: where trunks leave checkpoints and unfinished runs their latest state.
        evaluation: held-out tokens per domain, and how often a run is evaluated.
        on_result: told of every run that ended, once; when it returns, the run's resume state is deleted, or when the
            future that it returns has ended, for which training does not wait.
        start_checkpoints: by ``start_run_id``, where a trunk's checkpoint is if not in ``checkpoint_dir``.
        held: checkpoints that runs with a ``start`` begin from.
        keep_at: own tokens (whole steps) of a run at which a checkpoint is kept.
        more: asked, when members end while others of their stack go on, for at most so many runs that stack with
            the given one, so that no slot stays empty.
        slots: members of a stack at most; see ``Backend``.
        device: ``cpu``, ``cuda`` or ``auto``.
        progress: told ``(run_id, own tokens done, own tokens planned, note)``.
        should_stop: asked between steps; when true, all states are saved and the call returns.
        should_prune: asked after an evaluation on the way with (plan, own tokens, loss: and bpb: columns); true ends
            the run.
        on_losses: told of every evaluation, that at the start too, with (plan, own tokens, losses).
        save_seconds: at most so much work is lost to a crash, or twenty times what saving takes if that is more.

    Raises:
        InvalidValueError, InfeasibleError: a plan that cannot be run on this corpus.
        DataError: a checkpoint or shard is missing, damaged or belongs to something else.
    """
    groups: dict[Any, list[RunConfig]] = {}
    for config in configs:
        groups.setdefault((config.shape, config.batch_tokens, config.arithmetic), []).append(config)
    where = _Where(checkpoint_dir, dict(start_checkpoints or {}), held or HeldCheckpoints(), keep_at)
    hooks = _Hooks(on_result, more, progress, should_stop, should_prune, on_losses)
    for group in groups.values():
        backend = Backend(device=device, slots=slots, **vars(group[0].arithmetic))
        _Session(group, store, evaluation, where, hooks, backend, Saves(save_seconds)).work()
        if should_stop():
            return


@dataclass(frozen=True)
class _Where:
    """Where checkpoints are and are to be."""

    directory: Path
    starts: dict[str, Path]
    held: HeldCheckpoints
    keep_at: Callable[[RunConfig], Sequence[int]]

    def start(self, config: RunConfig) -> Path:
        trunk = str(config.start_run_id)
        given = self.starts.get(trunk)
        return given or start_checkpoint(self.directory, trunk, config.start_tokens)


@dataclass(frozen=True)
class _Hooks:
    """What the caller wants to be told and asked."""

    on_result: Callable[[RunResult], Future[Any] | None]
    more: Callable[[RunConfig, int], Sequence[RunConfig]]
    progress: Progress
    should_stop: Callable[[], bool]
    should_prune: Callable[[RunConfig, int, Mapping[str, float]], bool]
    on_losses: Callable[[RunConfig, int, Mapping[str, float]], None]


class _Session:
    """The runs of one shape and batch size on their way through the slots of one stack."""

    def __init__(
        self,
        configs: Sequence[RunConfig],
        store: TokenStore,
        evaluation: EvaluationSettings,
        where: _Where,
        hooks: _Hooks,
        backend: Backend,
        saves: Saves,
    ) -> None:
        self._saves = saves
        self._reported = 0.0
        self._like, shape = configs[0], configs[0].llama
        self._pending = deque(configs)
        self._has_closed = False
        self._store = store
        self._points = evaluation.points
        self._asked_at_the_ends = evaluation.asked_at_ends
        self._where = where
        self._hooks = hooks
        self._evaluation = EvaluationSet.build(
            store,
            seq_len=shape.seq_len,
            tokens_per_domain=evaluation.tokens_per_domain,
            device=backend.torch_device,
        )
        self._stack = Stack(shape, backend.slots_for(len(configs)), backend)

    def work(self) -> None:
        """Run until every run has ended or the caller wants to stop."""
        try:
            self._refill()
            while self._stack.active():
                if self._hooks.should_stop():
                    self._save_all()
                    return
                self._step()
            self._saves.wait()
        except DecaylawsError:
            # one plan that cannot be run must not cost the others what they have done; a full disk may
            with contextlib.suppress(DataError):
                self._save_all()
            raise
        finally:
            self._saves.close()

    def _step(self) -> None:
        outcomes = self._stack.step()
        due = self._saves.next_due([run for _, run in self._stack.active()])
        if due is not None or self._is_awaited(outcomes):
            outcomes += self._stack.finish()
        self._report(outcomes)
        for slot, run, outcome in outcomes:
            if not outcome.is_finite:
                what = f"loss {outcome.loss}, gradient norm {outcome.grad_norm}"
                self._close(slot, DIVERGED, f"diverged at step {run.step + 1}: {what}")
        self._evaluate([slot for slot, run in self._stack.active() if run.wants_evaluation])
        for slot, run in self._stack.active():
            if run.tokens in run.keep_at:
                path = kept_checkpoint(self._where.directory, run.config.run_id, run.tokens)
                self._saves.save(self._stack.state(slot, self._notes(run)), path)
        if due in self._stack.runs and due is not None:
            self._save(self._stack.runs.index(due))
        self._close_done()
        self._refill()

    def _is_awaited(self, outcomes: Sequence[tuple[int, Run, StepOutcome]]) -> bool:
        """Whether somebody has to know what the step under way does before the next one is launched."""
        return any(not outcome.is_finite for _, _, outcome in outcomes) or any(
            run.is_done or run.wants_evaluation or run.tokens in run.keep_at
            for _, run in self._stack.active()
        )

    def _report(self, outcomes: Sequence[tuple[int, Run, StepOutcome]]) -> None:
        if not outcomes or time.monotonic() - self._reported < REPORT_SECONDS:
            return
        self._reported = time.monotonic()
        share = self._stack.data_share
        waiting = f", {share:.0%} of the time waiting for data" if share > NOTABLE_WAIT else ""
        for _, run, outcome in outcomes:
            note = f"loss {outcome.loss:.3f}{waiting}"
            self._hooks.progress(run.config.run_id, run.tokens, run.config.tokens, note)

    # Into the slots ----------------------------------------------------------------------------------------

    def _refill(self) -> None:
        """Fill empty slots with pending runs; give up those for which none is left."""
        self._ask_for_more()
        fresh = []
        for slot, run in enumerate(self._stack.runs):
            if run is None and self._pending:
                new = Run(self._pending.popleft(), self._store, points=self._points)
                # asked once: it may take as long as a step
                new.keep_at = frozenset(self._where.keep_at(new.config))
                self._stack.load(slot, new, self._resume_state(new) or self._first_state(new))
                fresh.append(slot)
        unmeasured = [slot for slot in fresh if not self._stack.run(slot).start_losses]
        if unmeasured:
            self._evaluate(unmeasured)
            for run in map(self._stack.run, unmeasured):
                self._where.held.note_losses(run.config, self._evaluation.key, run.start_losses)
        if any(self._stack.run(slot).is_done for slot in fresh):  # checkpoints are only measured
            self._close_done()
            self._refill()
        elif None in self._stack.runs and self._stack.active():
            self._stack.shrink()

    def _ask_for_more(self) -> None:
        """Ask once for every time that members ended: the answer may come from far away, and mostly there is none."""
        free = self._stack.runs.count(None) - len(self._pending)
        if self._has_closed and free > 0 and self._stack.active():
            self._pending.extend(self._hooks.more(self._like, free))
        self._has_closed = False

    def _resume_state(self, run: Run) -> MemberState | None:
        path = resume_checkpoint(self._where.directory, run.config.run_id)
        if not path.is_file():
            return None
        try:
            state = load_checkpoint(path, shape=run.config.llama)
        except DataError as error:
            # nothing is lost but time: the run starts over and ends with the same numbers
            self._hooks.progress(run.config.run_id, 0, run.config.tokens, f"starts over: {error}")
            return None
        notes = state.notes
        if (notes["evaluation"], notes["points"]) != (self._evaluation.key, self._points):
            return None
        run.step, run.history_step = state.run_step, state.step
        run.start_losses, run.curve = dict(notes["start_losses"]), list(notes["curve"])
        return state

    def _first_state(self, run: Run) -> MemberState:
        config = run.config
        if config.kind == "trunk":
            return run.start_state()
        if config.start is not None:
            state = self._where.held.member(config)
            run.history_step = state.step
            if known := self._where.held.losses(config, self._evaluation.key):
                self._note_losses(run, known)
            return state
        path = self._where.start(config)
        state = load_checkpoint(path, shape=config.llama)
        if (state.run_id, state.tokens) != (config.start_run_id, config.start_tokens):
            raise DataError(
                f"The checkpoint {path} is of run {state.run_id} at {state.tokens} tokens; the decay "
                f"{config.run_id} starts from run {config.start_run_id} at {config.start_tokens}."
            )
        run.history_step = state.step
        if state.notes.get("evaluation") == self._evaluation.key and state.notes["losses"]:
            # the trunk measured these very tokens with these very weights when it ended
            self._note_losses(run, state.notes["losses"])
        return state

    # On the way --------------------------------------------------------------------------------------------

    def _evaluate(self, slots: Sequence[int]) -> None:
        if not slots:
            return
        # runs of one stack stand at different steps: those on their way are not asked everything
        groups: dict[bool, list[int]] = {}
        for slot in slots:
            run = self._stack.run(slot)
            groups.setdefault(run.step > 0 and not run.is_done, []).append(slot)
        for on_the_way, members in groups.items():
            self._note(members, on_the_way)

    def _note(self, slots: Sequence[int], on_the_way: bool) -> None:
        leave_out = self._asked_at_the_ends if on_the_way else ()
        for slot, found in zip(slots, self._stack.measure(slots, self._evaluation, leave_out)):
            run, losses = self._stack.run(slot), found.losses
            self._note_losses(run, losses, found.columns)
            if on_the_way and self._hooks.should_prune(run.config, run.tokens, self._evaluation.row(losses)):
                self._close(slot, PRUNED, f"pruned at step {run.step}")

    def _note_losses(
        self, run: Run, losses: Mapping[str, float], columns: Mapping[str, float] | None = None
    ) -> None:
        run.note_losses(losses, columns)
        self._hooks.on_losses(run.config, run.tokens, losses)

    def _save_all(self) -> None:
        self._stack.finish()  # a run that diverges here stays where it was, and diverges again when it goes on
        for slot, _ in self._stack.active():
            self._save(slot)
            self._saves.wait()  # one copy at a time
        self._saves.wait()

    def _save(self, slot: int) -> None:
        run = self._stack.run(slot)
        path = resume_checkpoint(self._where.directory, run.config.run_id)
        self._saves.save(self._stack.state(slot, self._notes(run)), path)

    def _notes(self, run: Run) -> dict[str, Any]:
        measured_here = bool(run.curve) and run.curve[-1]["step"] == run.step
        return {
            "evaluation": self._evaluation.key,
            "points": self._points,
            "start_losses": dict(run.start_losses),
            "curve": list(run.curve),
            "losses": run.last_losses() if measured_here else {},
        }

    # Out of the slots --------------------------------------------------------------------------------------

    def _close_done(self) -> None:
        for slot, run in self._stack.active():
            if run.is_done:
                if run.config.kind in TRAINED_STARTS:
                    path = final_checkpoint(self._where.directory, run.config.run_id)
                    self._saves.save(self._stack.state(slot, self._notes(run)), path)
                self._close(slot, FINISHED, "")

    def _close(self, slot: int, status: str, reason: str) -> None:
        run = self._stack.run(slot)
        self._stack.runs[slot] = None
        self._has_closed = True
        if run.keep_at or run.config.kind in TRAINED_STARTS:
            self._saves.wait()  # whoever hears of the result reads its checkpoints
        recorded = self._hooks.on_result(run.result(status, reason, self._evaluation))
        self._saves.delete(resume_checkpoint(self._where.directory, run.config.run_id), after=recorded)
