"""AdamW over sharded parameters, by the proxies' rule."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from decaylaws.errors import DataError
from decaylaws.recipe import OptimizerSettings
from proxy_runs.weights.held import MOMENTS


class ShardedAdamW:
    """AdamW with decoupled weight decay on matrices, clipped by the norm of the whole gradient.

    Args:
        parameters: by name, sharded.
        settings: betas, eps, weight decay, clip norm.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings) -> None:
        self.parameters = dict(parameters)
        self.settings = settings
        groups = [
            {
                "params": [p for p in parameters.values() if p.ndim >= 2],
                "weight_decay": settings.weight_decay,
            },
            {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=0.0,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            fused=True,
        )
        self.set_state({}, 0)

    def set_state(self, moments: Mapping[str, Tensor], step: int) -> None:
        """Take over full moments (``exp_avg.<parameter>``...), or start from zero when there are none.

        Raises:
            DataError: moments that belong to another model.
        """
        for name, parameter in self.parameters.items():
            state: dict[str, Tensor] = {"step": torch.tensor(float(step), device=parameter.device)}
            for kind in MOMENTS:
                full = moments.get(f"{kind}.{name}") if moments else None
                if moments and (full is None or full.shape != parameter.shape):
                    raise DataError(
                        f"The optimiser's state has no {kind} for {name} {tuple(parameter.shape)}."
                    )
                state[kind] = torch.zeros_like(parameter) if full is None else _shard_like(full, parameter)
            self._adamw.state[parameter] = state

    def set_step(self, step: int) -> None:
        """Steps that the moments have seen."""
        for parameter in self.parameters.values():
            self._adamw.state[parameter]["step"].fill_(float(step))

    def moments(self) -> dict[str, Tensor]:
        """The moments by ``exp_avg.<parameter>`` and ``exp_avg_sq.<parameter>``, sharded, not copied."""
        return {
            f"{kind}.{name}": self._adamw.state[parameter][kind]
            for kind in MOMENTS
            for name, parameter in self.parameters.items()
        }

    def step(self, lr: float, *, take: bool = True) -> float:
        """Clip and update; returns the norm of the gradient before the clip.

        When the norm is not finite, or with ``take=False``, nothing is updated and the gradient is dropped.
        """
        grads = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = float(_full(nn.utils.get_total_norm(grads)))
        if take and math.isfinite(norm):
            if norm > self.settings.clip_norm:
                torch._foreach_div_(grads, norm / self.settings.clip_norm)
            for group in self._adamw.param_groups:
                group["lr"] = lr
            self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        return norm


def _shard_like(full: Tensor, parameter: nn.Parameter) -> Tensor:
    full = full.to(parameter.device, parameter.dtype)
    if not isinstance(parameter, DTensor):
        return full
    return distribute_tensor(full, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
