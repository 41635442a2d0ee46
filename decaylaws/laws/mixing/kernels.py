"""Kernels of a Gaussian process on transformed shares, and their most likely scales."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from decaylaws.laws.kit.law import Array

FloatArray = NDArray[np.floating[Any]]

_GRID = 192  # points of a function of one share, between which it is taken to be straight
_ALONE_REACH = (1.0, 2.5)
"""Standard deviations of a share over the runs, over which a function of it may change."""
_PRIOR_SD = np.array([1.5, 1.5, 1.5, 0.7, 2.0])
"""Of the logs of an additive kernel's scales around their start."""
_ALONE_FEATURES = 32  # of a draw's prior in one share


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


def _squares(a: Array, b: FloatArray) -> Array:
    """Squared distances [a, b]."""
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.asarray(np.maximum(squares, 0.0))


def correlation(a: Array, b: FloatArray, length: float) -> Array:
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
class KernelFit:
    """Signal variance, noise variance and length of the kernel, its additive part, and which ended at a bound."""

    scales: tuple[float, float, float]
    alone: Alone | None
    at_bounds: tuple[str, ...]


def fit_kernel(inputs: Array, centred: Array, restarts: int, seed: int) -> KernelFit:
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
    return KernelFit((float(scales[0]), float(scales[1]), float(scales[2])), None, names)


def fit_additive(inputs: Array, centred: Array, low: float, high: float) -> KernelFit:
    """The scales of a kernel with an additive part: most likely ones, with a wide prior on their logs.

    Without the prior, as many runs as here often choose a noise of nothing or a part without variance.
    """
    spread = inputs.std(axis=0)
    spread = np.maximum(spread, 0.5 * spread.mean())
    fits = [_fit_scales(inputs, centred, reach * spread, low, high) for reach in _ALONE_REACH]
    return min(fits, key=lambda fit: fit[0])[1]


def _fit_scales(
    inputs: Array, centred: Array, lengths: Array, low: float, high: float
) -> tuple[float, KernelFit]:
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
    return float(found.fun), KernelFit((signal, noise, length), kernel, names)
