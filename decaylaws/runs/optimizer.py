"""The optimiser of a run: AdamW, or Muon for the hidden matrices with AdamW for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from decaylaws.errors import InvalidValueError

MUON_SCALES = ("match_rms_adamw", "original")


@dataclass(frozen=True, kw_only=True)
class MuonConfig:
    """Muon for the hidden matrices, as ``torch.optim.Muon`` computes it (Jordan et al. 2024).

    Attributes:
        momentum: decay rate of the momentum.
        nesterov: look ahead by one step of the momentum.
        ns_steps: Newton-Schulz iterations.
        adjust_lr: how the update of a matrix is scaled by its shape. ``match_rms_adamw`` (Moonshot, arXiv:2502.16982)
            makes it as large as AdamW's, so that both groups share one LR; ``original`` is Jordan's.
        lr_factor: LR of the hidden matrices as a factor of the schedule's.
    """

    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    adjust_lr: str = "match_rms_adamw"
    lr_factor: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.momentum < 1.0:
            raise InvalidValueError("optimizer.muon.momentum", self.momentum, "must be in [0, 1)")
        if not 1 <= self.ns_steps < 100:
            raise InvalidValueError("optimizer.muon.ns_steps", self.ns_steps, "must be from 1 to 99")
        if self.adjust_lr not in MUON_SCALES:
            raise InvalidValueError(
                "optimizer.muon.adjust_lr", self.adjust_lr, f"must be one of {', '.join(MUON_SCALES)}"
            )
        if not self.lr_factor > 0.0:
            raise InvalidValueError("optimizer.muon.lr_factor", self.lr_factor, "must be positive")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with decoupled weight decay on matrices (not norms), clipped by the global norm of one run.

    Attributes:
        beta1: decay rate of the first moment.
        beta2: decay rate of the second moment.
        eps: added to the root of the second moment.
        weight_decay: of matrices, decoupled: an update shrinks them by the LR times this.
        clip_norm: largest norm of the whole gradient.
        hidden_lr_factor: LR of the hidden matrices (those of the decoder blocks) as a factor of the schedule's; muP
            sets it to the base width over the width.
        hidden_weight_decay_factor: weight decay of the hidden matrices as a factor of ``weight_decay``.
        muon: takes the hidden matrices over from AdamW; ``None`` leaves everything to AdamW.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    hidden_lr_factor: float = 1.0
    hidden_weight_decay_factor: float = 1.0
    muon: MuonConfig | None = None

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InvalidValueError(f"optimizer.{name}", getattr(self, name), "must be in [0, 1)")
        for name in ("eps", "clip_norm", "hidden_lr_factor", "hidden_weight_decay_factor"):
            if not getattr(self, name) > 0.0:
                raise InvalidValueError(f"optimizer.{name}", getattr(self, name), "must be positive")
        if not self.weight_decay >= 0.0:
            raise InvalidValueError("optimizer.weight_decay", self.weight_decay, "must not be negative")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values. What is as in earlier versions is not written, so that their runs keep their identity."""
        values = asdict(self)
        for name in ("hidden_lr_factor", "hidden_weight_decay_factor"):
            if values[name] == 1.0:
                del values[name]
        if self.muon is None:
            del values["muon"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from ``to_dict``."""
        muon = values.get("muon")
        return cls(**{**values, "muon": None if muon is None else MuonConfig(**muon)})
