"""The batch size over a training run, as a function of tokens, with the algebra of :class:`Schedule`.

Steps and tokens convert both ways in whole numbers. A step takes the batch of the stage that it begins in and
never reaches into the next one: a stage whose length is no multiple of its batch ends with a shorter step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from decaylaws.errors import InvalidValueError
from decaylaws.schedules.checks import check_keys, valid_factor, whole_tokens

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BatchStage:
    """One batch size over a stretch of tokens.

    Args:
        tokens: length of the stretch.
        batch_tokens: tokens that one optimiser step consumes.
    """

    tokens: int
    batch_tokens: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", whole_tokens("tokens", self.tokens))
        object.__setattr__(self, "batch_tokens", whole_tokens("batch_tokens", self.batch_tokens))

    @property
    def num_steps(self) -> int:
        """Steps, the last of which may be shorter."""
        return -(-self.tokens // self.batch_tokens)


@dataclass(frozen=True)
class BatchSchedule:
    """Batch size over tokens: one stage or more; neighbours of one batch size are one stage."""

    stages: tuple[BatchStage, ...]

    def __post_init__(self) -> None:
        stages = tuple(self.stages)
        if not stages or not all(isinstance(stage, BatchStage) for stage in stages):
            raise InvalidValueError("stages", self.stages, "must be one BatchStage or more")
        whole_tokens("tokens", sum(stage.tokens for stage in stages))
        object.__setattr__(self, "stages", _joined(stages))

    def __iter__(self) -> Iterator[BatchStage]:
        return iter(self.stages)

    def __add__(self, other: BatchSchedule) -> BatchSchedule:
        return self.then(other)

    @cached_property
    def boundaries(self) -> Int64:
        """[stages + 1] tokens at which stages begin, from 0 to the end."""
        return np.cumsum([0, *(stage.tokens for stage in self.stages)], dtype=np.int64)

    @cached_property
    def _first_steps(self) -> Int64:
        """[stages + 1] steps that stages begin with, and the number of steps."""
        return np.cumsum([0, *(stage.num_steps for stage in self.stages)], dtype=np.int64)

    @cached_property
    def _batches(self) -> Int64:
        return np.array([stage.batch_tokens for stage in self.stages], dtype=np.int64)

    @property
    def tokens(self) -> int:
        """Length."""
        return int(self.boundaries[-1])

    @property
    def num_steps(self) -> int:
        """Optimiser steps in all."""
        return int(self._first_steps[-1])

    def batch_tokens(self, tokens: npt.ArrayLike) -> Int64:
        """Batch size at positions; where two stages meet, that of the second."""
        return self._batches[self._stage_at(tokens, self.boundaries, "tokens")]

    def step_at(self, tokens: npt.ArrayLike) -> Int64:
        """Index of the step that consumes the token at each position; the number of steps at the end."""
        stage = self._stage_at(tokens, self.boundaries, "tokens")
        inside = np.asarray(tokens, dtype=np.int64) - self.boundaries[stage]
        at_end = np.asarray(tokens) == self.tokens
        return np.where(at_end, self.num_steps, self._first_steps[stage] + inside // self._batches[stage])[()]

    def tokens_at(self, step: npt.ArrayLike) -> Int64:
        """Tokens consumed before each step; ``step_at(tokens_at(k)) == k``."""
        stage = self._stage_at(step, self._first_steps, "step")
        inside = (np.asarray(step, dtype=np.int64) - self._first_steps[stage]) * self._batches[stage]
        return np.minimum(self.boundaries[stage] + inside, self.boundaries[stage + 1])[()]

    def step_edges(self) -> Int64:
        """[steps + 1] tokens at which steps begin, and the end."""
        return self.tokens_at(np.arange(self.num_steps + 1))

    def _stage_at(self, at: npt.ArrayLike, starts: Int64, field: str) -> Int64:
        positions = np.asarray(at)
        if not np.issubdtype(positions.dtype, np.integer):
            raise InvalidValueError(field, at, "must be whole numbers")
        if positions.size and (positions.min() < 0 or positions.max() > starts[-1]):
            raise InvalidValueError(field, at, f"must lie within the schedule, 0 to {starts[-1]}")
        return np.minimum(np.searchsorted(starts, positions, side="right") - 1, len(self.stages) - 1)

    def then(self, other: BatchSchedule) -> BatchSchedule:
        """This schedule, then the other."""
        return BatchSchedule((*self.stages, *other.stages))

    def between(self, first: int, last: int) -> BatchSchedule:
        """The schedule from one position to another; its tokens count from ``first``."""
        if not 0 <= first < last <= self.tokens:
            raise InvalidValueError(
                "first, last", (first, last), f"must be in order and within 0 to {self.tokens}"
            )
        starts = self.boundaries.tolist()
        lengths = [min(last, b) - max(first, a) for a, b in pairwise(starts)]
        return BatchSchedule(
            tuple(BatchStage(n, stage.batch_tokens) for n, stage in zip(lengths, self.stages) if n > 0)
        )

    def truncate(self, tokens: int) -> BatchSchedule:
        """The first ``tokens`` of it."""
        return self.between(0, tokens)

    def after(self, tokens: int) -> BatchSchedule:
        """All but the first ``tokens`` of it."""
        return self.between(tokens, self.tokens)

    def extend(self, tokens: int) -> BatchSchedule:
        """It, then its last batch size for ``tokens`` more."""
        return self.then(BatchSchedule((BatchStage(tokens, self.stages[-1].batch_tokens),)))

    def fork(self, at: int, tail: BatchSchedule) -> BatchSchedule:
        """Its first ``at`` tokens, then ``tail`` instead of the rest."""
        return tail if at == 0 else self.truncate(at).then(tail)

    def scale(self, batch: float = 1.0, tokens: float = 1.0) -> BatchSchedule:
        """Batch sizes and lengths times a factor; each product must be whole (a batch is never rounded)."""
        batch, tokens = valid_factor("batch", batch), valid_factor("tokens", tokens)
        scaled = [
            BatchStage(
                whole_tokens("tokens", stage.tokens * tokens),
                whole_tokens("batch_tokens", stage.batch_tokens * batch),
            )
            for stage in self.stages
        ]
        return BatchSchedule(tuple(scaled))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"stages": [asdict(stage) for stage in self.stages]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BatchSchedule:
        """Inverse of :meth:`to_dict`.

        Raises:
            SchemaError: a key is missing or unknown.
            InvalidValueError: a value that cannot be.
        """
        check_keys("batch schedule", data, {"stages"})
        if not isinstance(data["stages"], list | tuple):
            raise InvalidValueError("stages", data["stages"], "must be a list of stages")
        for stage in data["stages"]:
            check_keys("batch stage", stage, {"tokens", "batch_tokens"})
        return cls(tuple(BatchStage(**stage) for stage in data["stages"]))


def _joined(stages: tuple[BatchStage, ...]) -> tuple[BatchStage, ...]:
    groups = groupby(stages, key=lambda stage: stage.batch_tokens)
    return tuple(BatchStage(sum(stage.tokens for stage in group), batch) for batch, group in groups)


def constant_batch(tokens: int, batch_tokens: int) -> BatchSchedule:
    """One batch size throughout."""
    return BatchSchedule((BatchStage(tokens, batch_tokens),))


def batch_ramp(tokens: int, *, start: int, end: int, increment: int, ramp_tokens: int) -> BatchSchedule:
    """Grow the batch from ``start`` to ``end`` in equal increments over ``ramp_tokens``, then stay.

    The rule of Megatron-LM's ``--rampup-batch-size``, in tokens: each batch size before ``end`` gets an equal
    share of the ramp, made up to whole steps of that batch.

    Args:
        tokens: length of the whole run.
        start: first batch size in tokens.
        end: last batch size in tokens.
        increment: tokens by which the batch grows.
        ramp_tokens: tokens over which it grows.

    Raises:
        InvalidValueError: ``end`` is not reached in whole increments, or not within ``tokens``.
    """
    whole_tokens("start", start), whole_tokens("end", end), whole_tokens("increment", increment)
    if end <= start or (end - start) % increment:
        raise InvalidValueError("increment", increment, f"must divide the way from {start} to {end}")
    sizes = range(start, end, increment)
    share = -(-whole_tokens("ramp_tokens", ramp_tokens) // len(sizes))
    stages = [BatchStage(-(-share // size) * size, size) for size in sizes]
    rest = whole_tokens("tokens", tokens) - sum(stage.tokens for stage in stages)
    if rest <= 0:
        raise InvalidValueError("ramp_tokens", ramp_tokens, f"must end before the run does ({tokens} tokens)")
    return BatchSchedule((*stages, BatchStage(rest, end)))
