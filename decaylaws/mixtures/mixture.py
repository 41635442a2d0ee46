"""``Mixture``: which share of the training tokens each source supplies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from decaylaws.errors import InvalidValueError, SchemaError

SUM_TOLERANCE = 1e-5
"""How far from 1 the given weights may sum: rounding to six digits passes (three times .333333), a forgotten source
does not."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """Shares of sources: non-negative, finite, summing to 1.

    Two mixtures are equal when they give every source the same share; the order of names does not count, nor
    does a source listed with share 0.

    Args:
        weights: share by source name; must sum to 1 within 1e-5 and is stored divided by its sum. Use
            ``Mixture.normalised`` for weights on another scale.

    Raises:
        InvalidValueError: a weight is negative or not finite, or the sum is not 1.
    """

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        weights = {_name(name): _weight(name, value) for name, value in self.weights.items()}
        total = math.fsum(weights.values())
        if abs(total - 1.0) > SUM_TOLERANCE:
            raise InvalidValueError(
                "mixture", total, "must sum to 1", "Use Mixture.normalised(...) for weights on another scale."
            )
        # A sum that differs from 1 by rounding only is left alone, so that a round trip changes no digit.
        if abs(total - 1.0) > 2e-16 * (len(weights) + 1):
            weights = {name: value / total for name, value in weights.items()}
        object.__setattr__(self, "weights", MappingProxyType(weights))

    @classmethod
    def normalised(cls, weights: Mapping[str, float]) -> Mixture:
        """Divide weights on any scale (token counts, rounded percentages) by their sum."""
        checked = {_name(name): _weight(name, value) for name, value in weights.items()}
        total = math.fsum(checked.values())
        if not 0.0 < total < math.inf:
            raise InvalidValueError("mixture", total, "must have a positive, finite sum of weights")
        return cls({name: value / total for name, value in checked.items()})

    @classmethod
    def from_array(cls, names: Sequence[str], weights: ArrayLike) -> Mixture:
        """Pair ``names`` with ``weights`` [len(names)], which must sum to 1 within 1e-5."""
        values = np.asarray(weights, dtype=float)
        if values.shape != (len(names),):
            raise InvalidValueError("weights", values.shape, f"must have shape ({len(names)},), one per name")
        if len(set(names)) != len(names):
            raise InvalidValueError("names", list(names), "must not repeat a source")
        return cls(dict(zip(names, values.tolist())))

    @classmethod
    def from_dict(cls, data: Mapping[str, float]) -> Mixture:
        """Read what ``to_dict`` wrote."""
        if not isinstance(data, Mapping):
            raise SchemaError("mixture", missing=["a mapping of source name to share"])
        return cls(data)

    def to_dict(self) -> dict[str, float]:
        """Plain dict of source name to share, in order."""
        return dict(self.weights)

    @property
    def names(self) -> tuple[str, ...]:
        """Source names in the order given."""
        return tuple(self.weights)

    @property
    def support(self) -> tuple[str, ...]:
        """Names of the sources with a positive share."""
        return tuple(name for name, share in self.weights.items() if share > 0.0)

    def share(self, name: str) -> float:
        """Share of ``name``; 0 for a source that this mixture does not hold."""
        return self.weights.get(name, 0.0)

    def array(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Shares in the order of ``names`` [len(names)].

        Raises:
            InvalidValueError: ``names`` lacks a source with a positive share; its tokens would be lost.
        """
        lost = sorted(set(self.support) - set(names))
        if lost:
            raise InvalidValueError(
                "names", list(names), f"must hold every source used; lacks {', '.join(lost)}"
            )
        return np.array([self.share(name) for name in names], dtype=float)

    def blend(self, other: Mixture, share: float) -> Mixture:
        """``(1 - share)`` of this mixture and ``share`` of ``other``: replay, upsampling, half-way points."""
        if not 0.0 <= share <= 1.0:
            raise InvalidValueError("share", share, "must lie in [0, 1]")
        names = tuple(dict.fromkeys((*self.names, *other.names)))
        return Mixture.normalised({n: (1 - share) * self.share(n) + share * other.share(n) for n in names})

    def distance(self, other: Mixture) -> float:
        """Total-variation distance in [0, 1]: the share of tokens that would come from another source."""
        names = {*self.names, *other.names}
        return 0.5 * math.fsum(abs(self.share(name) - other.share(name)) for name in names)

    def kl(self, prior: Mixture) -> float:
        """Kullback-Leibler divergence to ``prior`` in nats; infinite where ``prior`` lacks a source."""
        if any(prior.share(name) == 0.0 for name in self.support):
            return math.inf
        return math.fsum(self.share(n) * math.log(self.share(n) / prior.share(n)) for n in self.support)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mixture):
            return NotImplemented
        return self._positive() == other._positive()

    def __hash__(self) -> int:
        return hash(frozenset(self._positive().items()))

    def __reduce__(self) -> tuple[type[Mixture], tuple[dict[str, float]]]:
        return Mixture, (self.to_dict(),)

    def __str__(self) -> str:
        parts = sorted(self._positive().items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {100 * share:.3g} %" for name, share in parts)

    def _positive(self) -> dict[str, float]:
        return {name: share for name, share in self.weights.items() if share > 0.0}


def _name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise InvalidValueError("mixture", name, "must name each source by a non-empty string")
    return name


def _weight(name: str, value: object) -> float:
    field = f"mixture.{name}"
    try:
        weight = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InvalidValueError(field, value, "must be a number") from None
    if not math.isfinite(weight) or weight < 0.0:
        raise InvalidValueError(field, value, "must be finite and not negative")
    return weight + 0.0  # -0.0 becomes 0.0
