"""Stable stages of a design: mixtures that a trunk goes on with before its decays, and what they leave to these.

A decision about two stages has two mixtures. Only decays are many: each mixture of the stable stage costs a run of its
own, so that a design has the few that study.yaml names, beside the trunk's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from decaylaws.errors import InfeasibleError
from decaylaws.mixtures import Mixture, MixtureSpace
from decaylaws.settings.stages import CONTROL
from decaylaws.settings.study import StudySettings


def stable_mixtures(settings: StudySettings) -> dict[str, Mixture]:
    """The mixtures of the stable stage by name, the trunk's own first; none where the study has no such stage."""
    if not settings.design.stable_tokens:
        return {}
    named = {CONTROL: settings.control_mixture, **settings.design.stable_mixtures}
    return {
        name: Mixture({source: shares.get(source, 0.0) for source in settings.sources})
        for name, shares in named.items()
    }


def after_stage(space: MixtureSpace, tokens: int, mixture: Mixture) -> MixtureSpace:
    """The mixtures of a decay after a stable stage: caps on epochs count the tokens of both.

    Args:
        space: the mixtures of a decay alone.
        tokens: of the stable stage.
        mixture: its shares.

    Raises:
        InfeasibleError: the stage alone reads a source more often than its cap allows.
    """
    sources = []
    for source in space.sources:
        read = source.epochs(mixture.share(source.name), tokens)
        if source.max_epochs is None or read == 0:
            sources.append(source)
            continue
        left = source.max_epochs - read
        if left < 0:
            raise InfeasibleError(
                f"A stable stage of {tokens:,} tokens on {mixture} reads '{source.name}' {read:.3g} times, but "
                f"sources.{source.name}.max_epochs is {source.max_epochs:g}. Lower design.stable_tokens or raise the "
                "cap. If this is not the trunk's own mixture, a smaller share in design.stable_mixtures helps too."
            )
        # nothing left is a share of 0, which a cap on epochs cannot say
        sources.append(replace(source, max_epochs=left) if left > 0 else replace(source, upper=0.0))
    return replace(space, sources=tuple(sources))


def order_pairs(
    space: MixtureSpace, stable_tokens: int, decay_tokens: int, control: Mixture, others: Sequence[Mixture]
) -> list[tuple[Mixture, Mixture]]:
    """Stages and decays (their mixtures) that read the same tokens of every source, once earlier and once later.

    For each of ``others`` a pair: its stage before a decay on some mixture, and the control's stage before the decay
    that makes up for the difference. Where limits leave no such decay, there is no pair.

    Args:
        space: the mixtures of a decay alone.
        stable_tokens: of the stage.
        decay_tokens: of the decay.
        control: the trunk's mixture.
        others: mixtures of stages beside it.
    """
    names, found = space.names, []
    for stage in others:
        moved = stable_tokens / decay_tokens * (stage.array(names) - control.array(names))
        centre = space.centroid(decay_tokens).array(names)
        bases = (control.array(names), (control.array(names) + centre) / 2, centre)
        for base in bases:
            shares = np.array([base, base + moved])
            if (shares < 0).any():
                continue
            early, late = (Mixture.from_array(names, each) for each in shares)
            before = after_stage(space, stable_tokens, stage).contains(early, decay_tokens)
            if before and after_stage(space, stable_tokens, control).contains(late, decay_tokens):
                found += [(stage, early), (control, late)]
                break
    return found
