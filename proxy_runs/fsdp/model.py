"""A Hugging Face causal LM as a sharded module that maps windows of tokens to a loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from proxy_runs.fsdp.parallel import World
from proxy_runs.fsdp.settings import TrainSettings

# models whose logits are head(hidden) and nothing else: their head may run in chunks of tokens
CHUNKED_HEADS = ("llama", "mistral", "qwen2", "qwen3", "olmo2", "olmo3", "smollm3", "mixtral", "phi3")
CHUNK_LOGITS = {"cpu": 2**22, "cuda": 2**28}


class CausalLoss(nn.Module):
    """``windows [B, T + 1]`` and ``weights [B, T]`` to the weighted sum of token losses.

    The vocabulary's logits exist for a chunk of tokens at a time, forward and backward.

    Args:
        lm: any Hugging Face causal LM.
        z_loss: weight of the squared log-normaliser (PaLM, section 5).
    """

    def __init__(self, lm: PreTrainedModel, *, z_loss: float = 0.0) -> None:
        super().__init__()
        self.lm = lm
        self.z_loss = z_loss
        self._chunked = lm.config.model_type in CHUNKED_HEADS

    def forward(self, windows: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum of the token losses: a scalar, float32, nats."""
        return (self.token_losses(windows, z_loss=self.z_loss) * weights.flatten()).sum()

    def token_losses(self, windows: Tensor, *, z_loss: float = 0.0) -> Tensor:
        """Loss of each predicted token, ``[B * T]``, float32."""
        inputs, targets = windows[:, :-1], windows[:, 1:].flatten()
        if not self._chunked:
            logits = self.lm(input_ids=inputs, use_cache=False).logits.flatten(0, 1)
            return _cross_entropy(logits, targets, z_loss)
        hidden = self.lm.base_model(input_ids=inputs, use_cache=False).last_hidden_state.flatten(0, 1)
        head = self.lm.get_output_embeddings()
        rows = max(1, CHUNK_LOGITS[hidden.device.type] // head.weight.shape[0])
        losses = []
        for part, target in zip(hidden.split(rows), targets.split(rows)):
            if torch.is_grad_enabled():
                losses.append(checkpoint(_head_loss, part, head, target, z_loss, use_reentrant=False))
            else:
                losses.append(_head_loss(part, head, target, z_loss))
        return torch.cat(losses)


def _head_loss(hidden: Tensor, head: nn.Module, targets: Tensor, z_loss: float) -> Tensor:
    return _cross_entropy(head(hidden), targets, z_loss)


def _cross_entropy(logits: Tensor, targets: Tensor, z_loss: float) -> Tensor:
    logits = logits.float()
    losses = F.cross_entropy(logits, targets, reduction="none")
    return losses + z_loss * logits.logsumexp(-1).square() if z_loss else losses


def shard_model(lm: PreTrainedModel, settings: TrainSettings, world: World) -> CausalLoss:
    """Shard ``lm`` over the mesh, one unit per decoder layer, and put it on the rank's device."""
    if settings.activation_checkpointing:
        # transformers 5 renames it on the way
        enable = getattr(lm, "activation_checkpointing_enable", None) or lm.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    module = CausalLoss(lm, z_loss=settings.z_loss).to(world.device)
    module.train()
    dtype = getattr(torch, settings.dtype)
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype is torch.float32 else dtype, reduce_dtype=torch.float32
    )
    for layer in _decoder_layers(lm):
        if settings.compile:
            layer.compile()
        _shard(layer, world, policy)
    _shard(module, world, policy)
    return module


def exchange_gradients(module: CausalLoss, exchange: bool) -> None:
    """Whether the next backward pass adds gradients up over the ranks, or only on each rank."""
    cast(FSDPModule, module).set_requires_gradient_sync(exchange)


def drop_gathered_weights(module: CausalLoss) -> None:
    """Forget the gathered weights that a forward pass without a backward leaves with the root module.

    They would outlive a change of the sharded weights.
    """
    cast(FSDPModule, module).reshard()


def _shard(module: nn.Module, world: World, policy: MixedPrecisionPolicy) -> None:
    fully_shard(module, mesh=world.mesh, mp_policy=policy)


def _decoder_layers(lm: PreTrainedModel) -> Iterator[nn.Module]:
    names = set(lm._no_split_modules or ())
    return (module for module in lm.modules() if type(module).__name__ in names)


def named_parameters(module: CausalLoss) -> dict[str, nn.Parameter]:
    """Parameters under the names of the Hugging Face checkpoint; a tied one once."""
    return {name.removeprefix("lm."): parameter for name, parameter in module.named_parameters()}
