"""Regressions without a formula: RegMix's LightGBM and linear models."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.report import FitReport
from decaylaws.laws.mixing.base import MixtureRegression
from decaylaws.laws.mixing.parametric import LEAST_FREEDOM, left_out_spread
from decaylaws.laws.mixing.target_model import TargetModel, held_out_errors, plain_report

if TYPE_CHECKING:
    import lightgbm

FloatArray = NDArray[np.floating[Any]]

_LEAST_WEIGHT = 0.1  # of a run, to enter a tree at all: leaves count rows, whatever these weigh


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

    def left_out_spread(self, shares: Array) -> Array:
        """1 everywhere."""
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

    def _refit_target(
        self, target: str, model: TreeModel, shares: Array, losses: Array, weights: Array
    ) -> TreeModel:
        return replace(self._fit_one(shares, losses, weights), errors=model.errors, report=model.report)

    def _with_expected(
        self, target: str, model: TreeModel, shares: Array, losses: Array, weights: Array
    ) -> TargetModel:
        counted = weights >= _LEAST_WEIGHT
        return super()._with_expected(target, model, shares[counted], losses[counted], weights[counted])

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

    def left_out_spread(self, shares: Array) -> Array:
        """The same of fits without each run, by its leverage [runs]."""
        return left_out_spread(self.spread(shares))

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
        errors = (np.log(fitted) - np.log(losses)) / np.sqrt(np.maximum(1.0 - leverage, LEAST_FREEDOM))
        report = plain_report(losses, fitted, shares.shape[1], time.perf_counter() - began)
        return LinearModel(slopes, precision, errors, report)

    def _restore_target(
        self, target: str, state: dict[str, Any], errors: Array, report: FitReport
    ) -> LinearModel:
        return LinearModel(np.array(state["slopes"]), np.array(state["precision"]), errors, report)
