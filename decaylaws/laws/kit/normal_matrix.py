"""Derivatives of residuals and the normal matrix ``J' W J + P`` that they make: the contract, and the dense ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotrs

Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


class Factor(ABC):
    """A Cholesky factorisation."""

    @abstractmethod
    def solve(self, values: Array) -> Array:
        """``H^-1 values``, ``[p]``."""


class NormalMatrix(ABC):
    """A symmetric matrix ``H`` ``[p, p]``."""

    @abstractmethod
    def diagonal(self) -> Array:
        """Its diagonal ``[p]``."""

    @abstractmethod
    def times(self, values: Array) -> Array:
        """``H values``, ``[p]``."""

    @abstractmethod
    def scaled(self, unit: Array, extra: Array) -> NormalMatrix:
        """``diag(unit) H diag(unit) + diag(extra)`` for vectors ``[p]``."""

    @abstractmethod
    def factor(self, damping: float = 0.0) -> Factor | None:
        """Factorisation of ``H + damping I``; None where that is not positive definite."""


class Slopes(ABC):
    """Derivatives ``J`` ``[n, p]`` of residuals by parameters."""

    num_params: int

    @abstractmethod
    def dense(self) -> Array:
        """``J`` as an array ``[n, p]``."""

    @abstractmethod
    def rows_scaled(self, factors: Array) -> Slopes:
        """Every row times its factor ``[n]``."""

    @abstractmethod
    def columns(self, free: BoolArray) -> Slopes:
        """The derivatives by the ``free`` parameters ``[p]`` alone."""

    @abstractmethod
    def projected(self, values: Array) -> Array:
        """``J' values``, ``[p]``."""

    @abstractmethod
    def squared_lengths(self) -> Array:
        """Sum of squares of every column ``[p]``."""

    @abstractmethod
    def gram(self, precision: Array, rows: BoolArray | None = None) -> NormalMatrix:
        """``J' J + diag(precision)`` over ``rows`` ``[n]``, all by default."""

    @abstractmethod
    def condition(self, precision: Array, free: BoolArray) -> float:
        """Condition number of the ``free`` columns of ``J`` above ``diag(precision)^1/2``, each of length one."""


@dataclass(frozen=True)
class DenseMatrix(NormalMatrix):
    """Any normal matrix, ``values`` ``[p, p]``."""

    values: Array

    def diagonal(self) -> Array:  # noqa: D102
        return np.diag(self.values)

    def times(self, values: Array) -> Array:  # noqa: D102
        return np.asarray(self.values @ values)

    def scaled(self, unit: Array, extra: Array) -> DenseMatrix:  # noqa: D102
        return DenseMatrix(unit[:, None] * self.values * unit + np.diag(extra))

    def factor(self, damping: float = 0.0) -> Factor | None:  # noqa: D102
        damped = self.values.copy()
        damped[np.diag_indices(len(damped))] += damping
        lower, failed = dpotrf(damped, lower=1)
        return None if failed else _DenseFactor(lower)


@dataclass(frozen=True)
class _DenseFactor(Factor):
    lower: Array

    def solve(self, values: Array) -> Array:
        return np.asarray(dpotrs(self.lower, values, lower=1)[0])


@dataclass(frozen=True)
class DenseSlopes(Slopes):
    """Any derivatives, ``values`` ``[n, p]``."""

    values: Array

    @property
    def num_params(self) -> int:  # type: ignore[override]  # noqa: D102
        return self.values.shape[1]

    def dense(self) -> Array:  # noqa: D102
        return self.values

    def rows_scaled(self, factors: Array) -> DenseSlopes:  # noqa: D102
        return DenseSlopes(self.values * factors[:, None])

    def columns(self, free: BoolArray) -> DenseSlopes:  # noqa: D102
        return DenseSlopes(self.values[:, free])

    def projected(self, values: Array) -> Array:  # noqa: D102
        return np.asarray(self.values.T @ values)

    def squared_lengths(self) -> Array:  # noqa: D102
        return np.einsum("np,np->p", self.values, self.values)

    def gram(self, precision: Array, rows: BoolArray | None = None) -> DenseMatrix:  # noqa: D102
        kept = self.values if rows is None else self.values[rows]
        return DenseMatrix(kept.T @ kept + np.diag(precision))

    def condition(self, precision: Array, free: BoolArray) -> float:  # noqa: D102
        stacked = np.vstack([self.values, np.diag(np.sqrt(precision))])
        lengths = np.maximum(np.linalg.norm(stacked, axis=0), 1e-300)
        return float(np.linalg.cond(stacked[:, free] / lengths[free]))
