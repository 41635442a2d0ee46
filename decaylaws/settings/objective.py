"""``objective`` in ``study.yaml``: what the search minimises, in which unit, and what it must not give up."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from decaylaws.runs.columns import Unit
from decaylaws.settings.capabilities import Capability
from decaylaws.settings.numbers import Share, Weight, check_mixture
from decaylaws.settings.section import Section


class ObjectiveSettings(Section):
    """What the search minimises and what it must not give up, by domain: sources, evaluation domains, question sets."""

    weights: dict[str, Weight] = Field(default_factory=dict, description="weight by domain")
    capabilities: dict[Capability, Weight] = Field(
        default_factory=dict, description="weight by group; shared equally by the domains of that capability"
    )
    unit: Unit | None = Field(
        None,
        description="what the weights weigh; None is bits_per_byte in a study with evaluation.domains or "
        "evaluation.questions, whose tokens are of other kinds, and nats_per_token in any other",
    )
    insist: list[str] = Field(
        default_factory=list,
        description="domains that count in objective.capabilities even where seeds explain their differences between "
        "mixtures",
    )
    guard_domains: list[str] = Field(
        default_factory=list,
        description="domains whose loss may rise by at most guard_nats (or guard_bits_per_byte) against the control",
    )
    guard_nats: Weight = Field(0.02, description="largest rise of a guarded loss, in nats per token")
    guard_bits_per_byte: Weight | None = Field(
        None, description="largest rise of a guarded domain in bits per byte, in the place of guard_nats"
    )
    kl_strength: Weight = Field(
        0.0, description="nats of loss that one nat of KL divergence from the prior mixture has to earn"
    )
    prior: dict[str, Share] | None = Field(
        None, description="prior mixture; None takes every source in proportion to its tokens"
    )

    @model_validator(mode="after")
    def _prior_sums(self) -> Self:
        if self.prior is not None:
            check_mixture("objective.prior", self.prior)
        return self
