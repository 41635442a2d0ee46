"""The default regression: the inverse-sum law, a quarter of boosted trees, and a Gaussian process where it helps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.report import FitReport
from decaylaws.laws.mixing.flexible import (
    GaussianProcess,
    GaussianProcessModel,
    LightGBMRegression,
    ProcessDraws,
    TreeModel,
)
from decaylaws.laws.mixing.parametric import FormulaDraws, FormulaModel, InverseSum
from decaylaws.laws.mixing.posterior import PosteriorRegression

_FLOOR_SHARE = (
    0.8  # of the smallest loss: what the process takes no mixture to remove, as the log-linear law's start
)
_LARGEST_ERROR = 4.0  # in median absolute errors: one run that both members miss does not decide between them


@dataclass(frozen=True)
class BlendModel:
    """Weighted geometric mean of a formula, trees and a Gaussian process, for one target.

    Attributes:
        formula: fitted inverse-sum law of this target alone.
        trees: fitted trees of this target alone.
        process: fitted Gaussian process of this target alone.
        tree_share: weight of the trees beside the formula, in log loss.
        process_share: weight of the process beside these two, in log loss.
        report: diagnosis of the formula's fit, with the time of all.
    """

    formula: InverseSum
    trees: LightGBMRegression
    process: GaussianProcess
    tree_share: float
    process_share: float
    report: FitReport

    @property
    def errors(self) -> Array:
        """Leave-one-out errors of formula and process over their spread [runs]; trees make them a little smaller."""
        return self._mean(self._formula.errors, self._process.errors)

    def predict(self, shares: Array) -> Array:
        """Loss [runs]."""
        trees, formula = self._trees.predict(shares), self._formula.predict(shares)
        return _blended(
            formula, trees, lambda: self._process.predict(shares), self.tree_share, self.process_share
        )

    def spread(self, shares: Array) -> Array:
        """Formula's and process's: wider where no run is near [runs]."""
        return self._mean(self._formula.spread(shares), self._process.spread(shares))

    def posterior(self, num_draws: int, rng: np.random.Generator) -> BlendDraws:
        """Draws of formula and process; the trees, which have none, stay as they are.

        Args:
            num_draws: number of draws.
            rng: source of random numbers.
        """
        formula, process = self._formula.posterior(num_draws, rng), self._process.posterior(num_draws, rng)
        return BlendDraws(formula, process, self.tree_share, self.process_share, self._trees.predict)

    def fit_as_draw(self) -> BlendDraws:
        """The fit itself as the only draw."""
        formula, process = self._formula.fit_as_draw(), self._process.fit_as_draw()
        return BlendDraws(formula, process, self.tree_share, self.process_share, self._trees.predict)

    def params(self, sources: tuple[str, ...]) -> dict[str, Any]:
        """The formula's parameters and the weights of the others."""
        weights = {"tree_share": self.tree_share, "process_share": self.process_share}
        return {**self._formula.params(sources), **weights}

    def state(self) -> dict[str, Any]:
        """The members, and the weight that the runs chose."""
        return {
            "formula": self.formula.to_dict(),
            "trees": self.trees.to_dict(),
            "process": self.process.to_dict(),
            "process_share": self.process_share,
        }

    def _mean(self, law: Any, process: Any) -> Array:
        return np.asarray((1.0 - self.process_share) * law + self.process_share * process, dtype=float)

    @property
    def _formula(self) -> FormulaModel:
        (model,) = self.formula.models_.values()
        assert isinstance(model, FormulaModel)
        return model

    @property
    def _trees(self) -> TreeModel:
        (model,) = self.trees.models_.values()
        assert isinstance(model, TreeModel)
        return model

    @property
    def _process(self) -> GaussianProcessModel:
        (model,) = self.process.models_.values()
        assert isinstance(model, GaussianProcessModel)
        return model


@dataclass(frozen=True)
class BlendDraws:
    """Draws of a blend.

    Attributes:
        formula: draws of the formula.
        process: draws of the Gaussian process.
        tree_share: weight of the trees beside the formula, in log loss.
        process_share: weight of the process beside these two, in log loss.
        trees: what they predict of mixtures [runs].
    """

    formula: FormulaDraws
    process: ProcessDraws
    tree_share: float
    process_share: float
    trees: Predict

    def all(self, shares: Array) -> Array:
        """Losses [draws, runs] of mixtures [runs, sources]."""
        return _blended(
            self.formula.all(shares), self.trees(shares), lambda: self.process.all(shares),
            self.tree_share, self.process_share,
        )  # fmt: skip

    def each(self, shares: Array, draw: NDArray[np.int64]) -> Array:
        """Losses [runs], each under the draw of that number [runs]."""
        return _blended(
            self.formula.each(shares, draw), self.trees(shares), lambda: self.process.each(shares, draw),
            self.tree_share, self.process_share,
        )  # fmt: skip

    def slopes(self, mixture: Array, draw: int) -> tuple[float, Array]:
        """Loss of one mixture [sources] in one draw and its derivative by the shares [sources].

        The trees, which have no slopes, are left out of both: what a descent sees is the blend of the other two.
        """
        loss, by_share = self.formula.slopes(mixture, draw)
        if self.process_share == 0:
            return loss, by_share
        other, other_slopes = self.process.slopes(mixture, draw)
        blend = float(loss ** (1.0 - self.process_share) * other**self.process_share)
        mean = (1.0 - self.process_share) * by_share / loss + self.process_share * other_slopes / other
        return blend, blend * mean


Predict = Callable[[Array], Array]


def _blended(
    formula: Array, trees: Array, process: Callable[[], Array], tree_share: float, process_share: float
) -> Array:
    """The weighted geometric mean; the process is asked only where it has a weight."""
    found = (1.0 - tree_share) * np.log(formula) + tree_share * np.log(trees)
    if process_share > 0:
        found = (1.0 - process_share) * found + process_share * np.log(process())
    return np.asarray(np.exp(found), dtype=float)


class BlendedRegression(PosteriorRegression):
    """Inverse-sum law corrected by a quarter of a small LightGBM, and blended with a Gaussian process where runs ask.

    The law carries the trend and extrapolates, the trees see interactions that it lacks. A share of 1/4
    lowered the error in every cross-validation within RegMix's fit rows, from 64 runs to 384; weights that
    cross-validation chooses for each fit gain little more and cost ten times the time.

    No inverse sum turns up: where more of a source that is repeated raises the loss, the Gaussian process takes over.
    Its weight is, for each target, the one with the smallest leave-one-out error of both, which costs no refit.

    Args:
        tree_share: weight of the trees beside the law in log loss, in [0, 1].
        process_share: weight of the Gaussian process in log loss, in [0, 1]; None lets the leave-one-out errors choose.
        num_starts: starts of the law's fit.
        seed: of starts and trees.
    """

    def __init__(
        self,
        tree_share: float = 0.25,
        process_share: float | None = None,
        num_starts: int = 1,
        seed: int = 0,
    ) -> None:
        self.tree_share, self.process_share = tree_share, process_share
        self.num_starts, self.seed = num_starts, seed

    def _fit_target(self, target: str, shares: Array, losses: Array, weights: Array) -> BlendModel:
        for name in ("tree_share", "process_share"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise InvalidValueError(name, value, "must lie in [0, 1]")
        began = time.perf_counter()
        named = pd.DataFrame(shares, columns=list(self.sources_))
        formula = InverseSum(num_starts=self.num_starts, seed=self.seed).fit_checked(named, losses, weights)
        trees = LightGBMRegression(num_trees=150, learning_rate=0.05, num_leaves=15, seed=self.seed)
        trees.fit_checked(named, losses, weights)
        process = GaussianProcess(seed=self.seed, transform="sqrt", floor_share=_FLOOR_SHARE)
        process.fit_checked(named, losses, weights)
        model = BlendModel(formula, trees, process, self.tree_share, 0.0, formula.report_)
        share = self.process_share
        if share is None:
            law = model._formula.errors * model._formula.spread(shares)
            share = best_share(law, model._process.left_out_errors, weights)
        report = replace(formula.report_, seconds=time.perf_counter() - began)
        return replace(model, process_share=share, report=report)

    def _restore_target(
        self, target: str, state: dict[str, Any], errors: Array, report: FitReport
    ) -> BlendModel:
        formula, trees = InverseSum.from_dict(state["formula"]), LightGBMRegression.from_dict(state["trees"])
        process = GaussianProcess.from_dict(state["process"])
        return BlendModel(formula, trees, process, self.tree_share, float(state["process_share"]), report)


def best_share(first: Array, second: Array, weights: Array) -> float:
    """The weight of the second of two predictors whose mean has the smallest squared error, in [0, 1].

    Args:
        first: held-out errors of the first [runs].
        second: held-out errors of the second [runs].
        weights: weight of each run [runs].
    """
    limits = [_LARGEST_ERROR * max(float(np.median(np.abs(each))), 1e-12) for each in (first, second)]
    first, second = (np.clip(each, -limit, limit) for each, limit in zip((first, second), limits))
    apart = first - second
    square = float(weights @ apart**2)
    return float(np.clip(weights @ (first * apart) / square, 0.0, 1.0)) if square > 0 else 0.0
