"""What is known of each source before a mixture is chosen: how much there is, how much is wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass

from decaylaws.errors import InvalidValueError
from decaylaws.mixtures.mixture import Mixture

BINDING_TOLERANCE = 1e-6


@dataclass(frozen=True)
class SourceLimits:
    """Limits on one source.

    Args:
        name: the source.
        available_tokens: unique tokens that it holds.
        max_epochs: how often each token may be seen in the decay; ``None`` for no limit.
        lower: smallest share allowed.
        upper: largest share allowed, whatever the tokens.
    """

    name: str
    available_tokens: int
    max_epochs: float | None = None
    lower: float = 0.0
    upper: float = 1.0

    def __post_init__(self) -> None:
        field = f"sources.{self.name}"
        if not isinstance(self.name, str) or not self.name:
            raise InvalidValueError("sources.name", self.name, "must be a non-empty string")
        if not math.isfinite(self.available_tokens) or self.available_tokens <= 0:
            raise InvalidValueError(
                f"{field}.available_tokens",
                self.available_tokens,
                "must be positive",
                "Leave the source out.",
            )
        if self.max_epochs is not None and not (math.isfinite(self.max_epochs) and self.max_epochs > 0):
            raise InvalidValueError(
                f"{field}.max_epochs",
                self.max_epochs,
                "must be positive",
                "Use None for no limit on repeats.",
            )
        _check_bounds(field, self.lower, self.upper)

    def cap(self, decay_tokens: float | None) -> float:
        """Largest share in a decay of ``decay_tokens``: the smaller of ``upper`` and ``max_epochs``."""
        if self.max_epochs is None or decay_tokens is None:
            return self.upper
        return min(self.upper, self.max_epochs * self.available_tokens / decay_tokens)

    def epochs(self, share: float, decay_tokens: float) -> float:
        """How often each token is seen, on average, at ``share`` of ``decay_tokens``."""
        return share * decay_tokens / self.available_tokens


@dataclass(frozen=True)
class SourceGroup:
    """Sources that are bounded together, or frozen in the proportions that an earlier study found.

    Args:
        name: the group; must differ from every source.
        members: names of sources or of other groups.
        inner: fixed proportions of the members; the search then moves only the group's total (mixture reuse
            when a source is added). ``None`` leaves the members free.
        lower: smallest total share.
        upper: largest total share.
    """

    name: str
    members: tuple[str, ...]
    inner: Mixture | None = None
    lower: float = 0.0
    upper: float = 1.0

    def __post_init__(self) -> None:
        field = f"groups.{self.name}"
        object.__setattr__(self, "members", tuple(self.members))
        if not self.members or len(set(self.members)) != len(self.members):
            raise InvalidValueError(
                f"{field}.members", self.members, "must name at least one member, each once"
            )
        if self.inner is not None and set(self.inner.names) != set(self.members):
            raise InvalidValueError(
                f"{field}.inner", self.inner.names, f"must weigh the members {self.members}"
            )
        _check_bounds(field, self.lower, self.upper)

    @property
    def is_bounded(self) -> bool:
        """Whether its total share is limited."""
        return self.lower > 0.0 or self.upper < 1.0

    def __str__(self) -> str:
        inside = f"{self.inner}, kept so" if self.inner else f"{', '.join(self.members)}, free"
        return f"{self.name} ({inside}) in [{self.lower:.4g}, {self.upper:.4g}]"


@dataclass(frozen=True)
class SourceUse:
    """What a mixture asks of one source, and which limit it touches.

    Args:
        name: the source.
        share: its share.
        epochs: how often its tokens are seen; ``nan`` where the decay tokens are not given.
        cap: the largest share that the limits allow.
        binds: ``"max_epochs"``, ``"upper"``, ``"lower"``, or ``""`` where nothing binds.
    """

    name: str
    share: float
    epochs: float
    cap: float
    binds: str


def limit_touched(source: SourceLimits, share: float, cap: float) -> str:
    """Which limit of ``source`` a share touches: ``max_epochs``, ``upper``, ``lower`` or none.

    Args:
        source: limits of the source.
        share: its share.
        cap: its largest share at the length of the decay.
    """
    if share >= cap - BINDING_TOLERANCE and cap < 1.0:
        return "upper" if cap >= source.upper else "max_epochs"
    if source.lower > 0 and share <= source.lower + BINDING_TOLERANCE:
        return "lower"
    return ""


def over_cap_message(source: SourceLimits, share: float, cap: float, decay_tokens: float | None) -> str:
    """Why a share above the cap cannot be, and what would mend it.

    Args:
        source: limits of the source.
        share: its share.
        cap: its largest share at the length of the decay.
        decay_tokens: length of the decay; ``None`` if only bounds count.
    """
    if cap >= source.upper or decay_tokens is None:
        return f"'{source.name}' has share {share:.4g}, above its upper bound {source.upper:.4g}."
    return (
        f"'{source.name}' has share {share:.4g}: {source.epochs(share, decay_tokens):.3g} epochs of its "
        f"{source.available_tokens:.4g} tokens, above max_epochs = {source.max_epochs:g} (share {cap:.4g}). "
        "Lower the share, shorten the decay or raise max_epochs."
    )


def _check_bounds(field: str, lower: float, upper: float) -> None:
    for side, value in (("lower", lower), ("upper", upper)):
        if not (math.isfinite(value) and 0.0 <= value <= 1.0):
            raise InvalidValueError(f"{field}.{side}", value, "must lie in [0, 1]")
    if lower > upper:
        raise InvalidValueError(f"{field}.lower", lower, f"must not exceed upper = {upper}")
