"""The learning rate over a training run, as a function of tokens.

::

      LR |      .--------------------.
         |    .'                      '.
         |  .'                          '.
         |.'                              '.
         +------+--------------------+------+--> tokens
          warmup        stable         decay

A :class:`Schedule` is a tuple of segments and nothing else: warm-up-stable-decay, cosine, cycles and
multi-step are functions that return one (:mod:`decaylaws.schedules.constructors`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from decaylaws.errors import InvalidValueError
from decaylaws.schedules.batch import BatchSchedule
from decaylaws.schedules.checks import check_keys, valid_factor, whole_tokens
from decaylaws.schedules.segment import Segment
from decaylaws.schedules.shapes import Array
from decaylaws.schedules.stages import stages_of


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule over tokens; frozen, so every method returns a new one.

    The LR of an optimiser step is the **mean of the schedule over the tokens that the step consumes**. So the
    sum over steps equals the integral for any batch size, the first step of a warm-up is not wasted at 0 and
    the last step of a decay is not wasted at the floor.

    Neighbours that continue one curve (equal constants, two pieces of one cosine) are one segment: a schedule
    that was cut and joined, or built another way, is equal to the one built at once.

    Args:
        segments: at least one.

    Raises:
        InvalidValueError: no segments, or something that is none.
    """

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        segments = tuple(self.segments)
        if not segments or not all(isinstance(segment, Segment) for segment in segments):
            raise InvalidValueError("segments", self.segments, "must be one Segment or more")
        whole_tokens("tokens", sum(segment.tokens for segment in segments))
        object.__setattr__(self, "segments", _joined(segments))

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)

    def __str__(self) -> str:
        """The arrow notation; :func:`decaylaws.schedules.parse_schedule` gives the very same schedule back."""
        return " -> ".join(map(str, stages_of(self.segments)))

    def __add__(self, other: Schedule) -> Schedule:
        return self.then(other)

    # What it is ------------------------------------------------------------------------------------------

    @cached_property
    def boundaries(self) -> npt.NDArray[np.int64]:
        """[segments + 1] tokens at which segments begin, from 0 to the end."""
        return np.cumsum([0, *(segment.tokens for segment in self.segments)], dtype=np.int64)

    @property
    def tokens(self) -> int:
        """Length."""
        return int(self.boundaries[-1])

    @property
    def start_lr(self) -> float:
        """LR at the first token."""
        return self.segments[0].start_lr

    @property
    def end_lr(self) -> float:
        """LR that the last token arrives at."""
        return self.segments[-1].end_lr

    @property
    def peak_lr(self) -> float:
        """Highest LR."""
        return max(segment.peak_lr for segment in self.segments)

    def lr(self, tokens: npt.ArrayLike) -> Array:
        """LR at positions, same shape as ``tokens``; at a jump, the LR after it.

        Raises:
            InvalidValueError: a position outside [0, length].
        """
        at = np.asarray(tokens, dtype=np.float64)
        if at.size and not (at.min() >= 0.0 and at.max() <= self.tokens):
            raise InvalidValueError("tokens", tokens, f"must lie within the schedule, 0 to {self.tokens}")
        flat = at.ravel()
        order = np.argsort(flat, kind="stable")
        out = np.empty_like(flat)
        out[order] = self._mean_lr(flat[order], flat[order])
        return out.reshape(at.shape)[()]

    def integral(self, a: float = 0, b: float | None = None) -> float:
        """LR summed over the tokens from ``a`` to ``b`` (the end if None); exact, in LR x tokens."""
        last = self.tokens if b is None else b
        if not 0 <= a <= last <= self.tokens:
            raise InvalidValueError("a, b", (a, b), f"must be in order and within 0 to {self.tokens}")
        edges = self._split_at_breakpoints(np.array([a, last], dtype=np.float64))
        return float(np.sum(self._mean_lr(edges[:-1], edges[1:]) * np.diff(edges)))

    # As steps --------------------------------------------------------------------------------------------

    def step_edges(self, batch_tokens: int | BatchSchedule) -> npt.NDArray[np.int64]:
        """[steps + 1] tokens at which optimiser steps begin, and the end; the last step may be shorter.

        Args:
            batch_tokens: tokens of one step, or a batch-size schedule of the same length.
        """
        if isinstance(batch_tokens, BatchSchedule):
            if batch_tokens.tokens != self.tokens:
                raise InvalidValueError(
                    "batch_tokens",
                    batch_tokens.tokens,
                    f"must be as long as the schedule ({self.tokens} tokens)",
                )
            return batch_tokens.step_edges()
        step = whole_tokens("batch_tokens", batch_tokens)
        edges = np.arange(-(-self.tokens // step) + 1, dtype=np.int64) * step
        edges[-1] = self.tokens
        return edges

    def step_lrs(self, batch_tokens: int | BatchSchedule) -> Array:
        """[steps] mean LR over the tokens of each step; ceil(tokens / batch_tokens) steps."""
        return self.mean_lrs(self.step_edges(batch_tokens))

    def step_ranges(self, batch_tokens: int | BatchSchedule) -> tuple[Array, Array]:
        """[steps] lowest and [steps] highest LR that the path has within each step, both sides of a jump included."""
        edges = self.step_edges(batch_tokens).astype(np.float64)
        points = self._split_at_breakpoints(edges)
        # between two neighbours the path runs one way, so that its ends are its extremes
        first, last = self.lr(points[:-1]), self.lr(np.nextafter(points[1:], 0.0))
        steps = np.searchsorted(points, edges[:-1])
        return (
            np.minimum.reduceat(np.minimum(first, last), steps),
            np.maximum.reduceat(np.maximum(first, last), steps),
        )

    def mean_lrs(self, edges: npt.ArrayLike) -> Array:
        """[n - 1] mean LR between neighbours among n increasing positions."""
        outer = np.asarray(edges, dtype=np.float64)
        if outer.ndim != 1 or len(outer) < 2 or not (np.diff(outer) > 0).all():
            raise InvalidValueError("edges", edges, "must be two increasing positions or more")
        if outer[0] < 0 or outer[-1] > self.tokens:
            raise InvalidValueError("edges", (outer[0], outer[-1]), f"must lie within 0 to {self.tokens}")
        inner = self._split_at_breakpoints(outer)
        means = self._mean_lr(inner[:-1], inner[1:])
        if len(inner) == len(outer):
            return means
        sums = np.add.reduceat(means * np.diff(inner), np.searchsorted(inner, outer[:-1]))
        return sums / np.diff(outer)

    # Algebra ---------------------------------------------------------------------------------------------

    def then(self, other: Schedule) -> Schedule:
        """This schedule, then the other."""
        return Schedule((*self.segments, *other.segments))

    def between(self, first: int, last: int) -> Schedule:
        """The schedule from one position to another; its tokens count from ``first``."""
        first, last = whole_tokens("first", first, minimum=0), whole_tokens("last", last)
        if not first < last <= self.tokens:
            raise InvalidValueError(
                "first, last", (first, last), f"must be in order and within 0 to {self.tokens}"
            )
        kept = []
        for segment, start in zip(self.segments, self.boundaries.tolist()):
            low, high = max(first - start, 0), min(last - start, segment.tokens)
            if low < high:
                kept.append(segment.cut(low, high))
        return Schedule(tuple(kept))

    def truncate(self, tokens: int) -> Schedule:
        """The first ``tokens`` of it."""
        return self.between(0, tokens)

    def after(self, tokens: int) -> Schedule:
        """All but the first ``tokens`` of it; ``s.truncate(t).then(s.after(t)) == s``."""
        return self.between(tokens, self.tokens)

    def extend(self, tokens: int) -> Schedule:
        """It, then its end LR held for ``tokens`` more."""
        return self.then(Schedule((Segment(tokens, self.end_lr, self.end_lr, "constant"),)))

    def fork(self, at: int, decay: Schedule) -> Schedule:
        """Its first ``at`` tokens, then ``decay`` instead of the rest."""
        return decay if at == 0 else self.truncate(at).then(decay)

    def scale(self, lr: float = 1.0, tokens: float = 1.0) -> Schedule:
        """LRs times ``lr``; the length of each segment times ``tokens``, rounded to whole tokens."""
        lr, tokens = valid_factor("lr", lr), valid_factor("tokens", tokens)
        return Schedule(tuple(segment.scaled(lr, tokens) for segment in self.segments))

    # As data ---------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"segments": [segment.to_dict() for segment in self.segments]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Schedule:
        """Inverse of :meth:`to_dict`.

        Raises:
            SchemaError: a key is missing or unknown.
            InvalidValueError: a value that cannot be.
        """
        check_keys("schedule", data, {"segments"})
        if not isinstance(data["segments"], Sequence) or isinstance(data["segments"], str):
            raise InvalidValueError("segments", data["segments"], "must be a list of segments")
        return cls(tuple(Segment.from_dict(segment) for segment in data["segments"]))

    # Evaluation ------------------------------------------------------------------------------------------

    @cached_property
    def _breakpoints(self) -> Array:
        inner = [
            start + segment.breakpoints() for segment, start in zip(self.segments, self.boundaries.tolist())
        ]
        return np.unique(np.concatenate([self.boundaries, *inner])).astype(np.float64)

    def _split_at_breakpoints(self, edges: Array) -> Array:
        """``edges`` and every breakpoint between the first and the last of them, increasing."""
        corners = self._breakpoints
        low, high = np.searchsorted(corners, edges[0], "right"), np.searchsorted(corners, edges[-1], "left")
        inner = corners[low:high]
        places = np.searchsorted(edges, inner)
        new = edges[places] != inner
        return np.insert(edges, places[new], inner[new])

    def _mean_lr(self, first: Array, last: Array) -> Array:
        """Mean LR over sorted stretches, none with a breakpoint inside it."""
        out = np.empty_like(first)
        # Segment i owns the stretches that begin in [boundary i, boundary i + 1); the last one owns the end.
        limits = np.searchsorted(first, self.boundaries[1:-1], side="left")
        limits = np.concatenate([[0], limits, [len(first)]])
        for segment, start, low, high in zip(self.segments, self.boundaries, limits[:-1], limits[1:]):
            if low < high:
                out[low:high] = segment.mean_lr(first[low:high] - start, last[low:high] - start)
        return out


def _joined(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """Neighbours that continue one curve as one segment."""
    out = [segments[0]]
    for segment in segments[1:]:
        joint = out[-1].joined(segment)
        if joint is None:
            out.append(segment)
        else:
            out[-1] = joint
    return tuple(out)
