"""The tensors of a stack of runs: load a run into a slot, step all of them, take a run out."""

from __future__ import annotations

import contextlib
import time
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
from proxy_runs.engine.optim import MemberStep
from proxy_runs.engine.run import Run
from proxy_runs.engine.step import MemberwiseStep, StackwiseStep
from proxy_runs.weights.checkpoints import MemberState
from proxy_runs.weights.params import Params, param_shapes


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
        with torch.no_grad():
            for ours, theirs in self._pairs(state):
                for name, tensor in ours.items():
                    tensor[slot].copy_(theirs[name])

    def _pairs(self, state: MemberState) -> tuple[tuple[Params, Params], ...]:
        return (
            (self.params, state.params),
            (self.optimizer.exp_avg, state.exp_avg),
            (self.optimizer.exp_avg_sq, state.exp_avg_sq),
        )

    def state(self, slot: int, notes: Mapping[str, Any] | None = None) -> MemberState:
        """A copy of the state of the run in a slot."""
        run = self.run(slot)
        copies = [
            {name: tensor[slot].detach().cpu().clone() for name, tensor in group.items()}
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
        """Give the empty slots up; the other members keep their numbers to the last bit.

        A stack that was compiled or recorded keeps its size: a smaller one would have to be made anew first.
        """
        if self._backend.compiled or self._backend.is_stackwise:
            return
        kept = [(run, self.state(slot)) for slot, run in self.active()]
        self.runs = [None] * len(kept)
        self._allocate(len(kept))
        for slot, (run, state) in enumerate(kept):
            self.load(slot, run, state)

    def step(self) -> list[tuple[int, Run, StepOutcome]]:
        """One optimiser step of every run; what it did to each."""
        started = time.perf_counter()
        windows, weights = self._batches()
        self.data_seconds += time.perf_counter() - started
        members = self.active()
        due = [MemberStep(slot, run.lr, run.history_step + 1, run.config.optimizer) for slot, run in members]
        with self._compiling(windows):
            self._step.launch(windows, weights, due)
        if self._backend.is_stackwise:  # a GPU computes by itself
            for _, run in members:
                run.read_ahead()
        outcomes = []
        for (slot, run), found in zip(members, self._step.results()):
            outcome = StepOutcome(*found)
            if outcome.is_finite:
                run.advance()
            outcomes.append((slot, run, outcome))
        self.step_seconds += time.perf_counter() - started
        return outcomes

    @contextlib.contextmanager
    def _compiling(self, windows: torch.Tensor) -> Iterator[None]:
        """Around a step: the first of a compiled stack takes its code from other processes, or compiles for them."""
        if not self._is_to_be_compiled:
            yield
            return
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        settings = (self._backend.precision, self._backend.compiled, where)
        with compiled_once(code_key(self.shape, tuple(windows.shape), *settings)):
            yield
        self._is_to_be_compiled = False

    @property
    def data_share(self) -> float:
        """Share of the time of all steps that went by until their batches were there."""
        return self.data_seconds / max(self.step_seconds, 1e-9)

    def _batches(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Windows ``[K, B, T + 1]`` and weights ``[K, B]`` of the next step on the host; empty slots weigh nothing."""
        batches = [(slot, run.batch()) for slot, run in self.active()]
        first_windows, first_weights = batches[0][1]
        windows = np.zeros((len(self.runs), *first_windows.shape), dtype=np.int64)
        weights = np.zeros((len(self.runs), *first_weights.shape), dtype=np.float32)
        for slot, (window, weight) in batches:
            windows[slot], weights[slot] = window, weight
        return torch.from_numpy(windows), torch.from_numpy(weights)

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
