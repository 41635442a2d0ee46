"""What a decay law gets wrong of a shape of the decay that no run has, as held-out shapes tell.

All decays of one shape share what the law's annealing term gets wrong of it. So the error of a held-out shape is a
share of the annealing gain that its runs have in common, beside what the law gets wrong of each of them. On published
records and on own proxies that share was a twentieth (``analysis/LOG.md``), which counts as one held-out shape more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self, cast

import numpy as np
import pandas as pd

from decaylaws.laws.decay.baselines import DecayPredictor
from decaylaws.laws.decay.inputs import CONSTANT, final_losses
from decaylaws.laws.decay.law import DecayLaw
from decaylaws.laws.decay.misfit import USUAL_SHAPE_ERROR
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.rolling import BoolArray

_LEAST_SHARE = 0.4  # of the runs that must be left: most runs hold the shape that a fit cannot do without
# from the median absolute deviation of n values to sqrt(n) times the standard deviation of their median
_FROM_MAD = 1.4826 * 1.2533


@dataclass(frozen=True)
class HeldOutShape:
    """Errors on the decays of one shape, predicted by a fit to those of all others.

    Attributes:
        shape: its name.
        num_runs: decays of it.
        mae: mean absolute error over runs and domains, nats per token.
        bias: mean of predicted minus observed.
        share: median over runs and domains of that error as a share of the annealing gain.
        share_sd: its standard error.
    """

    shape: str
    num_runs: int
    mae: float
    bias: float
    share: float
    share_sd: float

    @classmethod
    def of(cls, shape: str, errors: Array, gains: Array) -> Self:
        """From errors and predicted annealing gains of its runs ``[n, d]``, nats per token."""
        shares = (errors / np.maximum(gains, np.finfo(float).tiny)).ravel()
        middle = float(np.median(shares))
        spread = float(np.median(np.abs(shares - middle)))
        return cls(
            shape, len(errors), float(np.abs(errors).mean()), float(errors.mean()),
            middle, _FROM_MAD * spread / float(np.sqrt(len(errors))),
        )  # fmt: skip


@dataclass(frozen=True)
class ShapeReach:
    """What is known of shapes that no run has.

    Attributes:
        seen: shapes of the runs whose LR falls.
        held_out: errors on those that could be held out.
    """

    seen: tuple[str, ...] = ()
    held_out: tuple[HeldOutShape, ...] = ()

    @property
    def share(self) -> float:
        """Standard deviation of the error at an unseen shape as a share of the annealing gain."""
        squares, total = USUAL_SHAPE_ERROR**2, 1.0
        for each in self.held_out:
            # noise says nothing either way
            known = USUAL_SHAPE_ERROR**2 / (USUAL_SHAPE_ERROR**2 + each.share_sd**2)
            squares += known * max(each.share**2 - each.share_sd**2, 0.0)
            total += known
        return float(np.sqrt(squares / total))

    def sentences(self) -> list[str]:
        """What held-out shapes say, or which run would tell."""
        if not self.seen:
            return []
        if not self.held_out:
            known = (
                f"All decays have the shape {self.seen[0]}, so nothing in these runs tells how far the law errs at "
                "another shape."
                if len(self.seen) == 1
                else f"No shape of the decay could be held out ({', '.join(self.seen)}): the runs of other shapes are "
                "too few, or a law that is fitted to them cannot predict it."
            )
            other = next(name for name in ("1-sqrt", "linear", "cosine") if name not in self.seen[:1])
            return [
                f"{known} A decay of the control with the shape {other} at the longest length would tell."
            ]
        found = []
        for each in self.held_out:
            side = "too high" if each.bias > 0 else "too low"
            runs = "1 decay" if each.num_runs == 1 else f"{each.num_runs} decays"
            found.append(
                f"Predicted from decays of other shapes, the {runs} of shape {each.shape} are off by {each.mae:.4f} "
                f"nats, on average {abs(each.bias):.4f} nats {side}."
            )
        return found

    def beyond(self, shape: str) -> list[str]:
        """What there is to say of a decay of this shape; nothing where runs have it or its LR does not fall."""
        if not self.seen or shape in (*self.seen, CONSTANT):
            return []
        known = (
            "as held-out shapes show"
            if self.held_out
            else "as on published records, since no shape could be held out"
        )
        return [
            f"No run has the shape {shape}; the runs have {', '.join(self.seen)}. Intervals allow for an error of "
            f"{100 * self.share:.1f} % of the annealing gain, {known}."
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`."""
        return cls(tuple(values["seen"]), tuple(HeldOutShape(**each) for each in values["held_out"]))


def held_out_masks(runs: pd.DataFrame, least_runs: int) -> dict[str, BoolArray]:
    """By shape, the decays ``[n]`` to hold out together; a fit to the others must keep two fifths of all runs.

    Args:
        runs: finished decays.
        least_runs: of a fit.
    """
    shapes = runs["decay_shape"].astype(str).to_numpy()
    masks = {name: shapes == name for name in falling_shapes(runs)}
    least = max(least_runs, int(np.ceil(_LEAST_SHARE * len(runs))))
    return {name: mask for name, mask in masks.items() if len(masks) > 1 and (~mask).sum() >= least}


def falling_shapes(runs: pd.DataFrame) -> tuple[str, ...]:
    """Shapes of the decays whose LR falls."""
    return tuple(sorted(set(runs["decay_shape"].astype(str)) - {CONSTANT}))


def held_out_shape(
    make: Callable[[], DecayPredictor], runs: pd.DataFrame, shape: str, mask: BoolArray
) -> HeldOutShape:
    """Fit the decays of other shapes and predict those of this one.

    Args:
        make: makes the unfitted decay law.
        runs: finished decays.
        shape: the name of the shape.
        mask: its decays ``[n]``.
    """
    law = cast(DecayLaw, make().fit(runs[~mask]))
    inputs = law.inputs(runs[mask])
    errors = law.loss(inputs) - final_losses(runs[mask], law.domains_)
    return HeldOutShape.of(shape, errors, law.annealing_gain(inputs))
