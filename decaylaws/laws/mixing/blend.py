"""The default regression: the inverse-sum law, a quarter of boosted trees, and a Gaussian process where it helps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.repetition import Onset
from decaylaws.laws.kit.report import FitReport
from decaylaws.laws.mixing.flexible import LightGBMRegression, TreeModel
from decaylaws.laws.mixing.harm import TargetOnset, joint_onsets, passes_of
from decaylaws.laws.mixing.parametric import FormulaDraws, FormulaModel, InverseSum
from decaylaws.laws.mixing.posterior import PosteriorRegression
from decaylaws.laws.mixing.process import GaussianProcess, GaussianProcessModel, ProcessDraws

# of the smallest loss: what the process takes no mixture to remove, as the log-linear law's start
_FLOOR_SHARE = 0.8
_GOLDEN = 0.5 * (np.sqrt(5.0) - 1.0)  # its multiples, without their whole part, fill [0, 1] evenly
_LEAST_DRAWN = 0.25  # of the draws, and of what spreads two predictions: weight of either member
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
        errors: left-out errors of formula and process over ``left_out_spread`` [runs]; trees, which make them a little
            smaller, are not counted.
        report: diagnosis of the formula's fit, with the time of all.
    """

    formula: InverseSum
    trees: LightGBMRegression
    process: GaussianProcess
    tree_share: float
    process_share: float
    errors: Array
    report: FitReport

    def predict(self, shares: Array) -> Array:
        """Loss [runs]."""
        trees, formula = self._trees.predict(shares), self._formula.predict(shares)
        return _blended(
            formula, trees, lambda: self._process.predict(shares), self.tree_share, self.process_share
        )

    def spread(self, shares: Array) -> Array:
        """Formula's and process's: wider where no run is near, and where the two disagree [runs]."""
        apart = np.log(self._formula.predict(shares) / self._process.predict(shares))
        return self._mean_spread(self._formula.spread(shares), self._process.spread(shares), apart)

    def left_out_spread(self, shares: Array) -> Array:
        """The same of fits without each run [runs]."""
        law, process = self._left_out(shares)
        return self._mean_spread(
            self._formula.left_out_spread(shares), self._process.left_out_spread(shares), law - process
        )

    def left_out_errors(self, shares: Array) -> Array:
        """Left-out log errors of formula and process together, of the fit's own runs [runs]."""
        law, process = self._left_out(shares)
        return (1.0 - self.process_share) * law + self.process_share * process

    def posterior(self, num_draws: int, rng: np.random.Generator) -> BlendDraws:
        """Draws of the formula with its trees, and draws of the process: each draw is one or the other.

        A mean of both would hide what they disagree by, and average their errors away, which they share. Either has at
        least a quarter of the draws, since left-out errors of some dozens of runs hardly tell which is right away from
        the runs. Where they do speak against one, and would leave it less than a quarter, its draws lie half-way to the
        other: alone it would claim more than the runs let anybody believe, such as a formula where a share goes to 0.
        The trees, which have no posterior, stay as they are.

        Args:
            num_draws: number of draws.
            rng: source of random numbers.
        """
        formula, process = self._formula.posterior(num_draws, rng), self._process.posterior(num_draws, rng)
        # evenly spread, and in the same draws for every target: errors of a family go together over the targets
        turn = (0.5 + np.arange(num_draws) * _GOLDEN) % 1.0
        own = turn < np.clip(self.process_share, _LEAST_DRAWN, 1.0 - _LEAST_DRAWN)
        share = own.astype(float)
        if self.process_share > 1.0 - _LEAST_DRAWN:
            share = np.maximum(share, 0.5)
        elif self.process_share < _LEAST_DRAWN:
            share = np.minimum(share, 0.5)
        return BlendDraws(formula, process, self.tree_share, share, self._trees.predict)

    def fit_as_draw(self) -> BlendDraws:
        """The fit itself as the only draw."""
        formula, process = self._formula.fit_as_draw(), self._process.fit_as_draw()
        share = np.array([self.process_share])
        return BlendDraws(formula, process, self.tree_share, share, self._trees.predict)

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

    def _left_out(self, shares: Array) -> tuple[Array, Array]:
        """Left-out log errors of the formula and of the process [runs]."""
        return self._formula.errors * self._formula.left_out_spread(shares), self._process.left_out_errors

    def _mean_spread(self, law: Array, process: Array, apart: Array) -> Array:
        """Each member's spread counts by its weight and by how far it errs where its spread is 1.

        To it comes the spread of two predictions that lie ``apart`` in log loss and have these weights, but at least a
        quarter each.
        """
        own = (1.0 - self.process_share) * np.sqrt(np.mean(self._formula.errors**2))
        other = self.process_share * np.sqrt(np.mean(self._process.errors**2))
        share = np.clip(self.process_share, _LEAST_DRAWN, 1.0 - _LEAST_DRAWN)
        found = np.hypot(own * law + other * process, np.sqrt(share * (1.0 - share)) * apart)
        return np.asarray(found / max(own + other, 1e-12), dtype=float)

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
        process_share: weight of the process beside these two in each draw, in log loss [draws].
        trees: what they predict of mixtures [runs].
    """

    formula: FormulaDraws
    process: ProcessDraws
    tree_share: float
    process_share: Array
    trees: Predict

    def all(self, shares: Array) -> Array:
        """Losses [draws, runs] of mixtures [runs, sources]."""
        return _blended(
            self.formula.all(shares), self.trees(shares), lambda: self.process.all(shares),
            self.tree_share, self.process_share[:, None],
        )  # fmt: skip

    def each(self, shares: Array, draw: NDArray[np.int64]) -> Array:
        """Losses [runs], each under the draw of that number [runs]."""
        return _blended(
            self.formula.each(shares, draw), self.trees(shares), lambda: self.process.each(shares, draw),
            self.tree_share, self.process_share[draw],
        )  # fmt: skip

    def slopes(self, mixture: Array, draw: int) -> tuple[float, Array]:
        """Loss of one mixture [sources] in one draw and its derivative by the shares [sources].

        The trees, which have no slopes, are left out of both: what a descent sees is the blend of the other two.
        """
        share = float(self.process_share[draw])
        if share == 0:
            return self.formula.slopes(mixture, draw)
        other, other_slopes = self.process.slopes(mixture, draw)
        if share == 1:
            return other, other_slopes
        loss, by_share = self.formula.slopes(mixture, draw)
        blend = float(loss ** (1.0 - share) * other**share)
        return blend, blend * ((1.0 - share) * by_share / loss + share * other_slopes / other)


Predict = Callable[[Array], Array]


def _blended(
    formula: Array,
    trees: Array,
    process: Callable[[], Array],
    tree_share: float,
    process_share: float | Array,
) -> Array:
    """The weighted geometric mean; the process is asked only where it has a weight."""
    found = (1.0 - tree_share) * np.log(formula) + tree_share * np.log(trees)
    if np.any(process_share > 0):
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
        epochs: passes of one run over a source that it reads alone, as in ``InverseSum``.
    """

    def __init__(
        self,
        tree_share: float = 0.25,
        process_share: float | None = None,
        num_starts: int = 1,
        seed: int = 0,
        epochs: Mapping[str, float] | None = None,
    ) -> None:
        self.tree_share, self.process_share = tree_share, process_share
        self.num_starts, self.seed, self.epochs = num_starts, seed, epochs

    @property
    def onsets_(self) -> tuple[Onset, ...]:
        """From how many passes on repeating a source raises losses, by the law; empty where no run shows it."""
        self._require_fitted()
        found: dict[str, Mapping[int, TargetOnset]] = {}
        for target, model in self.models_.items():
            found[target] = cast(BlendModel, model).formula.target_onsets()
        most = passes_of(self.epochs, self.sources_)
        return () if most is None else joint_onsets(found, most * self.box_.upper, self.sources_)

    def _fit_target(self, target: str, shares: Array, losses: Array, weights: Array) -> BlendModel:
        for name in ("tree_share", "process_share"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise InvalidValueError(name, value, "must lie in [0, 1]")
        began = time.perf_counter()
        trees = LightGBMRegression(num_trees=150, learning_rate=0.05, num_leaves=15, seed=self.seed)
        trees.fit_checked(self._named(shares), losses, weights)
        model = self._fit_beside(trees, self.tree_share, shares, losses, weights)
        report = replace(model.report, seconds=time.perf_counter() - began)
        return replace(model, report=report)

    def _fit_inner(self, target: str, model: BlendModel, shares: Array, losses: Array) -> BlendModel:
        # without trees, which cost the most and hardly matter away from the runs
        return self._fit_beside(model.trees, 0.0, shares, losses, np.ones(len(shares)))

    def _fit_beside(
        self, trees: LightGBMRegression, tree_share: float, shares: Array, losses: Array, weights: Array
    ) -> BlendModel:
        """Formula and process fitted beside trees that are given, and weighed."""
        named = self._named(shares)
        formula = InverseSum(num_starts=self.num_starts, seed=self.seed, epochs=self.epochs).fit_checked(
            named, losses, weights
        )
        process = GaussianProcess(seed=self.seed, transform="sqrt", floor_share=_FLOOR_SHARE, additive=True)
        process.fit_checked(named, losses, weights)
        model = BlendModel(formula, trees, process, tree_share, 0.0, np.empty(0), formula.report_)
        share = self.process_share
        if share is None:
            share = best_share(*model._left_out(shares), weights)
        model = replace(model, process_share=share)
        return replace(model, errors=model.left_out_errors(shares) / model.left_out_spread(shares))

    def _named(self, shares: Array) -> pd.DataFrame:
        return pd.DataFrame(shares, columns=list(self.sources_))

    def _with_expected(
        self, target: str, model: BlendModel, shares: Array, losses: Array, weights: Array
    ) -> BlendModel:
        return replace(
            model,
            formula=model.formula.with_expected(shares, losses, weights),
            trees=model.trees.with_expected(shares, losses, weights),
            process=model.process.with_expected(shares, losses, weights),
        )

    def _restore_target(
        self, target: str, state: dict[str, Any], errors: Array, report: FitReport
    ) -> BlendModel:
        formula, trees = InverseSum.from_dict(state["formula"]), LightGBMRegression.from_dict(state["trees"])
        process = GaussianProcess.from_dict(state["process"])
        return BlendModel(
            formula, trees, process, self.tree_share, float(state["process_share"]), errors, report
        )


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
