"""Global steps of a recipe: LR, stage and sequences of each, alike on every rank and after a restart."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.recipe import Recipe, RopeSettings, Stage
from decaylaws.recipe.corpus_facts import tokenizer_fingerprint
from proxy_runs.data.sampler import BatchReader, MixtureSampler, available_sequences, rank_slice
from proxy_runs.data.shards import TokenStore


@dataclass(frozen=True)
class Step:
    """One optimiser step.

    Attributes:
        index: its number in the run, from 0.
        lr: its LR.
        stage: number of its stage.
        first: first sequence that it reads, counted within its stage.
        sequences: sequences that it reads; a last partial step reads fewer than its stage's batch.
        tokens: tokens of the run when it is done.
    """

    index: int
    lr: float
    stage: int
    first: int
    sequences: int
    tokens: int


class TrainPlan:
    """All steps of a recipe on a corpus.

    Args:
        recipe: what to train.
        store: the corpus; its sources are the recipe's.

    Raises:
        DataError: the corpus is not the one that the recipe was made for.
        InvalidValueError: a stage is no whole number of sequences.
        InfeasibleError: a source with a share holds no whole sequence.
    """

    def __init__(self, recipe: Recipe, store: TokenStore) -> None:
        _check_corpus(recipe, store)
        self.recipe = recipe
        self.corpus_fingerprint = store.fingerprint
        self._first_steps = np.cumsum([0, *(stage.num_steps for stage in recipe.stages)])
        self._first_tokens = np.cumsum([0, *(stage.tokens for stage in recipe.stages)])
        self._lrs = recipe.step_lrs()
        self._readers = _readers(recipe, store)

    @property
    def num_steps(self) -> int:
        """Steps of the run."""
        return len(self._lrs)

    def first_averaged_step(self, last_steps: int) -> int:
        """The first step, counted from 1, of the last ``last_steps``.

        Raises:
            InvalidValueError: the run has fewer steps, and the mean would hold the weights that it starts from.
        """
        if last_steps > self.num_steps:
            raise InvalidValueError(
                "launch.average_last_steps",
                last_steps,
                f"must be at most the {self.num_steps} steps of the run",
            )
        return self.num_steps - last_steps + 1

    def step(self, index: int) -> Step:
        """Step ``index`` of the run."""
        number = int(np.searchsorted(self._first_steps, index, side="right")) - 1
        stage, within = self.recipe.stages[number], index - int(self._first_steps[number])
        batch = stage.batch_tokens // stage.seq_len
        sequences = min(batch, stage.tokens // stage.seq_len - within * batch)
        tokens = int(self._first_tokens[number]) + (within * batch + sequences) * stage.seq_len
        return Step(index, float(self._lrs[index]), number, within * batch, sequences, tokens)

    def seq_len(self, step: Step) -> int:
        """Tokens of the step's sequences."""
        return self.recipe.stages[step.stage].seq_len

    def windows(self, step: Step, *, rank: int, world_size: int) -> NDArray[np.int64]:
        """This rank's windows of the step, [its sequences, seq_len + 1]; possibly none.

        Args:
            step: the step.
            rank: number of the rank, from 0.
            world_size: number of ranks.
        """
        first, count = rank_slice(step.first, step.sequences, rank=rank, world_size=world_size)
        return self._readers[step.stage].batch(first, count)

    def rope(self, stage: int) -> RopeSettings | None:
        """Rotary embedding of a stage: its own, or the one that an earlier stage has set."""
        given = [s.rope for s in self.recipe.stages[: stage + 1] if s.rope is not None]
        return given[-1] if given else None

    def read_tokens(self, num_steps: int) -> dict[str, int]:
        """Tokens of each source in the first ``num_steps`` steps: the realised mixture."""
        totals = dict.fromkeys(self.recipe.sources, 0)
        for number, stage in enumerate(self.recipe.stages):
            steps = min(num_steps - int(self._first_steps[number]), stage.num_steps)
            if steps > 0:
                sequences = min(steps * (stage.batch_tokens // stage.seq_len), stage.tokens // stage.seq_len)
                for name, count in self._readers[number].sampler.counts(sequences).items():
                    totals[name] += int(count) * stage.seq_len
        return totals


def check_tokenizer(start: Path, store: TokenStore) -> None:
    """Whether the ids of the corpus mean to a start what they meant to it before.

    Raises:
        DataError: the start has a tokenizer of its own, and it gives tokens other ids.
    """
    own = start / "tokenizer.json"
    if own.is_file() and tokenizer_fingerprint(own) != tokenizer_fingerprint(store.tokenizer_path):
        raise DataError(
            f"The tokenizer in {start} gives tokens other ids than that of the corpus {store.directory}. Prepare the "
            "corpus with the checkpoint's own tokenizer (tokenizer.path)."
        )


def order_checksum(windows: NDArray[np.int64], first: int) -> int:
    """A figure for which sequences stand where; those of all ranks add up to that of the whole batch.

    Args:
        windows: a rank's part of a step.
        first: position of its first sequence in the step.
    """
    return sum(zlib.crc32(window.tobytes(), first + position) for position, window in enumerate(windows))


def _check_corpus(recipe: Recipe, store: TokenStore) -> None:
    wanted = recipe.provenance.data_fingerprint
    if wanted is not None and wanted != store.fingerprint:
        raise DataError(
            f"The recipe was made for the corpus {wanted}, {store.directory} holds {store.fingerprint}. "
            "Restore that corpus, or recommend again."
        )
    missing = sorted({name for stage in recipe.stages for name in stage.mixture.support} - set(store.names))
    if missing:
        raise DataError(f"The corpus {store.directory} has no source {missing[0]!r}, which the recipe uses.")
    for number, stage in enumerate(recipe.stages):
        if stage.tokens % stage.seq_len:
            raise InvalidValueError(
                f"stages.{number}.lr", stage.tokens, f"must last a multiple of seq_len={stage.seq_len} tokens"
            )


def _readers(recipe: Recipe, store: TokenStore) -> list[BatchReader]:
    """One reader per stage; each goes on in every source where the stage before it stopped."""
    pool = {
        name: source.available_tokens
        for name, source in recipe.sources.items()
        if source.available_tokens is not None and name in store.names
    }
    readers, read = [], dict.fromkeys(recipe.sources, 0)
    for stage in recipe.stages:
        sampler = _sampler(recipe, stage, available_sequences(store, stage.seq_len, pool), read)
        readers.append(BatchReader(store, sampler, stage.seq_len))
        for name, count in sampler.counts(stage.tokens // stage.seq_len).items():
            read[name] += int(count) * stage.seq_len
    return readers


def _sampler(
    recipe: Recipe, stage: Stage, available: Mapping[str, int], read_tokens: Mapping[str, int]
) -> MixtureSampler:
    return MixtureSampler(
        stage.mixture,
        available,
        seed=recipe.seed,
        batch_sequences=stage.batch_tokens // stage.seq_len,
        consumed_sequences={name: tokens // stage.seq_len for name, tokens in read_tokens.items()},
    )
