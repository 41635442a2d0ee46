"""Groups of sources in ``study.yaml``: bounded together, or kept in the proportions that an earlier study found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, Self

from pydantic import model_validator

from decaylaws.errors import InvalidValueError
from decaylaws.mixtures import Mixture, MixtureSpace, SourceGroup, SourceLimits
from decaylaws.mixtures.mixture import SUM_TOLERANCE
from decaylaws.settings.numbers import Share
from decaylaws.settings.quality import QualitySettings
from decaylaws.settings.section import Section


class GroupSettings(Section):
    """Sources, or other groups, whose total share is one quantity.

    Attributes:
        members: names of sources, cut sources or groups; the search moves them freely inside the bounds.
        mixture: alternatively, their fixed proportions; the search then moves only the total. A mixture that an earlier
            study found is reused when a source is added (olmix).
        lower: smallest total share.
        upper: largest total share.
    """

    members: list[str] | None = None
    mixture: dict[str, Share] | None = None
    lower: Share = 0.0
    upper: Share = 1.0

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.members is None) == (self.mixture is None):
            raise ValueError("needs either members (free) or mixture (fixed proportions)")
        total = sum((self.mixture or {"": 1.0}).values())
        if abs(total - 1.0) > SUM_TOLERANCE:
            raise ValueError(f"the weights of mixture must sum to one; they sum to {total:.6g}")
        return self

    def group(self, name: str) -> SourceGroup:
        """The value type that a space holds; checks bounds and members."""
        inner = None if self.mixture is None else Mixture(self.mixture)
        members = self.members if inner is None else inner.names
        return SourceGroup(name, tuple(members or ()), inner, self.lower, self.upper)


class BoundedSource(Protocol):
    """What groups need to know of a source."""

    @property
    def quality(self) -> QualitySettings | None:
        """Which bucket of which source it is, where it is one."""

    @property
    def lower(self) -> float:
        """Smallest share."""

    @property
    def upper(self) -> float:
        """Largest share."""


def source_groups(
    groups: Mapping[str, GroupSettings], sources: Mapping[str, BoundedSource]
) -> tuple[SourceGroup, ...]:
    """The groups of a study: the buckets of each source that is cut, then those that ``study.yaml`` names.

    Raises:
        InvalidValueError: a member is neither source nor group, a group holds itself or a source twice, two
            groups fix one source, a name is taken, or nothing is left to choose.
    """
    found = (*_bucket_groups(sources), *(settings.group(name) for name, settings in groups.items()))
    taken = sorted({*sources, *(group.name for group in _bucket_groups(sources))} & set(groups))
    if taken:
        raise InvalidValueError(
            f"groups.{taken[0]}", taken[0], "has the name of a source", "Rename the group."
        )
    space = MixtureSpace(tuple(SourceLimits(name, available_tokens=1) for name in sources), found)
    if len(space.blocks) < 2:
        raise InvalidValueError(
            "groups",
            list(groups),
            "must leave a mixture to choose",
            "Leave a source out of the fixed proportions.",
        )
    return found


def _bucket_groups(sources: Mapping[str, BoundedSource]) -> tuple[SourceGroup, ...]:
    """The buckets of one source share its bounds."""
    members: dict[str, list[str]] = {}
    for name, source in sources.items():
        if source.quality:
            members.setdefault(source.quality.source, []).append(name)
    bounds = {group: sources[names[0]] for group, names in members.items()}
    return tuple(
        SourceGroup(group, tuple(names), lower=bounds[group].lower, upper=bounds[group].upper)
        for group, names in members.items()
    )
