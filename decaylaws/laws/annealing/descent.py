"""What a schedule law fits: curves cut and thinned, residuals of log losses with their slopes, and where to start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import nnls

from decaylaws.laws.annealing.curves import LossCurve, LrPath, lr_path
from decaylaws.laws.annealing.evidence import spread_out
from decaylaws.laws.annealing.family import PER_MODEL, WORTH, Family, fixed
from decaylaws.laws.annealing.kernels import Parameter
from decaylaws.laws.annealing.sizes import OwnParameters, of_fitted
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.solver import Solution, solve

NOISE = 1e-3
"""Of a smoothed training curve's log losses; also Huber's threshold of the literature."""

_TIME_STARTS = (-1.5, 0.0, 1.5)  # shifts of the kernel's log time
_LATER_HALF = 0.5
_SEVERAL_PEAKS = 3.0  # ratio of peak LRs from which runs tell what a token at a higher LR is worth
_NUM_OWN = len(PER_MODEL)


@dataclass(frozen=True)
class Models:
    """The models of a law and the terms that they share.

    Attributes:
        family: the terms.
        names: of the models.
        sizes: parameters of each; None where not all of them are known.
        units: LR and tokens that count as one, ``lr_unit`` and ``token_unit``.
    """

    family: Family
    names: Sequence[str]
    sizes: Mapping[str, float | None]
    units: Mapping[str, float]

    @property
    def num_shared(self) -> int:
        """How many parameters all models share; they stand first."""
        return len(self.family.shared)

    @property
    def parameter_names(self) -> list[str]:
        """A name for every parameter."""
        shared = [parameter.name for parameter in self.family.shared]
        return shared + [f"{model}.{name}" for model in self.names for name in PER_MODEL]

    def path(self, curve: LossCurve) -> LrPath:
        """The LR of a curve at its evaluations."""
        return lr_path(curve.schedule, curve.tokens, **self.units)

    def own(self, name: str) -> OwnParameters:
        """The own parameters of one of the models."""
        return of_fitted(self.names.index(name), len(self.names))

    def evaluate(
        self, path: LrPath, params: float | None, own: OwnParameters, theta: Array
    ) -> tuple[Array, Array, Array]:
        """Loss of a model of so many ``params`` ``[n]``, and its slopes by the shared and by its own parameters."""
        values = own.value(theta[self.num_shared :])
        known = [value for value in self.sizes.values() if value]
        log_size = float(np.log(params) - np.mean(np.log(known))) if params and known else 0.0
        return self.family.value(path, theta[: self.num_shared], values, log_size)


@dataclass(frozen=True)
class Cut:
    """Which evaluations of a curve the main fit takes.

    Attributes:
        models: the models of the law.
        progress: by model, where the burn-in ends.
        max_points: evaluations of one curve, at most.
    """

    models: Models
    progress: Mapping[str, float]
    max_points: int

    @classmethod
    def of(cls, models: Models, curves: Sequence[LossCurve], burn_in: float, max_points: int) -> Cut:
        """The cut after this share of each model's longest progress."""
        ends = [models.path(curve).progress[-1] for curve in curves]
        longest = {
            model: max(end for end, curve in zip(ends, curves) if curve.model == model)
            for model in models.names
        }
        return cls(models, {model: burn_in * end for model, end in longest.items()}, max_points)

    def start(self, curve: LossCurve, path: LrPath) -> float:
        """Progress from which a curve is fitted.

        A run at a far lower LR never gets beyond the burn-in of the others, however long it is. It has left its
        initialisation behind all the same: its later half counts.
        """
        cut = self.progress[curve.model]
        if path.progress[-1] >= cut:
            return cut
        # at the highest LR it would be beyond the cut
        is_long = curve.tokens[-1] / self.models.units["token_unit"] >= cut
        return _LATER_HALF * float(path.progress[-1]) if is_long else np.inf

    def kept(self, curve: LossCurve) -> LossCurve | None:
        """The curve beyond the burn-in, thinned; its last evaluation always stays."""
        path = self.models.path(curve)
        beyond = np.flatnonzero(path.progress >= self.start(curve, path))
        if len(beyond) == 0:
            return None
        return curve.select(beyond[spread_out(len(beyond), self.max_points)])


@dataclass(frozen=True)
class FittedCurve:
    """One curve as it is fitted: its path, its log losses, and where its model's parameters stand."""

    path: LrPath
    log_loss: Array
    model: str
    params: float | None
    own: OwnParameters


@dataclass(frozen=True)
class FittedCurves:
    """The curves of a fit.

    Attributes:
        models: the models of the law.
        curves: what is fitted of each.
        lowest: lowest observed loss of every model, nats per token.
    """

    models: Models
    curves: Sequence[FittedCurve]
    lowest: Mapping[str, float]

    @classmethod
    def of(cls, cut: Cut, curves: Sequence[LossCurve]) -> FittedCurves:
        """What the cut leaves of the curves."""
        models = cut.models
        fitted = [
            FittedCurve(
                models.path(kept), np.log(kept.observed), kept.model, models.sizes[kept.model],
                models.own(kept.model),
            )
            for kept in map(cut.kept, curves)
            if kept is not None
        ]  # fmt: skip
        lowest = {
            model: min(float(curve.observed.min()) for curve in curves if curve.model == model)
            for model in models.names
        }
        return cls(models, fitted, lowest)

    @cached_property
    def parameters(self) -> list[Parameter]:
        """Start, bounds and prior of every parameter."""
        plateaus = {round(curve.path.plateau_lr, 3) for curve in self.curves}
        one_peak = max(plateaus) < _SEVERAL_PEAKS * min(plateaus)
        found = [
            fixed(WORTH, 1.0) if one_peak and each.name == WORTH else each
            for each in self.models.family.shared
        ]
        for model in self.models.names:
            found += self.models.family.own(self.lowest[model])
        return found

    def solve(self) -> Solution:
        """The best of several descents."""
        start = np.array([parameter.start for parameter in self.parameters])
        shifted = np.tile(start, (len(_TIME_STARTS), 1))
        shifted[:, 0] += _TIME_STARTS
        return solve(
            self._residuals,
            [self._linear_start(each) for each in shifted],
            jacobian=self._jacobian,
            lower=[parameter.lower for parameter in self.parameters],
            upper=[parameter.upper for parameter in self.parameters],
            names=self.models.parameter_names,
            huber_delta=NOISE,
            prior_mean=start,
            prior_sd=[parameter.prior_sd for parameter in self.parameters],
            noise_sd=NOISE,
        )

    def _own_columns(self, model: str) -> slice:
        first = self.models.num_shared + _NUM_OWN * self.models.names.index(model)
        return slice(first, first + _NUM_OWN)

    def _linear_start(self, theta: Array) -> Array:
        """Level, amplitude and gain are linear given the rest: start from their least squares."""
        family, num_shared = self.models.family, self.models.num_shared
        out, gains = theta.copy(), []
        for model in self.models.names:
            own = self._own_columns(model)
            unit = np.array([0.0, 0.0, theta[own][2], 0.0])
            shared = np.append(theta[: num_shared - 1], 0.0)
            mine = [curve for curve in self.curves if curve.model == model]
            slopes = [family.value(curve.path, shared, unit, 0.0)[2] for curve in mine]
            columns = [np.column_stack([by_own[:, 0], by_own[:, 1], by_own[:, 3]]) for by_own in slopes]
            loss = np.exp(np.concatenate([curve.log_loss for curve in mine]))
            (level, amplitude, gain), _ = nnls(np.concatenate(columns), loss)
            out[own.start], out[own.start + 1] = level, np.log(max(amplitude, 1e-3))
            gains.append(gain)
        out[num_shared - 1] = np.log(max(float(np.mean(gains)), 1e-2))
        return out

    def _residuals(self, theta: Array) -> Array:
        values = [self.models.evaluate(each.path, each.params, each.own, theta)[0] for each in self.curves]
        logs = [np.log(np.maximum(value, 1e-3)) for value in values]
        return np.concatenate([log - each.log_loss for log, each in zip(logs, self.curves)])

    def _jacobian(self, theta: Array) -> Array:
        blocks = []
        for curve in self.curves:
            value, by_shared, by_own = self.models.evaluate(curve.path, curve.params, curve.own, theta)
            block = np.zeros((len(value), len(theta)))
            block[:, : self.models.num_shared] = by_shared
            block[:, self._own_columns(curve.model)] = by_own
            blocks.append(block / np.maximum(value, 1e-3)[:, None])
        return np.concatenate(blocks)
