"""Loss curves and what a schedule law sees of their schedules.

A law needs three things of a schedule: the LR integral up to each evaluation (*progress*), the LR at the
plateau, and every later drop of the LR with the time and the progress that have passed since. A drop is found
at O(segments) cells, cut so that no cell straddles an evaluation: the cost of a prediction does not grow with
the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.law import Array
from decaylaws.schedules import Schedule, Segment

_CELLS = 64  # uniform cells of a segment; the error of the response is of second order in their width
_DROP = 0.01  # of the peak LR: a smaller fall between two logged steps is part of a slope
_HALVINGS = 24  # geometric cells towards an evaluation: response times of 1e-7 segments are still resolved
_MAX_GRADED = 8  # evaluations that get geometric cells; more of them cut the segment finely enough themselves


@dataclass(frozen=True)
class LossCurve:
    """Losses of one run under one schedule, or (without losses) a question to a law.

    Attributes:
        run_id: name of the run; curves of one run share their noise.
        schedule: LR over tokens, warm-up included.
        tokens: tokens consumed at each evaluation, increasing, shape ``[n]``.
        loss: nats per token at each evaluation, shape ``[n]``; None for a question.
        model: name of the model that the curve belongs to; levels are fitted per model, kernels are shared.
        params: its non-embedding parameters, where sizes are to be related.

    Raises:
        InvalidValueError: tokens unsorted or beyond the schedule, losses missing, NaN or not positive, or no
            evaluation after the warm-up.
    """

    run_id: str
    schedule: Schedule
    tokens: Array = field(repr=False)
    loss: Array | None = field(default=None, repr=False)
    model: str = "model"
    params: float | None = None

    def __post_init__(self) -> None:
        tokens = np.atleast_1d(np.asarray(self.tokens, dtype=float))
        object.__setattr__(self, "tokens", tokens)
        self._check_tokens(tokens)
        if self.params is not None and not self.params > 0:
            raise InvalidValueError("params", self.params, "must be positive")
        if self.loss is not None:
            loss = np.atleast_1d(np.asarray(self.loss, dtype=float))
            object.__setattr__(self, "loss", loss)
            self._check_loss(loss)

    def _check_tokens(self, tokens: Array) -> None:
        where = f"tokens of run {self.run_id}"
        if len(tokens) == 0 or not np.isfinite(tokens).all():
            raise InvalidValueError(where, tokens.tolist(), "must be finite and not empty")
        if (np.diff(tokens) <= 0).any():
            first = int(np.argmax(np.diff(tokens) <= 0))
            raise InvalidValueError(
                where, tokens[first : first + 2].tolist(), "must increase", "Sort the evaluations by step."
            )
        if tokens[0] < 0 or tokens[-1] > self.schedule.tokens:
            raise InvalidValueError(
                where,
                (tokens[0], tokens[-1]),
                f"must lie within the schedule's {self.schedule.tokens} tokens",
            )
        warmup = warmup_tokens(self.schedule)
        if self.loss is not None and tokens[-1] <= warmup:
            raise InvalidValueError(
                where, tokens[-1], f"must reach beyond the warm-up of {warmup} tokens", "Train longer."
            )

    def _check_loss(self, loss: Array) -> None:
        where = f"loss of run {self.run_id}"
        if loss.shape != self.tokens.shape:
            raise InvalidValueError(
                where, loss.shape, f"must have the shape of the tokens, {self.tokens.shape}"
            )
        bad = ~(np.isfinite(loss) & (loss > 0))
        if bad.any():
            at = self.tokens[bad][0]
            raise InvalidValueError(
                where,
                float(loss[bad][0]),
                f"must be finite and positive (at {at:.0f} tokens)",
                "Leave the run out.",
            )

    @property
    def observed(self) -> Array:
        """The losses ``[n]``, which a curve that is only a question does not have."""
        if self.loss is None:
            raise InvalidValueError(f"loss of run {self.run_id}", None, "must be given")
        return self.loss

    def select(self, keep: NDArray[Any]) -> LossCurve:
        """The curve at some of its evaluations: booleans ``[n]`` or increasing indices."""
        loss = None if self.loss is None else self.loss[keep]
        return LossCurve(self.run_id, self.schedule, self.tokens[keep], loss, self.model, self.params)


@dataclass(frozen=True, eq=False)
class LrPath:
    """A schedule as a law sees it; tokens and LR in units of a reference. Equal and hashed by identity.

    Attributes:
        progress: LR integral at each evaluation, shape ``[n]``.
        plateau_lr: LR at the end of the warm-up.
        drops: fall of the LR in each cell (negative where it rises again), shape ``[c]``.
        drop_lr: LR in the cell (after a jump: the LR that it leads to), shape ``[c]``.
        drop_progress: LR integral at the cell, shape ``[c]``.
        drop_tokens: length of the cell, 0 for a jump, shape ``[c]``.
        elapsed: tokens since the cell at each evaluation, 0 before it, shape ``[n, c]``.
        gained: LR integral since the cell at each evaluation, 0 before it, shape ``[n, c]``.
    """

    progress: Array
    plateau_lr: float
    drops: Array
    drop_lr: Array
    drop_progress: Array
    drop_tokens: Array
    elapsed: Array
    gained: Array


def warmup_tokens(schedule: Schedule) -> int:
    """Tokens until the LR stops rising for the first time."""
    done, previous = 0, 0.0
    for segment in schedule:
        rising = 0 if segment.start_lr < previous else _rising_tokens(segment)
        done, previous = done + rising, segment.end_lr
        if rising < segment.tokens:
            return done
    return done


def _rising_tokens(segment: Segment) -> int:
    """Tokens from a segment's start to the highest LR before it first falls; a logged LR rises step by step."""
    at = np.concatenate([[0], segment.breakpoints(), [segment.tokens]])
    lrs = np.append(segment.lr(at[:-1]), segment.end_lr)
    falls = np.flatnonzero(np.diff(lrs) < 0)
    return int(at[np.argmax(lrs[: falls[0] + 1] if len(falls) else lrs)])


def lr_path(
    schedule: Schedule, tokens: ArrayLike, *, lr_unit: float = 1.0, token_unit: float = 1.0
) -> LrPath:
    """Features of a schedule at evaluations.

    Args:
        schedule: LR over tokens.
        tokens: evaluations, increasing, shape ``[n]``.
        lr_unit: LR that counts as one.
        token_unit: tokens that count as one.
    """
    at = np.atleast_1d(np.asarray(tokens, dtype=float))
    position, width, drops, lr = _cells(schedule, at)
    progress = _integrals(schedule, np.concatenate([at, position])) / (lr_unit * token_unit)
    own, theirs = progress[: len(at)], progress[len(at) :]
    risen = np.flatnonzero(drops > 0)
    first = int(risen[0]) if len(risen) else len(drops)
    plateau = schedule.start_lr - float(drops[:first].sum())
    return LrPath(
        progress=own,
        plateau_lr=plateau / lr_unit,
        drops=drops[first:] / lr_unit,
        drop_lr=lr[first:] / lr_unit,
        drop_progress=theirs[first:],
        drop_tokens=width[first:] / token_unit,
        elapsed=np.maximum(at[:, None] - position[None, first:], 0) / token_unit,
        gained=np.maximum(own[:, None] - theirs[None, first:], 0),
    )


def knot_path(tokens: Array, lrs: Array, *, lr_unit: float = 1.0, token_unit: float = 1.0) -> LrPath:
    """Features at the end of a curve that is linear between knots; many times faster than through a schedule.

    Args:
        tokens: positions of the knots from 0 to the end, shape ``[k]``.
        lrs: LR at the knots, a rise to the plateau first and no rise after it, shape ``[k]``.
        lr_unit: LR that counts as one.
        token_unit: tokens that count as one.
    """
    widths, middle = np.diff(tokens), 0.5 * (lrs[:-1] + lrs[1:])
    areas = widths * middle
    ends = np.cumsum(areas)
    first = int(np.argmax(lrs))
    at_cell = (ends - areas + 0.25 * widths * (lrs[:-1] + middle))[first:] / (lr_unit * token_unit)
    total = ends[-1:] / (lr_unit * token_unit)
    position = 0.5 * (tokens[:-1] + tokens[1:])[first:]
    return LrPath(
        progress=total,
        plateau_lr=lrs[first] / lr_unit,
        drops=(lrs[:-1] - lrs[1:])[first:] / lr_unit,
        drop_lr=middle[first:] / lr_unit,
        drop_progress=at_cell,
        drop_tokens=widths[first:] / token_unit,
        elapsed=(tokens[-1] - position)[None, :] / token_unit,
        gained=(total - at_cell)[None, :],
    )


def _cells(schedule: Schedule, at: Array) -> tuple[Array, Array, Array, Array]:
    """Position, length, fall and LR of every cell in which the LR changes, in order."""
    cells: list[Array] = []
    previous = schedule.start_lr
    for start, segment in _without_drops_inside(schedule):
        if segment.start_lr != previous:
            cells.append(np.array([[start, 0.0, previous - segment.start_lr, segment.start_lr]]))
        if not _is_flat(segment):
            edges = _edges(segment.tokens, at - start)
            values = np.append(segment.lr(edges[:-1]), segment.end_lr)
            middle = start + 0.5 * (edges[:-1] + edges[1:])
            falls, levels = values[:-1] - values[1:], 0.5 * (values[:-1] + values[1:])
            cells.append(np.column_stack([middle, np.diff(edges), falls, levels]))
        previous = segment.end_lr
    position, width, drops, lr = np.concatenate(cells).T if cells else np.empty((4, 0))
    return position, width, drops, lr


def _without_drops_inside(schedule: Schedule) -> Iterator[tuple[int, Segment]]:
    """Where each segment begins, and the segment; logged LRs are cut where they drop, for a cell would smear it."""
    least = _DROP * schedule.peak_lr
    for start, segment in zip(schedule.boundaries[:-1].tolist(), schedule):
        cuts = segment.drops(least)
        if len(cuts) > _CELLS:
            cuts = cuts[:0]  # a staircase of so many steps is a slope
        for first, last in pairwise([0, *cuts.tolist(), segment.tokens]):
            yield start + first, segment.cut(first, last)


def _is_flat(segment: Segment) -> bool:
    return segment.shape == "constant" or (
        segment.shape == "sampled" and segment.start_lr == segment.end_lr and not len(segment.breakpoints())
    )


def _edges(length: int, at: Array) -> Array:
    """Cell edges of a segment: uniform, fine at its start, cut at evaluations, graded towards few of them."""
    halvings = 0.5 ** np.arange(1, _HALVINGS)
    inside = at[(at > 0) & (at <= length)]
    parts = [np.linspace(0, length, _CELLS + 1), length / _CELLS * halvings[:8], inside]
    if len(inside) <= _MAX_GRADED:
        ends = inside if len(inside) else np.array([float(length)])
        parts.extend(end - end * halvings for end in ends)
    edges = np.unique(np.concatenate(parts))
    return edges[np.concatenate([[True], np.diff(edges) > 1e-12 * length])]


def _integrals(schedule: Schedule, positions: Array) -> Array:
    """LR integral from 0 to every position."""
    edges, index = np.unique(np.concatenate([[0.0], positions]), return_inverse=True)
    if len(edges) == 1:
        return np.zeros(len(positions))
    sums = np.concatenate([[0.0], np.cumsum(schedule.mean_lrs(edges) * np.diff(edges))])
    return sums[index][1:]


def reference_units(curves: Sequence[LossCurve]) -> tuple[float, float]:
    """LR and tokens that count as one for a set of curves: their highest LR and their longest horizon."""
    return max(curve.schedule.peak_lr for curve in curves), max(float(curve.tokens[-1]) for curve in curves)
