"""Keyed pseudo-random permutations of ``range(size)``, evaluated point by point.

A shuffled epoch is a permutation of the sequences of a source. Storing one costs memory that grows with the
corpus; a Feistel network computes any element of it from a key. (An affine permutation would be cheaper, but
it walks through the documents in a regular stride, which has shown up as a phase shift of the loss in
published runs.)
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_ROUND_KEYS = [np.uint64(number * _GOLDEN % 2**64) for number in range(1, 7)]


def key_of(*parts: object) -> int:
    """A 64-bit key that depends on every part and on their order."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function (Steele, Lea and Flood, 2014): a bijection that scatters every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permute(index: ArrayLike, size: ArrayLike, key: ArrayLike) -> NDArray[np.int64]:
    """Image of ``index`` under the permutation of ``range(size)`` that ``key`` selects; all broadcast.

    A balanced Feistel network permutes the smallest ``range(4**h)`` that holds ``range(size)``; walking the
    cycle until the image is below ``size`` restricts it to a permutation of ``range(size)`` (Black and
    Rogaway, 2002). The walk takes fewer than four steps on average.

    Args:
        index: positions, ``0 <= index < size``.
        size: length of the permuted range, positive, below 2**62.
        key: 64-bit keys.
    """
    values, sizes, keys = np.broadcast_arrays(
        np.asarray(index, dtype=np.uint64),
        np.asarray(size, dtype=np.uint64),
        np.asarray(key, dtype=np.uint64),
    )
    half = _half_bits(sizes)
    image = _feistel(values, half, keys)
    outside = np.flatnonzero(image >= sizes)
    while outside.size:
        image[outside] = _feistel(image[outside], half[outside], keys[outside])
        outside = outside[image[outside] >= sizes[outside]]
    return image.astype(np.int64)


def _half_bits(sizes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits = np.ceil(np.log2(np.maximum(sizes, 2).astype(np.float64))).astype(np.uint64)
    # log2 of a 53-bit rounding may fall one short next to a power of two.
    bits += (np.uint64(1) << bits) < sizes
    return (bits + np.uint64(1)) // np.uint64(2)


def _feistel(
    values: NDArray[np.uint64], half: NDArray[np.uint64], keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for round_key in _ROUND_KEYS:
        left, right = right, left ^ (mix(right * np.uint64(_GOLDEN) + (keys ^ round_key)) & mask)
    return (left << half) | right
