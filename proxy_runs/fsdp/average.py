"""Mean of the weights over the last steps of a run (Polyak averaging, as Llama 3 did in its anneal)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

PREFIX = "average."


class TailAverage:
    """Running mean of sharded parameters.

    Args:
        parameters: by name, sharded.
        first_step: the first step (counted from 1) whose weights enter the mean.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, first_step: int) -> None:
        self._parameters = parameters
        self._first_step = first_step
        self.mean = {name: p.detach().clone() for name, p in parameters.items()}

    def update(self, step: int) -> None:
        """Take the weights after ``step`` into the mean, if they belong there."""
        count = step - self._first_step + 1
        if count < 1:
            return
        weights = [p.detach() for p in self._parameters.values()]
        torch._foreach_lerp_(list(self.mean.values()), weights, 1.0 / count)

    def tensors(self) -> dict[str, Tensor]:
        """The mean under the names that checkpoints give it."""
        return {PREFIX + name: tensor for name, tensor in self.mean.items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model compute with the mean inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.mean[name])
            self.mean[name].copy_(kept)
