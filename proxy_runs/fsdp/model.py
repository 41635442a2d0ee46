"""A Hugging Face causal LM as a sharded module that maps windows of tokens to a loss."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from transformers import PreTrainedModel

from proxy_runs.answers.formula import token_scores
from proxy_runs.engine import kernels
from proxy_runs.engine.questions import AnswerBatch
from proxy_runs.fsdp.head import head_gradients, head_loss
from proxy_runs.fsdp.parallel import World
from proxy_runs.fsdp.settings import TrainSettings

# models whose logits are head(hidden) and nothing else: their head may run in chunks of tokens
CHUNKED_HEADS = (
    "llama", "mistral", "qwen2", "qwen3", "olmo2", "olmo3", "smollm3", "phi3",
    "mixtral", "qwen2_moe", "qwen3_moe", "olmoe",
)  # fmt: skip


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

    The vocabulary's logits exist for a chunk of tokens at a time, and their gradient is made with them.

    Args:
        lm: any Hugging Face causal LM.
        z_loss: weight of the squared log-normaliser (PaLM, section 5).
        balance_loss: weight of the loss that keeps experts evenly used (Switch Transformer, section 2.2), as
            ``transformers`` computes it for the model; 0 leaves it out.
        compiled: whether ``torch.compile`` fuses the loss of the head.
    """

    def __init__(
        self, lm: PreTrainedModel, *, z_loss: float = 0.0, balance_loss: float = 0.0, compiled: bool = False
    ) -> None:
        super().__init__()
        self.lm = lm
        self.z_loss = z_loss
        self.balance_loss = balance_loss
        head = lm.get_output_embeddings()
        self._chunked = lm.config.model_type in CHUNKED_HEADS and getattr(head, "bias", None) is None
        self._head_gradients = head_gradients(compiled=compiled)

    def forward(self, windows: Tensor, weights: Tensor) -> Losses:
        """Losses of the windows; evaluation mode knows no z-loss and no balance loss."""
        targets, token_weights = windows[:, 1:].flatten(), weights.flatten()
        z_loss = self.z_loss if self.training else 0.0
        if self._chunked and torch.is_grad_enabled():
            hidden, balance = self._hidden(windows)
            head = self.lm.get_output_embeddings().weight
            objective, tokens = head_loss(
                hidden, head, targets, token_weights, z_loss=z_loss, gradients=self._head_gradients
            )
        else:
            losses, squares, balance = self._token_losses(windows, squared=z_loss > 0)
            tokens = (losses * token_weights).sum()
            objective = tokens + z_loss * (squares * token_weights).sum()
        balance = balance * weights.sum()
        objective = objective + self.balance_loss * balance
        return Losses(objective, tokens.detach(), balance.detach())

    @torch.no_grad()
    def token_nats(self, windows: Tensor) -> Tensor:
        """Loss of every predicted token of ``windows [B, T + 1]``, float32 ``[B * T]``; for evaluation."""
        return self._token_losses(windows, squared=False)[0]

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

    def _hidden(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Last hidden states ``[B * T, D]``, and the balance loss."""
        output = self.lm.base_model(input_ids=windows[:, :-1], use_cache=False, **self._router_options())
        hidden = output.last_hidden_state.flatten(0, 1)
        balance = _balance(self.lm, output.router_logits) if self._router_options() else None
        return hidden, windows.new_zeros((), dtype=torch.float32) if balance is None else balance

    def _token_losses(self, windows: Tensor, *, squared: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and squared log-normaliser of each predicted token, ``[B * T]``, and the balance loss; float32."""
        targets = windows[:, 1:].flatten()
        if not self._chunked:
            options = self._router_options()
            output = self.lm(input_ids=windows[:, :-1], use_cache=False, **options)
            losses, squares = _cross_entropy(output.logits.flatten(0, 1), targets, squared)
            return losses, squares, output.aux_loss.float() if options else losses.new_zeros(())
        hidden, balance = self._hidden(windows)
        head = self.lm.get_output_embeddings()
        parts = [
            _cross_entropy(head(hidden[rows]), targets[rows], squared)
            for rows in kernels.row_chunks(hidden[None], head.weight[None])
        ]
        losses, squares = (torch.cat(each) for each in zip(*parts))
        return losses, squares, balance

    def _router_options(self) -> dict[str, Any]:
        return {"output_router_logits": True} if self.training and self.balance_loss > 0 else {}


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
    """Shard ``lm`` over the mesh, one unit per decoder layer.

    A model on the ``meta`` device is sharded before it has any weights; any other goes to the rank's device.

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
    module = CausalLoss(
        lm, z_loss=settings.z_loss, balance_loss=balance_loss, compiled=settings.compile is True
    )
    module.train()
    dtype = getattr(torch, settings.dtype)
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype is torch.float32 else dtype, reduce_dtype=torch.float32
    )
    # alone and in float32 there is nothing to share out or to cast, and FSDP would copy every weight twice a pass
    sharded = world.size > 1 or policy.param_dtype is not None
    for layer in _decoder_layers(lm):
        if settings.compile is True:
            layer.compile()
        if sharded:
            fully_shard(layer, mesh=world.mesh, mp_policy=policy)
    if not sharded:
        return module if lm.device.type == "meta" else module.to(world.device)
    # the whole module's only float inputs are the weights of the tokens, which bfloat16 would round by up to 0.2 %
    fully_shard(module, mesh=world.mesh, mp_policy=replace(policy, cast_forward_inputs=False))
    for name in ("token_nats", "answer_nats"):
        register_fsdp_forward_method(module, name)
    return module


def exchange_gradients(module: CausalLoss, exchange: bool) -> None:
    """Whether the next backward pass adds gradients up over the ranks, or only on each rank."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(exchange)


def drop_gathered_weights(module: CausalLoss) -> None:
    """Forget the gathered weights that a forward pass without a backward leaves with the root module.

    They would outlive a change of the sharded weights.
    """
    if isinstance(module, FSDPModule):
        module.reshard()


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
