"""Length of the longest common subsequence of two word sequences, a machine word of positions at a time."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence


def word_positions(words: Sequence[Hashable]) -> dict[Hashable, int]:
    """For each distinct word a bit mask of the positions at which it stands."""
    masks: dict[Hashable, int] = {}
    for position, word in enumerate(words):
        masks[word] = masks.get(word, 0) | 1 << position
    return masks


def lcs_length(positions: Mapping[Hashable, int], length: int, other: Iterable[Hashable]) -> int:
    """Length of the longest common subsequence of a sequence and ``other``.

    Bit-parallel (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"): one addition, one subtraction and
    two bit operations on a number of ``length`` bits per word of ``other``.

    Args:
        positions: ``word_positions`` of the first sequence.
        length: of the first sequence.
        other: the second sequence.
    """
    everywhere = (1 << length) - 1
    row = everywhere
    for word in other:
        hit = row & positions.get(word, 0)
        row = ((row + hit) | (row - hit)) & everywhere
    return length - row.bit_count()
