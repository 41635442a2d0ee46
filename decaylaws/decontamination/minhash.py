"""Near-duplicate documents: MinHash of 5-word runs (rensa), candidates by bands, verified on the whole signature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decaylaws.decontamination.index import batches
from decaylaws.decontamination.words import Hashes, hash_words
from decaylaws.errors import MissingExtraError

NUM_PERMUTATIONS = 128
RUN_WORDS = 5
_SEED = 42
_EMPTY = np.uint32(0xFFFFFFFF)
_RECALL = 0.99
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Signatures = NDArray[np.uint32]


def minhash(texts: Sequence[str]) -> Signatures:
    """MinHash signatures [num_texts, NUM_PERMUTATIONS]; all ones where a text has no run of five words.

    Raises:
        MissingExtraError: the extra ``decontamination`` is not installed.
    """
    try:
        from rensa import RMinHash
    except ImportError:
        raise MissingExtraError("The search for near duplicates", "decontamination") from None
    runs: list[list[Hashes]] = [[] for _ in texts]
    for numbers, parts in batches(texts):
        words = hash_words(parts)
        hashes, places = words.runs(RUN_WORDS)
        cuts = np.searchsorted(words.text[places], np.arange(1, len(parts)))
        for number, part in zip(numbers, np.split(hashes, cuts)):
            runs[number].append(part)
    flat = np.concatenate([np.zeros(0, np.uint64), *(part for own in runs for part in own)])
    sizes = np.array([sum(map(len, own)) for own in runs], np.int64)
    signatures = np.full((len(texts), NUM_PERMUTATIONS), _EMPTY)
    filled = np.flatnonzero(sizes)
    if len(filled):
        offsets = np.append(0, np.cumsum(sizes[filled])).astype(np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, NUM_PERMUTATIONS, _SEED)
        signatures[filled] = np.array(matrix.to_rows(), np.uint32)
    return signatures


def choose_bands(threshold: float) -> int:
    """Bands of the signature such that pairs at the threshold share one with a probability of 99 % or more.

    Two documents of Jaccard similarity J share a band of r values with probability J^r, hence one of b bands with
    1 - (1 - J^r)^b; the widest band that recalls enough gives the fewest candidates.
    """
    for width in range(NUM_PERMUTATIONS, 0, -1):
        bands = NUM_PERMUTATIONS // width
        if 1 - (1 - threshold**width) ** bands >= _RECALL:
            return bands
    return NUM_PERMUTATIONS


def near_duplicates(parts: Sequence[Signatures], threshold: float, *, bands: int) -> list[NDArray[np.bool_]]:
    """Which documents are near duplicates of an earlier one: a flag per document.

    Memory: 24 bytes per document beside the flags; the signatures are read from where they lie, a band at a time.

    Args:
        parts: signatures by shard.
        threshold: smallest share of equal values.
        bands: as ``choose_bands`` says.
    """
    starts = np.cumsum([0, *map(len, parts)])
    flags = np.zeros(starts[-1], bool)
    width = NUM_PERMUTATIONS // bands
    filled = np.concatenate([np.zeros(0, bool), *(part[:, 0] != _EMPTY for part in parts)])
    for band in range(bands):
        columns = slice(band * width, (band + 1) * width)
        keys = np.concatenate([np.zeros(0, np.uint64), *(_band_keys(part[:, columns]) for part in parts)])
        for earlier, later in _pairs(keys, filled & ~flags):
            agree = (_rows(parts, starts, earlier) == _rows(parts, starts, later)).mean(axis=1)
            flags[later[agree >= threshold]] = True
    return np.split(flags, starts[1:-1])


def _pairs(keys: Hashes, wanted: NDArray[np.bool_]) -> Any:
    """Documents of equal key, each beside the first of its key, some thousand pairs at a time."""
    documents = np.flatnonzero(wanted)
    order = documents[np.argsort(keys[documents], kind="stable")]
    if not len(order):
        return
    new = np.append(True, keys[order[1:]] != keys[order[:-1]])
    first = order[np.flatnonzero(new)[np.cumsum(new) - 1]]
    earlier, later = first[~new], order[~new]
    for begin in range(0, len(later), 4096):
        yield earlier[begin : begin + 4096], later[begin : begin + 4096]


def _rows(parts: Sequence[Signatures], starts: NDArray[np.int64], documents: NDArray[np.int64]) -> Signatures:
    found = np.empty((len(documents), NUM_PERMUTATIONS), np.uint32)
    shard = np.searchsorted(starts, documents, side="right") - 1
    for number in np.unique(shard):
        own = shard == number
        found[own] = parts[number][documents[own] - starts[number]]
    return found


def _band_keys(columns: Signatures) -> Hashes:
    keys = np.zeros(len(columns), np.uint64)
    for column in range(columns.shape[1]):
        keys = (keys ^ columns[:, column]) * _FACTOR
        keys ^= keys >> np.uint64(29)
    return keys
