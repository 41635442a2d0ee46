"""Accuracy straight from the budget: ``-log accuracy`` as a power law (Krajewski et al. 2025, arXiv 2512.08894)."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from decaylaws.errors import InvalidValueError
from decaylaws.laws.downstream.tables import accuracies, column
from decaylaws.laws.kit.draws import DrawnLaw, quantile_interval
from decaylaws.laws.kit.law import Array, Prediction
from decaylaws.laws.kit.numbers import positive
from decaylaws.laws.kit.solver import Solution, solve
from decaylaws.laws.scaling.families import Family, PowerSum
from decaylaws.laws.scaling.law import SizeTokenLaw

_FAMILY = PowerSum(fixed={"E": 0.0, "log_k": 0.0}, priors={"log_alpha": (0.35, 0.5), "log_beta": (0.35, 0.5)})
_HELD_SHARE = 0.25  # of the runs, by compute, in the extrapolation test
_POWER_NAMES = ("log_A", "alpha")


class AccuracySizeTokenLaw(SizeTokenLaw):
    """``-log q = A N^-alpha + B D^-beta`` with ``q = (accuracy - chance) / (1 - chance)``.

    ``X`` and the arguments are those of :class:`SizeTokenLaw`; ``y`` is the accuracy, the column ``accuracy``
    without it, and predictions are accuracies. Perfect accuracy is the limit: there is no irreducible part.

    Args:
        huber_delta: threshold of Huber's loss, in ``log(-log q)``.
        prior: whether the exponents get priors.
        max_starts: limit of starting points.
        bootstrap: whether intervals come from refits under run-clustered weights.
        num_draws: draws of the parameters behind every interval.
        seed: seed of the draws.
        chance: accuracy of guessing; the paper's plain form at 0.
    """

    unit, target = "accuracy", "accuracy"

    def __init__(
        self,
        *,
        huber_delta: float = 1e-3,
        prior: bool = False,
        max_starts: int | None = None,
        bootstrap: bool = False,
        num_draws: int = 200,
        seed: int = 0,
        chance: float = 0.0,
    ) -> None:
        super().__init__(
            huber_delta=huber_delta,
            prior=prior,
            max_starts=max_starts,
            bootstrap=bootstrap,
            num_draws=num_draws,
            seed=seed,
        )
        self.chance = chance

    @property
    def family(self) -> Family:
        """Four parameters."""
        return _FAMILY

    def fit(self, X: pd.DataFrame, y: ArrayLike | None = None) -> Self:
        """Fit to finished runs.

        Raises:
            SchemaError: a column is missing.
            InvalidValueError: an accuracy does not lie between chance and 1, or the sizes and tokens cannot
                be fitted (see :class:`SizeTokenLaw`).
        """
        return super().fit(X, _surprise(accuracies(X, y), self.chance))

    def predict(self, X: pd.DataFrame, interval: float | None = None) -> Any:
        """Accuracy of every row; with ``interval`` the range of a new run at that level."""
        return _accuracy(super().predict(X, interval), self.chance)


class AccuracyComputeLaw(DrawnLaw):
    """``-log q = A C^-alpha`` for runs of one ratio of tokens to parameters.

    ``X`` has the column ``flops``; ``y`` is the accuracy, the column ``accuracy`` without it.

    Args:
        huber_delta: threshold of Huber's loss, in ``log(-log q)``.
        num_draws: draws of the parameters behind every interval.
        seed: seed of the draws.
        chance: accuracy of guessing.

    Attributes:
        params_: ``A`` and ``alpha``, for C in FLOPs.
        report_: diagnosis of the fit.
        center_: geometric mean of the fitted FLOPs.
        theta_: log of the amplitude at the centre, and alpha.
        draws_: draws of theta, ``[num_draws, 2]``.
        residuals_: predicted minus observed ``log(-log q)``, ``[n]``.
        extrapolation_error_: mean absolute error of ``log(-log q)`` on the quarter of the runs with the most
            compute, predicted from the others; None where these are too few. Intervals are at least as wide.
    """

    unit, target = "accuracy", "accuracy"
    center_: float

    def __init__(
        self, *, huber_delta: float = 1e-2, num_draws: int = 200, seed: int = 0, chance: float = 0.0
    ) -> None:
        self.huber_delta = huber_delta
        self.num_draws = num_draws
        self.seed = seed
        self.chance = chance

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that ``fit`` and ``predict`` need."""
        return ("flops",)

    def fit(self, X: pd.DataFrame, y: ArrayLike | None = None) -> Self:
        """Fit to finished runs.

        Raises:
            SchemaError: a column is missing.
            InvalidValueError: an accuracy does not lie between chance and 1, a value is not positive, or all
                runs have the same compute.
        """
        flops, target = self._flops(X), np.log(_surprise(accuracies(X, y), self.chance))
        if len(np.unique(flops)) < 2:
            raise InvalidValueError("flops", flops[:1].tolist(), "must take at least two values")
        self.center_ = float(np.exp(np.log(flops).mean()))
        solution = self._solve(self._design(flops), target)
        self.theta_, self.report_, self.residuals_ = solution.theta, solution.report, solution.residuals
        self.extrapolation_error_ = self._extrapolation_error(flops, target)
        amplitude = float(np.exp(self.theta_[0] + self.theta_[1] * np.log(self.center_)))
        self.params_ = {"A": amplitude, "alpha": float(self.theta_[1])}
        rng = np.random.default_rng(self.seed)
        self.draws_ = rng.multivariate_normal(self.theta_, solution.covariance(), size=self.num_draws)
        return self

    def predict(self, X: pd.DataFrame, interval: float | None = None) -> Any:
        """Accuracy of every row; with ``interval`` the range of a new run at that level."""
        self._require_fitted()
        design = self._design(self._flops(X))
        mean = np.exp(design @ self.theta_)
        if interval is None:
            return _accuracy(mean, self.chance)
        draws = np.exp(
            self.draws_ @ design.T - self._scatter((len(self.draws_), len(mean)), self.extrapolation_error_)
        )
        return _accuracy(quantile_interval(mean, draws, interval), self.chance)

    def _solve(self, design: Array, target: Array) -> Solution:
        return solve(
            lambda theta: design @ theta - target,
            np.linalg.lstsq(design, target, rcond=None)[0],
            jacobian=lambda theta: design,
            huber_delta=self.huber_delta,
            names=_POWER_NAMES,
        )

    def _extrapolation_error(self, flops: Array, target: Array) -> float | None:
        design, held = self._design(flops), flops > np.quantile(flops, 1 - _HELD_SHARE)
        if not held.any() or len(np.unique(flops[~held])) < 2:
            return None
        theta = self._solve(design[~held], target[~held]).theta
        return float(np.mean(np.abs(design[held] @ theta - target[held])))

    def _flops(self, X: pd.DataFrame) -> Array:
        return positive("flops", column(X, "flops"))

    def _design(self, flops: Array) -> Array:
        return np.stack([np.ones_like(flops), -np.log(flops / self.center_)], axis=1)

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "center": self.center_}

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        self.center_ = float(state["center"])


def _surprise(accuracy: Array, chance: float) -> Array:
    """``-log q``; accuracies must lie strictly between chance and 1."""
    wrong = ~((accuracy > chance) & (accuracy < 1))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InvalidValueError(
            f"accuracy[{row}]",
            float(accuracy[row]),
            f"must lie between chance ({chance}) and 1",
            "A model that only guesses cannot be fitted: drop the row, use larger runs, or fit with chance=0.",
        )
    return -np.log((accuracy - chance) / (1 - chance))


def _accuracy(surprise: Any, chance: float) -> Any:
    """Inverse of ``_surprise``, for values and predictions."""
    if isinstance(surprise, Prediction):
        mean, low, high = (_accuracy(v, chance) for v in (surprise.mean, surprise.upper, surprise.lower))
        return Prediction(mean, low, high, surprise.level)
    return chance + (1 - chance) * np.exp(-surprise)
