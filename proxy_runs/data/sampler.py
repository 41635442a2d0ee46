"""Which sequence a run reads next: a pure function of (mixture, seed, global sequence index).

Nothing here knows ranks, workers, stacks or slots. A rank reads its slice of the global batch, a resumed run
asks for the index at which it stopped, and both see what an undisturbed single process would have seen.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import InfeasibleError, InvalidValueError
from decaylaws.mixtures import Mixture
from proxy_runs.data.allocation import BatchAllocation, share_units
from proxy_runs.data.permutation import key_of, mix, permute
from proxy_runs.data.shards import TokenStore

_LOOK_AHEAD = 1024


def rank_slice(first: int, count: int, *, rank: int, world_size: int) -> tuple[int, int]:
    """The part (first, count) of the global sequences ``[first, first + count)`` that ``rank`` reads.

    Parts are contiguous, disjoint, cover the whole and differ by at most one sequence.

    Args:
        first: index of the first sequence.
        count: number of sequences.
        rank: number of the rank, from 0.
        world_size: number of ranks.
    """
    if not 0 <= rank < world_size:
        raise InvalidValueError("rank", rank, f"must be in [0, world_size={world_size})")
    start = count * rank // world_size
    return first + start, count * (rank + 1) // world_size - start


def available_sequences(
    store: TokenStore, seq_len: int, pool_tokens: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Whole training sequences of each source.

    Args:
        store: the prepared corpus.
        seq_len: tokens of a sequence; each also needs the one token after it as its last target.
        pool_tokens: use only the first so many tokens of these sources (repetition matching).
    """
    tokens = dict(store.available_tokens)
    for name, limit in (pool_tokens or {}).items():
        if name not in tokens:
            raise InvalidValueError("pool_tokens", name, f"must name a source; there are {sorted(tokens)}")
        tokens[name] = min(tokens[name], limit)
    return {name: max(0, (number - 1) // seq_len) for name, number in tokens.items()}


class MixtureSampler:
    """Exact-count mixing with a new shuffle of each source in every epoch.

    Every batch of ``batch_sequences`` holds ``floor`` or ``ceil`` of what the mixture asks of each source,
    and so does every prefix of whole batches (see ``proxy_runs.data.allocation``). Inside a batch the sources are
    spread evenly, so that the slices of the ranks resemble the batch. Within an epoch of a source no sequence
    is read twice. The shuffle of a source depends on the seed and its name only: adding a source or changing
    its share moves no other source's order.

    Args:
        mixture: share of sequences by source.
        available_sequences: sequences that each source holds.
        seed: keys all shuffles.
        batch_sequences: sequences of a global batch. With the default every single prefix is exact to one
            sequence, whatever the batch size, at a higher cost per sequence.
        consumed_sequences: sequences of each source that an earlier stage with the same seed has read; its
            epochs go on where they stopped.

    Raises:
        InfeasibleError: a source with a positive share holds no sequence.
    """

    def __init__(
        self,
        mixture: Mixture,
        available_sequences: Mapping[str, int],
        *,
        seed: int,
        batch_sequences: int = 1,
        consumed_sequences: Mapping[str, int] | None = None,
    ) -> None:
        if batch_sequences < 1:
            raise InvalidValueError("batch_sequences", batch_sequences, "must be a positive integer")
        # sorted, so that the order in which a mixture was written decides nothing that a run reads
        self.names = tuple(sorted(mixture.support))
        self.batch_sequences = batch_sequences
        self._available = np.array([_available(name, available_sequences) for name in self.names])
        consumed = consumed_sequences or {}
        self._consumed = np.array([consumed.get(name, 0) for name in self.names], dtype=np.int64)
        self._keys = np.array([key_of(seed, name) for name in self.names], dtype=np.uint64)
        units = share_units([mixture.share(name) for name in self.names])
        self._allocation = BatchAllocation(units, batch_sequences)

    def assign(self, first_index: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Source and sequence of the global sequences ``[first_index, first_index + count)``.

        Returns:
            source [count], positions in ``names``; sequence [count], positions in that source.
        """
        if first_index < 0 or count < 0:
            raise InvalidValueError("first_index, count", (first_index, count), "must not be negative")
        last = first_index + count
        batches = range(first_index // self.batch_sequences, -(-last // self.batch_sequences))
        parts = [self._batch(batch) for batch in batches]
        if not parts:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        skip = first_index - batches.start * self.batch_sequences
        source, occurrence = (np.concatenate(column)[skip : skip + count] for column in zip(*parts))
        return source, self._sequences(source, occurrence)

    def counts(self, num_sequences: int) -> dict[str, int]:
        """Sequences of each source among the first ``num_sequences``: the realised mixture."""
        batch, rest = divmod(num_sequences, self.batch_sequences)
        totals = self._allocation.before(batch)
        if rest:
            source, _ = self._batch(batch)
            totals = totals + np.bincount(source[:rest], minlength=len(self.names))
        return dict(zip(self.names, totals.tolist()))

    def epochs(self, num_sequences: int) -> dict[str, float]:
        """How often each source is read through by the first ``num_sequences``, earlier stages included."""
        counts = self.counts(num_sequences)
        read = np.array([counts[name] for name in self.names]) + self._consumed
        return dict(zip(self.names, (read / self._available).tolist()))

    def _batch(self, batch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Source of each sequence of a batch, and how many of that source came before it in the run."""
        counts = self._allocation.counts(batch)
        source = np.repeat(np.arange(len(self.names)), counts)
        within = np.arange(self.batch_sequences) - np.repeat(np.cumsum(counts) - counts, counts)
        # the n-th of a source's m sequences goes to (n + phase) / m of the batch: all sources are spread evenly, and
        # the phase, 53 bits of a hash in [0, 1), changes with the batch, so that none of them always comes first
        phase = (mix(self._keys + np.uint64(batch)) >> np.uint64(11)) * 2.0**-53
        order = np.argsort((within + phase[source]) / counts[source], kind="stable")
        occurrence = self._allocation.before(batch)[source] + within
        return source[order], occurrence[order]

    def _sequences(self, source: NDArray[np.int64], occurrence: NDArray[np.int64]) -> NDArray[np.int64]:
        available = self._available[source]
        epoch, position = np.divmod(occurrence + self._consumed[source], available)
        # any position of a shuffle is computed without the others, so nothing is stored and a resumed run just asks
        return permute(position, available, mix(self._keys[source] ^ mix(epoch.astype(np.uint64))))


def _available(name: str, available_sequences: Mapping[str, int]) -> int:
    number = available_sequences.get(name, 0)
    if number < 1:
        raise InfeasibleError(
            f"The mixture gives a share to '{name}', which has less text than one training sequence. "
            "Give it more text, shorten the sequences, or set its share to 0."
        )
    return number


class BatchReader:
    """Token windows of a run, read from the shards as they are needed.

    Memory does not grow with the corpus: rows are read by position (``pread``) straight into the batch and
    nothing is mapped. Sequences are assigned some batches ahead, since that costs as much for 16 of them as
    for 1000.

    Args:
        store: the prepared corpus.
        sampler: decides which sequences.
        seq_len: tokens of a sequence.
    """

    def __init__(self, store: TokenStore, sampler: MixtureSampler, seq_len: int) -> None:
        self.sampler = sampler
        self.seq_len = seq_len
        self._store = store
        self._ahead_first = 0
        self._ahead = np.zeros((2, 0), dtype=np.int64)

    def batch(self, first_index: int, count: int) -> NDArray[np.int64]:
        """Windows [count, seq_len + 1] of int64 tokens: inputs ``[:, :-1]``, targets ``[:, 1:]``."""
        source, sequence = self._assigned(first_index, count)
        rows = np.empty((count, self.seq_len + 1), dtype=self._store.dtype)
        for row, name, start in zip(rows, source, sequence * self.seq_len):
            self._store.read_into(self.sampler.names[name], int(start), row)
        return rows.astype(np.int64)

    def _assigned(self, first_index: int, count: int) -> NDArray[np.int64]:
        start = first_index - self._ahead_first
        if start < 0 or start + count > self._ahead.shape[1]:
            self._ahead_first, start = first_index, 0
            self._ahead = np.stack(self.sampler.assign(first_index, max(count, _LOOK_AHEAD)))
        return self._ahead[:, start : start + count]
