"""The few fused operations of the stacked model, each with a hand-written backward.

Everything carries a leading member axis ``K`` and works row by row inside a member, so that a member's
numbers do not depend on how many neighbours it has. On a CPU these cost about half of the plain formulas:
fewer passes over memory, nothing saved that can be recomputed from what is saved anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# 2**19 float32 logits are 2 MiB: a chunk of the head then stays in a core's cache between its passes
HEAD_CHUNK_LOGITS = {"cpu": 2**19, "cuda": 2**27}
TINY = torch.finfo(torch.float32).tiny


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        sum_dtype = torch.promote_types(x.dtype, torch.float32)
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=sum_dtype)
        scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)
        normed = x * scale
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight.unsqueeze(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, scale, weight = ctx.saved_tensors
        grad_weight = (grad * normed).sum(1)
        grad_normed = grad * weight.unsqueeze(1)
        # a plain row sum: a batched matrix-vector product takes another path when K is 1
        overlap = (grad_normed * normed).sum(-1, keepdim=True).div_(-normed.shape[-1])
        return grad_normed.addcmul_(normed, overlap).mul_(scale), grad_weight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x**2) + eps) * weight`` over the last axis; ``x [K, N, D]``, ``weight [K, D]``."""
    return _RmsNorm.apply(x, weight, eps)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, sin, -1.0), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    """Turn the pairs ``(x[i], x[i + half])`` by an angle; the backward is the turn by its negative."""
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin, value=-sign)
    out[..., half:].addcmul_(x[..., :half], sin, value=sign)
    return out


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in Hugging Face's half-rotation layout.

    Args:
        x: ``[B, T, heads, head_dim]``.
        cos: ``[T, 1, head_dim]``, both halves equal.
        sin: ``[T, 1, head_dim / 2]``.
    """
    return _Rotary.apply(x, cos, sin)


def _row_chunks(hidden: Tensor, head: Tensor) -> Iterator[slice]:
    """Rows of ``hidden [K, N, D]`` that pass through ``head [K, V, D]`` together; independent of ``K``."""
    rows = max(1, HEAD_CHUNK_LOGITS[hidden.device.type] // head.shape[1])
    for first in range(0, hidden.shape[1], rows):
        yield slice(first, min(first + rows, hidden.shape[1]))


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        # the gradient is made here, chunk by chunk, while the chunk's probabilities are in cache: the
        # [N, V] logits never exist as a whole and are never computed twice
        losses = hidden.new_zeros(hidden.shape[0], dtype=torch.float32)
        grad_hidden, grad_head = torch.empty_like(hidden), torch.zeros_like(head)
        for rows in _row_chunks(hidden, head):
            probs = torch.bmm(hidden[:, rows], head.transpose(1, 2)).float().softmax(-1)
            index, weight = targets[:, rows, None], weights[:, rows, None]
            picked = probs.gather(2, index)
            # a token worse than 87 nats (the smallest normal float32) reads as 87; its gradient stays exact
            losses -= (picked.clamp_min(TINY).log_() * weight).sum((1, 2))
            grad_logits = probs.scatter_(2, index, picked - 1.0).to(hidden.dtype)
            torch.bmm(grad_logits, head, out=grad_hidden[:, rows])
            grad_head.baddbmm_(grad_logits.transpose(1, 2), hidden[:, rows] * weight.to(hidden.dtype))
        grad_hidden.mul_(weights.unsqueeze(2))
        ctx.save_for_backward(grad_hidden, grad_head)
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_hidden * grad[:, None, None], grad_head * grad[:, None, None], None, None


def head_loss(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy of each member, with its gradient.

    Args:
        hidden: last hidden states, ``[K, N, D]``.
        head: output embedding, ``[K, V, D]``.
        targets: next tokens, int64 ``[K, N]``.
        weights: float32 weight of each token, ``[K, N]``; ``1 / N`` gives the mean.

    Returns:
        ``[K]``, nats.
    """
    return _HeadLoss.apply(hidden, head, targets, weights)


@torch.no_grad()
def token_losses(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every token without gradient, float32 ``[K, N]``, nats."""
    losses = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
    for rows in _row_chunks(hidden, head):
        log_probs = torch.bmm(hidden[:, rows], head.transpose(1, 2)).float().log_softmax(-1)
        losses[:, rows] = -log_probs.gather(2, targets[:, rows, None]).squeeze(2)
    return losses
