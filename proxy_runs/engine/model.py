"""A stack of Llama-style decoders: K models of one shape that run as one.

Parameters are plain tensors with a leading member axis, ``[K, in, out]`` for matrices, so that every
projection is one batched matmul over all members. Nothing mixes members: the loss of member ``k`` depends on
slice ``k`` of each tensor only, and so does its gradient.

Names and layouts of the parameters (``kv`` is ``num_kv_heads * head_dim``)::

    embed                [K, V, D]          also the output head when embeddings are tied
    layers.0.attn_norm   [K, D]
    layers.0.qkv         [K, D, D + 2 kv]   query, key and value side by side: one matmul
    layers.0.attn_out    [K, D, D]
    layers.0.mlp_norm    [K, D]
    layers.0.gate_up     [K, D, 2 d_ff]     gate and up side by side
    layers.0.down        [K, d_ff, D]
    final_norm           [K, D]
    head                 [K, V, D]          only when not tied

``proxy_runs.weights.hf`` maps them one to one to ``transformers.LlamaForCausalLM``.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from decaylaws.runs.config import ModelShape
from proxy_runs.engine import formulas, kernels
from proxy_runs.weights.params import Params, param_shapes

# from here on [T, T] scores leave the cache and torch's blockwise attention wins
LONG_SEQUENCE = 512
MAX_COMPILED_SHAPES = 64


def is_decayed(name: str) -> bool:
    """Whether weight decay applies to a parameter: to matrices, not to the gains of norms."""
    return not name.endswith("norm")


def is_hidden(name: str) -> bool:
    """Whether a parameter is a matrix of a decoder block, neither embedding nor output head nor a norm."""
    return name.startswith("layers.") and is_decayed(name)


def init_params(shape: ModelShape, seed: int) -> Params:
    """Initial weights of one member, a pure function of ``(shape, seed)``.

    Every matrix is normal with deviation ``1 / sqrt(fan_in)``; for embeddings and head, which share the width
    ``d_model``, that makes the first logits of order one. The two matrices that write into the residual stream
    are smaller by ``sqrt(2 * num_layers)`` (GPT-2's rule), gains are one. The usual 0.02 for embeddings suits
    wide models: at width 64 it costs 0.9 nats after 200 steps of real text. Each tensor draws from its own
    Philox stream keyed by the seed and its name, so neither the other tensors nor torch's version matter.
    """
    return {name: _init_tensor(name, size, shape, seed) for name, size in param_shapes(shape).items()}


def _init_tensor(name: str, size: tuple[int, ...], shape: ModelShape, seed: int) -> Tensor:
    if len(size) == 1:
        return torch.ones(size)
    fan_in = size[1] if name in ("embed", "head") else size[0]
    std = 1.0 / math.sqrt(fan_in)
    if name.endswith(("attn_out", "down")):
        std /= math.sqrt(2 * shape.num_layers)
    stream = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(name.encode())]))
    return torch.from_numpy(stream.standard_normal(size, dtype=np.float32) * np.float32(std))


def stack_params(members: list[Params]) -> Params:
    """Stack members of one shape along a new leading axis."""
    return {name: torch.stack([member[name] for member in members]) for name in members[0]}


class StackedLlama:
    """Forward pass of a stack; holds the shape and the rotary tables, the parameters are passed in.

    Args:
        shape: the shape of every member.
        device: where the rotary tables live.
        dtype: what the matmuls compute in; parameters stay float32 and are cast at use.
        compiled: compile the decoder blocks. Costs half a minute for each new size of the stack, and a
            member's numbers then depend on that size (by about 1e-5 nats after fifty steps).
    """

    def __init__(
        self,
        shape: ModelShape,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        compiled: bool = False,
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self._ops = formulas if compiled else kernels
        self._blocks = compiled_by_shape(self._run_blocks) if compiled else self._run_blocks
        head_compiled = compiled and torch.device(device).type == "cuda"
        self._head_gradients = (
            compiled_by_shape(kernels.head_gradients) if head_compiled else kernels.head_gradients
        )
        # float64 until the last moment: the angle of the last position keeps all digits of float32
        exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim
        angles = torch.outer(torch.arange(shape.seq_len, dtype=torch.float64), shape.rope_theta**-exponents)
        self._cos = angles.cos().repeat(1, 2).to(device, dtype)
        self._sin = angles.sin().to(device, dtype)
        visible = min(shape.seq_len, LONG_SEQUENCE)
        self._mask = torch.full((visible, visible), -math.inf).triu(1).to(device, dtype)

    def hidden(self, params: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
        """Last hidden states ``[K, B * T, D]`` of ``tokens`` (int64 ``[K, B, T]``, T at most ``seq_len``)."""
        embedded = self._embed(params["embed"], tokens)
        return self._blocks(params, embedded, tokens.shape[2])

    def _run_blocks(self, params: Mapping[str, Tensor], x: Tensor, length: int) -> Tensor:
        """Decoder blocks and final norm: from embeddings ``[K, B * T, D]`` to last hidden states."""
        for layer in range(self.shape.num_layers):
            weight = {name: self._cast(params[f"layers.{layer}.{name}"]) for name in _LAYER_PARAMS}
            mixed = self._attend(torch.bmm(self._norm(x, weight["attn_norm"]), weight["qkv"]), length)
            x = torch.baddbmm(x, mixed, weight["attn_out"])
            gate_up = torch.bmm(self._norm(x, weight["mlp_norm"]), weight["gate_up"])
            x = torch.baddbmm(x, self._ops.swiglu(gate_up), weight["down"])
        return self._norm(x, self._cast(params["final_norm"]))

    def gradients(
        self, params: Mapping[str, Tensor], windows: Tensor, weights: Tensor
    ) -> tuple[Tensor, Params]:
        """Training loss of each member and its gradient with respect to the member's own parameters.

        Args:
            params: the stack; its tensors require gradients.
            windows: int64 ``[K, B, T + 1]``: inputs and, shifted by one, targets.
            weights: float32 ``[K, B]`` weight of each sequence, summing to one; zero leaves a sequence out.

        Returns:
            ``[K]``, nats per token, and gradients by name.
        """
        targets = windows[:, :, 1:].flatten(1)
        length = windows.shape[2] - 1
        token_weights = (weights / length).repeat_interleave(length, dim=1)
        hidden, head = self.hidden(params, windows[:, :, :-1]), self._head(params)
        losses, _, *given = self._head_gradients(hidden.detach(), head.detach(), targets, token_weights)
        return losses, dict(zip(params, torch.autograd.grad((hidden, head), tuple(params.values()), given)))

    def token_losses(self, params: Mapping[str, Tensor], windows: Tensor) -> Tensor:
        """Loss of every predicted token of ``windows`` (``[K, B, T + 1]``) as ``[K, B, T]``, no gradient."""
        with torch.no_grad():
            hidden = self.hidden(params, windows[:, :, :-1])
            losses = kernels.token_losses(hidden, self._head(params), windows[:, :, 1:].flatten(1))
        return losses.view(*windows.shape[:2], -1)

    def logits(self, params: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
        """Next-token logits ``[K, B, T, V]`` of ``tokens`` (``[K, B, T]``)."""
        logits = torch.bmm(self.hidden(params, tokens), self._head(params).transpose(1, 2))
        return logits.view(*tokens.shape, -1)

    def logits_at(self, params: Mapping[str, Tensor], tokens: Tensor, positions: Tensor) -> Iterator[Tensor]:
        """Logits of some positions of the same sequences, member by member: a member depends on no neighbour.

        Args:
            params: the stack.
            tokens: int64 ``[B, T]``, the same for every member.
            positions: indices into the ``B * T`` positions laid end to end ``[P]``.

        Yields:
            ``[P, V]`` of each member.
        """
        with torch.no_grad():
            hidden = self.hidden(params, tokens.expand(len(params["embed"]), -1, -1))[:, positions]
            for own, head in zip(hidden, self._head(params)):
                yield own @ head.T

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype)

    def _head(self, params: Mapping[str, Tensor]) -> Tensor:
        return self._cast(params["embed" if self.shape.tie_embeddings else "head"])

    def _embed(self, embed: Tensor, tokens: Tensor) -> Tensor:
        """Look every member's tokens up in its own table: one look-up in the tables laid end to end."""
        members, vocab = embed.shape[:2]
        offsets = torch.arange(members, device=tokens.device).mul_(vocab).view(-1, 1)
        return self._cast(F.embedding(tokens.flatten(1) + offsets, embed.flatten(0, 1)))

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._ops.rms_norm(x, weight, self.shape.norm_eps)

    def _attend(self, qkv: Tensor, length: int) -> Tensor:
        """Causal attention within the sequences of ``qkv [K, B * T, D + 2 kv]``; ``[K, B * T, D]``."""
        heads, kv_heads = self.shape.num_heads, self.shape.num_kv_heads
        split = qkv.view(-1, length, heads + 2 * kv_heads, self.shape.head_dim)
        cos, sin = self._cos[:length], self._sin[:length]
        if length >= LONG_SEQUENCE or qkv.is_cuda:
            mixed = formulas.fused_attention(split, cos, sin, heads)
        else:
            mask = self._mask[:length, :length].repeat(heads // kv_heads, 1)
            mixed = self._ops.attention(split, cos, sin, mask, heads)
        return mixed.view(*qkv.shape[:2], -1)


def compiled_by_shape(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` compiled for every shape that it meets; models of one shape share the code.

    By default the compiler goes back to eager code at the ninth shape with no more than a warning, and its losses would
    round differently. The limit is higher here, and ``fullgraph`` makes reaching it an error.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MAX_COMPILED_SHAPES)
    return torch.compile(function, dynamic=False, fullgraph=True)


_LAYER_PARAMS = ("attn_norm", "qkv", "attn_out", "mlp_norm", "gate_up", "down")
