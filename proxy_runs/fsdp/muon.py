"""Muon over sharded matrices: torch's own update of whole matrices, momentum and weights where their shards lie."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from decaylaws.recipe import MuonSettings


class ShardedMuon:
    """The update of ``torch.optim.Muon``, one matrix at a time.

    Muon orthogonalises a whole matrix, which no rank has. The momentum is a sum element by element, so that its shards
    stay where they are. Of each matrix the blend of gradient and momentum is gathered on every rank; torch's Muon turns
    it into the update, and each rank takes its part. A tensor of several matrices, such as the experts of a layer, is
    updated matrix by matrix.

    Args:
        parameters: hidden matrices by name, ``[..., rows, columns]``, sharded.
        settings: of the recipe.
        weight_decay: decoupled; shrinks the weights by the LR times this.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], settings: MuonSettings, *, weight_decay: float
    ) -> None:
        self.parameters = dict(parameters)
        self.settings = settings
        self._weight_decay = weight_decay
        self.momentum = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update every matrix that has a gradient, at ``lr`` times ``settings.lr_factor``."""
        momentum, lr = self.settings.momentum, lr * self.settings.lr_factor
        for name, parameter in self.parameters.items():
            gradient, buffer = parameter.grad, self.momentum[name]
            if gradient is None:
                continue
            buffer.lerp_(gradient, 1.0 - momentum)
            blend = gradient.lerp(buffer, momentum) if self.settings.nesterov else buffer
            whole = blend.full_tensor() if isinstance(blend, DTensor) else blend
            update = self._update(whole, lr)
            if isinstance(parameter, DTensor):
                update = distribute_tensor(
                    update, parameter.device_mesh, parameter.placements, src_data_rank=None
                )
            parameter.mul_(1.0 - lr * self._weight_decay).add_(update)

    def _update(self, blend: Tensor, lr: float) -> Tensor:
        """What torch's Muon adds to a matrix, or to each of several, whose momentum is ``blend`` already."""
        matrices = blend.flatten(0, -3) if blend.ndim > 2 else blend.unsqueeze(0)
        moved = [nn.Parameter(torch.zeros_like(matrix)) for matrix in matrices]
        for place, matrix in zip(moved, matrices):
            place.grad = matrix
        muon = torch.optim.Muon(
            moved,
            lr=lr,
            weight_decay=0.0,
            momentum=0.0,
            nesterov=False,
            ns_steps=self.settings.ns_steps,
            adjust_lr_fn=self.settings.adjust_lr,
        )
        muon.step()
        return torch.stack([place.detach() for place in moved]).view(blend.shape)
