"""Whole numbers of sequences per source in every batch, as close to a mixture as whole numbers can be.

Every batch gives source k either ``floor(B w_k)`` or ``ceil(B w_k)`` of its ``B`` sequences, and so does
every prefix of batches: after ``b`` batches the source has had ``floor(b B w_k)`` or ``ceil(b B w_k)``. Both
errors are therefore below one sequence at all times; random draws would be off by the square root.

Rounding each batch alone cannot keep the second promise, rounding the running total cannot keep the first.
Who may round up in which batch is Pfair scheduling: the sources are periodic tasks, the ``m`` sequences of a
batch that the whole parts leave over are ``m`` processors. The PD2 priorities (Anderson and Srinivasan,
"Early-release fair scheduling", 2000; Srinivasan and Anderson, 2002) meet every window for every task set
that fits, and here it fits exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

UNITS = 1 << 40
"""Shares are whole multiples of 1/UNITS; the rounding moves less than one sequence in 10**12."""

_SNAPSHOT = 512


def share_units(shares: Sequence[float]) -> list[int]:
    """Shares as whole numbers of ``1/UNITS`` that sum to ``UNITS`` exactly (largest remainder)."""
    scaled = [share * UNITS for share in shares]
    units = [int(value) for value in scaled]
    short = UNITS - sum(units)
    by_remainder = sorted(range(len(units)), key=lambda k: units[k] - scaled[k])
    for k in range(abs(short)):
        units[by_remainder[k % len(units)]] += 1 if short > 0 else -1
    return units


class BatchAllocation:
    """Sequences of each source in batch 0, 1, 2, ...; computed once as far as asked, then looked up.

    The result for a batch does not depend on what was asked before. A first look at batch ``b`` costs a few
    microseconds for each batch up to ``b``, and one byte per source and batch is kept.

    Args:
        units: share of each source in ``1/UNITS``, summing to ``UNITS``.
        batch_sequences: sequences of a batch, ``B``.
    """

    def __init__(self, units: Sequence[int], batch_sequences: int) -> None:
        targets = [unit * batch_sequences for unit in units]
        self._whole = np.array([target // UNITS for target in targets], dtype=np.int64)
        self._fraction = [target % UNITS for target in targets]
        self._spare = sum(self._fraction) // UNITS
        self._windows = [_window(1, fraction) for fraction in self._fraction]
        self._done = [0] * len(targets)
        self._extras = bytearray()
        self._snapshots: list[list[int]] = []
        self._known = 0

    def counts(self, batch: int) -> NDArray[np.int64]:
        """Sequences of each source in ``batch`` [num_sources]."""
        self._extend(batch + 1)
        width = len(self._done)
        extra = np.frombuffer(self._extras, dtype=np.uint8, count=width, offset=batch * width)
        return self._whole + extra

    def before(self, batch: int) -> NDArray[np.int64]:
        """Sequences of each source in all batches before ``batch`` [num_sources]."""
        self._extend(batch + 1)
        first, width = batch // _SNAPSHOT * _SNAPSHOT, len(self._done)
        recent = np.frombuffer(
            self._extras, dtype=np.uint8, count=(batch - first) * width, offset=first * width
        )
        extras = np.array(self._snapshots[batch // _SNAPSHOT]) + recent.reshape(-1, width).sum(
            axis=0, dtype=np.int64
        )
        return self._whole * batch + extras

    def _extend(self, batches: int) -> None:
        while self._known < batches:
            if self._known % _SNAPSHOT == 0:
                self._snapshots.append(list(self._done))
            row = bytearray(len(self._done))
            for source in self._most_urgent(self._known):
                row[source] = 1
                self._done[source] += 1
                self._windows[source] = _window(self._done[source] + 1, self._fraction[source])
            self._extras += row
            self._known += 1

    def _most_urgent(self, batch: int) -> list[int]:
        released = [source for source, window in enumerate(self._windows) if window and window[0] <= batch]
        released.sort(key=lambda source: self._windows[source][1:])
        return released[: self._spare]


def _window(number: int, fraction: int) -> tuple[int, ...]:
    """Release batch of a source's ``number``-th extra sequence, then its PD2 priority (smaller goes first).

    The priority: earlier deadline; then a window that overlaps the next one; then the later group deadline,
    which ends the run of forced choices that postponing a source above one half would start.
    """
    if not fraction:
        return ()
    release = (number - 1) * UNITS // fraction
    deadline = _ceil_div(number * UNITS, fraction)
    overlaps = deadline * fraction != number * UNITS
    rest = UNITS - fraction
    group = _ceil_div(_ceil_div(deadline * rest, UNITS) * UNITS, rest) if fraction >= rest else 0
    return release, deadline, -int(overlaps), -group


def _ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
