"""What a decay is for: eight groups of objectives.

The groups are those of the mid-training literature (A Survey on LLM Mid-Training, arXiv 2510.23081).
``objective_weights`` turns weights by group into weights by evaluation domain.
"""

from __future__ import annotations

from collections.abc import Mapping
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
