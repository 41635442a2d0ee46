"""MARINER's mixture law (marin, September 2026) as a rival with its own fit: saturating gain and harm of epochs.

``y = b0 - sum_b a_b (1 - exp(-(rho E_b)^p)) + sum_b g_b softplus(log(1 + E_b) - tau)^2`` with ``a, g >= 0``: a
non-negative ridge on centred columns that are not scaled, ``(rho, p, tau)`` and the ridge's strength by
cross-validation in three folds, one head for each target. ``E_b`` are the epochs of a source: its share times
``epochs_per_share``. Where a table does not say how many tokens its sources hold, that is the number of sources: even
shares are one epoch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import nnls

from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.report import FitReport
from decaylaws.laws.mixing.base import MixtureRegression
from decaylaws.laws.mixing.data import grouped_folds, mixture_groups
from decaylaws.laws.mixing.target_model import plain_report

RATES, POWERS, ONSETS, RIDGES = (0.1, 0.3, 1.0, 3.0), (0.5, 1.0), (0.7, 1.5, 2.5), (1e-3, 1e-2, 1e-1, 1.0)
NUM_FOLDS = 3


def columns(epochs: Array, rate: float, power: float, onset: float) -> Array:
    """What the coefficients multiply ``[n, 2 m]``: minus the gain of every source, then its harm."""
    gain = -np.expm1(-((rate * epochs) ** power))
    harm = np.logaddexp(0.0, np.log1p(epochs) - onset) ** 2
    return np.hstack([-gain, harm])


@dataclass(frozen=True)
class MarinerModel:
    """One head.

    Attributes:
        scale: epochs at a share of one, by source ``[m]``.
        shape: rate, power and onset of the columns.
        intercept: b0.
        coefficients: ``a`` and ``g``, not negative ``[2 m]``.
        errors: none; the law has no intervals of its own.
        report: diagnosis.
    """

    scale: Array
    shape: tuple[float, float, float]
    intercept: float
    coefficients: Array
    errors: Array
    report: FitReport

    def predict(self, shares: Array) -> Array:
        """Loss [runs]."""
        return self.intercept + columns(shares * self.scale, *self.shape) @ self.coefficients

    def spread(self, shares: Array) -> Array:
        """1 everywhere."""
        return np.ones(len(shares))

    def left_out_spread(self, shares: Array) -> Array:
        """1 everywhere."""
        return np.ones(len(shares))

    def params(self, sources: tuple[str, ...]) -> dict[str, Any]:
        """Rate, power and onset, then gain and harm of every source."""
        names = [f"{kind}:{source}" for kind in ("gain", "harm") for source in sources]
        return dict(zip(("rate", "power", "onset"), self.shape)) | dict(
            zip(names, self.coefficients.tolist())
        )

    def state(self) -> dict[str, Any]:
        """Everything but errors and report."""
        return {name: getattr(self, name) for name in ("scale", "shape", "intercept", "coefficients")}


class Mariner(MixtureRegression):
    """MARINER's law.

    Args:
        epochs_per_share: epochs of each source at a share of one, by name; the number of sources without it.
        seed: of the folds.
    """

    def __init__(self, epochs_per_share: Mapping[str, float] | None = None, seed: int = 0) -> None:
        self.epochs_per_share, self.seed = epochs_per_share, seed

    def _fit_target(self, target: str, shares: Array, losses: Array, weights: Array) -> MarinerModel:
        began, known = time.perf_counter(), self.epochs_per_share or {}
        scale = np.array([known.get(source, float(shares.shape[1])) for source in self.sources_])
        epochs = shares * scale
        folds = grouped_folds(mixture_groups(shares), NUM_FOLDS, self.seed)
        errors: dict[tuple[float, ...], float] = {}
        for shape in product(RATES, POWERS, ONSETS):
            design = columns(epochs, *shape)
            for held in folds:
                kept = np.setdiff1d(np.arange(len(losses)), held)
                for ridge, (intercept, found) in heads(design[kept], losses[kept]).items():
                    missed = intercept + design[held] @ found - losses[held]
                    errors[*shape, ridge] = errors.get((*shape, ridge), 0.0) + float(missed @ missed)
        *shape, ridge = min(errors, key=lambda each: errors[each])
        rate, power, onset = shape
        design = columns(epochs, rate, power, onset)
        intercept, found = heads(design, losses, (ridge,))[ridge]
        fitted = intercept + design @ found
        report = plain_report(losses, fitted, int(np.sum(found > 0)) + 4, time.perf_counter() - began)
        return MarinerModel(scale, (rate, power, onset), intercept, found, np.empty(0), report)

    def _restore_target(
        self, target: str, state: dict[str, Any], errors: Array, report: FitReport
    ) -> MarinerModel:
        rate, power, onset = state["shape"]
        return MarinerModel(
            np.array(state["scale"]),
            (rate, power, onset),
            float(state["intercept"]),
            np.array(state["coefficients"]),
            errors,
            report,
        )


def heads(
    design: Array, losses: Array, ridges: tuple[float, ...] = RIDGES
) -> dict[float, tuple[float, Array]]:
    """Intercept and non-negative coefficients ``[q]`` by strength of the ridge, from centred columns ``[n, q]``."""
    centre, middle = design.mean(axis=0), float(losses.mean())
    centred = design - centre
    gram, projected, found = centred.T @ centred, centred.T @ (losses - middle), {}
    for ridge in ridges:
        # the Cholesky factor stands in for the stacked columns: as many rows as coefficients
        upper = np.linalg.cholesky(gram + ridge * np.eye(len(gram))).T
        coefficients = nnls(upper, solve_triangular(upper, projected, trans="T"))[0]
        found[ridge] = (middle - float(centre @ coefficients), coefficients)
    return found
