"""Regressions without a formula: RegMix's LightGBM and linear models, and a Gaussian process."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.formulas import SHARE_FLOOR
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.report import FitReport
from decaylaws.laws.mixing.base import MixtureRegression, held_out_errors, plain_report

if TYPE_CHECKING:
    import lightgbm

FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class TreeModel:
    """LightGBM trees as text, which is how LightGBM itself stores them (no pickle)."""

    text: str
    log_target: bool
    errors: Array
    report: FitReport

    def predict(self, shares: Array) -> Array:
        """Loss [runs]."""
        raw = np.asarray(self._booster.predict(shares), dtype=float)
        return np.exp(raw) if self.log_target else raw

    def spread(self, shares: Array) -> Array:
        """Trees know no distance: 1 everywhere."""
        return np.ones(len(shares))

    def params(self, sources: tuple[str, ...]) -> dict[str, Any]:
        """How often each source splits a tree, as a share of all splits."""
        counts = self._booster.feature_importance()
        return {f"splits:{s}": float(c) / max(counts.sum(), 1) for s, c in zip(sources, counts.tolist())}

    def state(self) -> dict[str, Any]:
        """The trees."""
        return {"text": self.text}

    @cached_property
    def _booster(self) -> lightgbm.Booster:
        """The trees, read once: a search predicts one mixture thousands of times."""
        import lightgbm

        return lightgbm.Booster(model_str=self.text)


class LightGBMRegression(MixtureRegression):
    """Gradient-boosted trees (RegMix's method, arXiv 2407.01492), on log loss and fit for few runs.

    The number of trees is fixed. RegMix stops early by its test set; a score on that set is then no hold-out.

    Args:
        num_trees: boosting rounds.
        learning_rate: shrinkage of each tree.
        min_leaf_runs: fewest runs in a leaf; ``None`` takes 1/25 of the runs, between 3 and 20; LightGBM's
            own 20 makes a constant of a fit on 32 runs.
        log_target: fit log loss.
        num_leaves: leaves of one tree.
        num_folds: grouped folds behind the intervals; 0 to do without.
        seed: of trees and folds.
    """

    def __init__(
        self,
        num_trees: int = 1000,
        learning_rate: float = 0.01,
        min_leaf_runs: int | None = None,
        log_target: bool = True,
        num_leaves: int = 31,
        num_folds: int = 0,
        seed: int = 42,
    ) -> None:
        self.num_trees, self.learning_rate, self.min_leaf_runs = num_trees, learning_rate, min_leaf_runs
        self.log_target, self.num_leaves = log_target, num_leaves
        self.num_folds, self.seed = num_folds, seed

    @classmethod
    def regmix(cls) -> LightGBMRegression:
        """RegMix's own settings: 1,000 trees at rate 0.01, leaves of 20, loss as it is, seed 42."""
        return cls(num_trees=1000, learning_rate=0.01, min_leaf_runs=20, log_target=False, seed=42)

    def _fit_target(self, target: str, shares: Array, losses: Array, weights: Array) -> TreeModel:
        began = time.perf_counter()
        errors = held_out_errors(self._fit_one, shares, losses, self.num_folds, self.seed)
        model = self._fit_one(shares, losses, weights)
        seconds = time.perf_counter() - began
        report = plain_report(losses, model.predict(shares), 0, seconds)
        return TreeModel(model.text, self.log_target, errors, report)

    def _fit_one(self, shares: Array, losses: Array, weights: Array) -> TreeModel:
        import lightgbm

        leaf = self.min_leaf_runs or int(np.clip(len(losses) // 25, 3, 20))
        settings = {
            "objective": "regression",
            "learning_rate": self.learning_rate,
            "min_data_in_leaf": leaf,
            "num_leaves": self.num_leaves,
            "seed": self.seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": 1,
            "verbosity": -1,
        }
        observed = np.log(losses) if self.log_target else losses
        data = lightgbm.Dataset(shares, observed, weight=weights)
        booster = lightgbm.train(settings, data, num_boost_round=self.num_trees)
        nothing = plain_report(losses, losses, 0, 0.0)
        return TreeModel(booster.model_to_string(), self.log_target, np.empty(0), nothing)

    def _restore_target(
        self, target: str, state: dict[str, Any], errors: Array, report: FitReport
    ) -> TreeModel:
        return TreeModel(str(state["text"]), self.log_target, errors, report)


@dataclass(frozen=True)
class LinearModel:
    """Loss as a weighted sum of shares; the simplex makes an intercept superfluous."""

    slopes: FloatArray
    precision: FloatArray
    errors: FloatArray
    report: FitReport

    def predict(self, shares: Array) -> Array:
        """Loss [runs]."""
        return np.maximum(shares @ self.slopes, 1e-3)

    def spread(self, shares: Array) -> Array:
        """``sqrt(1 + leverage)`` [runs]."""
        return np.sqrt(1.0 + np.sum(shares * np.linalg.solve(self.precision, shares.T).T, axis=1))

    def params(self, sources: tuple[str, ...]) -> dict[str, Any]:
        """Loss of each source alone."""
        return dict(zip(sources, self.slopes.tolist()))

    def state(self) -> dict[str, Any]:
        """Slopes and precision."""
        return {"slopes": self.slopes, "precision": self.precision}


class LinearRegression(MixtureRegression):
    """Least squares on shares: RegMix's linear baseline.

    Args:
        ridge: added to the diagonal of the normal equations, for sources that few runs hold.
    """

    def __init__(self, ridge: float = 1e-6) -> None:
        self.ridge = ridge

    def _fit_target(self, target: str, shares: Array, losses: Array, weights: Array) -> LinearModel:
        began = time.perf_counter()
        precision = (shares * weights[:, None]).T @ shares + self.ridge * np.eye(shares.shape[1])
        centre = float(np.average(losses, weights=weights))
        slopes = centre + np.linalg.solve(precision, shares.T @ (weights * (losses - centre)))
        fitted = np.maximum(shares @ slopes, 1e-3)
        leverage = weights * np.sum(shares * np.linalg.solve(precision, shares.T).T, axis=1)
        errors = (np.log(fitted) - np.log(losses)) / np.sqrt(np.maximum(1.0 - leverage, 0.05))
        report = plain_report(losses, fitted, shares.shape[1], time.perf_counter() - began)
        return LinearModel(slopes, precision, errors, report)

    def _restore_target(
        self, target: str, state: dict[str, Any], errors: Array, report: FitReport
    ) -> LinearModel:
        return LinearModel(np.array(state["slopes"]), np.array(state["precision"]), errors, report)


@dataclass(frozen=True)
class GaussianProcessModel:
    """Posterior of a Gaussian process on transformed shares, for the log of what a loss has above a floor.

    Attributes:
        inputs: transformed shares of the fit [runs, sources].
        dual: ``K^-1 (log reducible loss - centre)`` [runs].
        inverse: ``K^-1`` [runs, runs].
        centre: mean log reducible loss.
        scales: signal variance, noise variance and length of the kernel.
        transform: of the shares, a key of ``TRANSFORMS``.
        floor: what the loss is taken to keep, nats per token; 0 for the log of the loss itself.
        errors: leave-one-out log errors of the loss over their standard deviation, scaled to the posterior's spread.
        report: diagnosis.
    """

    inputs: FloatArray
    dual: FloatArray
    inverse: FloatArray
    centre: float
    scales: tuple[float, float, float]
    transform: str
    floor: float
    errors: FloatArray
    report: FitReport

    def predict(self, shares: Array) -> Array:
        """Loss [runs]."""
        return self.floor + np.exp(self.centre + self._cross(shares) @ self.dual)

    def spread(self, shares: Array) -> Array:
        """Posterior standard deviation over that of the noise [runs]."""
        signal, noise, _ = self.scales
        cross = self._cross(shares)
        variance = signal + noise - np.sum(cross * (cross @ self.inverse), axis=1)
        return np.sqrt(np.maximum(variance, noise) / noise)

    @property
    def left_out_errors(self) -> Array:
        """Leave-one-out log errors of the loss, predicted minus observed [runs]."""
        return np.asarray(self.errors / np.sqrt(np.diag(self.inverse) * self.scales[1]), dtype=float)

    def posterior(self, num_draws: int, rng: np.random.Generator) -> ProcessDraws:
        """Functions drawn from the posterior.

        A draw is a function of random Fourier features from the prior, moved onto the runs by the same weights that
        move the mean (Matheron's rule; Wilson et al. 2020, arXiv 2002.09309): it can be asked at any mixtures, many or
        few, and stays the same function.

        Args:
            num_draws: number of draws.
            rng: source of random numbers.
        """
        signal, noise, length = self.scales
        frequencies = rng.standard_normal((_FEATURES, self.inputs.shape[1])) / length
        phases = rng.uniform(0.0, 2.0 * np.pi, _FEATURES)
        weights = rng.standard_normal((num_draws, _FEATURES)) * np.sqrt(2.0 * signal / _FEATURES)
        jitter = rng.standard_normal((num_draws, len(self.inputs))) * np.sqrt(noise)
        prior = weights @ np.cos(self.inputs @ frequencies.T + phases).T
        return ProcessDraws(self, frequencies, phases, weights, self.dual - (prior + jitter) @ self.inverse)

    def fit_as_draw(self) -> ProcessDraws:
        """The fit itself as the only draw."""
        nothing = np.zeros((1, self.inputs.shape[1]))
        return ProcessDraws(self, nothing, np.zeros(1), np.zeros((1, 1)), self.dual[None])

    def params(self, sources: tuple[str, ...]) -> dict[str, Any]:
        """Kernel: signal and noise in log reducible loss (standard deviations), length in transformed shares, floor."""
        signal, noise, length = self.scales
        return {"signal_sd": signal**0.5, "noise_sd": noise**0.5, "length": length, "floor": self.floor}

    def state(self) -> dict[str, Any]:
        """Everything but errors and report."""
        return {
            "inputs": self.inputs,
            "dual": self.dual,
            "inverse": self.inverse,
            "centre": self.centre,
            "scales": self.scales,
            "transform": self.transform,
            "floor": self.floor,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], errors: Array, report: FitReport) -> GaussianProcessModel:
        """Inverse of :meth:`state`, whose arrays may have become lists."""
        inputs, dual, inverse = (np.array(state[name]) for name in ("inputs", "dual", "inverse"))
        signal, noise, length = state["scales"]
        return cls(
            inputs,
            dual,
            inverse,
            float(state["centre"]),
            (signal, noise, length),
            str(state["transform"]),
            float(state["floor"]),
            errors,
            report,
        )

    def _cross(self, shares: Array) -> Array:
        signal, _, length = self.scales
        return signal * _kernel(TRANSFORMS[self.transform](shares), self.inputs, length)


@dataclass(frozen=True)
class ProcessDraws:
    """Draws of a Gaussian process.

    Attributes:
        model: the process.
        frequencies: of the prior's features [features, sources].
        phases: of the same [features].
        weights: of the features in each draw [draws, features].
        moved: weights of the runs in each draw [draws, fitted runs].
    """

    model: GaussianProcessModel
    frequencies: FloatArray
    phases: FloatArray
    weights: FloatArray
    moved: FloatArray

    def all(self, shares: Array) -> Array:
        """Losses [draws, runs] of mixtures [runs, sources]."""
        features, cross = self._features(shares), self.model._cross(shares)
        return self._loss(self.weights @ features.T + self.moved @ cross.T)

    def each(self, shares: Array, draw: NDArray[np.int64]) -> Array:
        """Losses [runs], each under the draw of that number [runs]."""
        features, cross = self._features(shares), self.model._cross(shares)
        by_feature = np.einsum("nf,nf->n", features, self.weights[draw])
        return self._loss(by_feature + np.einsum("nr,nr->n", cross, self.moved[draw]))

    def slopes(self, mixture: Array, draw: int) -> tuple[float, Array]:
        """Loss of one mixture [sources] in one draw and its derivative by the shares [sources]."""
        model, length = self.model, self.model.scales[2]
        transform = TRANSFORMS[model.transform]
        inputs = transform(mixture[None])[0]
        by_share = (transform(mixture[None] + _SHARE_STEP)[0] - inputs) / _SHARE_STEP
        angles = self.frequencies @ inputs + self.phases
        weights, pulled = self.weights[draw], model._cross(mixture[None])[0] * self.moved[draw]
        by_input = -(weights * np.sin(angles)) @ self.frequencies
        by_input += (pulled @ model.inputs - pulled.sum() * inputs) / length**2
        above = np.exp(model.centre + weights @ np.cos(angles) + pulled.sum())
        return float(model.floor + above), np.asarray(above * by_input * by_share, dtype=float)

    def _features(self, shares: Array) -> Array:
        inputs = TRANSFORMS[self.model.transform](shares)
        return np.asarray(np.cos(inputs @ self.frequencies.T + self.phases), dtype=float)

    def _loss(self, above: FloatArray) -> Array:
        return np.asarray(self.model.floor + np.exp(self.model.centre + above), dtype=float)


TRANSFORMS: Mapping[str, Callable[[Array], Array]] = {
    "log": lambda shares: np.log(shares + 10 * SHARE_FLOOR),
    "sqrt": np.sqrt,
}
"""Shares as a Gaussian process sees them: on which scale two mixtures are near each other."""

_SHARE_STEP = 1e-7  # over which a transform is derived: a square root has no slope at a share of 0
_FEATURES = 256  # of a draw's prior; their error is below the posterior's own


class GaussianProcess(MixtureRegression):
    """Gaussian process (scikit-learn's) with a squared-exponential kernel on transformed shares.

    Args:
        num_restarts: restarts of the search for the kernel's scales.
        seed: of the restarts.
        transform: of the shares: ``log``, or ``sqrt``, which tells small shares apart less and large ones more.
        floor_share: share of the smallest loss that no mixture removes; the process is one of the log of the rest,
            which spreads the low losses, where the choice is made.
    """

    def __init__(
        self, num_restarts: int = 0, seed: int = 0, transform: str = "log", floor_share: float = 0.0
    ) -> None:
        self.num_restarts, self.seed = num_restarts, seed
        self.transform, self.floor_share = transform, floor_share

    def _fit_target(self, target: str, shares: Array, losses: Array, weights: Array) -> GaussianProcessModel:
        began = time.perf_counter()
        if self.transform not in TRANSFORMS:
            raise InvalidValueError("transform", self.transform, f"must be one of {', '.join(TRANSFORMS)}")
        if not 0.0 <= self.floor_share < 1.0:
            raise InvalidValueError("floor_share", self.floor_share, "must lie in [0, 1)")
        inputs, floor = TRANSFORMS[self.transform](shares), self.floor_share * float(losses.min())
        logs = np.log(losses - floor)
        centre = float(np.average(logs, weights=weights))
        kernel = _fit_kernel(inputs, logs - centre, self.num_restarts, self.seed)
        signal, noise, length = kernel.scales
        noise_by_run = noise / np.maximum(weights, 1e-3)
        inverse = np.linalg.inv(signal * _kernel(inputs, inputs, length) + np.diag(noise_by_run))
        dual = inverse @ (logs - centre)
        # leave-one-out without a refit (Rasmussen and Williams 2006, equation 5.12), as errors of the log loss
        left_out = floor + np.exp(logs - dual / np.diag(inverse))
        spread = np.sqrt(1.0 / (np.diag(inverse) * noise))
        errors = np.log(left_out / losses) / spread
        fitted = floor + np.exp(logs - noise_by_run * dual)
        report = plain_report(losses, fitted, 3, time.perf_counter() - began, kernel.at_bounds)
        scales = kernel.scales
        return GaussianProcessModel(
            inputs, dual, inverse, centre, scales, self.transform, floor, errors, report
        )

    def _restore_target(
        self, target: str, state: dict[str, Any], errors: Array, report: FitReport
    ) -> GaussianProcessModel:
        return GaussianProcessModel.from_state(state, errors, report)


def _kernel(a: Array, b: FloatArray, length: float) -> Array:
    """Squared-exponential correlation [a, b]."""
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.exp(-0.5 * np.maximum(squares, 0.0) / length**2)


@dataclass(frozen=True)
class _KernelFit:
    """Signal variance, noise variance and length of the kernel, and which of them ended at a bound."""

    scales: tuple[float, float, float]
    at_bounds: tuple[str, ...]


def _fit_kernel(inputs: Array, centred: Array, restarts: int, seed: int) -> _KernelFit:
    """The kernel that maximises the marginal likelihood; a scale at its bound is reported, not warned of."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    variance = float(np.var(centred))
    if variance == 0.0:
        raise InvalidValueError("losses", "all equal", "must differ between runs")
    signal = ConstantKernel(variance, (1e-3 * variance, 1e3 * variance))
    noise = WhiteKernel(0.01 * variance, (1e-6 * variance, 2 * variance))
    length = float(np.sqrt(2.0 * inputs.var(axis=0).sum()))  # a typical distance of two runs
    process = GaussianProcessRegressor(
        signal * RBF(length, (0.02 * length, 200 * length)) + noise,
        n_restarts_optimizer=restarts,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(inputs, centred)
    kernel = process.kernel_
    touching = np.min(np.abs(kernel.theta[:, None] - kernel.bounds), axis=1) < 1e-3
    names = tuple(name for name, at in zip(("signal_sd", "length", "noise_sd"), touching.tolist()) if at)
    scales = (kernel.k1.k1.constant_value, kernel.k2.noise_level, kernel.k1.k2.length_scale)
    return _KernelFit((float(scales[0]), float(scales[1]), float(scales[2])), names)
