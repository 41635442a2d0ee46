r"""Absolute laws of size, tokens and mixture: what the decay family becomes without a checkpoint to anchor it.

For every target (one validation domain) alone, with shares :math:`h`, size ``N`` and tokens ``D``:

===============  =======================================================================  ===================
form             loss                                                                     source
===============  =======================================================================  ===================
``chinchilla``   :math:`e^{t_0} + A N^{-\alpha} + B D^{-\beta}`                            Hoffmann et al. 2022
``additive``     :math:`E + 1 / \sum_i C_i h_i^{\gamma_i} + A N^{-\alpha} + B D^{-\beta}`   arXiv 2507.09404
``mixing_law``   :math:`E + e^{t h} + A N^{-\alpha} + B D^{-\beta}`                         Ye et al. 2024
``factor_floor`` :math:`e^{t h} + e^{u h} (A N^{-\alpha} + B D^{-\beta})^k`                 Skaling with mixture
``coupled``      :math:`E + 1 / \sum_i C_i h_i^{\gamma_i} + (A N^{-\alpha} + B D^{-\beta})^k`   Skaling with mixture
``scaled``       :math:`E + (A N^{-\alpha} + B D^{-\beta})^k / \sum_i C_i h_i^{\gamma_i}`       Skaling with mixture
===============  =======================================================================  ===================

With ``k`` below 1 a larger model gains more from further tokens; ``factor_floor`` and ``scaled`` let the mixture scale
what size and tokens can still reduce. ``stack``, the default, is a weighted geometric mean of all forms with a mixture
but ``mixing_law``: weighed by what each errs at rolling origins inside the fitted rows (larger sizes, longer runs, and
the largest size's longer runs from its shorter ones; see analysis/LOG.md). With a single size in the fit nothing says
how size and tokens couple, and ``stack`` is the mean of ``additive`` and ``mixing_law``. Sizes and
tokens are centred on the fit's geometric means, so that amplitudes are losses at a typical run and priors on them
mean something. The priors of the exponents are Chinchilla's, and the term in size is a fifth of the loss, more for a
target that gains more from tokens than the others do; with a single size in the fit they are all there is.

Intervals come from the curvature of each form, the noise of a run and the difference between the forms, scaled to
errors on rows that were left out: mixtures, sizes, and the upper quarter of the tokens
(``decaylaws.laws.kit.holdout``).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.continued.joint_forms import (
    FORMS,
    HUBER,
    NOISE,
    JointInputs,
    fit_target,
    leans,
    log_loss_of,
    measured,
    names_of,
)
from decaylaws.laws.kit.draws import widest_radius
from decaylaws.laws.kit.holdout import Curvature, curvature, left_out, testable
from decaylaws.laws.kit.horizon import ONE_SD, Horizon
from decaylaws.laws.kit.law import Array, Law, Prediction
from decaylaws.laws.kit.report import FitReport
from decaylaws.laws.kit.rolling import (
    Predict,
    blended,
    growth_origins,
    origin_weights,
    rolled,
    spread_of_mean,
)
from decaylaws.laws.kit.solver import Solution
from decaylaws.runs.table import LOSS, names_with

_STACK = ("additive", "factor_floor", "coupled", "scaled")
_ONE_SIZE = ("additive", "mixing_law")
_FOLDS = 8  # over mixtures, for intervals


class JointLaw(Law):
    """Loss of every target as a function of size, tokens and mixture.

    Args:
        form: one of ``FORMS``, or ``stack``.
        size: column of the model sizes.
        tokens: column of the tokens.
        prefix: prefix of the columns that hold the shares.

    Attributes:
        params_: by target and form, fitted parameters by name.
        weights_: the forms whose predictions are averaged (in logs), with their weights.
        horizon_: errors by distance beyond the fitted sizes and tokens; intervals there are at least as wide.
        targets_, sources_: order of the columns of a prediction, order of the shares.
        scores_: by target and kind of hold-out, absolute errors of the log loss in standard deviations.
        reports_: by target and form, the diagnosis of the fit; ``report_`` is the worst conditioned.
        fit_seconds_: wall-clock time of all targets together.
    """

    targets_: list[str]
    sources_: list[str]
    weights_: dict[str, float]
    horizon_: Horizon
    reports_: dict[str, FitReport]
    scores_: dict[str, dict[str, Array]]
    fit_seconds_: float
    _curvatures: dict[str, Curvature]

    def __init__(
        self, form: str = "stack", *, size: str = "params", tokens: str = "tokens", prefix: str = "w_"
    ) -> None:
        self.form = form
        self.size = size
        self.tokens = tokens
        self.prefix = prefix

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that ``fit`` and ``predict`` need."""
        return (self.size, self.tokens)

    def fit(self, X: pd.DataFrame, y: pd.DataFrame | None = None) -> Self:
        """Fit every column of ``y`` (nats per token) on the rows of ``X``; rows without a loss are left out.

        Without ``y`` the columns ``loss:<target>`` of ``X`` are fitted.

        Raises:
            InvalidValueError: an unknown form, a loss that is not positive, fewer rows than parameters.
            SchemaError: a column is missing, or there are no losses.
        """
        if self.form not in (*FORMS, "stack"):
            raise InvalidValueError("form", self.form, f"must be one of {', '.join((*FORMS, 'stack'))}")
        if y is None:
            targets = names_with(X, LOSS)
            y = X[[LOSS + name for name in targets]].set_axis(targets, axis=1)
        if y.shape[1] == 0:
            raise SchemaError(
                "losses",
                missing=[f"{LOSS}<target>"],
                remedy="Or give y, a DataFrame with one column per target.",
            )
        self.sources_ = [str(name) for name in X.columns if str(name).startswith(self.prefix)]
        self.targets_ = [str(name) for name in y.columns]
        self._centre = (_log_mean(X, self.size), _log_mean(X, self.tokens))
        for target in self.targets_:
            measured(y[target].to_numpy(dtype=float), target)
        inputs, began = self._inputs(X), time.perf_counter()
        self._weigh(X, inputs, y)
        losses = y[self.targets_].to_numpy(dtype=float)
        found = {
            f"{target}/{form}": fit_target(form, inputs, column, target, lean=lean)
            for target, column, lean in zip(self.targets_, losses.T, leans(inputs, losses).tolist())
            for form in self.weights_
        }
        self.params_ = {
            key: dict(zip(names_of(key.rpartition("/")[2], self.sources_), solution.theta.tolist()))
            for key, solution in found.items()
        }
        self.reports_ = {key: solution.report for key, solution in found.items()}
        self.report_ = max(self.reports_.values(), key=lambda report: report.condition)
        self._calibrate(found, _hold_outs(X, self.size, self.tokens, inputs.shares), y)
        self.fit_seconds_ = time.perf_counter() - began
        return self

    def predict(self, X: pd.DataFrame, interval: float | None = None) -> Any:
        """Losses ``[n, targets]``, nats per token; with ``interval`` a ``Prediction`` of that shape."""
        self._require_fitted()
        inputs = self._inputs(X)
        logs, spreads = (
            np.column_stack(each)
            for each in zip(*(self._predict_target(target, inputs) for target in self.targets_))
        )
        if interval is None:
            return np.exp(logs)
        half = spreads * [widest_radius(self.scores_[target], interval) for target in self.targets_]
        found = Prediction(np.exp(logs), np.exp(logs - half), np.exp(logs + half), interval)
        return self.horizon_.widen(found, {"size": X[self.size], "tokens": X[self.tokens]})

    def _predict_target(self, target: str, inputs: JointInputs) -> tuple[Array, Array]:
        """Log loss and its standard deviation, ``[n]`` each."""
        keys = [(form, f"{target}/{form}") for form in self.weights_]
        found = [log_loss_of(form, np.array(list(self.params_[key].values())), inputs) for form, key in keys]
        spreads = [self._curvatures[key].spread(slopes) for (_, key), (_, slopes) in zip(keys, found)]
        logs = [log for log, _ in found]
        weights = list(self.weights_.values())
        spread = spread_of_mean(np.array(logs), np.array(spreads), weights)
        return np.average(logs, axis=0, weights=weights), spread

    def _calibrate(
        self,
        found: Mapping[str, Solution],
        masks: Mapping[str, list[NDArray[np.bool_]]],
        losses: pd.DataFrame,
    ) -> None:
        """Spread of every form, and errors of each target's forms together on rows that they did not see."""
        self._curvatures = {
            key: curvature(each, huber_delta=HUBER, noise_sd=NOISE) for key, each in found.items()
        }
        self.scores_ = {}
        for target in self.targets_:
            kept = measured(losses[target].to_numpy(dtype=float), target)
            forms = [found[f"{target}/{form}"] for form in self.weights_]
            self.scores_[target] = {
                kind: np.concatenate(
                    [_scores(forms, rows[kept], list(self.weights_.values())) for rows in each]
                )
                for kind, each in masks.items()
            }

    def _weigh(self, runs: pd.DataFrame, inputs: JointInputs, losses: pd.DataFrame) -> None:
        """Weights of the forms, and how far they reach, by their errors on larger and longer runs."""
        several = runs[self.size].nunique() > 1
        forms = (self.form,) if self.form != "stack" else _STACK if several else _ONE_SIZE
        observed = losses[self.targets_].to_numpy(dtype=float)
        axes = {
            "size": runs[self.size].to_numpy(dtype=float),
            "tokens": runs[self.tokens].to_numpy(dtype=float),
        }
        origins = growth_origins(axes["size"], axes["tokens"])

        def by(form: str) -> Predict:
            def predict(fitted: NDArray[np.bool_], asked: NDArray[np.bool_]) -> Prediction:
                seen, beyond = inputs.take(fitted), inputs.take(asked)
                lead = leans(seen, observed[fitted]).tolist()
                logs, spreads = np.full((2, int(asked.sum()), len(self.targets_)), np.nan)
                for k, target in enumerate(self.targets_):
                    if np.isfinite(observed[fitted, k]).any():
                        solution = fit_target(form, seen, observed[fitted, k], target, lean=lead[k], starts=1)
                        logs[:, k], slopes = log_loss_of(form, solution.theta, beyond)
                        spreads[:, k] = curvature(solution, huber_delta=HUBER, noise_sd=NOISE).spread(slopes)
                return Prediction(np.exp(logs), np.exp(logs - spreads), np.exp(logs + spreads), ONE_SD)

            return predict

        tables = {form: rolled(origins, by(form), observed, names=self.targets_) for form in forms}
        self.weights_ = origin_weights(tables if several else dict.fromkeys(forms, pd.DataFrame()))
        self.horizon_ = Horizon.measured(axes, blended(tables, self.weights_), losses=observed)

    @property
    def num_parameters(self) -> int:
        """Parameters of one target's law."""
        self._require_fitted()
        return sum(len(names_of(form, self.sources_)) for form in self.weights_)

    def _inputs(self, runs: pd.DataFrame) -> JointInputs:
        missing = [name for name in (self.size, self.tokens, *self.sources_) if name not in runs]
        if missing:
            raise SchemaError("runs", missing=missing)
        shares = runs[self.sources_].to_numpy(dtype=float)
        totals = shares.sum(axis=1) if self.sources_ else np.ones(len(runs))
        if not (np.isfinite(shares).all() and (shares >= 0).all() and (np.abs(totals - 1) < 0.02).all()):
            raise InvalidValueError(f"{self.prefix}*", totals.tolist()[:5], "must be shares that sum to one")
        return JointInputs(
            np.log(_positive(runs, self.size)) - self._centre[0],
            np.log(_positive(runs, self.tokens)) - self._centre[1],
            shares / totals[:, None] if self.sources_ else shares,
        )

    def _state(self) -> dict[str, Any]:
        reports = {target: report.to_dict() for target, report in self.reports_.items()}
        return {
            "params": self.params_, "targets": self.targets_, "sources": self.sources_, "centre": self._centre,
            "weights": self.weights_, "horizon": self.horizon_.to_list(), "seconds": self.fit_seconds_,
            "reports": reports, "scores": self.scores_,
            "curvatures": {key: each.to_dict() for key, each in self._curvatures.items()},
        }  # fmt: skip

    def _restore(self, state: dict[str, Any]) -> None:
        self.params_ = {target: dict(values) for target, values in state["params"].items()}
        self.targets_, self.sources_ = list(state["targets"]), list(state["sources"])
        self._centre, self.weights_ = tuple(state["centre"]), dict(state["weights"])
        self.horizon_ = Horizon.from_list(state["horizon"])
        self.fit_seconds_ = float(state["seconds"])
        self.reports_ = {target: FitReport.from_dict(values) for target, values in state["reports"].items()}
        self.scores_ = {
            target: {kind: np.array(values, dtype=float) for kind, values in kinds.items()}
            for target, kinds in state["scores"].items()
        }
        self._curvatures = {key: Curvature.from_dict(values) for key, values in state["curvatures"].items()}


def _hold_outs(
    runs: pd.DataFrame, size: str, tokens: str, shares: Array
) -> dict[str, list[NDArray[np.bool_]]]:
    """Rows to leave out together, by kind, where at least a quarter of all stays."""
    params, length = runs[size].to_numpy(dtype=float), runs[tokens].to_numpy(dtype=float)
    mixtures = np.unique(shares.round(6), axis=0, return_inverse=True)[1].ravel()
    order = np.random.default_rng(0).permutation(mixtures.max() + 1)
    found = {
        "mixture": [np.isin(mixtures, order[fold::_FOLDS]) for fold in range(min(_FOLDS, len(order)))],
        "size": [params == each for each in np.unique(params)],
        "tokens": [length >= np.quantile(length, 0.75, method="higher")],
    }
    return testable(found)


def _scores(forms: Sequence[Solution], rows: NDArray[np.bool_], weights: Sequence[float]) -> Array:
    """Absolute errors of the forms' mean on rows that they did not see, in standard deviations."""
    errors, spreads = zip(*(left_out(form, rows, huber_delta=HUBER, noise_sd=NOISE) for form in forms))
    return np.abs(np.average(errors, axis=0, weights=weights)) / spread_of_mean(
        np.array(errors), np.array(spreads), weights
    )


def _positive(runs: pd.DataFrame, column: str) -> Array:
    values = runs[column].to_numpy(dtype=float)
    if not (np.isfinite(values) & (values > 0)).all():
        raise InvalidValueError(column, values.tolist()[:5], "must be finite and positive in every row")
    return values


def _log_mean(runs: pd.DataFrame, column: str) -> float:
    if column not in runs:
        raise SchemaError("runs", missing=[column])
    return float(np.log(_positive(runs, column)).mean())
