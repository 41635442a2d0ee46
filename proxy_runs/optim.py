"""AdamW over a stack: every member has its own LR, step counter, clip norm and fate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from decaylaws.configs import OptimizerConfig
from proxy_runs.model import Params, is_decayed


class StackedAdamW:
    """AdamW with decoupled weight decay (Loshchilov and Hutter, 2019) on the members of a stack.

    Each member is updated alone, on views of its slices, by torch's fused kernel: the same arithmetic as
    ``torch.optim.AdamW(fused=True)`` and the same result whatever the number of members.

    Args:
        params: the stack's parameters, ``[K, ...]`` float32, updated in place.
    """

    def __init__(self, params: Params) -> None:
        self.params = params
        self.exp_avg = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
        self.exp_avg_sq = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
        self._names = {
            decayed: [name for name in params if is_decayed(name) is decayed] for decayed in (True, False)
        }

    def step(self, member: int, *, grads: Params, lr: float, step: int, config: OptimizerConfig) -> float:
        """Clip one member's gradient and update the member.

        Args:
            member: its index in the stack.
            grads: gradients of the whole stack; the member's slices are scaled in place.
            lr: learning rate of this step.
            step: number of this step, from 1: what the bias correction counts.
            config: the member's own settings.

        Returns:
            The gradient norm before the clip. When it is not finite the member is left as it was.
        """
        slices = {name: grad[member] for name, grad in grads.items()}
        norms = torch._foreach_norm(list(slices.values()))
        norm = torch.linalg.vector_norm(torch.stack(norms))
        if not bool(norm.isfinite()):
            return float(norm)
        # the fused kernel divides the gradient by grad_scale: clip without a pass of its own
        scale = (norm / config.clip_norm).clamp_min(1.0)
        for decayed, names in self._names.items():
            torch._fused_adamw_(
                _views(self.params, names, member),
                [slices[name] for name in names],
                _views(self.exp_avg, names, member),
                _views(self.exp_avg_sq, names, member),
                [],
                [torch.tensor(float(step), device=norm.device) for _ in names],
                lr=lr,
                beta1=config.beta1,
                beta2=config.beta2,
                weight_decay=config.weight_decay if decayed else 0.0,
                eps=config.eps,
                amsgrad=False,
                maximize=False,
                grad_scale=scale,
            )
        return float(norm)


def _views(tensors: Params, names: Sequence[str], member: int) -> list[Tensor]:
    return [tensors[name][member].detach() for name in names]
