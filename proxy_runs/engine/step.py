"""One optimiser step of a stack, in the two ways that suit a CPU and a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from proxy_runs.engine.model import StackedLlama
from proxy_runs.engine.optim import MemberStep, MemberwiseAdamW, StackwiseAdamW
from proxy_runs.weights.params import Params

WARM_UP_STEPS = 3
"""Steps before a recording, in which torch and its libraries set up what must not be recorded; torch's own advice."""


class MemberwiseStep:
    """Forward and backward as a stack, then one update after another; a member's bits depend on no neighbour.

    Args:
        model: how the stack computes.
        params: its parameters, ``[K, ...]`` on the CPU.
    """

    def __init__(self, model: StackedLlama, params: Params) -> None:
        self._model = model
        self.optimizer = MemberwiseAdamW(params)
        self._results: list[tuple[float, float]] = []

    def launch(self, windows: Tensor, weights: Tensor, due: Sequence[MemberStep]) -> None:
        """Do the steps that are due.

        Args:
            windows: int64 ``[K, B, T + 1]``, on the host.
            weights: float32 ``[K, B]``, on the host.
            due: members to update; those left out stay as they are.
        """
        params = self.optimizer.params
        losses, grads = self._model.gradients(params, windows, weights)
        values = losses.tolist()
        self._results = [(values[each.slot], self.optimizer.step(grads, each)) for each in due]

    def results(self) -> list[tuple[float, float]]:
        """Loss in nats per token and gradient norm of each member whose step was due."""
        return self._results


class StackwiseStep:
    """The same step with no word to the host between its start and its end: on a GPU it is a CUDA graph.

    The graph is recorded at the first call, after warm-up steps for which no member is due. From then on a step is one
    copy of its inputs, one replay and one copy of its results.

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
        self._inputs: list[Tensor] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._results = torch.empty(0)
        self._due: Sequence[MemberStep] = ()

    def launch(self, windows: Tensor, weights: Tensor, due: Sequence[MemberStep]) -> None:
        """Start the steps that are due; see ``MemberwiseStep.launch``. A GPU is still at it when this returns."""
        self._due = due
        given = (windows, weights, self.optimizer.table(due))
        if not self._inputs:
            self._inputs = [torch.zeros_like(each, device=self._device) for each in given]
            if self._device.type == "cuda":
                self._record()
        for place, values in zip(self._inputs, given):
            place.copy_(values)
        if self._graph is not None:
            self._graph.replay()
        else:
            self._results = self._compute()

    def results(self) -> list[tuple[float, float]]:
        """Wait for the steps; see ``MemberwiseStep.results``."""
        results = self._results.tolist()
        return [tuple(results[each.slot]) for each in self._due]

    def _compute(self) -> Tensor:
        """Losses and gradient norms ``[K, 2]`` of a step on the inputs."""
        windows, weights, table = self._inputs
        params = self.optimizer.params
        losses, grads = self._model.gradients(params, windows, weights)
        return torch.stack([losses, self._update(grads, table)], dim=1)

    def _record(self) -> None:
        aside = torch.cuda.Stream(self._device)
        aside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP_STEPS):
                self._compute()
        torch.cuda.current_stream(self._device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._results = self._compute()
        self._graph = graph
