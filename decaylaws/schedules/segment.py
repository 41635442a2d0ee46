"""One segment of a schedule: a stretch of tokens, the LR at its two ends, and the way between them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from decaylaws.errors import InvalidValueError
from decaylaws.schedules.checks import (
    LARGEST_LR,
    check_keys,
    finite_lr,
    is_finite_number,
    valid_lr,
    whole_tokens,
)
from decaylaws.schedules.shapes import Array, Stretch, shape_named

# A power law over a factor of e^600 in its argument overflows, and is a jump for all that training sees.
MAX_LOG_STRETCH = 600.0
# Characters that mean something else in the arrow notation.
_NOT_IN_NOTES = set("();\n\N{RIGHTWARDS ARROW}")


@dataclass(frozen=True)
class Segment:
    """LR over a stretch of tokens.

    ``start_lr`` and ``end_lr`` are always the values at the two ends of *this* segment. A piece cut out of a
    longer curve (half a cosine is no cosine) remembers the curve in ``piece_of``, so that cutting and joining
    lose nothing.

    Args:
        tokens: length; at least 1.
        start_lr: LR at the first token.
        end_lr: LR that the last token arrives at.
        shape: name out of :data:`decaylaws.schedules.SHAPES`.
        exponent: p of ``polynomial`` (above 0) and ``power`` (of the sign that leads from start to end).
        knots: ``sampled`` only: (tokens from the segment's start, LR) in order, from 0 to ``tokens``; a
            position may come twice, for a jump.
        note: what changes with the LR, in words: ``"8K->32K"`` for a new sequence length.
        piece_of: the whole curve, for a piece of one.
        offset_tokens: where in ``piece_of`` this piece begins.

    Raises:
        InvalidValueError: a field that cannot be.
    """

    tokens: int
    start_lr: float
    end_lr: float
    shape: str = "linear"
    exponent: float | None = None
    knots: tuple[tuple[int, float], ...] = ()
    note: str = ""
    piece_of: Segment | None = None
    offset_tokens: int = 0

    def __post_init__(self) -> None:
        shape = shape_named(self.shape)
        object.__setattr__(self, "shape", shape.name)
        object.__setattr__(self, "tokens", whole_tokens("tokens", self.tokens))
        checked = valid_lr if self.piece_of is None else finite_lr
        object.__setattr__(self, "start_lr", checked("start_lr", self.start_lr))
        object.__setattr__(self, "end_lr", checked("end_lr", self.end_lr))
        self._check_note()
        if self.piece_of is not None:
            self._check_piece(self.piece_of)
            return
        if self.offset_tokens:
            raise InvalidValueError("offset_tokens", self.offset_tokens, "needs 'piece_of'")
        self._check_ends()
        self._check_exponent()
        self._check_knots()

    def _check_note(self) -> None:
        if not isinstance(self.note, str) or set(self.note) & _NOT_IN_NOTES or self.note != self.note.strip():
            raise InvalidValueError(
                "note",
                self.note,
                "must be one line without parentheses and semicolons",
                "Write -> for arrows.",
            )

    def _check_piece(self, curve: Segment) -> None:
        whole_tokens("offset_tokens", self.offset_tokens, minimum=0)
        last = self.offset_tokens + self.tokens
        if curve.is_piece or (curve.shape, curve.note) != (self.shape, self.note):
            raise InvalidValueError(
                "piece_of", curve, "must be the whole curve, of one shape and note", "Use cut()."
            )
        if last > curve.tokens:
            raise InvalidValueError(
                "tokens", self.tokens, f"reaches beyond the curve ({curve.tokens} tokens)"
            )
        ends = float(curve.lr([self.offset_tokens])[0]), curve.arrival_lr(last)
        if not np.allclose([self.start_lr, self.end_lr], ends, rtol=1e-9, atol=0.0):
            raise InvalidValueError(
                "start_lr, end_lr", (self.start_lr, self.end_lr), "must lie on 'piece_of'", "Use cut()."
            )

    def _check_ends(self) -> None:
        if self.shape == "constant" and self.start_lr != self.end_lr:
            raise InvalidValueError(
                "end_lr", self.end_lr, f"must equal start_lr ({self.start_lr}) in a constant segment"
            )
        if shape_named(self.shape).positive and min(self.start_lr, self.end_lr) <= 0.0:
            raise InvalidValueError(
                "end_lr" if self.start_lr > 0.0 else "start_lr",
                min(self.start_lr, self.end_lr),
                f"must be above zero: a segment of shape '{self.shape}' never reaches zero",
                "Give a floor above zero, or take linear, cosine, 1-sqrt or polynomial.",
            )

    def _check_exponent(self) -> None:
        if not shape_named(self.shape).takes_exponent:
            if self.exponent is not None:
                raise InvalidValueError("exponent", self.exponent, f"has no meaning for shape '{self.shape}'")
            return
        if not is_finite_number(self.exponent) or self.exponent == 0.0:
            raise InvalidValueError(
                "exponent", self.exponent, f"must be a number other than 0 for shape '{self.shape}'"
            )
        if self.shape == "polynomial" and self.exponent < 0.0:
            raise InvalidValueError("exponent", self.exponent, "must be above zero for shape 'polynomial'")
        if self.shape == "power":
            self._check_power(self.exponent)

    def _check_power(self, exponent: float) -> None:
        way = f"to lead from {self.start_lr} to {self.end_lr}"
        if (self.end_lr - self.start_lr) * exponent < 0.0:
            sign = "below" if self.end_lr < self.start_lr else "above"
            raise InvalidValueError("exponent", exponent, f"must be {sign} zero {way}")
        if math.log(self.end_lr / self.start_lr) / exponent > MAX_LOG_STRETCH:
            raise InvalidValueError(
                "exponent", exponent, f"is too near zero {way}: the curve would be a jump"
            )

    def _check_knots(self) -> None:
        if self.shape != "sampled":
            if self.knots:
                raise InvalidValueError("knots", self.knots, f"have no meaning for shape '{self.shape}'")
            return
        if len(self.knots) < 2 or any(len(knot) != 2 for knot in self.knots):
            raise InvalidValueError("knots", self.knots, "must be (tokens, LR) pairs, two or more")
        points = np.asarray(self.knots, dtype=np.float64)
        wrong = ~np.isfinite(points).all(axis=1) | (points < 0).any(axis=1) | (points[:, 0] % 1 != 0)
        wrong |= points[:, 1] > LARGEST_LR
        if wrong.any():
            bad = tuple(points[np.argmax(wrong)].tolist())
            raise InvalidValueError("knots", bad, "must hold whole tokens and LRs from 0 to 1e6")
        positions = points[:, 0]
        if positions[0] != 0 or positions[-1] != self.tokens:
            raise InvalidValueError(
                "knots", (positions[0], positions[-1]), f"must run from 0 to {self.tokens}"
            )
        steps = np.diff(positions)
        if (steps < 0).any() or not steps[0] or not steps[-1]:
            raise InvalidValueError("knots", "positions", "must go forward, without a jump at either end")
        if (points[0, 1], points[-1, 1]) != (self.start_lr, self.end_lr):
            raise InvalidValueError("knots", self.knots[0], "must begin at start_lr and end at end_lr")
        knots = tuple(zip(positions.astype(np.int64).tolist(), points[:, 1].tolist()))
        object.__setattr__(self, "knots", knots)

    @property
    def peak_lr(self) -> float:
        """Highest LR of the segment; every shape but ``sampled`` runs one way from end to end."""
        inner = [lr for at, lr in self._curve.knots if 0 <= at - self.offset_tokens <= self.tokens]
        return max(self.start_lr, self.end_lr, *inner)

    @property
    def is_piece(self) -> bool:
        """Whether this is a piece of a longer curve, not the whole of one."""
        return self.piece_of is not None

    @property
    def _curve(self) -> Segment:
        return self if self.piece_of is None else self.piece_of

    def breakpoints(self) -> npt.NDArray[np.int64]:
        """Inner positions (tokens from the segment's start) where the curve has a corner or a jump."""
        inner = {at - self.offset_tokens for at, _ in self._curve.knots}
        return np.array(sorted(at for at in inner if 0 < at < self.tokens), dtype=np.int64)

    def drops(self, least: float) -> npt.NDArray[np.int64]:
        """Inner positions at which the LR jumps down by more than ``least``; only a ``sampled`` curve has any."""
        if self.shape != "sampled":
            return np.empty(0, dtype=np.int64)
        positions, values = self._curve._knot_arrays
        falls = (np.diff(positions) == 0) & (-np.diff(values) > least)
        at = positions[:-1][falls].astype(np.int64) - self.offset_tokens
        return at[(at > 0) & (at < self.tokens)]

    def lr(self, at: npt.ArrayLike) -> Array:
        """LR at positions ``at`` (tokens from the segment's start); at a jump, the LR after it."""
        positions = np.asarray(at, dtype=np.float64)
        return self.mean_lr(positions, positions)

    def arrival_lr(self, at: int) -> float:
        """LR that the tokens before ``at`` arrive at: at a jump, the LR before it."""
        position = np.array([at + self.offset_tokens], dtype=np.float64)
        if self.shape == "sampled":
            return float(self._curve._at_knots(position, before=True)[0])
        return float(self.lr([at])[0])

    def mean_lr(self, first: Array, last: Array) -> Array:
        """Mean LR over each stretch ``[first, last]`` of tokens; none may hold a breakpoint inside it."""
        curve = self._curve
        first, last = first + self.offset_tokens, last + self.offset_tokens
        if curve.shape == "sampled":
            return curve._at_knots((first + last) / 2.0)
        stretch = Stretch(first, last, curve.tokens)
        return shape_named(curve.shape).mean(stretch, curve.start_lr, curve.end_lr, curve.exponent or 0.0)

    @cached_property
    def _knot_arrays(self) -> tuple[Array, Array]:
        points = np.asarray(self.knots, dtype=np.float64)
        return points[:, 0], points[:, 1]

    def _at_knots(self, at: Array, *, before: bool = False) -> Array:
        """Straight lines between knots; at a jump the value after it, or before it."""
        positions, values = self._knot_arrays
        left = np.searchsorted(positions, at, side="left" if before else "right") - 1
        left = np.clip(left, 0, len(positions) - 2)
        share = (at - positions[left]) / (positions[left + 1] - positions[left])
        return values[left] * (1.0 - share) + values[left + 1] * share

    def cut(self, first: int, last: int) -> Segment:
        """The piece between two positions (tokens from the segment's start), on the very same curve."""
        if not 0 <= first < last <= self.tokens:
            raise InvalidValueError(
                "first, last", (first, last), f"must be in order and within 0 to {self.tokens}"
            )
        if first == 0 and last == self.tokens:
            return self
        if self.shape == "constant":
            return replace(self, tokens=last - first)
        curve, offset = self._curve, self.offset_tokens + first
        start_lr, end_lr = float(self.lr([first])[0]), self.arrival_lr(last)
        piece = (last - first, start_lr, end_lr, self.shape)
        return Segment(*piece, note=self.note, piece_of=curve, offset_tokens=offset)

    def standalone(self) -> Segment:
        """The same LRs without ``piece_of``, where the shape allows it: a piece of a straight line is one.

        Itself, for a whole curve and for a piece that no curve of its shape runs through (half a cosine).
        """
        if self.piece_of is None or not shape_named(self.shape).closed:
            return self
        ends = (self.tokens, self.start_lr, self.end_lr)
        return Segment(*ends, self.shape, self.piece_of.exponent, note=self.note)

    def joined(self, other: Segment) -> Segment | None:
        """The one segment that this and the next make up, where they continue one curve; else None."""
        if self.note != other.note or self.shape != other.shape:
            return None
        if self.shape == "constant":
            same = self.start_lr == other.start_lr
            return replace(self, tokens=self.tokens + other.tokens) if same else None
        tokens = self.tokens + other.tokens
        follows = self.is_piece and self.offset_tokens + self.tokens == other.offset_tokens
        if not follows or self.piece_of != other.piece_of:
            return None
        if tokens == self._curve.tokens:
            return self._curve
        return replace(self, tokens=tokens, end_lr=other.end_lr)

    def scaled(self, lr: float, tokens: float) -> Segment:
        """LRs times ``lr``, lengths times ``tokens`` (rounded to whole tokens)."""
        # Exact, also where the product of an integer and a float would not be.
        factor = Fraction(tokens)
        offset = round(self.offset_tokens * factor)
        length = whole_tokens("tokens", round((self.offset_tokens + self.tokens) * factor) - offset)
        if self.piece_of is not None:
            return self.piece_of.scaled(lr, tokens).cut(offset, offset + length)
        knots = tuple((round(at * factor), value * lr) for at, value in self.knots)
        return replace(self, tokens=length, start_lr=self.start_lr * lr, end_lr=self.end_lr * lr, knots=knots)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; fields at their defaults are left out."""
        out: dict[str, Any] = {"tokens": self.tokens, "start_lr": self.start_lr, "end_lr": self.end_lr}
        out["shape"] = self.shape
        if self.exponent is not None:
            out["exponent"] = self.exponent
        if self.knots:
            out["knots"] = [list(knot) for knot in self.knots]
        if self.note:
            out["note"] = self.note
        if self.piece_of is not None:
            out |= {"piece_of": self.piece_of.to_dict(), "offset_tokens": self.offset_tokens}
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Segment:
        """Inverse of :meth:`to_dict`.

        Raises:
            SchemaError: a key is missing or unknown.
            InvalidValueError: a value that cannot be.
        """
        required = {"tokens", "start_lr", "end_lr"}
        check_keys("schedule segment", data, required, set(cls.__dataclass_fields__) - required)
        fields = dict(data)
        if "knots" in fields:
            fields["knots"] = _pairs(fields["knots"])
        if fields.get("piece_of") is not None:
            fields["piece_of"] = cls.from_dict(fields["piece_of"])
        return cls(**fields)


def _pairs(knots: Any) -> tuple[Any, ...]:
    try:
        return tuple(map(tuple, knots))
    except TypeError:
        raise InvalidValueError("knots", knots, "must be a list of (tokens, LR) pairs") from None
