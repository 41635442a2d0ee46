"""AdamW over a stack: every member has its own LR, step counter, clip norm and fate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decaylaws.runs.optimizer import OptimizerConfig
from proxy_runs.engine.model import is_decayed, is_hidden
from proxy_runs.weights.params import Params

TABLE_COLUMNS = 10
"""Settings of a member's step that lie on the device; see ``StackwiseAdamW.table``."""


@dataclass(frozen=True)
class MemberStep:
    """The step that is due for one member.

    Attributes:
        slot: its index in the stack.
        lr: learning rate of the step.
        step: number of the step, from 1: what the bias correction counts.
        config: the member's own settings.
    """

    slot: int
    lr: float
    step: int
    config: OptimizerConfig


class Moments:
    """Parameters of a stack and what AdamW remembers of their gradients.

    Args:
        params: the stack's parameters, ``[K, ...]`` float32, updated in place.
    """

    def __init__(self, params: Params) -> None:
        self.params = params
        self.exp_avg = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
        self.exp_avg_sq = {name: torch.zeros_like(tensor) for name, tensor in params.items()}


class MemberwiseAdamW(Moments):
    """AdamW with decoupled weight decay (Loshchilov and Hutter, 2019), one member after another.

    Each member is updated alone, on views of its slices, by torch's fused kernel: the same arithmetic as
    ``torch.optim.AdamW(fused=True)`` and the same result whatever the number of members. Right on a CPU.
    """

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        hidden = [name for name in params if is_hidden(name)]
        self._groups = {
            "hidden": hidden,
            "matrices": [name for name in params if is_decayed(name) and name not in hidden],
            "norms": [name for name in params if not is_decayed(name)],
        }

    def step(self, grads: Params, due: MemberStep) -> float:
        """Clip one member's gradient and update the member.

        Args:
            grads: gradients of the whole stack; the member's slices are scaled in place.
            due: the member and its step.

        Returns:
            The gradient norm before the clip. When it is not finite the member is left as it was.
        """
        config, slices = due.config, {name: grad[due.slot] for name, grad in grads.items()}
        norms = torch._foreach_norm(list(slices.values()))
        norm = torch.linalg.vector_norm(torch.stack(norms))
        if not bool(norm.isfinite()):
            return float(norm)
        # the fused kernel divides the gradient by grad_scale: clip without a pass of its own
        scale = (norm / config.clip_norm).clamp_min(1.0)
        decays = {
            "hidden": config.weight_decay * config.hidden_weight_decay_factor,
            "matrices": config.weight_decay,
            "norms": 0.0,
        }
        for group, names in self._groups.items():
            torch._fused_adamw_(
                _views(self.params, names, due.slot),
                [slices[name] for name in names],
                _views(self.exp_avg, names, due.slot),
                _views(self.exp_avg_sq, names, due.slot),
                [],
                [torch.tensor(float(due.step)) for _ in names],
                lr=due.lr * config.hidden_lr_factor if group == "hidden" else due.lr,
                beta1=config.beta1,
                beta2=config.beta2,
                weight_decay=decays[group],
                eps=config.eps,
                amsgrad=False,
                maximize=False,
                grad_scale=scale,
            )
        return float(norm)


def _views(tensors: Params, names: Sequence[str], member: int) -> list[Tensor]:
    return [tensors[name][member].detach() for name in names]


class StackwiseAdamW(Moments):
    """The same update for all members at once, in kernels that never wait for the host. Right on a GPU.

    What differs between members lies in a table on the device, so that the update can be recorded and replayed.

    Attributes:
        failed: bool ``[K]``, on the device: members whose gradient was not finite. They stay as they were, so that the
            host may learn of it after it has launched the next step; whoever loads a slot sets its own to false.
    """

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        self.failed = torch.zeros(len(params["embed"]), dtype=torch.bool, device=params["embed"].device)

    def table(self, due: Sequence[MemberStep]) -> NDArray[np.float32]:
        """Settings of the steps that are due, float32 ``[K, TABLE_COLUMNS]``; zeros for all other members."""
        rows = np.zeros((len(self.params["embed"]), TABLE_COLUMNS), dtype=np.float32)
        for each in due:
            config = each.config
            first, second = 1.0 - config.beta1**each.step, 1.0 - config.beta2**each.step
            rows[each.slot] = (
                1.0, config.clip_norm, config.beta1, config.beta2, config.eps,
                each.lr / first, math.sqrt(second), each.lr * config.weight_decay, config.hidden_lr_factor,
                config.hidden_lr_factor * config.hidden_weight_decay_factor,
            )  # fmt: skip
        return rows

    @torch.no_grad()
    def step(self, grads: Params, table: Tensor) -> Tensor:
        """Clip and update every member whose step is due and whose gradients have all been finite.

        Args:
            grads: gradients of the stack.
            table: what ``table`` made, as a tensor on the device of the parameters.

        Returns:
            ``[K]``: gradient norms before the clip.
        """
        is_due, clip_norm, beta1, beta2, eps, step_size, root, decay, slower, weaker = table.unbind(1)
        by_tensor = [torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in grads.values()]
        norms = torch.linalg.vector_norm(torch.stack(by_tensor), dim=0)
        scale = (norms / clip_norm).clamp_min(1.0)
        is_open = (is_due > 0) & ~self.failed
        is_updated = is_open & norms.isfinite()
        self.failed.logical_or_(is_open & ~is_updated)
        for name, param in self.params.items():
            exp_avg, exp_avg_sq = self.exp_avg[name], self.exp_avg_sq[name]
            wide = partial(_as_wide_as, param)
            grad = grads[name] / wide(scale)
            first = torch.lerp(grad, exp_avg, wide(beta1))
            second = torch.lerp(grad.square(), exp_avg_sq, wide(beta2))
            shrink, stride = (decay * weaker, step_size * slower) if is_hidden(name) else (decay, step_size)
            kept = param * (1.0 - wide(shrink)) if is_decayed(name) else param
            changed = kept - wide(stride) * first / (second.sqrt() / wide(root) + wide(eps))
            for old, new in ((param, changed), (exp_avg, first), (exp_avg_sq, second)):
                old.copy_(torch.where(wide(is_updated), new, old))
        return norms


def _as_wide_as(like: Tensor, values: Tensor) -> Tensor:
    """``values [K]`` in a shape that broadcasts over ``like [K, ...]``."""
    return values.view(-1, *[1] * (like.dim() - 1))
