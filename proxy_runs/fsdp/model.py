"""A Hugging Face causal LM as a sharded module that maps windows of tokens to a loss."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from proxy_runs.answers.formula import token_scores
from proxy_runs.engine.questions import AnswerBatch
from proxy_runs.fsdp.parallel import World
from proxy_runs.fsdp.settings import TrainSettings

# models whose logits are head(hidden) and nothing else: their head may run in chunks of tokens
CHUNKED_HEADS = (
    "llama", "mistral", "qwen2", "qwen3", "olmo2", "olmo3", "smollm3", "phi3",
    "mixtral", "qwen2_moe", "qwen3_moe", "olmoe",
)  # fmt: skip
CHUNK_LOGITS = {"cpu": 2**22, "cuda": 2**28}


class Losses(NamedTuple):
    """Losses of a forward pass, scalars in float32.

    Attributes:
        objective: what is minimised: ``tokens`` and, in training, z-loss and balance loss with their weights.
        tokens: weighted sum of the token losses, nats.
        balance: the experts' balance loss times the sum of the token weights; zero without one.
    """

    objective: Tensor
    tokens: Tensor
    balance: Tensor


class CausalLoss(nn.Module):
    """``windows [B, T + 1]`` and ``weights [B, T]`` to the weighted sum of token losses.

    The vocabulary's logits exist for a chunk of tokens at a time, forward and backward.

    Args:
        lm: any Hugging Face causal LM.
        z_loss: weight of the squared log-normaliser (PaLM, section 5).
        balance_loss: weight of the loss that keeps experts evenly used (Switch Transformer, section 2.2), as
            ``transformers`` computes it for the model; 0 leaves it out.
    """

    def __init__(self, lm: PreTrainedModel, *, z_loss: float = 0.0, balance_loss: float = 0.0) -> None:
        super().__init__()
        self.lm = lm
        self.z_loss = z_loss
        self.balance_loss = balance_loss
        self._chunked = lm.config.model_type in CHUNKED_HEADS

    def forward(self, windows: Tensor, weights: Tensor) -> Losses:
        """Losses of the windows; evaluation mode knows no z-loss and no balance loss."""
        losses, squares, balance = self._token_losses(windows)
        tokens = (losses * weights.flatten()).sum()
        balance = balance * weights.sum()
        objective = tokens + self.z_loss * (squares * weights.flatten()).sum() + self.balance_loss * balance
        return Losses(objective, tokens.detach(), balance.detach())

    @torch.no_grad()
    def token_nats(self, windows: Tensor) -> Tensor:
        """Loss of every predicted token of ``windows [B, T + 1]``, float32 ``[B * T]``; for evaluation."""
        return self._token_losses(windows)[0]

    @torch.no_grad()
    def answer_nats(self, batch: AnswerBatch) -> Tensor:
        """Loss of every scored token of answers, float64 ``[p]``; for evaluation."""
        if self._chunked:
            hidden = self.lm.base_model(input_ids=batch.inputs, use_cache=False).last_hidden_state
            logits = self.lm.get_output_embeddings()(hidden.flatten(0, 1)[batch.positions])
        else:
            whole = self.lm(input_ids=batch.inputs, use_cache=False).logits
            logits = whole.flatten(0, 1)[batch.positions]
        return token_scores(logits, batch.targets, batch.seams)[0]

    def _token_losses(self, windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and squared log-normaliser of each predicted token, ``[B * T]``, and the balance loss; float32."""
        inputs, targets = windows[:, :-1], windows[:, 1:].flatten()
        with_balance = self.training and self.balance_loss > 0
        options: dict[str, Any] = {"output_router_logits": True} if with_balance else {}
        squared = self.training and self.z_loss > 0
        none = torch.zeros((), device=windows.device)
        if not self._chunked:
            output = self.lm(input_ids=inputs, use_cache=False, **options)
            losses, squares = _cross_entropy(output.logits.flatten(0, 1), targets, squared)
            return losses, squares, output.aux_loss.float() if with_balance else none
        output = self.lm.base_model(input_ids=inputs, use_cache=False, **options)
        hidden, head = output.last_hidden_state.flatten(0, 1), self.lm.get_output_embeddings()
        rows = max(1, CHUNK_LOGITS[hidden.device.type] // head.weight.shape[0])
        parts = []
        for part, target in zip(hidden.split(rows), targets.split(rows)):
            if torch.is_grad_enabled():
                parts.append(checkpoint(_head_loss, part, head, target, squared, use_reentrant=False))
            else:
                parts.append(_head_loss(part, head, target, squared))
        losses, squares = (torch.cat(each) for each in zip(*parts))
        return losses, squares, _balance(self.lm, output.router_logits) if with_balance else none


def _head_loss(hidden: Tensor, head: nn.Module, targets: Tensor, squared: bool) -> tuple[Tensor, Tensor]:
    return _cross_entropy(head(hidden), targets, squared)


def _cross_entropy(logits: Tensor, targets: Tensor, squared: bool) -> tuple[Tensor, Tensor]:
    logits = logits.float()
    losses = F.cross_entropy(logits, targets, reduction="none")
    return losses, logits.logsumexp(-1).square() if squared else torch.zeros_like(losses)


def _balance(lm: PreTrainedModel, router_logits: Any) -> Tensor:
    """What the model's own forward pass computes when it is asked for the router's logits."""
    formula = sys.modules[type(lm).__module__].load_balancing_loss_func
    return formula(router_logits, lm.num_experts, lm.num_experts_per_tok).float()


def shard_model(
    lm: PreTrainedModel, settings: TrainSettings, world: World, *, balance_loss: float = 0.0
) -> CausalLoss:
    """Shard ``lm`` over the mesh, one unit per decoder layer, and put it on the rank's device.

    Args:
        lm: the model.
        settings: number format, compiler, recomputation and the like.
        world: the ranks and their mesh.
        balance_loss: weight of the experts' balance loss.
    """
    if settings.activation_checkpointing:
        # transformers 5 renames it on the way
        enable = getattr(lm, "activation_checkpointing_enable", None) or lm.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    module = CausalLoss(lm, z_loss=settings.z_loss, balance_loss=balance_loss).to(world.device)
    module.train()
    dtype = getattr(torch, settings.dtype)
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype is torch.float32 else dtype, reduce_dtype=torch.float32
    )
    for layer in _decoder_layers(lm):
        if settings.compile:
            layer.compile()
        _shard(layer, world, policy)
    # the whole module's only float inputs are the weights of the tokens, which bfloat16 would round by up to 0.2 %
    _shard(module, world, replace(policy, cast_forward_inputs=False))
    for name in ("token_nats", "answer_nats"):
        register_fsdp_forward_method(module, name)
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


def _decoder_layers(lm: PreTrainedModel) -> list[nn.Module]:
    """The modules that ``transformers`` never splits; the outer one where one lies in another (Mamba)."""
    names = set(lm._no_split_modules or ())
    layers: dict[str, nn.Module] = {}
    for path, module in lm.named_modules():  # outer modules come first
        parts = path.split(".")
        inside = any(".".join(parts[:end]) in layers for end in range(1, len(parts)))
        if type(module).__name__ in names and not inside:
            layers[path] = module
    return list(layers.values())


def named_parameters(module: CausalLoss) -> dict[str, nn.Parameter]:
    """Parameters under the names of the Hugging Face checkpoint; a tied one once."""
    return {name.removeprefix("lm."): parameter for name, parameter in module.named_parameters()}


def hidden_matrices(lm: PreTrainedModel) -> set[str]:
    """Names of the matrices of the decoder blocks, experts included: all but embeddings, output head and kernels."""
    outside = {id(module.weight) for module in lm.modules() if isinstance(module, nn.Embedding)}
    head = lm.get_output_embeddings()
    if head is not None:
        outside.add(id(head.weight))
    return {
        name
        for name, p in lm.named_parameters()
        if (p.ndim == 2 or (p.ndim == 3 and ".experts." in name)) and id(p) not in outside
    }


def persistent_buffers(module: CausalLoss) -> dict[str, Tensor]:
    """Buffers that belong to the checkpoint, such as the bias by which DeepSeek-V3's router balances its experts."""
    names = module.lm.state_dict().keys()
    return {name: buffer for name, buffer in module.lm.named_buffers() if name in names}
