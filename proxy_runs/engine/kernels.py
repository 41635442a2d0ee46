"""The few fused operations of the stacked model, each with a hand-written backward.

Everything carries a leading member axis ``K`` and works row by row inside a member, so that a member's
numbers do not depend on how many neighbours it has. On a CPU these cost about half of the plain formulas:
fewer passes over memory, nothing saved that can be recomputed from what is saved anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

# 2**19 float32 logits are 2 MiB: a chunk of the head then stays in a core's cache between its passes
HEAD_CHUNK_LOGITS = {"cpu": 2**19, "cuda": 2**27}
# compiled code holds the logits of a chunk in the format of the matmuls only, and not once more in float32
COMPILED_HEAD_CHUNK_LOGITS = {"cpu": 2**24, "cuda": 2**29}
# as many attention scores as stay in the cache between the passes over them: 1 MiB in float32
CHUNK_SCORES = 2**18
TINY = torch.finfo(torch.float32).tiny


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        sum_dtype = torch.promote_types(x.dtype, torch.float32)
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=sum_dtype)
        scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        # a scale rounded to bfloat16 would move a whole row by up to .4 %, which the compiled formula does not
        normed = torch.mul(x, scale, out=torch.empty_like(x))
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
    """``x / sqrt(mean(x**2) + eps) * weight`` over the last axis; ``x [K, N, D]``, ``weight [K, D]``.

    Args:
        x: activations [K, N, D].
        weight: scale of each feature [K, D].
        eps: added to the mean square.
    """
    return _RmsNorm.apply(x, weight, eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, sign: float = 1.0) -> Tensor:
    """Turn the pairs ``(x[..., i], x[..., i + half])`` by their angles, into ``out``.

    This is the rotary embedding in Hugging Face's half-rotation layout; its gradient is the turn by the
    negative angles (``sign=-1``).

    Args:
        x: ``[..., T, head_dim]``.
        cos: ``[T, head_dim]``, both halves equal.
        sin: ``[T, head_dim / 2]``.
        out: like ``x``, of any strides.
        sign: of the angles.
    """
    half = x.shape[-1] // 2
    torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half:], sin, value=-sign)
    out[..., half:].addcmul_(x[..., :half], sin, value=sign)
    return out


class _Attention(torch.autograd.Function):
    """Rotary embedding and causal attention with the scores written out.

    Query heads that share a key head stand below each other as rows of one matmul, so that grouped queries
    need no copies of keys, and the sum over the group in their gradient is the matmul's own.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, heads: int) -> Tensor:
        sequences, length, columns, width = qkv.shape
        kv_heads = (columns - heads) // 2
        by_head = qkv.transpose(1, 2)
        turned = rotate(
            by_head[:, : heads + kv_heads],
            cos,
            sin,
            qkv.new_empty(sequences, heads + kv_heads, length, width),
        )
        query = turned[:, :heads].reshape(sequences * kv_heads, -1, width)
        key = turned[:, heads:].reshape(sequences * kv_heads, length, width)
        value = by_head[:, heads + kv_heads :].reshape(sequences * kv_heads, length, width)
        probs, mixed = query.new_empty(*query.shape[:2], length), torch.empty_like(query)
        for part in _score_chunks(probs):
            scores = probs[part]
            torch.baddbmm(mask, query[part], key[part].transpose(1, 2), alpha=width**-0.5, out=scores)
            torch.softmax(scores, -1, out=scores)
            torch.bmm(scores, value[part], out=mixed[part])
        ctx.save_for_backward(query, key, value, probs, cos, sin)
        ctx.heads = heads
        mixed = mixed.view(sequences, heads, length, width)
        return mixed.transpose(1, 2).reshape(sequences, length, heads * width)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        query, key, value, probs, cos, sin = ctx.saved_tensors
        heads, (sequences, length, _), width = ctx.heads, grad.shape, query.shape[-1]
        kv_heads = query.shape[0] // sequences
        grad = grad.view(sequences, length, heads, width).transpose(1, 2).reshape(query.shape)
        grad_query, grad_key, grad_value = (torch.empty_like(each) for each in (query, key, value))
        for part in _score_chunks(probs):
            torch.bmm(probs[part].transpose(1, 2), grad[part], out=grad_value[part])
            scores = torch.bmm(grad[part], value[part].transpose(1, 2))
            torch._softmax_backward_data(scores, probs[part], -1, probs.dtype, grad_input=scores)
            scores.mul_(width**-0.5)
            torch.bmm(scores, key[part], out=grad_query[part])
            torch.bmm(scores.transpose(1, 2), query[part], out=grad_key[part])
        grad_qkv = query.new_empty(sequences, length, heads + 2 * kv_heads, width)
        parts = grad_qkv.transpose(1, 2)
        by_head = (sequences, -1, length, width)
        rotate(grad_query.view(by_head), cos, sin, parts[:, :heads], sign=-1.0)
        rotate(grad_key.view(by_head), cos, sin, parts[:, heads : heads + kv_heads], sign=-1.0)
        parts[:, heads + kv_heads :].copy_(grad_value.view(by_head))
        return grad_qkv, None, None, None, None


def _score_chunks(probs: Tensor) -> Iterator[slice]:
    """Rows of ``probs [sequences * kv_heads, N, T]`` that are worked on together; each gives what it gives alone."""
    size = max(1, CHUNK_SCORES // probs[0].numel())
    for first in range(0, len(probs), size):
        yield slice(first, first + size)


def attention(qkv: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Causal attention with rotary positions, scores in memory: right for short sequences.

    Args:
        qkv: ``[sequences, T, heads + 2 * kv_heads, head_dim]``: query, key and value heads side by side.
        cos: ``[T, head_dim]``.
        sin: ``[T, head_dim / 2]``.
        mask: ``[heads / kv_heads * T, T]``: 0 where a query sees a key, ``-inf`` elsewhere.
        heads: query heads.

    Returns:
        ``[sequences, T, heads * head_dim]``.
    """
    return _Attention.apply(qkv, cos, sin, mask, heads)


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        torch.mul(grad, F.silu(gate), out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return grad_gate_up


def swiglu(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` of ``[..., 2 * d_ff]`` with the gate in the first half."""
    return _SwiGlu.apply(gate_up)


def row_chunks(hidden: Tensor, head: Tensor) -> Iterator[slice]:
    """Rows of ``hidden [K, N, D]`` that pass through ``head [K, V, D]`` together; on a CPU independent of ``K``."""
    limits = COMPILED_HEAD_CHUNK_LOGITS if torch.compiler.is_compiling() else HEAD_CHUNK_LOGITS
    rows = max(1, limits[hidden.device.type] // head.shape[1])
    if hidden.device.type == "cuda":
        # all members' logits exist at once; on a CPU, where rows decide the last bits, a run depends on no neighbour
        rows = max(1, rows // hidden.shape[0])
    for first in range(0, hidden.shape[1], rows):
        yield slice(first, min(first + rows, hidden.shape[1]))


def head_gradients(
    hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, z_loss: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weighted cross-entropy and z-loss of each member and their gradients, in one pass.

    The gradients are made chunk by chunk while the chunk's probabilities are in cache: the ``[N, V]`` logits never
    exist as a whole and are never computed twice. ``torch.compile`` takes the same function.

    Args:
        hidden: last hidden states, ``[K, N, D]``.
        head: output embedding, ``[K, V, D]``.
        targets: next tokens, int64 ``[K, N]``.
        weights: float32 weight of each token, ``[K, N]``; ``1 / N`` gives the mean.
        z_loss: weight of the squared log-normaliser of each token (PaLM, section 5).

    Returns:
        Losses ``[K]`` in nats, z-losses ``[K]``, and the gradients of their sum by ``hidden`` and by ``head``.
    """
    losses = hidden.new_zeros(hidden.shape[0], dtype=torch.float32)
    squares = torch.zeros_like(losses)
    parts, grad_head = [], None
    for rows in row_chunks(hidden, head):
        logits = torch.bmm(hidden[:, rows], head.transpose(1, 2)).float()
        probs = logits.softmax(-1)
        index, weight = targets[:, rows, None], weights[:, rows, None]
        if z_loss:
            log_norm = logits.logsumexp(-1, keepdim=True)
            squares += (log_norm.square() * weight).sum((1, 2))
            z_grad = probs * (2.0 * z_loss * log_norm)
        picked, grad_logits = _less_one_at(probs, index)
        # a token worse than 87 nats (the smallest normal float32) reads as 87; its gradient stays exact
        losses -= (picked.clamp_min(TINY).log_() * weight).sum((1, 2))
        grad_logits = (grad_logits + z_grad if z_loss else grad_logits).to(hidden.dtype)
        parts.append(torch.bmm(grad_logits, head))
        weighted = (hidden[:, rows] * weight.to(hidden.dtype)).transpose(1, 2)
        # [K, D, V]: oneMKL multiplies into the wide layout about a quarter faster
        if grad_head is None:
            grad_head = torch.bmm(weighted, grad_logits)
        else:
            grad_head.baddbmm_(weighted, grad_logits)
    assert grad_head is not None
    grad_hidden = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return (
        losses,
        z_loss * squares,
        grad_hidden.mul_(weights.unsqueeze(2)),
        grad_head.transpose(1, 2).contiguous(),
    )


def _less_one_at(probs: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of each target ``[K, N, 1]``, and ``probs`` less one there: the gradient of the logits.

    The same numbers in two ways: eager code touches the targets only, in place; a compiler fuses a comparison with what
    stands around it, while a scatter would cost it a pass over memory before and after.
    """
    if torch.compiler.is_compiling():
        is_target = torch.arange(probs.shape[2], device=probs.device) == index
        picked = torch.where(is_target, probs, 0.0).sum(-1, keepdim=True)
        return picked, torch.where(is_target, probs - 1.0, probs)
    picked = probs.gather(2, index)
    return picked, probs.scatter_(2, index, picked - 1.0)


@torch.no_grad()
def token_losses(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every token without gradient, float32 ``[K, N]``, nats.

    Args:
        hidden: last hidden states [K, N, D].
        head: output matrices [K, V, D].
        targets: ids of the next tokens [K, N].
    """
    losses = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
    for rows in row_chunks(hidden, head):
        log_probs = torch.bmm(hidden[:, rows], head.transpose(1, 2)).float().log_softmax(-1)
        losses[:, rows] = -log_probs.gather(2, targets[:, rows, None]).squeeze(2)
    return losses
