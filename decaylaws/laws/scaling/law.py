"""The estimator behind every size-and-token law: tables in, parameters and intervals out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.kit.draws import DrawnLaw, bootstrap, quantile_interval
from decaylaws.laws.kit.horizon import ONE_SD, Horizon
from decaylaws.laws.kit.law import Array, Prediction
from decaylaws.laws.kit.numbers import target
from decaylaws.laws.kit.report import FitReport, FitStatus
from decaylaws.laws.kit.rolling import BoolArray, rolled, rolling_origins
from decaylaws.laws.kit.solver import Solution
from decaylaws.laws.scaling.families import Family, Inputs
from decaylaws.laws.scaling.objective import Objective
from decaylaws.laws.scaling.tables import require_spread, size_token_columns, warn_of_units

_WIDEST = 1.0  # log loss
_ORIGIN_FITS = 2  # refits of each axis for the horizon


class SizeTokenLaw(DrawnLaw):
    """A law ``L(N, D)`` of size and tokens; subclasses name the shape.

    The objective is the *sum* of Huber losses of ``log(predicted) - log(observed)``, Hoffmann et al.'s
    approach 3.

    ``X`` is a table with the columns ``params`` (N; the law's own convention, see the subclass), ``tokens``
    (D) and, where data repeat, ``unique_tokens``; ``run`` marks the points of one run, which the bootstrap
    keeps together. ``y`` is the loss in nats per token; without it the column ``loss`` is read.

    Args:
        huber_delta: threshold of Huber's loss, in log loss.
        prior: whether the exponents get log-normal priors centred on the published fits. With few sizes the
            data do not determine them; the default is the bare objective, whose optimum others can reproduce.
        max_starts: limit of starting points; all that the family proposes without it.
        bootstrap: whether intervals come from refits under run-clustered weights; otherwise from the
            curvature of the objective, which costs nothing, scaled for points of one run that err alike.
        num_draws: draws of the parameters behind every interval.
        seed: seed of the draws.

    Attributes:
        params_: parameters of the published form, for N in parameters and D in tokens.
        report_: diagnosis of the fit.
        theta_: the family's internal parameters, ``[p]``.
        center_: reference N and D of the internal parameters.
        range_: smallest and largest log N and log D of the fit, relative to the centre, ``[2]`` each.
        draws_: draws of theta, ``[num_draws, p]``.
        residuals_: predicted minus observed log loss, ``[n]``.
        extrapolation_error_: mean absolute log error on the quarter of the rows with the most compute,
            predicted from the others; None where those cannot be fitted.
        horizon_: errors by distance beyond the fitted sizes and tokens, from rolling origins inside the fitted rows.
            Beyond the fitted range intervals are at least as wide.
    """

    target = "loss"
    horizon_: Horizon
    center_: tuple[float, float]
    range_: tuple[Array, Array]

    def __init__(
        self,
        *,
        huber_delta: float = 1e-3,
        prior: bool = False,
        max_starts: int | None = None,
        bootstrap: bool = False,
        num_draws: int = 200,
        seed: int = 0,
    ) -> None:
        self.huber_delta = huber_delta
        self.prior = prior
        self.max_starts = max_starts
        self.bootstrap = bootstrap
        self.num_draws = num_draws
        self.seed = seed

    @property
    @abstractmethod
    def family(self) -> Family:
        """The law's shape."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that ``fit`` and ``predict`` need."""
        return ("params", "tokens")

    def fit(self, X: pd.DataFrame, y: ArrayLike | None = None) -> Self:
        """Fit to runs.

        Warns:
            ImplausibleUnitsWarning: so few tokens per parameter that one of the counts is in another unit.

        Raises:
            SchemaError: a column is missing.
            InvalidValueError: a value is not finite and positive, there are more unique
                tokens than tokens, N or D takes one value only, both lie on one line of their logs (as at 20
                tokens per parameter each), or there are fewer runs than parameters.
        """
        self._check_settings()
        loss = target(X, y)
        params, tokens, unique = size_token_columns(X)
        require_spread(params, tokens)
        warn_of_units(params, tokens)
        self.center_ = (float(np.exp(np.log(params).mean())), float(np.exp(np.log(tokens).mean())))
        inputs = _inputs(params, tokens, unique, self.center_)
        objective = Objective(self.family, inputs, np.log(loss), self.huber_delta, self.prior, _groups(X))
        solution = objective.settle(self.family.starts(inputs, loss)[: self.max_starts])
        self.theta_, self.report_ = solution.theta, solution.report
        logs = np.column_stack([inputs.log_params, inputs.log_tokens])
        self.range_ = logs.min(axis=0), logs.max(axis=0)
        self.params_ = self.family.to_public(self.theta_, self.center_)
        self.residuals_ = objective.residuals(self.theta_)
        self.extrapolation_error_ = objective.extrapolation_error(self.theta_)
        self.horizon_ = self._measured_horizon(objective, params, tokens, unique)
        self.draws_ = self._draw(objective, solution, _groups(X))
        return self

    def _measured_horizon(self, objective: Objective, params: Array, tokens: Array, unique: Array) -> Horizon:
        """Errors on larger sizes and longer runs of fits without them."""
        axes = {"size": params, "tokens": tokens}
        origins = rolling_origins(axes, least_rows=len(self.theta_), most=_ORIGIN_FITS, alone=True)

        def predict(fitted: BoolArray, asked: BoolArray) -> Prediction:
            require_spread(params[fitted], tokens[fitted])
            part = objective.take(fitted)
            theta = part.settle(np.atleast_2d(self.theta_)).theta
            mean, slopes = self.family.log_loss(theta, objective.inputs.take(asked))
            spread = np.sqrt(np.einsum("np,pq,nq->n", slopes, part.covariance(theta), slopes).clip(min=0.0))
            # beyond that a fit knows nothing, and its error counts as it is
            spread = spread.clip(max=_WIDEST)
            return Prediction(np.exp(mean), np.exp(mean - spread), np.exp(mean + spread), ONE_SD)

        table = rolled(origins, predict, np.exp(objective.log_loss))
        noise = float(np.sqrt(np.mean(self.residuals_**2)))
        return Horizon.measured(axes, table, noise=noise, losses=np.exp(objective.log_loss))

    def _check_settings(self) -> None:
        if not self.huber_delta > 0:
            raise InvalidValueError("huber_delta", self.huber_delta, "must be above zero")
        if self.max_starts is not None and self.max_starts < 1:
            raise InvalidValueError("max_starts", self.max_starts, "must be at least 1, or None for all")
        if self.num_draws < 0:
            raise InvalidValueError("num_draws", self.num_draws, "must not be negative")

    def predict(self, X: pd.DataFrame, interval: float | None = None) -> Any:
        """Loss of every row, nats per token; with ``interval`` the range of a new run at that level.

        Warns:
            NotIdentifiedWarning: the fitted runs do not determine the law's parameters, and a row has more or fewer
                parameters or tokens than any of them.
        """
        mean = self.point(X)
        inputs = _inputs(*size_token_columns(X), self.center_)
        if self._is_outside(inputs):
            self.report_.warn_unless_identified("losses of sizes or tokens outside the fitted ones")
        if interval is None:
            return mean
        params, tokens, _ = size_token_columns(X)
        return self.horizon_.widen(self._interval(inputs, mean, interval), {"size": params, "tokens": tokens})

    def point(self, X: pd.DataFrame) -> Array:
        """Loss of every row ``[n]``, nats per token, without a word on whether the fit can be trusted there."""
        self._require_fitted()
        return np.exp(self.family.log_loss(self.theta_, _inputs(*size_token_columns(X), self.center_))[0])

    def _is_outside(self, inputs: Inputs) -> bool:
        """Whether a row has a size or a number of tokens beyond those of the fit."""
        logs = np.column_stack([inputs.log_params, inputs.log_tokens])
        low, high = self.range_
        return bool(((logs < low - 1e-9) | (logs > high + 1e-9)).any())

    def log_loss(self, X: pd.DataFrame, theta: Array) -> Array:
        """Log of the loss of every row ``[n]`` under other internal parameters, such as one of ``draws_``."""
        return self.family.log_loss(theta, _inputs(*size_token_columns(X), self.center_))[0]

    def param_intervals(self, level: float = 0.9) -> pd.DataFrame:
        """Central intervals of the published parameters: columns ``value``, ``lower``, ``upper``, by name."""
        self._require_fitted()
        within = np.clip(self._require_draws(), *self.family.bounds())
        draws = pd.DataFrame([self.family.to_public(theta, self.center_) for theta in within])
        held = quantile_interval(pd.Series(self.params_)[draws.columns], draws, level)
        return pd.DataFrame(
            {"value": held.mean, "lower": held.lower, "upper": held.upper}, index=draws.columns
        )

    @classmethod
    def from_params(cls, params: Mapping[str, float], **settings: Any) -> Self:
        """A law with given parameters, such as published ones; it predicts, but knows no intervals.

        Its report counts no observations and no starts.

        Raises:
            SchemaError: a parameter is missing, or the law has none of that name.
            InvalidValueError: a value that the law cannot have, such as an exponent that it ties or fixes.
        """
        law = cls(**settings)
        law.center_ = (1.0, 1.0)
        law.theta_ = _internal(law.family, params, cls.__name__)
        law.params_ = law.family.to_public(law.theta_, law.center_)
        _require_same(params, law.params_, cls.__name__)
        law.draws_, law.residuals_ = np.empty((0, len(law.theta_))), np.empty(0)
        law.extrapolation_error_, law.horizon_ = None, Horizon()
        law.range_ = np.full(2, -np.inf), np.full(2, np.inf)
        law.report_ = FitReport(FitStatus.CONVERGED, 0.0, 0, 0.0, (), 1.0, 0.0, 0, len(law.theta_), 0.0)
        return law

    def _draw(self, objective: Objective, solution: Solution, groups: Array) -> Array:
        if self.bootstrap:
            noise = objective.noise(solution)
            return bootstrap(
                lambda weights: objective.solve(solution.theta, noise, weights).theta,
                groups,
                num_draws=self.num_draws,
                seed=self.seed,
            )
        rng = np.random.default_rng(self.seed)
        covariance = objective.covariance(solution.theta)
        return rng.multivariate_normal(
            solution.theta, covariance, size=self.num_draws, method="eigh", check_valid="ignore"
        )

    def loss_draws(self, X: pd.DataFrame) -> Array:
        """Losses of new runs that are as likely as the data make them, ``[num_draws, n]``."""
        self._require_fitted()
        return self._draws_at(_inputs(*size_token_columns(X), self.center_))

    def _interval(self, inputs: Inputs, mean: Array, level: float) -> Prediction:
        """Spread of the parameters and scatter of the runs together."""
        return quantile_interval(mean, self._draws_at(inputs), level)

    def _draws_at(self, inputs: Inputs) -> Array:
        draws = self._require_draws()
        noise = self._scatter((len(draws), len(inputs.log_params)))
        if self.bootstrap:
            return np.exp([self.family.log_loss(theta, inputs)[0] for theta in draws] - noise)
        # Draws of the curvature step off along straight lines. Few runs leave a curved valley, and exact values beside
        # it would contradict the very runs that were fitted.
        log_loss, slopes = self.family.log_loss(self.theta_, inputs)
        return np.exp(log_loss + (draws - self.theta_) @ slopes.T - noise)

    def _require_draws(self) -> Array:
        if len(self.draws_) == 0:
            raise InvalidValueError(
                "interval", type(self).__name__, "needs draws of the parameters",
                "Fit the law to runs with num_draws > 0; given parameters have no intervals.",
            )  # fmt: skip
        return self.draws_

    def _state(self) -> dict[str, Any]:
        state = {**super()._state(), "center": self.center_, "range": self.range_}
        return {**state, "horizon": self.horizon_.to_list()}

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        self.center_ = (float(state["center"][0]), float(state["center"][1]))
        low, high = state.get("range", (np.full(2, -np.inf), np.full(2, np.inf)))
        self.range_ = np.array(low, dtype=float), np.array(high, dtype=float)
        self.horizon_ = Horizon.from_list(state.get("horizon", ()))


def _internal(family: Family, params: Mapping[str, float], law: str) -> Array:
    """Internal parameters ``[p]`` of published ones, at the centre (1, 1)."""
    try:
        with np.errstate(invalid="ignore", divide="ignore"):
            theta = family.from_public(params, (1.0, 1.0))
    except KeyError as error:
        raise SchemaError(f"parameters of {law}", missing=[str(error.args[0]).removeprefix("log_")]) from None
    if not np.isfinite(theta).all():
        wrong = next((name for name, value in params.items() if not value > 0), "params")
        raise InvalidValueError(wrong, params.get(wrong, dict(params)), "must be finite and above zero")
    return theta


def _require_same(given: Mapping[str, float], kept: Mapping[str, float], law: str) -> None:
    """Refuse parameters that the law does not have, or that it fixes at or ties to another value."""
    unexpected = sorted(set(given) - set(kept))
    if unexpected:
        raise SchemaError(f"parameters of {law}", unexpected=unexpected, remedy=f"It has {', '.join(kept)}.")
    for name, value in given.items():
        if not np.isclose(value, kept[name], rtol=1e-9, atol=0.0):
            raise InvalidValueError(
                name,
                value,
                f"must be {kept[name]:.6g} in {law}, which does not let it differ",
                "Take another law.",
            )


def _inputs(params: Array, tokens: Array, unique: Array, center: tuple[float, float]) -> Inputs:
    log_n, log_d = np.log(params / center[0]), np.log(tokens / center[1])
    return Inputs(log_n, log_d, np.log(unique / center[1]), center)


def _groups(table: pd.DataFrame) -> Array:
    return table["run"].to_numpy() if "run" in table else np.arange(len(table), dtype=float)
