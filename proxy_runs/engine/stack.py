"""The tensors of a stack of runs: load a run into a slot, step all of them, take a run out."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from decaylaws.runs.config import ModelShape
from proxy_runs.compiled_code import code_key, compiled_once
from proxy_runs.engine.backend import Backend
from proxy_runs.engine.heldout import EvaluationSet, Measurement
from proxy_runs.engine.model import StackedLlama
from proxy_runs.engine.optim import MemberStep, StackwiseAdamW
from proxy_runs.engine.run import Batch, Run
from proxy_runs.engine.step import MAX_LAUNCHED, MemberwiseStep, StackwiseStep
from proxy_runs.weights.checkpoints import MemberState
from proxy_runs.weights.params import param_shapes

REPAID_STEPS = {False: 300, True: 3_000}
"""Steps left from which on a stack on a GPU is recorded anew for half of its slots or fewer, eager and compiled: a
recording takes a second or two, code for another size half a minute. Estimated, not measured on a GPU."""


@dataclass(frozen=True)
class StepOutcome:
    """What one optimiser step did to one run.

    Attributes:
        loss: training loss before the update, nats per token.
        grad_norm: norm of the gradient before the clip.
    """

    loss: float
    grad_norm: float

    @property
    def is_finite(self) -> bool:
        """Whether the update was done: a run whose loss or gradient is not finite was left as it was."""
        return bool(np.isfinite(self.loss) and np.isfinite(self.grad_norm))


class Stack:
    """Slots for runs of one shape and one batch size.

    Args:
        shape: model shape of every run.
        slots: members that train as one.
        backend: how the stack computes.
    """

    def __init__(self, shape: ModelShape, slots: int, backend: Backend) -> None:
        self.shape = shape
        self.device = backend.torch_device
        self.runs: list[Run | None] = [None] * slots
        self._model = StackedLlama(shape, device=self.device, dtype=backend.dtype, compiled=backend.compiled)
        # losses are measured in float32 and without the compiler, whatever the training does
        self._gauge = self._model if backend.is_exact else StackedLlama(shape, device=self.device)
        self._backend = backend
        self.data_seconds = self.step_seconds = 0.0
        self._launched: deque[list[tuple[int, Run]]] = deque()  # members of the steps under way
        # slots that took part in a step under way and whose run has diverged before it
        self._failed: set[int] = set()
        self._allocate(slots)

    def _allocate(self, slots: int) -> None:
        self.params = {
            name: torch.zeros((slots, *size), device=self.device, requires_grad=True)
            for name, size in param_shapes(self.shape).items()
        }
        self._step: MemberwiseStep | StackwiseStep
        if self._backend.is_stackwise:
            self._step = StackwiseStep(self._model, self.params, compiled=self._backend.compiles_update)
        else:
            self._step = MemberwiseStep(self._model, self.params)
        self.optimizer = self._step.optimizer
        compiles = self._backend.compiled or (self._backend.is_stackwise and self._backend.compiles_update)
        self._is_to_be_compiled = compiles

    def load(self, slot: int, run: Run, state: MemberState) -> None:
        """Put a run into a slot, in place: nothing is compiled or allocated anew."""
        self.runs[slot] = run
        if isinstance(self.optimizer, StackwiseAdamW):
            self.optimizer.failed[slot] = False
        with torch.no_grad():
            for ours, theirs in (
                (self.params, state.params),
                (self.optimizer.exp_avg, state.exp_avg),
                (self.optimizer.exp_avg_sq, state.exp_avg_sq),
            ):
                for name, tensor in ours.items():
                    tensor[slot].copy_(theirs[name])

    def state(self, slot: int, notes: Mapping[str, Any] | None = None) -> MemberState:
        """A copy of the state of the run in a slot, on the device."""
        run = self.run(slot)
        copies = [
            {name: tensor[slot].detach().clone() for name, tensor in group.items()}
            for group in (self.params, self.optimizer.exp_avg, self.optimizer.exp_avg_sq)
        ]
        return MemberState(
            run_id=run.config.run_id,
            shape=self.shape,
            step=run.history_step,
            run_step=run.step,
            tokens=run.config.start_tokens + run.tokens,
            params=copies[0],
            exp_avg=copies[1],
            exp_avg_sq=copies[2],
            notes=notes or {},
        )

    def run(self, slot: int) -> Run:
        """The run in a slot that is not empty."""
        run = self.runs[slot]
        if run is None:
            raise LookupError(f"slot {slot} is empty")
        return run

    def active(self) -> list[tuple[int, Run]]:
        """Slots that hold a run."""
        return [(slot, run) for slot, run in enumerate(self.runs) if run is not None]

    def shrink(self) -> None:
        """Give empty slots up; on a CPU the other members keep their numbers to the last bit.

        A stack that steps as a whole has to be recorded anew for that: it does so where at least half of its slots are
        empty and enough steps are left to repay it.
        """
        kept = self.active()
        size = self._backend.slots_for(len(kept))
        if size == len(self.runs):
            return
        if self._backend.is_stackwise:
            left = max(run.config.num_steps - run.step for _, run in kept)
            if 2 * size > len(self.runs) or left < REPAID_STEPS[self._backend.compiled]:
                return
        self.finish()
        # a recorded step writes to the addresses that it was recorded with: a smaller stack needs tensors of its own
        before = [self.params, self.optimizer.exp_avg, self.optimizer.exp_avg_sq]
        self._allocate(size)
        self.runs = [run for _, run in kept] + [None] * (size - len(kept))
        rows = torch.tensor([slot for slot, _ in kept], device=self.device)
        with torch.no_grad():
            for ours, theirs in zip((self.params, self.optimizer.exp_avg, self.optimizer.exp_avg_sq), before):
                for name, tensor in ours.items():
                    tensor[: len(kept)].copy_(theirs[name][rows])

    def step(self) -> list[tuple[int, Run, StepOutcome]]:
        """Start one optimiser step of every run; what those steps did that are known by now.

        On a CPU that is this step. A GPU computes it while the host reads the results of the last one and the next
        batches: runs stand where they will stand when it is done. ``finish`` waits for what is under way, and must have
        been called before a run is measured, saved, taken out or loaded.
        """
        started = time.perf_counter()
        members = self.active()
        batches = [run.batch() for _, run in members]
        self.data_seconds += time.perf_counter() - started
        due = [MemberStep(slot, run.lr, run.history_step + 1, run.config.optimizer) for slot, run in members]
        with self._compiling(batches[0]):
            self._step.launch(batches, due)
        self._launched.append(members)
        for _, run in members:
            run.advance()
        if self._backend.is_stackwise:
            for _, run in members:
                run.read_ahead()
            outcomes = self._outcomes() if len(self._launched) == MAX_LAUNCHED else []
        else:
            outcomes = self._outcomes()
        self.step_seconds += time.perf_counter() - started
        return outcomes

    @contextlib.contextmanager
    def _compiling(self, batch: Batch) -> Iterator[None]:
        """Around a step: the first of a compiled stack takes its code from other processes, or compiles for them."""
        if not self._is_to_be_compiled:
            yield
            return
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        settings = (self._backend.precision, self._backend.compiled, where)
        with compiled_once(code_key(self.shape, (len(self.runs), *batch[0].shape), *settings)):
            yield
        self._is_to_be_compiled = False

    def finish(self) -> list[tuple[int, Run, StepOutcome]]:
        """Wait for the steps under way; what they did to each run."""
        started = time.perf_counter()
        outcomes = []
        while self._launched:
            outcomes += self._outcomes()
        self._failed.clear()
        self.step_seconds += time.perf_counter() - started
        return outcomes

    def _outcomes(self) -> list[tuple[int, Run, StepOutcome]]:
        """What the first step under way did to each run."""
        outcomes = []
        for (slot, run), found in zip(self._launched.popleft(), self._step.results()):
            if slot in self._failed:
                continue  # launched before the step that failed was read; it changed nothing
            outcome = StepOutcome(*found)
            if not outcome.is_finite:
                if self._launched:
                    self._failed.add(slot)
                # the run stands after the steps that were launched meanwhile: back to where the failed one began
                run.take_back(1 + len(self._launched))
            outcomes.append((slot, run, outcome))
        return outcomes

    @property
    def data_share(self) -> float:
        """Share of the time of all steps that went by until their batches were there."""
        return self.data_seconds / max(self.step_seconds, 1e-9)

    def measure(
        self, slots: Sequence[int], evaluation: EvaluationSet, leave_out: Collection[str] = ()
    ) -> list[Measurement]:
        """What the runs in ``slots`` come to, evaluated as one stack; without some question sets."""
        first, last = min(slots), max(slots) + 1
        whole = len(slots) == last - first
        index = slice(first, last) if whole else torch.tensor(slots, device=self.device)
        with torch.no_grad():
            chosen = {name: tensor.detach()[index] for name, tensor in self.params.items()}
        return evaluation.measure(self._gauge, chosen, leave_out)
