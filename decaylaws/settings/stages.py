"""The stable stage that ``design.stable_tokens`` asks for: what a study with one must say, and what it cannot have."""

from __future__ import annotations

from typing import Any

from decaylaws.errors import InvalidValueError
from decaylaws.settings.numbers import check_mixture

CONTROL = "control"
"""Name of the stable stage that goes on with the trunk's own mixture."""
ONE_MIXTURE = "one_mixture"
"""Name of the best mixture that both stages could share: as a rival, and as the mixture of a stage."""
_TAKEN = {CONTROL: "the trunk's own mixture", ONE_MIXTURE: "the best single mixture of both stages"}


def check_stages(settings: Any) -> None:
    """Refuse a stable stage that cannot be run, or that another setting would ignore.

    Args:
        settings: the whole study.

    Raises:
        InvalidValueError: naming the key.
    """
    design, tokens = settings.design, settings.design.stable_tokens
    if not tokens:
        if design.stable_mixtures:
            constraint = "needs design.stable_tokens"
            raise InvalidValueError(
                "design.stable_mixtures",
                list(design.stable_mixtures),
                constraint,
                "Set it, or leave these out.",
            )
        return
    if not design.stable_mixtures:
        remedy = "Name at least one mixture beside the trunk's own, or leave design.stable_tokens out."
        raise InvalidValueError(
            "design.stable_mixtures", {}, "must be given with design.stable_tokens", remedy
        )
    for name, mixture in design.stable_mixtures.items():
        key = f"design.stable_mixtures.{name}"
        if name in _TAKEN:
            raise InvalidValueError(key, name, f"is the name of {_TAKEN[name]}", "Choose another name.")
        check_mixture(key, mixture)
        if unknown := sorted(set(mixture) - set(settings.sources)):
            known = f"The sources are {', '.join(settings.sources)}."
            raise InvalidValueError(key, unknown, "names an unknown source", known)
    if tokens % settings.batch_tokens:
        constraint = f"must be a multiple of batch_tokens={settings.batch_tokens}"
        raise InvalidValueError("design.stable_tokens", tokens, constraint)
    _check_combinations(settings)
    shortest = min(design.decay_tokens) + tokens
    if shortest > settings.target.max_decay_tokens:
        raise InvalidValueError(
            "target.max_decay_tokens",
            settings.target.max_decay_tokens,
            f"must reach design.stable_tokens and the shortest of design.decay_tokens together, {shortest}",
        )


def _check_combinations(settings: Any) -> None:
    remedy = "Leave design.stable_tokens and design.stable_mixtures out, or this."
    if settings.trainer != "built-in":
        constraint = "cannot train a stable stage before the decays (design.stable_tokens)"
        raise InvalidValueError("trainer", settings.trainer, constraint, remedy)
    if settings.checkpoints is not None:
        constraint = (
            "cannot have a stable stage before the decays (design.stable_tokens): it goes on with a trunk"
        )
        raise InvalidValueError("checkpoints", list(settings.checkpoints.models), constraint, remedy)
    if settings.sampler is not None:
        constraint = "proposes no stable stages (design.stable_tokens)"
        raise InvalidValueError("sampler.kind", settings.sampler.kind, constraint, remedy)
    if settings.objective.kl_strength:
        constraint = "must be 0 with a stable stage (design.stable_tokens): the prior is one mixture"
        raise InvalidValueError("objective.kl_strength", settings.objective.kl_strength, constraint)
    for key in ("read_outs", "keep_earlier"):
        if getattr(settings.design, key):
            constraint = "is not possible with a stable stage (design.stable_tokens)"
            raise InvalidValueError(f"design.{key}", getattr(settings.design, key), constraint, remedy)
