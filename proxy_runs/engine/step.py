"""One optimiser step of a stack, in the two ways that suit a CPU and a GPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proxy_runs.engine.model import StackedLlama
from proxy_runs.engine.optim import TABLE_COLUMNS, MemberStep, MemberwiseAdamW, StackwiseAdamW
from proxy_runs.engine.run import Batch
from proxy_runs.weights.params import Params

WARM_UP_STEPS = 3
"""Steps before a recording, in which torch and its libraries set up what must not be recorded; torch's own advice."""
MAX_LAUNCHED = 2
"""Steps whose results are not read yet: one computes while the next is prepared."""


class MemberwiseStep:
    """Forward and backward as a stack, then one update after another; a member's bits depend on no neighbour.

    Args:
        model: how the stack computes.
        params: its parameters, ``[K, ...]`` on the CPU.
    """

    def __init__(self, model: StackedLlama, params: Params) -> None:
        self._model = model
        self.optimizer = MemberwiseAdamW(params)
        self._results: deque[list[tuple[float, float]]] = deque()

    def launch(self, batches: Sequence[Batch], due: Sequence[MemberStep]) -> None:
        """Do the steps that are due.

        Args:
            batches: windows ``[B, T + 1]`` and weights ``[B]`` of each.
            due: members to update; those left out stay as they are.
        """
        params = self.optimizer.params
        members = len(params["embed"])
        # empty slots weigh nothing
        windows = np.zeros((members, *batches[0][0].shape), dtype=np.int64)
        weights = np.zeros((members, *batches[0][1].shape), dtype=np.float32)
        for each, batch in zip(due, batches):
            windows[each.slot], weights[each.slot] = batch
        losses, grads = self._model.gradients(params, torch.from_numpy(windows), torch.from_numpy(weights))
        values = losses.tolist()
        self._results.append([(values[each.slot], self.optimizer.step(grads, each)) for each in due])

    def results(self) -> list[tuple[float, float]]:
        """Loss in nats per token and gradient norm of each member whose step was due, of the first unread launch."""
        return self._results.popleft()


class StackwiseStep:
    """The same step with no word to the host between its start and its end: on a GPU it is a CUDA graph.

    The graph is recorded at the first call, after warm-up steps for which no member is due. From then on a step is one
    copy of its inputs, one replay and one copy of its results. The next step may be launched before the results of the
    last one are read: a member whose gradient was not finite stays as it was until its slot is loaded anew
    (``StackwiseAdamW.failed``).

    Args:
        model: how the stack computes.
        params: its parameters, ``[K, ...]``; they must stay where they are.
        compiled: let ``torch.compile`` fuse the update.
    """

    def __init__(self, model: StackedLlama, params: Params, *, compiled: bool = False) -> None:
        self._model = model
        self.optimizer = StackwiseAdamW(params)
        self._update = torch.compile(self.optimizer.step, dynamic=False) if compiled else self.optimizer.step
        self._device = params["embed"].device
        # they take turns: the copies of one may be under way while the other is filled
        self._hosts: list[_Host] = []
        self._inputs: list[Tensor] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._computed = torch.empty(0)
        self._launched: deque[_Launched] = deque()

    def launch(self, batches: Sequence[Batch], due: Sequence[MemberStep]) -> None:
        """Start the steps that are due; see ``MemberwiseStep.launch``. A GPU is still at it when this returns."""
        host = self._next_host(batches[0])
        host.fill(batches, due, self.optimizer.table(due))
        given = (host.windows, host.weights, host.table)
        if not self._inputs:
            self._inputs = [torch.zeros_like(each, device=self._device) for each in given]
            if self._device.type == "cuda":
                self._record()
        for place, values in zip(self._inputs, given):
            place.copy_(values, non_blocking=True)
        if self._graph is not None:
            self._graph.replay()
        else:
            self._computed = self._compute()
        arrived = None
        results = self._computed
        if self._device.type == "cuda":  # the next replay writes to the same place
            results = host.results
            results.copy_(self._computed, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._launched.append(_Launched(due, results, arrived))

    def results(self) -> list[tuple[float, float]]:
        """Wait for the first unread launch; see ``MemberwiseStep.results``."""
        first = self._launched.popleft()
        if first.arrived is not None:
            first.arrived.synchronize()
        results = first.results.tolist()
        return [tuple(results[each.slot]) for each in first.due]

    def _next_host(self, like: Batch) -> _Host:
        if not self._hosts:
            members = len(self.optimizer.params["embed"])
            self._hosts = [_Host(members, like, self._device) for _ in range(MAX_LAUNCHED)]
        if len(self._launched) >= MAX_LAUNCHED:
            raise RuntimeError("read the results of a launched step before the next but one")
        self._hosts.append(self._hosts.pop(0))
        return self._hosts[-1]

    def _compute(self) -> Tensor:
        """Losses and gradient norms ``[K, 2]`` of a step on the inputs."""
        windows, weights, table = self._inputs
        losses, grads = self._model.gradients(self.optimizer.params, windows.long(), weights)
        return torch.stack([losses, self._update(grads, table)], dim=1)

    def _record(self) -> None:
        aside = torch.cuda.Stream(self._device)
        aside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(aside):
            for _ in range(
                WARM_UP_STEPS
            ):  # on inputs of zeros, by which no member is due and no weight changes
                self._compute()
        torch.cuda.current_stream(self._device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # a thread may be writing checkpoints meanwhile: its calls are no part of the recording and do not spoil it
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._computed = self._compute()
        self._graph = graph


@dataclass(frozen=True)
class _Launched:
    """A step whose results nobody has read; ``arrived`` tells when a GPU has delivered them."""

    due: Sequence[MemberStep]
    results: Tensor
    arrived: torch.cuda.Event | None


class _Host:
    """What one step copies to the device and back; in pinned memory beside a GPU, so that no copy waits for it.

    Args:
        members: slots of the stack.
        like: a batch of one member.
        device: of the stack.

    Attributes:
        windows: int32 ``[K, B, T + 1]``: half the bytes of a reader's int64.
        weights: float32 ``[K, B]``.
        table: settings of the steps, ``[K, 10]``.
        results: losses and gradient norms, float32 ``[K, 2]``.
    """

    def __init__(self, members: int, like: Batch, device: torch.device) -> None:
        windows, weights = like

        def place(dtype: type, *size: int) -> tuple[NDArray[Any], Tensor]:
            if device.type == "cuda":
                pinned = torch.from_numpy(np.zeros(size, dtype)).pin_memory()
                return pinned.numpy(), pinned
            array: NDArray[Any] = np.zeros(size, dtype)
            return array, torch.from_numpy(array)

        self._windows, self.windows = place(np.int32, members, *windows.shape)
        self._weights, self.weights = place(np.float32, members, *weights.shape)
        self._table, self.table = place(np.float32, members, TABLE_COLUMNS)
        _, self.results = place(np.float32, members, 2)

    def fill(self, batches: Sequence[Batch], due: Sequence[MemberStep], table: NDArray[np.float32]) -> None:
        self._weights[:] = 0.0  # empty slots weigh nothing, whatever a former run left in their windows
        for each, batch in zip(due, batches):
            self._windows[each.slot], self._weights[each.slot] = batch
        self._table[:] = table
