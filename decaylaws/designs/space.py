"""Which mixtures a study may run, and how much of each source its proxies may read."""

from __future__ import annotations

from collections.abc import Mapping

from decaylaws.errors import DataError
from decaylaws.mixtures import MixtureSpace, SourceLimits
from decaylaws.settings.study import StudySettings


def mixture_space(settings: StudySettings, available_tokens: Mapping[str, int]) -> MixtureSpace:
    """The space of mixtures of a study, in tokens of a proxy's decay.

    Args:
        settings: the study's settings.
        available_tokens: train tokens by source.
    """
    pools = pool_tokens(settings, available_tokens)
    return MixtureSpace(
        tuple(
            SourceLimits(
                name=name,
                available_tokens=pools[name],
                max_epochs=source.max_epochs,
                lower=0.0 if source.quality else source.lower,
                upper=source.upper,
            )
            for name, source in settings.sources.items()
        ),
        settings.source_groups,
    )


def pool_tokens(
    settings: StudySettings, available_tokens: Mapping[str, int], *, repetition_scale: float | None = None
) -> dict[str, int]:
    """Tokens of each source that a proxy may draw from: at least one sequence, whole sequences.

    Args:
        settings: settings of the study.
        available_tokens: train tokens by source.
        repetition_scale: how many times longer the target's decay is; that of the settings if ``None``.

    Raises:
        DataError: the corpus was prepared without one of the sources.
    """
    missing = [name for name in settings.sources if name not in available_tokens]
    if missing:
        raise DataError(f"The corpus has no source {missing[0]!r}. Run 'decaylaws prepare' to add it.")
    scale = settings.target.repetition_scale if repetition_scale is None else repetition_scale
    length = settings.seq_len
    return {name: max(int(available_tokens[name] / scale) // length, 1) * length for name in settings.sources}
