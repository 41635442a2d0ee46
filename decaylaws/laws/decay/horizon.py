"""How far a study's decay law is to be believed: errors by distance in size, length, compute and mixture, and by shape.

Sizes, lengths and compute are asked by rolling origins (:mod:`decaylaws.laws.kit.rolling`), mixtures by the runs that
were held out with all of their mixture, shapes by holding out all decays of one (module ``shapes``). Copying the
nearest run is asked the same, as the least that a law has to beat.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import numpy as np
import pandas as pd

from decaylaws.errors import DecaylawsError
from decaylaws.laws.decay.baselines import DecayPredictor, NearestRun
from decaylaws.laws.decay.inputs import final_losses, mixture_groups, plain_shares
from decaylaws.laws.decay.shapes import (
    HeldOutShape,
    ShapeReach,
    falling_shapes,
    held_out_masks,
    held_out_shape,
)
from decaylaws.laws.kit.horizon import LEAST_STEPS, Horizon, Reach
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.nearest import NEAREST
from decaylaws.laws.kit.rolling import BoolArray, rolled, rolling_origins, steps_of
from decaylaws.progress import Progress, silent
from decaylaws.runs.table import LOSS, MIX, names_with

HORIZON_STAGE = "rolling origins"
"""What progress calls the fits to smaller and shorter runs."""

AXES = {"size": "parameters", "tokens": "decay tokens", "compute": "FLOPs of the decay"}
"""Axes of the horizon and their units in words."""

_FITS = 2  # of each axis
_LEAST_RUNS = 6  # of a fit: four is the fewest that the law takes at all
_ERRORS = ["law", "axis", "last", "reached", "factor", "num_runs", "mae", "bias"]


@dataclass(frozen=True)
class MixtureReach:
    """Held-out error by the distance of a mixture from the nearest fitted one.

    Attributes:
        farthest: largest total-variation distance of a held-out run from the runs that its fit saw.
        near: mean absolute error of the nearer half of them, nats per token.
        far: of the farther half.
        num_runs: held-out runs.
    """

    farthest: float = 0.0
    near: float = float("nan")
    far: float = float("nan")
    num_runs: int = 0


@dataclass(frozen=True)
class Trust:
    """How far a fit is to be believed.

    Attributes:
        horizon: along size, tokens and compute.
        mixture: away from the fitted mixtures.
        errors: one row per law (the decay law, and copying the nearest run) and origin: ``axis``, ``last``,
            ``reached``, ``factor``, ``num_runs``, ``mae`` and ``bias`` (nats per token over runs and domains).
        shapes: at shapes of the decay that no run has.
    """

    horizon: Horizon = field(default_factory=Horizon)
    mixture: MixtureReach = field(default_factory=MixtureReach)
    errors: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=_ERRORS))
    shapes: ShapeReach = field(default_factory=ShapeReach)

    def sentences(self, *, without: Collection[str] = ()) -> list[str]:
        """What is known of the error by distance, and which runs would tell what is not.

        Args:
            without: axes that are of no concern, such as the size where the proxy is the target.
        """
        reaches = [each for each in self.horizon.reaches if each.axis not in without]
        found = [_reach_words(each) for each in reaches if each.axis != "compute" or each.origins]
        if self.mixture.num_runs:
            found.append(
                f"The farthest held-out mixture lies {self.mixture.farthest:.2f} (total variation) from the nearest "
                f"other one. The nearer half of the held-out runs is predicted with an error of "
                f"{self.mixture.near:.4f} nats, the farther half with {self.mixture.far:.4f} nats."
            )
        found += self.shapes.sentences()
        means = (
            self.errors.groupby(["axis", "law"])["mae"].mean().unstack()
            if len(self.errors)
            else pd.DataFrame()
        )
        if {"decay", NEAREST} <= set(means.columns):
            found += [
                f"At more {AXES[str(axis)]} than fitted, copying the nearest run errs less than the law: "
                f"{row[NEAREST]:.4f} against {row['decay']:.4f} nats."
                for axis, row in means.iterrows()
                if row[NEAREST] < row["decay"]
            ]
        return found

    def sentences_at(self, values: Mapping[str, float]) -> list[str]:
        """What is known of the error along the axes on which one planned decay lies beyond the fitted runs.

        Args:
            values: its size, tokens and compute, by axis.
        """
        return [
            _reach_words(each)
            for each in self.horizon.reaches
            if each.axis != "compute" and values.get(each.axis, 0.0) > each.high * (1 + 1e-9)
        ]

    def beyond(self, values: Mapping[str, float], distance: float, shape: str) -> list[str]:
        """Where one planned decay lies farther out than anything that tested the law.

        Args:
            values: its size, tokens and compute, by axis.
            distance: total variation to the nearest fitted mixture.
            shape: of the decay.
        """
        # compute follows from the other two: it is named only where neither of them is
        lies = self.horizon.beyond(values)
        named = [each for each in lies if each.axis != "compute"] or lies
        found = []
        for each in named:
            tested = (
                f"rolling origins tested the law up to {each.factor:.1f} times"
                if each.origins
                else "no rolling origin could test the law there"
            )
            found.append(
                f"{_amount(values[each.axis], each.axis)} is {values[each.axis] / each.high:.1f} times the largest "
                f"fitted value; {tested}."
            )
        if self.mixture.num_runs and distance > self.mixture.farthest + 1e-9:
            found.append(
                f"Its mixture lies {distance:.2f} (total variation) from the nearest fitted one, farther than any that "
                f"was held out ({self.mixture.farthest:.2f})."
            )
        return [*found, *self.shapes.beyond(shape)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what is not known is None."""
        mixture = {name: None if value != value else value for name, value in asdict(self.mixture).items()}
        errors = self.errors.astype(object).where(self.errors.notna(), None)
        return {
            "reaches": self.horizon.to_list(),
            "mixture": mixture,
            "shapes": self.shapes.to_dict(),
            "errors": errors.to_dict("records"),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`; further entries are ignored."""
        stored = values["mixture"]
        mixture: dict[str, Any] = {
            each.name: float("nan") if stored[each.name] is None else stored[each.name]
            for each in fields(MixtureReach)
        }
        errors = pd.DataFrame(values["errors"], columns=_ERRORS)
        shapes = ShapeReach.from_dict(values["shapes"])
        return cls(Horizon.from_list(values["reaches"]), MixtureReach(**mixture), errors, shapes)


def axes_of(runs: pd.DataFrame) -> dict[str, Array]:
    """Values of every decay by axis ``[n]``: parameters, tokens of the decay, and its FLOPs (6 N d)."""
    size = runs["non_embedding_params"].to_numpy(dtype=float)
    tokens = runs["decay_tokens"].to_numpy(dtype=float)
    return {"size": size, "tokens": tokens, "compute": 6.0 * size * tokens}


def measured_trust(
    make: Callable[[], DecayPredictor],
    runs: pd.DataFrame,
    held_out: pd.DataFrame,
    *,
    noise: float = 0.0,
    progress: Progress = silent,
) -> Trust:
    """Fit the smaller and shorter runs and predict the others, and so the decays of all shapes but one.

    Args:
        make: makes the unfitted law.
        runs: finished decays.
        held_out: predictions of every run by fits that saw no run of its mixture: ``run_id``, ``predicted``,
            ``observed``.
        noise: relative noise of one loss.
        progress: told of every fit.
    """
    axes = axes_of(runs)
    # compute grows wherever size or tokens do: where only one of them varies it asks nothing new
    several = [axis for axis in ("size", "tokens") if np.ptp(axes[axis]) > 0]
    asked = {axis: values for axis, values in axes.items() if axis != "compute" or len(several) == 2}
    origins = [
        origin
        for origin in rolling_origins(asked, least_rows=_LEAST_RUNS, most=_FITS)
        if steps_of(axes[origin.axis][origin.fitted]).max() + 1 >= LEAST_STEPS - 1
    ]
    domains = names_with(runs, LOSS)
    observed = final_losses(runs, domains)
    makers: dict[str, Callable[[], DecayPredictor]] = {"decay": make, NEAREST: NearestRun}
    masks = held_out_masks(runs, _LEAST_RUNS)
    total, count = len({origin.fitted.tobytes() for origin in origins}) + len(masks), 0
    tables = {}
    for name, maker in makers.items():

        def predict(
            fitted: BoolArray,
            beyond: BoolArray,
            maker: Callable[[], DecayPredictor] = maker,
            name: str = name,
        ) -> Array:
            nonlocal count
            if name == "decay":
                progress(HORIZON_STAGE, count, total)
                count += 1
            return maker().fit(runs[fitted]).predict(runs[beyond])

        tables[name] = rolled(origins, predict, observed, names=domains)
    held_shapes: list[HeldOutShape] = []
    for number, (shape, mask) in enumerate(masks.items()):
        progress(HORIZON_STAGE, count + number, total)
        # decays of one shape may have what the others lack, such as a stable stage, which their law refuses
        with suppress(DecaylawsError):
            held_shapes.append(held_out_shape(make, runs, shape, mask))
    progress(HORIZON_STAGE, total, total)
    return Trust(
        Horizon.measured(axes, tables["decay"], noise=noise),
        _mixture_reach(runs, held_out),
        _errors(tables),
        ShapeReach(falling_shapes(runs), tuple(held_shapes)),
    )


def mixture_distance(mixture: Mapping[str, float], runs: pd.DataFrame) -> float:
    """Total variation of a planned mixture to the nearest of the runs."""
    sources = list(dict.fromkeys([*names_with(runs, MIX), *mixture]))
    asked = np.array([float(mixture.get(name, 0.0)) for name in sources])
    return float(0.5 * np.abs(plain_shares(runs, sources) - asked).sum(axis=1).min())


def _mixture_reach(runs: pd.DataFrame, held_out: pd.DataFrame) -> MixtureReach:
    """Held-out errors against the distance from the nearest run of another mixture."""
    sources = names_with(runs, MIX)
    shares, groups = plain_shares(runs, sources), mixture_groups(runs, sources)
    apart = 0.5 * np.abs(shares[:, None] - shares[None]).sum(axis=2)
    apart[groups[:, None] == groups[None]] = np.inf
    nearest = dict(zip(runs["run_id"], apart.min(axis=1)))
    errors = (held_out["predicted"] - held_out["observed"]).abs().groupby(held_out["run_id"]).mean()
    distance = errors.index.map(nearest).to_numpy(dtype=float)
    known = np.isfinite(distance)
    if not known.any():
        return MixtureReach()
    distance, sizes = distance[known], errors.to_numpy(dtype=float)[known]
    near = distance <= np.median(distance)
    far = float(sizes[~near].mean()) if (~near).any() else float(sizes.mean())
    return MixtureReach(float(distance.max()), float(sizes[near].mean()), far, len(distance))


def _errors(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    parts = []
    for name, table in tables.items():
        error = (table["predicted"] - table["observed"]).astype(float)
        grouped = table.assign(law=name, mae=error.abs(), bias=error).groupby(
            ["law", "axis", "last", "reached"], sort=False
        )
        parts.append(
            grouped.agg(
                factor=("factor", "first"),
                num_runs=("row", "nunique"),
                mae=("mae", "mean"),
                bias=("bias", "mean"),
            ).reset_index()
        )
    return pd.concat(parts, ignore_index=True)[_ERRORS].dropna().reset_index(drop=True)


def _reach_words(reach: Reach) -> str:
    unit = AXES[reach.axis]
    if reach.origins:
        side = "too high" if reach.bias > 0 else "too low"
        one_sided = (
            f" and on average {100 * abs(reach.bias):.1f} % {side}"
            if abs(reach.bias) > 0.5 * reach.error
            else ""
        )
        counted = "1 rolling origin" if reach.origins == 1 else f"{reach.origins} rolling origins"
        return (
            f"Fitted to fewer {unit}, the law errs by {100 * reach.error:.1f} % of the loss{one_sided} at up to "
            f"{reach.factor:.1f} times as many ({counted}). Its error is known up to "
            f"{_amount(reach.trusted, reach.axis)}."
        )
    if reach.steps >= LEAST_STEPS:
        return (
            f"No error by distance can be given for {unit}: too few runs lie at the smaller values to fit a law. More "
            f"runs with at most {_amount(np.sqrt(reach.low * reach.high), reach.axis)} would give it."
        )
    wanted = " and ".join(_amount(value, "") for value in reach.wanted)
    values = "one value" if reach.steps == 1 else f"{reach.steps} values"
    return (
        f"No error by distance can be given for {unit}: the runs have {values}, and two to fit and one to predict are "
        f"needed. Runs with {wanted} {unit} would give it."
    )


def _amount(value: float, axis: str) -> str:
    number = f"{value:.2g}" if value >= 1e15 else f"{value:,.0f}"
    return f"{number} {AXES[axis]}" if axis else number
