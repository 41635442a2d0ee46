"""The shapes of size-and-token laws: log loss, analytic Jacobian, starts by variable projection.

The catalogue's laws are one expression with some parameters fixed or tied::

    L(N, D) = E + (A N^-alpha + B D^-beta)^k

    law                    source                     constraint             parameters
    Chinchilla             arXiv 2203.15556           k = 1                  5
    over-training          arXiv 2403.08540           k = 1, alpha = beta    4
    Skaling                arXiv 2608.07222           none                   6
    data-constrained       arXiv 2305.16264           k = 1, effective N, D  7   (``repeats``)

Every parameter but E is fitted as its logarithm (E may be zero), and N and D are divided by their geometric
means first: the amplitudes at the centre of the data are nearly uncorrelated with the exponents, so that the
optimum is reached to machine precision. Given the exponents, amplitudes are a non-negative linear
least-squares problem; its solutions on a grid of exponents are the starts (variable projection).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from decaylaws.laws.kit.formulas import power_sum
from decaylaws.laws.kit.law import Array

FULL = ("E", "log_A", "log_alpha", "log_B", "log_beta", "log_k")
_ALPHA_GRID = (0.1, 0.2, 0.35, 0.55, 0.9)
_K_GRID = (0.1, 0.2, 0.35, 0.6)
_FLOOR_GRID = (0.0, 0.4, 0.7, 0.9)  # candidates of E, as shares of the smallest loss
_LEAST = 1e-9  # amplitudes that the projection sets to zero start from here
_BOUNDS = {"E": (0.0, 20.0), "log_A": (-30.0, 30.0), "log_B": (-30.0, 30.0)}
_EXPONENT_BOUNDS = (float(np.log(0.01)), float(np.log(5.0)))


@dataclass(frozen=True)
class Inputs:
    """What a size-and-token law reads, one entry per observation.

    Attributes:
        log_params: log of N over ``center[0]``, shape ``[n]``.
        log_tokens: log of D over ``center[1]``, shape ``[n]``.
        log_unique: log of the unique tokens over ``center[1]``, shape ``[n]``; ``log_tokens`` where none
            repeat.
        center: reference N (parameters) and D (tokens): geometric means of the fitted rows.
    """

    log_params: Array
    log_tokens: Array
    log_unique: Array
    center: tuple[float, float]

    def take(self, rows: NDArray[np.bool_]) -> Inputs:
        """The rows of a mask ``[n]``."""
        return Inputs(self.log_params[rows], self.log_tokens[rows], self.log_unique[rows], self.center)


class Family(Protocol):
    """A law's shape; ``theta`` is the vector of its internal parameters, in the order of ``names``."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the internal parameters."""

    def bounds(self) -> tuple[Array, Array]:
        """Lower and upper bounds of theta, each ``[p]``."""

    def prior(self) -> tuple[Array, Array]:
        """Mean and standard deviation of theta's prior, each ``[p]``; NaN and infinity where none."""

    def starts(self, x: Inputs, loss: Array) -> Array:
        """Starting points, best first, ``[num_starts, p]``."""

    def log_loss(self, theta: Array, x: Inputs) -> tuple[Array, Array]:
        """Log of the loss ``[n]`` and its Jacobian ``[n, p]``."""

    def to_public(self, theta: Array, center: tuple[float, float]) -> dict[str, float]:
        """Parameters of the published form, for N and D in parameters and tokens."""

    def from_public(self, params: Mapping[str, float], center: tuple[float, float]) -> Array:
        """Inverse of :meth:`to_public`."""


@dataclass(frozen=True)
class PowerSum:
    """A member of the family in this module's docstring.

    Attributes:
        fixed: full parameters with a fixed value, such as ``{"log_k": 0.0}``.
        tied: full parameters that equal another one, such as ``{"log_beta": "log_alpha"}``.
        priors: median and log standard deviation of parameters about which the literature agrees.
    """

    fixed: Mapping[str, float] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    priors: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Free parameters of the six."""
        return tuple(name for name in FULL if name not in self.fixed and name not in self.tied)

    def bounds(self) -> tuple[Array, Array]:
        """Wide bounds: exponents .01 to 5, E from nothing."""
        pairs = [_BOUNDS.get(name, _EXPONENT_BOUNDS) for name in self.names]
        return np.array([low for low, _ in pairs]), np.array([high for _, high in pairs])

    def prior(self) -> tuple[Array, Array]:
        """Log-normal priors of the exponents."""
        pairs = [self.priors.get(name, (np.nan, np.inf)) for name in self.names]
        return np.array([np.log(median) for median, _ in pairs]), np.array([sd for _, sd in pairs])

    def expand(self, theta: Array) -> Array:
        """The six parameters that theta stands for."""
        return self.ties @ theta + self._constants

    def log_loss(self, theta: Array, x: Inputs) -> tuple[Array, Array]:
        """Log of the loss and its Jacobian."""
        value, in_full, _ = power_sum(self.expand(theta), x.log_params, x.log_tokens)
        return value, in_full @ self.ties

    def starts(self, x: Inputs, loss: Array, limit: int | None = None) -> Array:
        """The best projected start for every value of every exponent on the grid, at most ``limit``."""
        ranked = sorted(self._projections(x, loss), key=lambda entry: entry[0])
        chosen: dict[tuple[float, ...], None] = {}
        seen: set[tuple[str, float]] = set()
        for _, full in ranked:
            exponents = {(name, full[name]) for name in ("log_alpha", "log_beta", "log_k")}
            if not exponents <= seen:
                chosen[tuple(full[free] for free in self.names)] = None
            seen |= exponents
        return np.array(list(chosen)[:limit])

    def to_public(self, theta: Array, center: tuple[float, float]) -> dict[str, float]:
        """E, A, B, alpha, beta, k for N in parameters and D in tokens."""
        full = dict(zip(FULL, self.expand(theta)))
        alpha, beta, k = (float(np.exp(full[name])) for name in ("log_alpha", "log_beta", "log_k"))
        return {
            "E": float(full["E"]),
            "A": float(np.exp(full["log_A"] + alpha * np.log(center[0]))),
            "B": float(np.exp(full["log_B"] + beta * np.log(center[1]))),
            "alpha": alpha,
            "beta": beta,
            "k": k,
        }

    def from_public(self, params: Mapping[str, float], center: tuple[float, float]) -> Array:
        """Inverse of :meth:`to_public`."""
        full = {f"log_{name}": np.log(params[name]) for name in ("alpha", "beta", "k") if name in params}
        full["log_A"] = np.log(params["A"]) - params["alpha"] * np.log(center[0])
        full["log_B"] = np.log(params["B"]) - params["beta"] * np.log(center[1])
        full["E"] = params["E"] if "E" in self.names else 0.0
        return np.array([full[name] for name in self.names])

    @cached_property
    def ties(self) -> Array:
        """Matrix ``[6, p]`` from theta to the six parameters."""
        source = [self.tied.get(name, name) for name in FULL]
        return np.array([[float(name == free) for free in self.names] for name in source])

    @cached_property
    def _constants(self) -> Array:
        return np.array([self.fixed.get(name, 0.0) for name in FULL])

    def _projections(self, x: Inputs, loss: Array) -> list[tuple[float, dict[str, float]]]:
        """Residual norm and full parameters of every grid point."""
        free = self.names
        betas = _ALPHA_GRID if "log_beta" in free else (1.0,)
        ks = _K_GRID if "log_k" in free else (float(np.exp(self.fixed["log_k"])),)
        floors = _FLOOR_GRID if "E" in free else (0.0,)
        results = []
        for alpha, beta, k, floor in product(_ALPHA_GRID, betas, ks, floors):
            exponents = (alpha, alpha if "log_beta" in self.tied else beta, k)
            results.append(_project(exponents, floor * float(loss.min()), x, loss))
        return results


def _project(
    exponents: tuple[float, float, float], floor: float, x: Inputs, loss: Array
) -> tuple[float, dict[str, float]]:
    """Amplitudes by non-negative least squares on relative errors of the loss, given exponents and E."""
    alpha, beta, k = exponents
    target = (loss - floor) ** (1 / k)
    relative = (loss - floor) / (k * loss * target)
    columns = np.stack([np.exp(-alpha * x.log_params), np.exp(-beta * x.log_tokens)], axis=1)
    (size, data), norm = nnls(columns * relative[:, None], target * relative)
    logs = np.log([max(size, _LEAST), alpha, max(data, _LEAST), beta, k])
    return float(norm), dict(zip(FULL, [floor, *logs.tolist()]))
