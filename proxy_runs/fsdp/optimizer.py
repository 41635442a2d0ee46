"""AdamW over sharded parameters, by the proxies' rule, and Muon for the hidden matrices where a recipe asks for it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.recipe import MuonSettings, OptimizerSettings
from proxy_runs.fsdp.muon import ShardedMuon
from proxy_runs.fsdp.shards import fill
from proxy_runs.weights.moments import MOMENTS, MOMENTUM
from proxy_runs.weights.stored import StoredTensor


class ShardedOptimizer:
    """Clips by the norm of the whole gradient, then updates every parameter by the rule of its group.

    AdamW has decoupled weight decay on matrices. With ``settings.muon`` the hidden matrices take Muon instead.

    Args:
        parameters: by name, sharded.
        settings: betas, eps, weight decay, clip norm, and what differs for the hidden matrices.
        hidden: names of the hidden matrices, those of the decoder blocks.

    Raises:
        InvalidValueError: the recipe leaves the optimiser to the checkpoint, which is for exports.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings, hidden: Collection[str]
    ) -> None:
        if settings.name == "as_checkpoint":
            raise InvalidValueError(
                "optimizer.name",
                settings.name,
                "is for exports, since a folder of weights does not say which optimiser its trainer had",
                "Set it to adamw or muon to launch the recipe here.",
            )
        self.parameters = dict(parameters)
        self.settings = settings
        muon = {name: parameter for name, parameter in parameters.items() if name in hidden and settings.muon}
        self._muon = ShardedMuon(muon, settings.muon or MuonSettings(), weight_decay=settings.weight_decay)
        adamw = {name: parameter for name, parameter in parameters.items() if name not in muon}
        self._adamw_parameters = adamw
        matrices = [p for name, p in adamw.items() if p.ndim >= 2 and name not in hidden]
        hidden_decay = settings.weight_decay * (settings.hidden_weight_decay_factor or 1.0)
        groups = [
            {
                "params": [p for name, p in adamw.items() if name in hidden],
                "weight_decay": hidden_decay,
                "lr_factor": settings.hidden_lr_factor or 1.0,
            },
            {"params": matrices, "weight_decay": settings.weight_decay, "lr_factor": 1.0},
            {
                "params": [p for p in adamw.values() if p.ndim < 2],
                "weight_decay": 0.0,
                "lr_factor": 1.0,
            },
        ]
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=0.0,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            fused=True,
        )
        self.set_state({}, 0)

    def set_state(self, moments: Mapping[str, Tensor | StoredTensor], step: int) -> None:
        """Take over moments (``exp_avg.<parameter>``...), whole or sharded, or start from zero when there are none.

        Raises:
            DataError: moments that belong to another model or another optimiser.
        """
        for name, parameter in self._adamw_parameters.items():
            state: dict[str, Tensor] = {"step": torch.tensor(float(step), device=parameter.device)}
            for kind in MOMENTS:
                state[kind] = _moment(moments, kind, name, parameter)
            self._adamw.state[parameter] = state
        for name, parameter in self._muon.parameters.items():
            self._muon.momentum[name] = _moment(moments, MOMENTUM, name, parameter)

    def set_step(self, step: int) -> None:
        """Steps that the moments have seen."""
        for parameter in self._adamw_parameters.values():
            self._adamw.state[parameter]["step"].fill_(float(step))

    def moments(self) -> dict[str, Tensor]:
        """The moments by ``<kind>.<parameter>``, sharded, not copied; the kinds are ``MOMENTS`` and ``MOMENTUM``."""
        adamw = {
            f"{kind}.{name}": self._adamw.state[parameter][kind]
            for kind in MOMENTS
            for name, parameter in self._adamw_parameters.items()
        }
        return adamw | {f"{MOMENTUM}.{name}": tensor for name, tensor in self._muon.momentum.items()}

    def step(self, lr: float, *, take: bool = True) -> float:
        """Clip and update; returns the norm of the gradient before the clip.

        When the norm is not finite, or with ``take=False``, nothing is updated and the gradient is dropped.
        """
        grads = [p.grad for p in self.parameters.values() if p.grad is not None]
        total = nn.utils.get_total_norm(grads)
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
        if take and math.isfinite(norm):
            if norm > self.settings.clip_norm:
                torch._foreach_div_(grads, norm / self.settings.clip_norm)
            for group in self._adamw.param_groups:
                group["lr"] = lr * group["lr_factor"]
            self._adamw.step()
            self._muon.step(lr)
        for parameter in self.parameters.values():
            parameter.grad = None
        return norm


def _moment(
    moments: Mapping[str, Tensor | StoredTensor], kind: str, name: str, parameter: nn.Parameter
) -> Tensor:
    if not moments:
        return torch.zeros_like(parameter)
    known = moments.get(f"{kind}.{name}")
    if known is None or known.shape != parameter.shape:
        raise DataError(
            f"The optimiser's state has no {kind} for {name} {tuple(parameter.shape)}. Give the state of this model "
            "and this optimiser, or start afresh (optimizer_state: fresh)."
        )
    if isinstance(known, DTensor):
        return known
    moment = torch.zeros_like(parameter)
    fill(moment, known)
    return moment
