"""The parameters of one member by name: what the engine trains and checkpoints hold."""

from __future__ import annotations

from torch import Tensor

from decaylaws.runs.config import ModelShape

Params = dict[str, Tensor]


def param_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Name and shape of each parameter of one member, in the order in which everything stores them."""
    d, kv, v = shape.d_model, shape.num_kv_heads * shape.head_dim, shape.vocab_size
    shapes: dict[str, tuple[int, ...]] = {"embed": (v, d)}
    for layer in range(shape.num_layers):
        prefix = f"layers.{layer}."
        shapes[prefix + "attn_norm"] = (d,)
        shapes[prefix + "qkv"] = (d, d + 2 * kv)
        shapes[prefix + "attn_out"] = (d, d)
        shapes[prefix + "mlp_norm"] = (d,)
        shapes[prefix + "gate_up"] = (d, 2 * shape.d_ff)
        shapes[prefix + "down"] = (shape.d_ff, d)
    shapes["final_norm"] = (d,)
    if not shape.tie_embeddings:
        shapes["head"] = (v, d)
    return shapes
