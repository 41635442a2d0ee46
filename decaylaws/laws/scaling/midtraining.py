r"""Loss at the end of a decay from the checkpoint's size, its pre-training tokens and the decay's tokens.

For one mixture and one learning rate (as a factor of the checkpoint's peak). Two members are blended:

- ``compute``: :math:`\log L = a + b c + e l + f c l + s (u + v l)` with :math:`c = \log 6 N D`,
  :math:`l = \log d`, :math:`s = \log D / N`: a power law in compute for each length, joined over the lengths.
- ``transfer``: :math:`L = E + A N^{-\alpha} + B (d + k D)^{-\beta}`, where a token of pre-training counts as :math:`k`
  tokens of the decay (after arXiv 2102.01293).

N is the size, D the pre-training tokens and d the tokens of the decay. Checkpoints of one recipe lie near one line of N
and D, so that ``compute`` holds what differs from that line (u and v) to zero by a ridge. Rolling origins over the
checkpoints (fit the smaller, predict the larger) choose the ridge's strength and weigh the members.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.draws import degrees_factor
from decaylaws.laws.kit.horizon import ONE_SD, Horizon
from decaylaws.laws.kit.law import Array, Law, Prediction
from decaylaws.laws.kit.numbers import target
from decaylaws.laws.kit.rolling import (
    BoolArray,
    Origin,
    Predict,
    blended,
    mean_square,
    rolled,
    rolling_origins,
    spread_of_mean,
)
from decaylaws.laws.kit.solver import Solution, solve
from decaylaws.laws.scaling.tables import columns

COLUMNS = ("params", "pretrain_tokens", "decay_tokens")
LEAST_CHECKPOINTS = 4
"""Fewest checkpoints: three to fit and one to predict."""
_ORIGIN = 3  # checkpoints of the first fit that a rolling origin makes
_LENGTH_FITS = 2  # fits to the shorter decays
_STRENGTHS = (0.3, 3.0, 30.0)  # of the ridge, in squares of a log; what cross-validation may choose from
_NOISE = 3e-3  # log loss of one decay, what the priors of ``transfer`` weigh against
_LEAST_ERROR = 5e-4  # log loss: no member is taken for better than that
_TRANSFER = ("log_E", "log_A", "log_alpha", "log_B", "log_beta", "log_k")


@dataclass(frozen=True)
class _Member:
    """One form, on rows ``[n, 3]`` of log N, log D and log d relative to a centre.

    Attributes:
        fit: parameters ``[p]`` from rows and log losses ``[n]``.
        predict: log losses ``[n]`` from parameters and rows.
    """

    fit: Callable[[Array, Array], Array]
    predict: Callable[[Array, Array], Array]


class MidtrainingLaw(Law):
    """The loss that decays of several checkpoints end at, blended from two forms by rolling origins.

    ``X`` has the columns ``params`` (non-embedding or total, the same for all), ``pretrain_tokens`` and
    ``decay_tokens``; ``y``, or the column ``loss``, is the loss at the end in nats per token. All decays must be of one
    mixture, one shape and one learning rate relative to the checkpoint's peak: the law does not know them.

    Intervals hold the scatter of the fitted decays and, beyond the largest checkpoint and the longest decay, the
    errors of the rolling origins by distance.

    Attributes:
        params_: parameters by member, its weight, and the strength of the ridge.
        report_: diagnosis of the fit of ``transfer``.
        center_: N, D and d to which the parameters refer: geometric means.
        origins_: one row per rolling origin: ``largest_flops`` and ``predicted_flops`` (pre-training compute of the
            largest fitted and of the predicted checkpoint, 6 N D), ``error`` (mean log error, predicted minus observed)
            and ``mae``.
        horizon_: errors by distance beyond the fitted compute and decay tokens.
    """

    target = "loss"
    horizon_: Horizon
    center_: tuple[float, float, float]
    origins_: pd.DataFrame

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that ``fit`` and ``predict`` need."""
        return COLUMNS

    def fit(self, X: pd.DataFrame, y: ArrayLike | None = None) -> Self:
        """Fit to decays.

        Args:
            X: one row per decay.
            y: losses [rows], nats per token; the column ``loss`` without it.

        Raises:
            SchemaError: a column is missing.
            InvalidValueError: a value is not finite and positive, there are fewer than four checkpoints, or the decays
                have one length only.
        """
        began = time.perf_counter()
        log_loss = np.log(target(X, y))
        logs = np.log(np.column_stack(columns(X, COLUMNS, what="decays")))
        compute = _log_compute(logs)
        checkpoints = np.unique(compute)
        if len(checkpoints) < LEAST_CHECKPOINTS:
            raise InvalidValueError(
                "params, pretrain_tokens",
                len(checkpoints),
                f"must be those of at least {LEAST_CHECKPOINTS} checkpoints",
                "With fewer, no rolling origin can say how far the law errs at a larger one.",
            )
        if len(np.unique(logs[:, 2])) < 2:
            raise InvalidValueError(
                "decay_tokens", float(np.exp(logs[0, 2])), "must take at least two values"
            )
        order = np.lexsort((logs[:, 2], logs[:, 1], compute))  # the order of the rows does not matter
        logs, log_loss, compute = logs[order], log_loss[order], compute[order]
        centre = logs.mean(axis=0)
        self.center_ = (float(np.exp(centre[0])), float(np.exp(centre[1])), float(np.exp(centre[2])))
        rows = logs - centre

        trends = {strength: _compute_form(strength) for strength in _STRENGTHS}
        axes = {"compute": 6 * np.exp(compute), "tokens": np.exp(logs[:, 2])}
        larger, longer = _origins(axes)

        def errors(form: _Member, origins: list[Origin]) -> pd.DataFrame:
            return rolled(origins, _by_form(form, rows, log_loss), np.exp(log_loss))

        missed = {strength: errors(form, larger) for strength, form in trends.items()}
        strength = min(_STRENGTHS, key=lambda each: mean_square(missed[each]))
        members = {"compute": trends[strength], "transfer": _TRANSFER_FORM}
        tables = {"compute": missed[strength], "transfer": errors(_TRANSFER_FORM, larger)}
        precision = {name: 1.0 / max(mean_square(found), _LEAST_ERROR**2) for name, found in tables.items()}
        self._weights = {name: value / sum(precision.values()) for name, value in precision.items()}
        transfer = _solve_transfer(rows, log_loss)
        self._theta = {"compute": trends[strength].fit(rows, log_loss), "transfer": transfer.theta}
        beyond_compute = blended(tables, self._weights)
        self.origins_ = _origins_table(beyond_compute)
        beyond_length = blended({name: errors(form, longer) for name, form in members.items()}, self._weights)
        self._noise = {
            name: _scatter(form, self._theta[name], rows, log_loss) for name, form in members.items()
        }
        self._freedom = len(checkpoints) - 1  # decays of one checkpoint err alike
        self.horizon_ = Horizon.measured(
            axes, pd.concat([beyond_compute, beyond_length]), losses=np.exp(log_loss)
        )
        self.params_ = {
            "weights": self._weights,
            "ridge": strength,
            "compute": dict(zip(_COMPUTE, self._theta["compute"].tolist())),
            "transfer": dict(zip(_TRANSFER, transfer.theta.tolist())),
        }
        seconds = time.perf_counter() - began
        count = len(_COMPUTE) + len(_TRANSFER)
        self.report_ = replace(transfer.report, num_params=count, seconds=seconds)
        return self

    def predict(self, X: pd.DataFrame, interval: float | None = None) -> Any:
        """Losses at the end of decays ``[n]``, nats per token; with ``interval`` a :class:`Prediction`.

        Args:
            X: one row per decay.
            interval: level such as 0.9.
        """
        self._require_fitted()
        rows = np.log(np.column_stack(columns(X, COLUMNS, what="decays"))) - np.log(self.center_)
        by_member, weights = self._by_member(rows), list(self._weights.values())
        mean = np.exp(np.average(by_member, axis=0, weights=weights))
        if interval is None:
            return mean
        noise = np.array([self._noise[name] for name in self._weights])[:, None]
        spread = spread_of_mean(by_member, np.broadcast_to(noise, by_member.shape), weights)
        half = float(stdtrit(self._freedom, 0.5 + 0.5 * interval)) * spread
        found = Prediction(mean, mean * np.exp(-half), mean * np.exp(half), interval)
        compute, tokens = _log_compute(rows + np.log(self.center_)), X["decay_tokens"]
        return self.horizon_.widen(found, {"compute": 6 * np.exp(compute), "tokens": tokens})

    def _by_member(self, rows: Array) -> Array:
        """Log losses ``[2, n]``."""
        forms = {"compute": _compute_form(0.0), "transfer": _TRANSFER_FORM}
        return np.array([forms[name].predict(self._theta[name], rows) for name in self._weights])

    def _state(self) -> dict[str, Any]:
        return {
            "params": self.params_,
            "center": self.center_,
            "origins": self.origins_.to_dict("list"),
            "noise": self._noise,
            "freedom": self._freedom,
            "horizon": self.horizon_.to_list(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        self.center_ = tuple(state["center"])
        self._weights = dict(self.params_["weights"])
        self._theta = {name: np.array(list(self.params_[name].values())) for name in self._weights}
        self.origins_ = pd.DataFrame(state["origins"])
        self._noise, self._freedom = dict(state["noise"]), int(state["freedom"])
        self.horizon_ = Horizon.from_list(state["horizon"])


def _log_compute(rows: Array) -> Array:
    """Log of N times D ``[n]``, rounded so that rows of one checkpoint agree."""
    return np.round(rows[:, 0] + rows[:, 1], 9)


_COMPUTE = ("a", "b", "e", "f", "u", "v")


def _compute_columns(rows: Array) -> Array:
    compute, length, ratio = rows[:, 0] + rows[:, 1], rows[:, 2], rows[:, 1] - rows[:, 0]
    return np.column_stack([np.ones(len(rows)), compute, length, compute * length, ratio, ratio * length])


def _compute_form(strength: float) -> _Member:
    """``compute``, whose u and v are held to zero by a ridge of this strength."""

    def fit(rows: Array, log_loss: Array) -> Array:
        found = _compute_columns(rows)
        # a trace of ridge on the others keeps the equations solvable where few checkpoints are fitted
        ridge = np.diag([1e-9, 1e-9, 1e-9, 1e-9, strength, strength])
        return np.asarray(np.linalg.solve(found.T @ found + ridge, found.T @ log_loss), dtype=float)

    return _Member(fit, lambda theta, rows: np.asarray(_compute_columns(rows) @ theta, dtype=float))


def _transfer(theta: Array, rows: Array) -> Array:
    log_e, log_a, log_alpha, log_b, log_beta, log_k = theta
    seen = np.logaddexp(rows[:, 2], log_k + rows[:, 1])
    by_size, by_tokens = log_a - np.exp(log_alpha) * rows[:, 0], log_b - np.exp(log_beta) * seen
    return np.asarray(np.logaddexp(log_e, np.logaddexp(by_size, by_tokens)), dtype=float)


def _solve_transfer(rows: Array, log_loss: Array) -> Solution:
    """Fit with priors as wide as published exponents vary: few checkpoints leave most of the six undecided."""
    typical = float(np.median(log_loss))
    centre = np.array([typical - 0.7, typical - 1.6, np.log(0.3), typical - 1.2, np.log(0.3), np.log(0.05)])
    elsewhere = np.array([[0, 0, 0, 0, 0, 0], [-1, 0.5, 0, 0.5, 0, 1], [0.3, -0.5, 0.5, 0, 0.3, -2]])
    return solve(
        lambda theta: _transfer(theta, rows) - log_loss,
        centre + elsewhere,
        lower=centre - 6.0,
        upper=centre + 6.0,
        huber_delta=3 * _NOISE,
        names=_TRANSFER,
        prior_mean=centre,
        prior_sd=np.array([0.7, 1.0, 0.5, 1.0, 0.5, 2.0]),
        noise_sd=_NOISE,
    )


_TRANSFER_FORM = _Member(lambda rows, log_loss: _solve_transfer(rows, log_loss).theta, _transfer)


def _origins(axes: dict[str, Array]) -> tuple[list[Origin], list[Origin]]:
    """Larger checkpoints by fits to the smaller ones, and longer decays by fits to the shorter ones."""
    same = 1 + 1e-6
    return (
        rolling_origins({"compute": axes["compute"]}, least_steps=_ORIGIN, factor=same),
        rolling_origins({"tokens": axes["tokens"]}, least_steps=2, factor=same, most=_LENGTH_FITS),
    )


def _by_form(form: _Member, rows: Array, log_loss: Array) -> Predict:
    """A form's losses beyond a fit to some of the rows, with the scatter of these rows around it."""

    def predict(fitted: BoolArray, asked: BoolArray) -> Prediction:
        theta = form.fit(rows[fitted], log_loss[fitted])
        spread = _scatter(form, theta, rows[fitted], log_loss[fitted])
        found = form.predict(theta, rows[asked])
        return Prediction(np.exp(found), np.exp(found - spread), np.exp(found + spread), ONE_SD)

    return predict


def _scatter(form: _Member, theta: Array, rows: Array, log_loss: Array) -> float:
    """Standard deviation of the fitted decays around a form, in log loss."""
    squares = np.square(form.predict(theta, rows) - log_loss)
    return float(np.sqrt(np.mean(squares) * degrees_factor(len(rows), len(theta))))


def _origins_table(table: pd.DataFrame) -> pd.DataFrame:
    logs = np.log((table["predicted"] / table["observed"]).astype(float))
    grouped = table.assign(error=logs, mae=logs.abs()).groupby(["last", "reached"], sort=False)
    found = grouped[["error", "mae"]].mean().reset_index()
    return found.rename(columns={"last": "largest_flops", "reached": "predicted_flops"})
