"""What a decay is for: eight groups of objectives, and which published model aimed at which.

The groups are those of the mid-training literature (A Survey on LLM Mid-Training, arXiv 2510.23081).
``objective_weights`` turns weights by group into weights by evaluation domain. ``PUBLISHED_AIMS`` rests on the
reports of the models themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from decaylaws.errors import InvalidValueError

Capability = Literal[
    "general",
    "mathematics",
    "reasoning",
    "instruction_following",
    "code",
    "agent",
    "long_context",
    "multilingual",
]

CAPABILITIES: tuple[Capability, ...] = get_args(Capability)
"""The ready groups, in the order in which tables list them."""


@dataclass(frozen=True)
class PublishedAim:
    """What the mid-training of one published model was for, as far as its source says.

    Attributes:
        model: the model.
        capabilities: groups that the source names as aims of its decay or mid-training stages.
        stage: what the source says was done.
        source: where it says so.
    """

    model: str
    capabilities: tuple[Capability, ...]
    stage: str
    source: str


PUBLISHED_AIMS: tuple[PublishedAim, ...] = (
    PublishedAim(
        "OLMo 2",
        ("general", "mathematics", "instruction_following"),
        "LR to zero over 50B to 300B tokens of filtered web, mathematics, FLAN, papers and Stack Exchange",
        "arXiv 2501.00656, section 4 and table 13",
    ),
    PublishedAim(
        "Olmo 3",
        ("mathematics", "code", "reasoning", "instruction_following", "general", "long_context"),
        "100B tokens of mathematics, code, question answering, instructions and thinking traces, then longer "
        "documents at 64k",
        "arXiv 2512.13961, sections 3.5 and 3.6",
    ),
    PublishedAim(
        "Llama 3",
        ("mathematics", "code", "long_context"),
        "annealing on small amounts of code and mathematics; the last 40M tokens at 128k",
        "arXiv 2407.21783, sections 3.1.3 and 3.4.3",
    ),
    PublishedAim(
        "MiniCPM",
        ("general", "mathematics", "instruction_following"),
        "decay on pre-training data with supervised fine-tuning data mixed in",
        "arXiv 2404.06395, section 5 and table 1",
    ),
    PublishedAim(
        "OctoThinker",
        ("mathematics", "reasoning"),
        "200B tokens at constant LR, then three decayed branches on long, short and mixed chains of thought",
        "arXiv 2506.20512",
    ),
    PublishedAim(
        "GLM-4.5",
        ("code", "reasoning", "long_context", "agent"),
        "whole repositories at 32k, synthetic reasoning, then long documents and agent trajectories at 128k",
        "arXiv 2508.06471, mid-training",
    ),
    PublishedAim(
        "SmolLM3",
        ("code", "mathematics", "reasoning", "long_context"),
        "decay from 10T to 11.1T tokens with code and mathematics raised, then longer context and reasoning traces",
        "Hugging Face, SmolLM3: smol, multilingual, long-context reasoner (2025)",
    ),
    PublishedAim(
        "Nemotron Nano 2",
        ("long_context",),
        "18.9B tokens at 512k after the two switches of data",
        "arXiv 2508.14444",
    ),
)
"""Facts with their source, for comparison; nothing here decides anything. No listed model names ``multilingual``."""


def published_aims(capability: Capability) -> list[PublishedAim]:
    """Published models that aimed at ``capability``."""
    _check_known("capability", capability)
    return [aim for aim in PUBLISHED_AIMS if capability in aim.capabilities]


def objective_weights(
    by_capability: Mapping[Capability, float],
    capabilities: Mapping[str, Capability | None],
    by_domain: Mapping[str, float],
) -> dict[str, float]:
    """Weight of every evaluation domain, from weights of groups and of single domains.

    A group's weight is shared equally by its domains, so that a group does not gain by being measured more
    often; domains with a weight of their own keep it.

    Args:
        by_capability: weight by group.
        capabilities: group of each domain, or ``None``.
        by_domain: weight by domain, for domains outside the weighted groups.

    Raises:
        InvalidValueError: an unknown group, a group without a domain, a domain that would count twice, or
            nothing that weighs.
    """
    weights = {name: float(weight) for name, weight in by_domain.items()}
    for group, weight in by_capability.items():
        _check_known("objective.capabilities", group)
        members = [name for name, capability in capabilities.items() if capability == group]
        if not members:
            raise InvalidValueError(
                f"objective.capabilities.{group}", weight, "is the weight of a group without a domain",
                f"Give a source 'capability: {group}', or leave the group out.",
            )  # fmt: skip
        twice = sorted(set(members) & set(by_domain))
        if twice:
            raise InvalidValueError(
                f"objective.weights.{twice[0]}", by_domain[twice[0]],
                f"would count twice: it belongs to the weighted group '{group}'", "Weigh the group or the domain.",
            )  # fmt: skip
        weights |= {name: weight / len(members) for name in members}
    if not sum(weights.values()) > 0:
        raise InvalidValueError("objective.weights", weights, "must hold a positive weight")
    return weights


def _check_known(field: str, capability: str) -> None:
    if capability not in CAPABILITIES:
        raise InvalidValueError(field, capability, f"must be one of {', '.join(CAPABILITIES)}")
