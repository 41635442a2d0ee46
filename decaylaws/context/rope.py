"""Frequencies of the rotary embedding under each way of extending it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import InvalidValueError
from decaylaws.recipe import RopeSettings

BETA_FAST, BETA_SLOW = 32.0, 1.0


@dataclass(frozen=True)
class RotaryFrequencies:
    """What a rotary embedding turns by.

    Attributes:
        inverse: radians per position of each pair of dimensions [head_dim / 2], fastest first.
        attention_factor: what cos and sin are multiplied by: YaRN's temperature, 1 elsewhere.
    """

    inverse: NDArray[np.float64]
    attention_factor: float = 1.0

    @property
    def wavelengths(self) -> NDArray[np.float64]:
        """Positions of a full turn of each pair [head_dim / 2]."""
        return 2 * math.pi / self.inverse


def rotary_frequencies(rope: RopeSettings, head_dim: int) -> RotaryFrequencies:
    """Frequencies of heads of ``head_dim`` dimensions.

    ``transformers`` computes the same from ``rope.transformers_parameters(head_dim)``. The methods and their
    sources stand in :class:`~decaylaws.recipe.RopeSettings`.

    Raises:
        InvalidValueError: ``head_dim`` is no even number above 2.
    """
    if head_dim < 4 or head_dim % 2:
        raise InvalidValueError("head_dim", head_dim, "must be an even number of at least 4")
    plain = rope.base(head_dim) ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if rope.method == "position_interpolation":
        return RotaryFrequencies(plain / rope.factor)
    if rope.method != "yarn":
        return RotaryFrequencies(plain)
    kept = _kept_share(rope, head_dim)
    factor = rope.attention_factor or 0.1 * math.log(rope.factor) + 1.0
    return RotaryFrequencies(plain * kept + plain / rope.factor * (1.0 - kept), factor)


def _kept_share(rope: RopeSettings, head_dim: int) -> NDArray[np.float64]:
    """YaRN's ramp: 1 where a pair keeps its frequency, 0 where it is interpolated [head_dim / 2].

    The ramp runs over the number of the pair and its ends are rounded outwards, as in the authors' code.
    """
    fast = math.floor(_pair_that_turns(rope.beta_fast or BETA_FAST, rope, head_dim))
    slow = math.ceil(_pair_that_turns(rope.beta_slow or BETA_SLOW, rope, head_dim))
    first, last = max(fast, 0), min(slow, head_dim - 1)
    width = last - first or 1e-3
    return 1.0 - np.clip((np.arange(head_dim // 2) - first) / width, 0.0, 1.0)


def _pair_that_turns(times: float, rope: RopeSettings, head_dim: int) -> float:
    """Number of the pair, as a real number, that turns so many times within the original length."""
    length = float(rope.original_seq_len or 1)
    return head_dim * math.log(length / (times * 2 * math.pi)) / (2 * math.log(rope.theta))
