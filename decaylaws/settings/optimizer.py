"""``optimizer`` of ``study.yaml``: what trains trunks and microanneals, and what the recipe asks of the target."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from decaylaws.runs.optimizer import MuonConfig, OptimizerConfig
from decaylaws.settings.numbers import NUMBER, Positive, Weight
from decaylaws.settings.section import Section


class MuonSettings(Section):
    """Muon for the matrices of the decoder blocks, as torch.optim.Muon computes it."""

    momentum: Annotated[float, NUMBER, Field(ge=0, lt=1)] = Field(
        0.95, description="decay rate of the momentum"
    )
    nesterov: bool = Field(True, description="look ahead by one step of the momentum")
    ns_steps: Annotated[int, NUMBER, Field(ge=1, lt=100)] = Field(5, description="Newton-Schulz iterations")
    adjust_lr: Literal["match_rms_adamw", "original"] = Field(
        "match_rms_adamw",
        description="how the update of a matrix is scaled by its shape; match_rms_adamw makes it as large as AdamW's",
    )
    lr_factor: Positive = Field(
        1.0, description="learning rate of these matrices as a factor of the schedule's"
    )


class OptimizerSettings(Section):
    """The optimiser, shared by trunks, microanneals and the launched run."""

    name: Literal["adamw", "muon"] = Field(
        "adamw",
        description="adamw, or muon for the matrices of the decoder blocks with adamw for the rest; muon trains in the "
        "fsdp trainer, hence from checkpoints only",
    )
    beta1: Annotated[float, NUMBER, Field(ge=0, lt=1)] = Field(
        0.9, description="decay rate of the first moment"
    )
    beta2: Annotated[float, NUMBER, Field(ge=0, lt=1)] = Field(
        0.95, description="decay rate of the second moment"
    )
    eps: Positive = Field(1e-8, description="added to the root of the second moment")
    weight_decay: Weight = Field(0.1, description="decoupled weight decay of matrices")
    clip_norm: Positive = Field(1.0, description="largest norm of a gradient")
    muon: MuonSettings | None = Field(None, description="settings of muon; None takes the defaults")
    recipe: Literal["same", "as_checkpoint"] = Field(
        "same",
        description="what the recipe asks of the target: same names this optimiser; as_checkpoint keeps the one that "
        "the checkpoint was trained with and scales the learning rate of each of its groups",
    )

    @model_validator(mode="after")
    def _muon_where_it_is_used(self) -> Self:
        if self.muon is not None and self.name != "muon":
            raise ValueError(f"muon needs name: muon; the name is {self.name!r}")
        return self

    def config(self) -> OptimizerConfig:
        """The value type that runs carry."""
        values = self.model_dump(include={"beta1", "beta2", "eps", "weight_decay", "clip_norm"})
        if self.name == "muon":
            values["muon"] = MuonConfig(**(self.muon or MuonSettings()).model_dump())
        return OptimizerConfig(**values)

    def decisive(self) -> dict[str, Any]:
        """JSON values of what decides numbers; defaults that older studies did not have are left out."""
        values = self.model_dump(mode="json")
        for name, default in (("name", "adamw"), ("muon", None), ("recipe", "same")):
            if values[name] == default:
                del values[name]
        return values
