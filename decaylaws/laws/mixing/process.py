"""A Gaussian process on transformed shares: of all shares together, and if asked of each share alone as well."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.formulas import SHARE_FLOOR
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.report import FitReport
from decaylaws.laws.mixing.base import MixtureRegression
from decaylaws.laws.mixing.kernels import Alone, KernelFit, correlation, fit_additive, fit_kernel
from decaylaws.laws.mixing.target_model import plain_report

FloatArray = NDArray[np.floating[Any]]

TRANSFORMS: Mapping[str, Callable[[Array], Array]] = {
    "log": lambda shares: np.log(shares + 10 * SHARE_FLOOR),
    "sqrt": np.sqrt,
}
"""Shares as a Gaussian process sees them: on which scale two mixtures are near each other."""

_SHARE_STEP = 1e-7  # over which a transform is derived: a square root has no slope at a share of 0
_LEAST_WEIGHT = 1e-6  # of a run: its noise is finite, so that the kernel matrix has an inverse
_FEATURES = 256  # of a draw's prior; their error is below the posterior's own


@dataclass(frozen=True)
class GaussianProcessModel:
    """Posterior of a Gaussian process on transformed shares, for the log of what a loss has above a floor.

    Attributes:
        inputs: transformed shares of the fit [runs, sources].
        dual: ``K^-1 (log reducible loss - centre)`` [runs].
        inverse: ``K^-1`` [runs, runs].
        centre: mean log reducible loss.
        scales: signal variance, noise variance and length of the kernel of all shares together.
        alone: the kernel of each share alone; None without one.
        transform: of the shares, a key of ``TRANSFORMS``.
        floor: what the loss is taken to keep, nats per token; 0 for the log of the loss itself.
        row_noise: noise variance of each run of the fit, larger where it counts less [runs].
        errors: leave-one-out log errors of the loss over their standard deviation, scaled to the posterior's spread.
        report: diagnosis.
    """

    inputs: FloatArray
    dual: FloatArray
    inverse: FloatArray
    centre: float
    scales: tuple[float, float, float]
    alone: Alone | None
    transform: str
    floor: float
    row_noise: FloatArray
    errors: FloatArray
    report: FitReport

    def predict(self, shares: Array) -> Array:
        """Loss [runs]."""
        found = self.centre + self._together(shares) @ self.dual
        if self.alone is not None:
            found = found + self.alone.look_up(self._alone_mean, TRANSFORMS[self.transform](shares))[0]
        return np.asarray(self.floor + np.exp(found))

    def spread(self, shares: Array) -> Array:
        """Posterior standard deviation over that of the noise [runs]."""
        noise, signal = self.scales[1], np.full(len(shares), self.scales[0])
        cross = self._together(shares)
        if self.alone is not None:
            own = TRANSFORMS[self.transform](shares)
            away = ((own - self.alone.centre) / self.alone.lengths) ** 2
            signal = signal + self.alone.variance + self.alone.slope * away.mean(axis=1)
            cross += self.alone.kernel(own, self.inputs)
        variance = signal + noise - np.sum(cross * (cross @ self.inverse), axis=1)
        return np.sqrt(np.maximum(variance, noise) / noise)

    def left_out_spread(self, shares: Array) -> Array:
        """The same of processes without each of the fit's own runs [runs], whichever ``shares`` are given."""
        return np.sqrt(1.0 / (np.diag(self.inverse) * self.scales[1]))

    @property
    def left_out_errors(self) -> Array:
        """Leave-one-out log errors of the loss, predicted minus observed [runs]."""
        return np.asarray(self.errors * np.sqrt(1.0 / (np.diag(self.inverse) * self.scales[1])))

    def posterior(self, num_draws: int, rng: np.random.Generator) -> ProcessDraws:
        """Functions drawn from the posterior.

        A draw is a function of random Fourier features from the prior, moved onto the runs by the same weights that
        move the mean (Matheron's rule; Wilson et al. 2020, arXiv 2002.09309): it can be asked at any mixtures, many or
        few, and stays the same function.

        Args:
            num_draws: number of draws.
            rng: source of random numbers.
        """
        signal, _, length = self.scales
        frequencies = rng.standard_normal((_FEATURES, self.inputs.shape[1])) / length
        phases = rng.uniform(0.0, 2.0 * np.pi, _FEATURES)
        weights = rng.standard_normal((num_draws, _FEATURES)) * np.sqrt(2.0 * signal / _FEATURES)
        jitter = rng.standard_normal((num_draws, len(self.inputs))) * np.sqrt(self.row_noise)
        prior = weights @ np.cos(self.inputs @ frequencies.T + phases).T
        if self.alone is None:
            moved = self.dual - (prior + jitter) @ self.inverse
            return ProcessDraws(self, frequencies, phases, weights, moved, None)
        tables = self.alone.prior(num_draws, rng)
        prior = prior + self.alone.look_up(tables, np.asarray(self.inputs, dtype=float))
        moved = self.dual - (prior + jitter) @ self.inverse
        tables = tables + self.alone.functions(self.inputs, moved)
        return ProcessDraws(self, frequencies, phases, weights, moved, tables)

    def fit_as_draw(self) -> ProcessDraws:
        """The fit itself as the only draw."""
        nothing = np.zeros((1, self.inputs.shape[1]))
        tables = None if self.alone is None else self._alone_mean
        return ProcessDraws(self, nothing, np.zeros(1), np.zeros((1, 1)), self.dual[None], tables)

    def params(self, sources: tuple[str, ...]) -> dict[str, Any]:
        """Kernel: signal and noise in log reducible loss (standard deviations), length in transformed shares, floor."""
        signal, noise, length = self.scales
        own = {}
        if self.alone is not None:
            own = {"alone_sd": self.alone.variance**0.5, "slope_sd": self.alone.slope**0.5}
        return {"signal_sd": signal**0.5, "noise_sd": noise**0.5, "length": length, "floor": self.floor} | own

    def state(self) -> dict[str, Any]:
        """Everything but errors and report."""
        return {
            "inputs": self.inputs,
            "dual": self.dual,
            "inverse": self.inverse,
            "centre": self.centre,
            "scales": self.scales,
            "alone": None if self.alone is None else vars(self.alone),
            "transform": self.transform,
            "floor": self.floor,
            "row_noise": self.row_noise,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], errors: Array, report: FitReport) -> GaussianProcessModel:
        """Inverse of :meth:`state`, whose arrays may have become lists."""
        inputs, dual, inverse = (np.array(state[name]) for name in ("inputs", "dual", "inverse"))
        signal, noise, length = state["scales"]
        own = state["alone"]
        return cls(
            inputs,
            dual,
            inverse,
            float(state["centre"]),
            (signal, noise, length),
            None
            if own is None
            else Alone(**own | {key: np.array(own[key]) for key in ("centre", "lengths")}),
            str(state["transform"]),
            float(state["floor"]),
            np.array(state["row_noise"], dtype=float),
            errors,
            report,
        )

    @cached_property
    def _alone_mean(self) -> Array:
        assert self.alone is not None
        return self.alone.functions(self.inputs, np.asarray(self.dual[None], dtype=float))

    def _together(self, shares: Array) -> Array:
        signal, _, length = self.scales
        return signal * correlation(TRANSFORMS[self.transform](shares), self.inputs, length)


@dataclass(frozen=True)
class ProcessDraws:
    """Draws of a Gaussian process.

    Attributes:
        model: the process.
        frequencies: of the prior's features [features, sources].
        phases: of the same [features].
        weights: of the features in each draw [draws, features].
        moved: weights of the runs in each draw [draws, fitted runs].
        tables: functions of each share alone in each draw [draws, sources, grid]; None without such.
    """

    model: GaussianProcessModel
    frequencies: FloatArray
    phases: FloatArray
    weights: FloatArray
    moved: FloatArray
    tables: Array | None

    def all(self, shares: Array) -> Array:
        """Losses [draws, runs] of mixtures [runs, sources]."""
        features, cross = self._features(shares), self.model._together(shares)
        found = self.weights @ features.T + self.moved @ cross.T
        if self.model.alone is not None and self.tables is not None:
            found = found + self.model.alone.look_up(self.tables, self._inputs(shares))
        return self._loss(found)

    def each(self, shares: Array, draw: NDArray[np.int64]) -> Array:
        """Losses [runs], each under the draw of that number [runs]."""
        features, cross = self._features(shares), self.model._together(shares)
        found = np.einsum("nf,nf->n", features, self.weights[draw])
        found = found + np.einsum("nr,nr->n", cross, self.moved[draw])
        if self.model.alone is not None and self.tables is not None:
            found = found + self.model.alone.look_up(self.tables, self._inputs(shares), draw)
        return self._loss(found)

    def slopes(self, mixture: Array, draw: int) -> tuple[float, Array]:
        """Loss of one mixture [sources] in one draw and its derivative by the shares [sources]."""
        model, length = self.model, self.model.scales[2]
        inputs = self._inputs(mixture[None])[0]
        by_share = (self._inputs(mixture[None] + _SHARE_STEP)[0] - inputs) / _SHARE_STEP
        angles = self.frequencies @ inputs + self.phases
        weights, pulled = self.weights[draw], model._together(mixture[None])[0] * self.moved[draw]
        by_input = -(weights * np.sin(angles)) @ self.frequencies
        by_input += (pulled @ model.inputs - pulled.sum() * inputs) / length**2
        above = model.centre + weights @ np.cos(angles) + pulled.sum()
        if model.alone is not None and self.tables is not None:
            by_input += model.alone.slopes(self.tables[draw], inputs)
            above += model.alone.look_up(self.tables[[draw]], inputs[None])[0, 0]
        above = np.exp(above)
        return float(model.floor + above), np.asarray(above * by_input * by_share, dtype=float)

    def _inputs(self, shares: Array) -> Array:
        return TRANSFORMS[self.model.transform](shares)

    def _features(self, shares: Array) -> Array:
        return np.asarray(np.cos(self._inputs(shares) @ self.frequencies.T + self.phases), dtype=float)

    def _loss(self, above: FloatArray) -> Array:
        return np.asarray(self.model.floor + np.exp(self.model.centre + above), dtype=float)


class GaussianProcess(MixtureRegression):
    """Gaussian process with a squared-exponential kernel on transformed shares (scikit-learn finds its scales).

    Args:
        num_restarts: restarts of the search for the kernel's scales.
        seed: of the restarts.
        transform: of the shares: ``log``, or ``sqrt``, which tells small shares apart less and large ones more.
        floor_share: share of the smallest loss that no mixture removes; the process is one of the log of the rest,
            which spreads the low losses, where the choice is made.
        additive: the kernel has a second part, a sum of functions of one share each (Duvenaud et al. 2011, arXiv
            1112.4394). Of many sources some dozens of runs determine what each does, and hardly what they do together.
    """

    def __init__(
        self,
        num_restarts: int = 0,
        seed: int = 0,
        transform: str = "log",
        floor_share: float = 0.0,
        additive: bool = False,
    ) -> None:
        self.num_restarts, self.seed = num_restarts, seed
        self.transform, self.floor_share, self.additive = transform, floor_share, additive

    def _fit_target(self, target: str, shares: Array, losses: Array, weights: Array) -> GaussianProcessModel:
        began = time.perf_counter()
        if self.transform not in TRANSFORMS:
            raise InvalidValueError("transform", self.transform, f"must be one of {', '.join(TRANSFORMS)}")
        if not 0.0 <= self.floor_share < 1.0:
            raise InvalidValueError("floor_share", self.floor_share, "must lie in [0, 1)")
        inputs, floor = TRANSFORMS[self.transform](shares), self.floor_share * float(losses.min())
        logs = np.log(losses - floor)
        centre = float(np.average(logs, weights=weights))
        if float(np.var(logs)) == 0.0:
            raise InvalidValueError("losses", "all equal", "must differ between runs")
        if self.additive:
            low, high = TRANSFORMS[self.transform](np.array([0.0, 1.0]))
            kernel = fit_additive(inputs, logs - centre, float(low), float(high))
        else:
            kernel = fit_kernel(inputs, logs - centre, self.num_restarts, self.seed)
        return self._conditioned(kernel, floor, shares, losses, weights, began)

    def _refit_target(
        self, target: str, model: GaussianProcessModel, shares: Array, losses: Array, weights: Array
    ) -> GaussianProcessModel:
        kernel = KernelFit(model.scales, model.alone, ())
        # losses that were expected may lie below all that were measured
        floor = min(model.floor, self.floor_share * float(losses.min()))
        return self._conditioned(kernel, floor, shares, losses, weights, time.perf_counter())

    def _conditioned(
        self, kernel: KernelFit, floor: float, shares: Array, losses: Array, weights: Array, began: float
    ) -> GaussianProcessModel:
        """The process of a given kernel on the runs."""
        inputs = TRANSFORMS[self.transform](shares)
        logs = np.log(losses - floor)
        centre = float(np.average(logs, weights=weights))
        signal, noise, length = kernel.scales
        noise_by_run = noise / np.maximum(weights, _LEAST_WEIGHT)
        covariance = signal * correlation(inputs, inputs, length) + np.diag(noise_by_run)
        if kernel.alone is not None:
            covariance = covariance + kernel.alone.kernel(inputs, inputs)
        inverse = np.linalg.inv(covariance)
        dual = inverse @ (logs - centre)
        # leave-one-out without a refit (Rasmussen and Williams 2006, equation 5.12), as errors of the log loss
        left_out = floor + np.exp(logs - dual / np.diag(inverse))
        spread = np.sqrt(1.0 / (np.diag(inverse) * noise))
        errors = np.log(left_out / losses) / spread
        fitted = floor + np.exp(logs - noise_by_run * dual)
        count = 5 if self.additive else 3
        report = plain_report(losses, fitted, count, time.perf_counter() - began, kernel.at_bounds)
        return GaussianProcessModel(
            inputs, dual, inverse, centre, kernel.scales, kernel.alone, self.transform, floor, noise_by_run, errors,
            report,
        )  # fmt: skip

    def _restore_target(
        self, target: str, state: dict[str, Any], errors: Array, report: FitReport
    ) -> GaussianProcessModel:
        return GaussianProcessModel.from_state(state, errors, report)
