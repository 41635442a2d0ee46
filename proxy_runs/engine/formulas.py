"""The operations of ``proxy_runs.engine.kernels`` as plain formulas: what ``torch.compile`` fuses best.

Eager code pays for every pass over memory and takes the kernels; a compiler removes the passes by itself and
wants to see all of them. Same arguments, same results.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See ``kernels.rms_norm``."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale).to(x.dtype) * weight.unsqueeze(1)


def attention(qkv: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, heads: int) -> Tensor:
    """See ``kernels.attention``."""
    sequences, length, columns, width = qkv.shape
    kv_heads = (columns - heads) // 2
    by_head = qkv.transpose(1, 2)
    turned = turn(by_head[:, : heads + kv_heads], cos, sin)
    query = turned[:, :heads].reshape(sequences * kv_heads, -1, width)
    key = turned[:, heads:].reshape(sequences * kv_heads, length, width)
    value = by_head[:, heads + kv_heads :].reshape(sequences * kv_heads, length, width)
    scores = torch.bmm(query, key.transpose(1, 2)).to(mask.dtype) * width**-0.5 + mask
    mixed = torch.bmm(scores.softmax(-1).to(value.dtype), value)
    return mixed.view(sequences, heads, length, width).transpose(1, 2).reshape(sequences, length, -1)


def fused_attention(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """The same as ``attention`` by torch's own kernel: right for long sequences, and on a GPU."""
    kv_heads = (qkv.shape[2] - heads) // 2
    # heads stay beside each other in memory: the kernel's result has the layout of its queries, and is used as it is
    turned = turn(qkv[:, :, : heads + kv_heads], cos[:, None], sin[:, None])
    query, key = (each.transpose(1, 2) for each in turned.split([heads, kv_heads], dim=2))
    value = qkv[:, :, heads + kv_heads :].transpose(1, 2)
    is_grouped = kv_heads != heads
    if is_grouped and needs_whole_heads(query):
        key, value = (each.repeat_interleave(heads // kv_heads, dim=1) for each in (key, value))
        is_grouped = False
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=is_grouped)
    return mixed.transpose(1, 2).flatten(2)


def needs_whole_heads(query: Tensor) -> bool:
    """Whether grouped queries would fall back to scores in memory: the kernels of a GPU take them in 16 bits only."""
    return query.is_cuda and query.dtype == torch.float32


def swiglu(gate_up: Tensor) -> Tensor:
    """See ``kernels.swiglu``."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See ``kernels.rotate``."""
    first, second = x.chunk(2, dim=-1)
    cos = cos[..., : cos.shape[-1] // 2]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
