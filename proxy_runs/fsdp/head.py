"""The output head of a sharded model: the engine's loss, whose gradient is made with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from proxy_runs.engine import kernels
from proxy_runs.engine.model import compiled_by_shape

HeadGradients = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


def head_gradients(*, compiled: bool) -> HeadGradients:
    """The engine's head, as it is or under ``torch.compile``."""
    return compiled_by_shape(kernels.head_gradients) if compiled else kernels.head_gradients


def head_loss(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    z_loss: float,
    gradients: HeadGradients,
) -> tuple[Tensor, Tensor]:
    """Objective and token loss of the head, scalars in float32; the gradient is that of the objective.

    Args:
        hidden: last hidden states ``[N, D]``.
        head: output matrix ``[V, D]``.
        targets: next tokens ``[N]``.
        weights: float32 weight of each token ``[N]``.
        z_loss: weight of the squared log-normaliser.
        gradients: of :func:`head_gradients`.
    """
    objective, tokens = _HeadLoss.apply(hidden, head, targets, weights, z_loss, gradients)
    return objective, tokens


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        weights: Tensor,
        z_loss: float,
        gradients: HeadGradients,
    ) -> tuple[Tensor, Tensor]:
        members = (each[None] for each in (hidden, head, targets, weights))  # one member of a stack
        tokens, squares, grad_hidden, grad_head = gradients(*members, z_loss)
        ctx.save_for_backward(grad_hidden[0], grad_head[0])
        objective, tokens = (tokens + squares)[0], tokens[0]
        ctx.mark_non_differentiable(tokens)
        return objective, tokens

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_hidden.mul_(grad), grad_head.mul_(grad), None, None, None, None
