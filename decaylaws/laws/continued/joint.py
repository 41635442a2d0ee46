r"""Absolute laws of size, tokens and mixture: what the decay family becomes without a checkpoint to anchor it.

For every target (one validation domain) alone, with shares :math:`h`, size ``N`` and tokens ``D``:

===============  =======================================================================  ===================
form             loss                                                                     source
===============  =======================================================================  ===================
``chinchilla``   :math:`e^{t_0} + A N^{-\alpha} + B D^{-\beta}`                            Hoffmann et al. 2022
``additive``     :math:`E + 1 / \sum_i C_i h_i^{\gamma_i} + A N^{-\alpha} + B D^{-\beta}`   arXiv 2507.09404
``mixing_law``   :math:`E + e^{t h} + A N^{-\alpha} + B D^{-\beta}`                         Ye et al. 2024
``factor_floor`` :math:`e^{t h} + e^{u h} (A N^{-\alpha} + B D^{-\beta})^k`                 Skaling with mixture
===============  =======================================================================  ===================

The last one lets the mixture scale what size and tokens can still reduce, and set the floor under it. ``stack``, the
default, is the geometric mean of it and ``additive``: their errors differ, and the mean errs less than either (see
analysis/LOG.md). With a single size in the fit, ``factor_floor`` does not determine what size does, and ``stack`` is
``additive`` alone. Sizes and
tokens are centred on the fit's geometric means, so that amplitudes are losses at a typical run and priors on them
mean something. The priors of the exponents are Chinchilla's; with a single size in the fit they are all there is.

Intervals come from the curvature of each form, the noise of a run and the difference between the forms, scaled to
errors on rows that were left out: mixtures, sizes, and the upper quarter of the tokens
(``decaylaws.laws.kit.holdout``).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.kit.draws import widest_radius
from decaylaws.laws.kit.formulas import ABSENT_SHARE, inverse_sum, log_linear
from decaylaws.laws.kit.holdout import Curvature, curvature, left_out, testable
from decaylaws.laws.kit.law import Array, Law, Prediction
from decaylaws.laws.kit.report import FitReport
from decaylaws.laws.kit.solver import Solution, solve
from decaylaws.runs.table import LOSS, names_with

FORMS = ("chinchilla", "additive", "mixing_law", "factor_floor")
_STACK = ("additive", "factor_floor")
_HUBER = 1e-3  # of the log residual
_NOISE = 5e-3  # log residual that the priors are weighed against: points of one run err together
_FOLDS = 8  # over mixtures, for intervals


@dataclass(frozen=True)
class JointInputs:
    """Log size and log tokens ``[n]``, centred, and shares ``[n, m]``."""

    log_size: Array
    log_tokens: Array
    shares: Array


class JointLaw(Law):
    """Loss of every target as a function of size, tokens and mixture.

    Args:
        form: one of ``FORMS``, or ``stack``.
        size: column of the model sizes.
        tokens: column of the tokens.
        prefix: prefix of the columns that hold the shares.

    Attributes:
        params_: by target and form, fitted parameters by name.
        forms_: the forms whose predictions are averaged (in logs).
        targets_, sources_: order of the columns of a prediction, order of the shares.
        scores_: by target and kind of hold-out, absolute errors of the log loss in standard deviations.
        reports_: by target and form, the diagnosis of the fit; ``report_`` is the worst conditioned.
        fit_seconds_: wall-clock time of all targets together.
    """

    targets_: list[str]
    sources_: list[str]
    forms_: list[str]
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
        self.forms_ = self._forms(X)
        inputs, began = self._inputs(X), time.perf_counter()
        found = {
            f"{target}/{form}": _fit_target(form, inputs, y[target].to_numpy(dtype=float), target)
            for target in self.targets_
            for form in self.forms_
        }
        self.params_ = {
            key: dict(zip(_names(key.rpartition("/")[2], self.sources_), solution.theta.tolist()))
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
        return Prediction(np.exp(logs), np.exp(logs - half), np.exp(logs + half), interval)

    def _predict_target(self, target: str, inputs: JointInputs) -> tuple[Array, Array]:
        """Log loss and its standard deviation, ``[n]`` each."""
        keys = [(form, f"{target}/{form}") for form in self.forms_]
        found = [_log_loss(form, np.array(list(self.params_[key].values())), inputs) for form, key in keys]
        spreads = [self._curvatures[key].spread(slopes) for (_, key), (_, slopes) in zip(keys, found)]
        logs = [log for log, _ in found]
        return np.mean(logs, axis=0), _stacked(logs, spreads)

    def _calibrate(
        self,
        found: Mapping[str, Solution],
        masks: Mapping[str, list[NDArray[np.bool_]]],
        losses: pd.DataFrame,
    ) -> None:
        """Spread of every form, and errors of each target's forms together on rows that they did not see."""
        self._curvatures = {
            key: curvature(each, huber_delta=_HUBER, noise_sd=_NOISE) for key, each in found.items()
        }
        self.scores_ = {}
        for target in self.targets_:
            measured = np.isfinite(losses[target].to_numpy(dtype=float))
            forms = [found[f"{target}/{form}"] for form in self.forms_]
            self.scores_[target] = {
                kind: np.concatenate([_scores(forms, rows[measured]) for rows in each])
                for kind, each in masks.items()
            }

    def _forms(self, runs: pd.DataFrame) -> list[str]:
        if self.form != "stack":
            return [self.form]
        return list(_STACK) if runs[self.size].nunique() > 1 else [_STACK[0]]

    @property
    def num_parameters(self) -> int:
        """Parameters of one target's law."""
        self._require_fitted()
        return sum(len(_names(form, self.sources_)) for form in self.forms_)

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
            "forms": self.forms_, "seconds": self.fit_seconds_, "reports": reports, "scores": self.scores_,
            "curvatures": {key: each.to_dict() for key, each in self._curvatures.items()},
        }  # fmt: skip

    def _restore(self, state: dict[str, Any]) -> None:
        self.params_ = {target: dict(values) for target, values in state["params"].items()}
        self.targets_, self.sources_ = list(state["targets"]), list(state["sources"])
        self._centre, self.forms_ = tuple(state["centre"]), list(state["forms"])
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


def _scores(forms: Sequence[Solution], rows: NDArray[np.bool_]) -> Array:
    """Absolute errors of the forms' mean on rows that they did not see, in standard deviations."""
    errors, spreads = zip(*(left_out(form, rows, huber_delta=_HUBER, noise_sd=_NOISE) for form in forms))
    return np.abs(np.mean(errors, axis=0)) / _stacked(errors, spreads)


def _stacked(logs: Sequence[Array], spreads: Sequence[Array]) -> Array:
    """Spread of the mean of forms: theirs, for their errors are hardly independent, and what they differ by."""
    return np.hypot(np.mean(spreads, axis=0), np.std(logs, axis=0))


def _names(form: str, sources: Sequence[str]) -> list[str]:
    size_tokens = ["log_A", "log_B", "log_alpha", "log_beta"]
    if form == "chinchilla":
        return [*size_tokens, "log_E"]
    if form == "mixing_law":
        return [*size_tokens, "log_E", *(f"t:{name}" for name in sources)]
    second = "u" if form == "factor_floor" else "log_gamma"
    first = "t" if form == "factor_floor" else "log_C"
    extra = "log_k" if form == "factor_floor" else "log_E"
    return [*size_tokens, extra, *(f"{first}:{s}" for s in sources), *(f"{second}:{s}" for s in sources)]


def _prior(form: str, num_sources: int, log_loss: float) -> tuple[Array, Array]:
    """Mean and standard deviation of every parameter, from a typical log loss of the target."""
    power = 0.4 if form == "factor_floor" else 1.0
    part = (log_loss + np.log(0.2)) / power
    exponents = [np.log(0.35 / power)] * 2
    head_mean, head_sd = [part, part, *exponents], [1.0 / power, 1.5 / power, 0.3, 1.0]
    floor = log_loss + np.log(0.5)
    zeros, ones = np.zeros(num_sources), np.ones(num_sources)
    if form == "chinchilla":
        return np.array([*head_mean, floor]), np.array([*head_sd, 0.7])
    if form == "mixing_law":
        mean = [*head_mean, floor, *(zeros + log_loss + np.log(0.2))]
        return np.array(mean), np.array([*head_sd, 0.7, *(3.0 * ones)])
    if form == "factor_floor":
        mean = [*head_mean, np.log(power), *(zeros + floor), *zeros]
        return np.array(mean), np.array([*head_sd, 0.3, *ones, *ones])
    mean = [*head_mean, floor, *(zeros - log_loss - np.log(0.2) - np.log(max(num_sources, 1)) + 1.0)]
    return np.array([*mean, *(zeros + np.log(0.5))]), np.array([*head_sd, 0.7, *(2.0 * ones), *(0.7 * ones)])


def _fit_target(form: str, inputs: JointInputs, losses: Array, target: str) -> Solution:
    kept = np.isfinite(losses)
    if not kept.any():
        raise InvalidValueError(target, "NaN", "must be measured in some row", "Leave the target out.")
    if (losses[kept] <= 0).any():
        raise InvalidValueError(target, float(losses[kept].min()), "must be positive losses")
    mean, sd = _prior(form, inputs.shares.shape[1], float(np.log(np.median(losses[kept]))))
    part = JointInputs(inputs.log_size[kept], inputs.log_tokens[kept], inputs.shares[kept])
    observed = np.log(losses[kept])
    steep, flat = mean.copy(), mean.copy()
    steep[2:4] += 0.5
    flat[2:4] -= 0.5
    return solve(
        lambda theta: _log_loss(form, theta, part)[0] - observed,
        np.vstack([mean, steep, flat]),
        jacobian=lambda theta: _log_loss(form, theta, part)[1],
        lower=mean - 10 * sd, upper=mean + 10 * sd, huber_delta=_HUBER, prior_mean=mean, prior_sd=sd,
        noise_sd=_NOISE, max_evaluations=100, polish=False,
    )  # fmt: skip


def _log_loss(form: str, theta: Array, inputs: JointInputs) -> tuple[Array, Array]:
    """Log loss ``[n]`` and its derivatives ``[n, p]``."""
    h, m = inputs.shares, inputs.shares.shape[1]
    alpha, beta = np.exp(theta[2]), np.exp(theta[3])
    by_size = np.exp(theta[0] - alpha * inputs.log_size)
    by_tokens = np.exp(theta[1] - beta * inputs.log_tokens)
    head = [by_size, by_tokens, -by_size * alpha * inputs.log_size, -by_tokens * beta * inputs.log_tokens]
    total = by_size + by_tokens
    if form == "factor_floor":
        k = np.exp(theta[4])
        floor = np.exp(h @ theta[5 : 5 + m])
        reducible = np.exp(h @ theta[5 + m :] + k * np.log(total))
        loss = floor + reducible
        slopes = [reducible * k * part / total for part in head]
        slopes += [reducible * k * np.log(total), *(floor * h.T), *(reducible * h.T)]
    else:
        mixture, parts = _additive_mixture(form, theta[5:], h)
        constant = np.exp(theta[4])
        loss = constant + mixture + total
        slopes = [*head, np.full_like(loss, constant), *parts]
    return np.log(loss), np.column_stack(slopes) / loss[:, None]


def _additive_mixture(form: str, theta: Array, h: Array) -> tuple[Array, list[Array]]:
    """The mixture's own term ``[n]`` and its slopes."""
    if form == "chinchilla":
        return np.zeros(len(h)), []
    if form == "mixing_law":
        value, slopes = log_linear(theta, h)
        return value, list(slopes.T)
    m = h.shape[1]
    value, by_scale, by_power = inverse_sum(theta[:m], theta[m:], np.log(h + ABSENT_SHARE))
    return value, [*by_scale.T, *by_power.T]


def _positive(runs: pd.DataFrame, column: str) -> Array:
    values = runs[column].to_numpy(dtype=float)
    if not (np.isfinite(values) & (values > 0)).all():
        raise InvalidValueError(column, values.tolist()[:5], "must be finite and positive in every row")
    return values


def _log_mean(runs: pd.DataFrame, column: str) -> float:
    if column not in runs:
        raise SchemaError("runs", missing=[column])
    return float(np.log(_positive(runs, column)).mean())
