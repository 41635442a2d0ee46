"""A Gaussian process on transformed shares: of all shares together, and if asked of each share alone as well."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.formulas import SHARE_FLOOR
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.report import FitReport
from decaylaws.laws.mixing.base import MixtureRegression, plain_report

FloatArray = NDArray[np.floating[Any]]

TRANSFORMS: Mapping[str, Callable[[Array], Array]] = {
    "log": lambda shares: np.log(shares + 10 * SHARE_FLOOR),
    "sqrt": np.sqrt,
}
"""Shares as a Gaussian process sees them: on which scale two mixtures are near each other."""

_SHARE_STEP = 1e-7  # over which a transform is derived: a square root has no slope at a share of 0
_FEATURES = 256  # of a draw's prior; their error is below the posterior's own
_ALONE_FEATURES = 32  # of a draw's prior in one share
_GRID = 192  # points of a function of one share, between which it is taken to be straight
_ALONE_REACH = (
    1.0,
    2.5,
)  # standard deviations of a share over the runs, over which a function of it may change
_PRIOR_SD = np.array(
    [1.5, 1.5, 1.5, 0.7, 2.0]
)  # of the logs of an additive kernel's scales around their start


@dataclass(frozen=True)
class Alone:
    """The part of a kernel that is a sum of functions of one transformed share each.

    Each function is a straight line, which goes on away from the runs, and a squared-exponential process, which does
    not.

    Attributes:
        slope: variance of the sum of the lines at a distance of ``lengths`` from ``centre``.
        variance: of the sum of the processes.
        centre: mean transformed mixture of the runs [sources].
        lengths: over which the function of each share changes [sources].
        low: smallest transformed share.
        high: largest one.
    """

    slope: float
    variance: float
    centre: FloatArray
    lengths: FloatArray
    low: float
    high: float

    def kernel(self, first: Array, second: FloatArray) -> Array:
        """Covariance of transformed mixtures [n, sources] and [k, sources], [n, k]."""
        bent = _correlation_alone(first, second, self.lengths)
        return self.variance * bent + self.slope * _correlation_straight(
            first, second, self.centre, self.lengths
        )

    def functions(self, inputs: FloatArray, weights: Array) -> Array:
        """``kernel(x, inputs) @ weights`` as a function of each share on the grid.

        Args:
            inputs: transformed mixtures of the runs [runs, sources].
            weights: of the runs [draws, runs].

        Returns:
            [draws, sources, grid].
        """
        found = []
        for own, length, centre in zip(inputs.T, self.lengths, self.centre):
            bent = np.exp(-0.5 * ((self._grid[:, None] - own) / length) ** 2)
            straight = np.outer(self._grid - centre, own - centre) / length**2
            found.append(weights @ (self.variance * bent + self.slope * straight).T)
        return np.stack(found, axis=1) / len(found)

    def prior(self, num_draws: int, rng: np.random.Generator) -> Array:
        """Functions drawn from the prior, on the grid [draws, sources, grid]."""
        count = len(self.lengths)
        frequencies = rng.standard_normal((count, _ALONE_FEATURES)) / self.lengths[:, None]
        phases = rng.uniform(0.0, 2.0 * np.pi, (count, _ALONE_FEATURES, 1))
        waves = np.cos(frequencies[:, :, None] * self._grid + phases)
        size = np.sqrt(2.0 * self.variance / (count * _ALONE_FEATURES))
        weights = size * rng.standard_normal((num_draws, count, _ALONE_FEATURES))
        lines = (self._grid - self.centre[:, None]) / self.lengths[:, None]
        slopes = np.sqrt(self.slope / count) * rng.standard_normal((num_draws, count, 1))
        return np.asarray(np.einsum("bmf,mfg->bmg", weights, waves) + slopes * lines)

    def look_up(self, tables: Array, inputs: Array, draw: NDArray[np.int64] | None = None) -> Array:
        """Sums over the sources of functions on the grid at transformed mixtures [n, sources].

        Args:
            tables: the functions [draws, sources, grid].
            inputs: the mixtures.
            draw: number of each mixture's draw [n]; all draws without it.

        Returns:
            [draws, n], or [n] with ``draw``.
        """
        at = np.clip((inputs - self.low) / (self.high - self.low), 0.0, 1.0) * (_GRID - 1)
        left = np.minimum(at.astype(int), _GRID - 2)
        rest, source = at - left, np.arange(inputs.shape[1])
        which: Any = slice(None) if draw is None else draw[:, None]
        below, above = tables[which, source, left], tables[which, source, left + 1]
        return np.asarray((below + rest * (above - below)).sum(axis=-1))

    def slopes(self, table: Array, inputs: Array) -> Array:
        """Derivative of one draw's sum by each transformed share at one mixture [sources]."""
        step = (self.high - self.low) / (_GRID - 1)
        left = np.clip(((inputs - self.low) / step).astype(int), 0, _GRID - 2)
        source = np.arange(len(inputs))
        return np.asarray((table[source, left + 1] - table[source, left]) / step)

    @property
    def _grid(self) -> Array:
        return np.linspace(self.low, self.high, _GRID)


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
        signal, noise, length = self.scales
        frequencies = rng.standard_normal((_FEATURES, self.inputs.shape[1])) / length
        phases = rng.uniform(0.0, 2.0 * np.pi, _FEATURES)
        weights = rng.standard_normal((num_draws, _FEATURES)) * np.sqrt(2.0 * signal / _FEATURES)
        jitter = rng.standard_normal((num_draws, len(self.inputs))) * np.sqrt(noise)
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
            errors,
            report,
        )

    @cached_property
    def _alone_mean(self) -> Array:
        assert self.alone is not None
        return self.alone.functions(self.inputs, np.asarray(self.dual[None], dtype=float))

    def _together(self, shares: Array) -> Array:
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
            kernel = _fit_additive(inputs, logs - centre, float(low), float(high))
        else:
            kernel = _fit_kernel(inputs, logs - centre, self.num_restarts, self.seed)
        signal, noise, length = kernel.scales
        noise_by_run = noise / np.maximum(weights, 1e-3)
        covariance = signal * _kernel(inputs, inputs, length) + np.diag(noise_by_run)
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
            inputs, dual, inverse, centre, kernel.scales, kernel.alone, self.transform, floor, errors, report
        )

    def _restore_target(
        self, target: str, state: dict[str, Any], errors: Array, report: FitReport
    ) -> GaussianProcessModel:
        return GaussianProcessModel.from_state(state, errors, report)


def _squares(a: Array, b: FloatArray) -> Array:
    """Squared distances [a, b]."""
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.asarray(np.maximum(squares, 0.0))


def _kernel(a: Array, b: FloatArray, length: float) -> Array:
    """Squared-exponential correlation [a, b]."""
    return np.asarray(np.exp(-0.5 * _squares(a, b) / length**2))


def _correlation_alone(first: Array, second: FloatArray, lengths: FloatArray) -> Array:
    """Mean over the sources of the squared-exponential correlations of one share each [first, second]."""
    found = np.zeros((len(first), len(second)))
    for own, other, length in zip(first.T, second.T, lengths):
        found += np.exp(-0.5 * ((own[:, None] - other) / length) ** 2)
    return found / len(lengths)


def _correlation_straight(first: Array, second: FloatArray, centre: FloatArray, lengths: FloatArray) -> Array:
    """Products of what lies on a straight line through each transformed share [first, second]."""
    return np.asarray(((first - centre) / lengths) @ ((second - centre) / lengths).T / len(lengths))


@dataclass(frozen=True)
class _KernelFit:
    """Signal variance, noise variance and length of the kernel, its additive part, and which ended at a bound."""

    scales: tuple[float, float, float]
    alone: Alone | None
    at_bounds: tuple[str, ...]


def _fit_kernel(inputs: Array, centred: Array, restarts: int, seed: int) -> _KernelFit:
    """The kernel that maximises the marginal likelihood; a scale at its bound is reported, not warned of."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    variance = float(np.var(centred))
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
    return _KernelFit((float(scales[0]), float(scales[1]), float(scales[2])), None, names)


def _fit_additive(inputs: Array, centred: Array, low: float, high: float) -> _KernelFit:
    """The scales of a kernel with an additive part: most likely ones, with a wide prior on their logs.

    Without the prior, as many runs as here often choose a noise of nothing or a part without variance.
    """
    spread = inputs.std(axis=0)
    spread = np.maximum(spread, 0.5 * spread.mean())
    fits = [_fit_scales(inputs, centred, reach * spread, low, high) for reach in _ALONE_REACH]
    return min(fits, key=lambda fit: fit[0])[1]


def _fit_scales(
    inputs: Array, centred: Array, lengths: Array, low: float, high: float
) -> tuple[float, _KernelFit]:
    """Minus the log of how likely the runs are, up to a constant, and the scales for given lengths of single shares."""
    count, variance = len(centred), float(np.var(centred))
    apart = float(np.sqrt(2.0 * inputs.var(axis=0).sum()))  # a typical distance of two runs
    centre, squares = inputs.mean(axis=0), _squares(inputs, inputs)
    alone = _correlation_alone(inputs, inputs, lengths)
    straight = _correlation_straight(inputs, inputs, centre, lengths)
    start = np.log([0.3 * variance, 0.3 * variance, 0.3 * variance, apart, 0.02 * variance])
    lower = np.log([*[1e-4 * variance] * 3, 0.2 * apart, 1e-4 * variance])
    upper = np.log([*[1e2 * variance] * 3, 20.0 * apart, 2.0 * variance])

    def surprise(theta: Array) -> tuple[float, Array]:
        slope, own, signal, length, noise = np.exp(theta)
        together = signal * np.exp(-0.5 * squares / length**2)
        parts = (
            slope * straight, own * alone, together, together * squares / length**2, noise * np.eye(count)
        )  # fmt: skip
        factor = cho_factor(parts[0] + parts[1] + together + parts[4], lower=True)
        dual, away = cho_solve(factor, centred), (theta - start) / _PRIOR_SD
        value = 0.5 * centred @ dual + np.log(np.diag(factor[0])).sum() + 0.5 * away @ away
        rest = cho_solve(factor, np.eye(count)) - np.outer(dual, dual)
        slopes = np.array([0.5 * np.sum(rest * part) for part in parts])
        return float(value), slopes + away / _PRIOR_SD

    found = minimize(surprise, start, jac=True, method="L-BFGS-B", bounds=list(zip(lower, upper)))
    theta = found.x
    touching = np.minimum(theta - lower, upper - theta) < 1e-3
    known = ("slope_sd", "alone_sd", "signal_sd", "length", "noise_sd")
    slope, own, signal, length, noise = np.exp(theta).tolist()
    kernel = Alone(slope, own, centre, lengths, low, high)
    names = tuple(name for name, at in zip(known, touching) if at)
    return float(found.fun), _KernelFit((signal, noise, length), kernel, names)
