"""Derivatives of residuals whose normal matrix is a block-arrow, its factors and its inverse.

Where residuals come from several domains that meet in a few shared parameters and have all others of their own, the
derivatives of one domain's residuals by another domain's parameters are zero. The normal matrix is then an arrow: a
corner for the shared parameters, a block for each domain, and a side that joins each block to the corner. Building,
factorising and inverting it costs as much as there are domains, where a dense matrix costs the cube of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotri, dpotrs
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from decaylaws.laws.kit.normal_matrix import (
    Array,
    BoolArray,
    DenseSlopes,
    Factor,
    NormalMatrix,
    Slopes,
)

_DENSE_EIGENVALUES = 300  # parameters up to which all eigenvalues cost less than the extreme two by iteration


@dataclass(frozen=True)
class ArrowSlopes(Slopes):
    """Derivatives of the residuals of every run in every domain, in the order of an array ``[runs, domains]``.

    Attributes:
        shared: by the shared parameters, ``[domains, runs, s]``.
        own: by the domain's own parameters, ``[domains, runs, q]``.
        shared_columns: where the shared parameters stand among all, ``[s]``.
        own_columns: where each domain's own parameters stand, ``[domains, q]``.
    """

    shared: Array
    own: Array
    shared_columns: NDArray[np.intp]
    own_columns: NDArray[np.intp]

    @property
    def num_params(self) -> int:  # type: ignore[override]  # noqa: D102
        return len(self.shared_columns) + self.own_columns.size

    def _with(self, shared: Array, own: Array) -> ArrowSlopes:
        return ArrowSlopes(shared, own, self.shared_columns, self.own_columns)

    def _by_domain(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values of the residuals ``[n]`` as ``[domains, runs]``."""
        return values.reshape(self.own.shape[1], len(self.own)).T

    def of_runs(self, runs: BoolArray) -> ArrowSlopes:
        """The derivatives of some runs alone, ``[runs]``."""
        return self._with(self.shared[:, runs], self.own[:, runs])

    def dense(self) -> Array:  # noqa: D102
        domains, runs = self.own.shape[:2]
        values = np.zeros((runs, domains, self.num_params))
        values[:, :, self.shared_columns] = self.shared.transpose(1, 0, 2)
        for domain, columns in enumerate(self.own_columns):
            values[:, domain, columns] = self.own[domain]
        return values.reshape(runs * domains, -1)

    def rows_scaled(self, factors: Array) -> ArrowSlopes:  # noqa: D102
        by_domain = self._by_domain(factors)[:, :, None]
        return self._with(self.shared * by_domain, self.own * by_domain)

    def columns(self, free: BoolArray) -> Slopes:  # noqa: D102
        own, shared = free[self.own_columns], free[self.shared_columns]
        if not (own == own[0]).all():  # the blocks would differ in size
            return DenseSlopes(self.dense()[:, free])
        place = np.cumsum(free) - 1
        return ArrowSlopes(
            self.shared[:, :, shared],
            self.own if own[0].all() else self.own[:, :, own[0]],
            place[self.shared_columns[shared]],
            place[self.own_columns[:, own[0]]],
        )

    def without(self, held: BoolArray) -> ArrowSlopes:
        """The derivatives with those by the parameters ``held`` ``[p]`` at zero."""
        return self._with(
            self.shared * ~held[self.shared_columns], self.own * ~held[self.own_columns][:, None, :]
        )

    def projected(self, values: Array) -> Array:  # noqa: D102
        by_domain = self._by_domain(values)[:, :, None]
        found = np.empty(self.num_params)
        found[self.shared_columns] = np.sum(self.shared * by_domain, axis=(0, 1))
        found[self.own_columns] = np.matmul(self.own.transpose(0, 2, 1), by_domain)[:, :, 0]
        return found

    def squared_lengths(self) -> Array:  # noqa: D102
        found = np.empty(self.num_params)
        found[self.shared_columns] = np.einsum("knp,knp->p", self.shared, self.shared)
        found[self.own_columns] = np.einsum("knp,knp->kp", self.own, self.own)
        return found

    def gram(self, precision: Array, rows: BoolArray | None = None) -> ArrowMatrix:  # noqa: D102
        kept = self if rows is None or rows.all() else self.rows_scaled(rows.astype(float))
        turned, flat = kept.own.transpose(0, 2, 1), np.concatenate(kept.shared)
        blocks = np.matmul(turned, kept.own)
        diagonal = np.arange(blocks.shape[1])
        blocks[:, diagonal, diagonal] += precision[self.own_columns]
        return ArrowMatrix(
            flat.T @ flat + np.diag(precision[self.shared_columns]),
            np.matmul(turned, kept.shared),
            blocks,
            self.shared_columns,
            self.own_columns,
        )

    def condition(self, precision: Array, free: BoolArray) -> float:  # noqa: D102
        # a held column becomes a unit vector: its eigenvalue of 1 lies between the extreme ones of the others
        matrix = self.without(~free).gram(np.where(free, precision, 1.0))
        unit = 1 / np.sqrt(np.maximum(matrix.diagonal(), 1e-300))
        least, most = matrix.scaled(unit, np.zeros_like(unit)).extreme_eigenvalues()
        return float(np.sqrt(most / least)) if least > 0 else np.inf


@dataclass(frozen=True)
class ArrowMatrix(NormalMatrix):
    """A normal matrix in which domains meet in the shared parameters only.

    Attributes:
        corner: shared by shared, ``[s, s]``.
        side: own by shared, ``[domains, q, s]``.
        blocks: own by own, ``[domains, q, q]``.
        shared_columns: where the shared parameters stand among all, ``[s]``.
        own_columns: where each domain's own parameters stand, ``[domains, q]``.
    """

    corner: Array
    side: Array
    blocks: Array
    shared_columns: NDArray[np.intp]
    own_columns: NDArray[np.intp]

    @property
    def num_params(self) -> int:
        """Number of parameters p."""
        return len(self.corner) + self.own_columns.size

    def diagonal(self) -> Array:  # noqa: D102
        return self._joined(np.diag(self.corner), np.einsum("kpp->kp", self.blocks))

    def times(self, values: Array) -> Array:  # noqa: D102
        shared, own = values[self.shared_columns], values[self.own_columns]
        return self._joined(
            self.corner @ shared + np.einsum("kps,kp->s", self.side, own),
            self.side @ shared + np.matmul(self.blocks, own[:, :, None])[:, :, 0],
        )

    def scaled(self, unit: Array, extra: Array) -> ArrowMatrix:  # noqa: D102
        shared, own = unit[self.shared_columns], unit[self.own_columns]
        blocks = own[:, :, None] * self.blocks * own[:, None, :]
        diagonal = np.arange(blocks.shape[1])
        blocks[:, diagonal, diagonal] += extra[self.own_columns]
        return ArrowMatrix(
            shared[:, None] * self.corner * shared + np.diag(extra[self.shared_columns]),
            own[:, :, None] * self.side * shared,
            blocks,
            self.shared_columns,
            self.own_columns,
        )

    def factor(self, damping: float = 0.0) -> ArrowFactor | None:  # noqa: D102
        # LAPACK's order of columns inside every block: it would copy any other, at each of many solves
        lowers, joined = np.empty_like(self.blocks).swapaxes(1, 2), np.empty_like(self.side)
        corner, blocks = self.corner, self.blocks
        if damping:
            corner, blocks = corner.copy(), blocks.copy()
            corner[np.diag_indices(len(corner))] += damping
            diagonal = np.arange(blocks.shape[1])
            blocks[:, diagonal, diagonal] += damping
        for domain, block in enumerate(blocks):
            lowers[domain], failed = dpotrf(block.T, lower=1)
            if failed:
                return None
            if self.side.shape[2]:
                joined[domain] = dpotrs(lowers[domain], self.side[domain], lower=1)[0]
        corner = corner - np.einsum("kps,kpt->st", self.side, joined, optimize=True)
        lower, failed = dpotrf(corner, lower=1) if len(corner) else (corner, 0)
        return None if failed else ArrowFactor(self, lower, lowers, joined)

    def extreme_eigenvalues(self) -> tuple[float, float]:
        """The smallest and the largest; 0 and the largest where the matrix is not positive definite."""
        if self.num_params <= _DENSE_EIGENVALUES:
            found = np.linalg.eigvalsh(self.dense())
            return max(float(found[0]), 0.0), float(found[-1])
        first, shape = np.ones(self.num_params), (self.num_params, self.num_params)
        factor = self.factor()
        try:
            most = eigsh(LinearOperator(shape, self.times), 1, v0=first, return_eigenvectors=False)[0]
            inverse = None if factor is None else LinearOperator(shape, factor.solve)
            least = 0.0 if inverse is None else 1 / eigsh(inverse, 1, v0=first, return_eigenvectors=False)[0]
        except ArpackNoConvergence:
            found = np.linalg.eigvalsh(self.dense())
            return max(float(found[0]), 0.0), float(found[-1])
        return float(least), float(most)

    def dense(self) -> Array:
        """The matrix as an array ``[p, p]``."""
        values = np.zeros((self.num_params, self.num_params))
        values[np.ix_(self.shared_columns, self.shared_columns)] = self.corner
        for side, block, columns in zip(self.side, self.blocks, self.own_columns):
            values[np.ix_(columns, columns)] = block
            values[np.ix_(columns, self.shared_columns)] = side
            values[np.ix_(self.shared_columns, columns)] = side.T
        return values

    def _joined(self, shared: Array, own: Array) -> Array:
        found = np.empty(self.num_params)
        found[self.shared_columns], found[self.own_columns] = shared, own
        return found


@dataclass(frozen=True)
class ArrowFactor(Factor):
    """Cholesky factors of the blocks and of what they leave of the corner.

    Attributes:
        matrix: what was factorised.
        corner: lower factor of the corner less ``side' blocks^-1 side``, ``[s, s]``.
        blocks: lower factors of the blocks, ``[domains, q, q]``.
        joined: ``blocks^-1 side``, ``[domains, q, s]``.
    """

    matrix: ArrowMatrix
    corner: Array
    blocks: Array
    joined: Array

    def solve(self, values: Array) -> Array:  # noqa: D102
        matrix = self.matrix
        own = values[matrix.own_columns]
        shared = values[matrix.shared_columns] - np.einsum("kps,kp->s", self.joined, own)
        if len(shared):
            shared = dpotrs(self.corner, shared, lower=1)[0]
        alone = np.array([dpotrs(lower, each, lower=1)[0] for lower, each in zip(self.blocks, own)])
        return matrix._joined(shared, alone - self.joined @ shared)

    def inverse(self) -> ArrowCovariance:
        """The inverse, in parts."""
        shared = _inverse(self.corner) if len(self.corner) else self.corner
        return ArrowCovariance(shared, self.joined, np.array([_inverse(lower) for lower in self.blocks]))


@dataclass(frozen=True)
class ArrowCovariance:
    """The inverse of an arrow: full, but of low rank beyond its blocks.

    Attributes:
        shared: covariance of the shared parameters, ``[s, s]``.
        joined: by how much a domain's own parameters fall as shared ones rise, ``[domains, q, s]``.
        alone: covariance of a domain's own parameters where the shared ones are known, ``[domains, q, q]``.
    """

    shared: Array
    joined: Array
    alone: Array

    def own_variances(self) -> Array:
        """Variances of every domain's own parameters ``[domains, q]``."""
        return np.einsum("kpp->kp", self.alone) + np.einsum(
            "kps,st,kpt->kp", self.joined, self.shared, self.joined
        )

    def of(self, slopes: ArrowSlopes) -> Array:
        """Covariance of the domains' predictions ``[runs, domains, domains]`` from their derivatives."""
        along = slopes.shared - np.matmul(slopes.own, self.joined)  # [domains, runs, s]
        found = np.einsum("kns,st,lnt->nkl", along, self.shared, along, optimize=True)
        diagonal = np.arange(len(self.alone))
        found[:, diagonal, diagonal] += np.sum(np.matmul(slopes.own, self.alone) * slopes.own, axis=2).T
        return found

    def holding(self, shared: BoolArray, own: BoolArray) -> ArrowCovariance:
        """The same with no variance in the parameters that are held: ``[s]`` and ``[domains, q]``."""
        return ArrowCovariance(
            np.where(shared[:, None] | shared, 0.0, self.shared),
            self.joined,
            np.where(own[:, :, None] | own[:, None, :], 0.0, self.alone),
        )

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name."""
        return vars(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from ``to_dict``, whose arrays may have become lists."""
        return cls(*(np.array(values[name], dtype=float) for name in ("shared", "joined", "alone")))


def _inverse(lower: Array) -> Array:
    """The inverse of the matrix whose lower Cholesky factor this is."""
    half = np.tril(dpotri(lower, lower=1)[0])
    return np.asarray(half + np.tril(half, -1).T)
