"""The estimator behind every size-and-token law: tables in, parameters and intervals out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.base import Array, Law, Prediction
from decaylaws.laws.report import FitReport, FitStatus
from decaylaws.laws.scaling.families import Family, Inputs
from decaylaws.laws.solver import Solution, solve
from decaylaws.laws.uncertainty import bootstrap, quantile_interval

_WEAK_PRIOR_NOISE = 1e-5  # makes a prior that only decides what the data leave open
_LEAST_NOISE = 5e-4  # seeds alone differ by this much
_NOISE_PASSES = 2


class SizeTokenLaw(Law):
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
        bootstrap: whether intervals come from refits under run-clustered weights; otherwise from the
            curvature of the objective, which costs nothing and takes the points for independent.
        num_draws: draws of the parameters behind every interval.
        seed: seed of the draws.

    Attributes:
        params_: parameters of the published form, for N in parameters and D in tokens.
        report_: diagnosis of the fit.
        theta_: the family's internal parameters, ``[p]``.
        center_: reference N and D of the internal parameters.
        draws_: draws of theta, ``[num_draws, p]``.
        residuals_: predicted minus observed log loss, ``[n]``.
    """

    theta_: Array
    center_: tuple[float, float]
    draws_: Array
    residuals_: Array

    def __init__(
        self,
        *,
        huber_delta: float = 1e-3,
        prior: bool = False,
        bootstrap: bool = False,
        num_draws: int = 200,
        seed: int = 0,
    ) -> None:
        self.huber_delta = huber_delta
        self.prior = prior
        self.bootstrap = bootstrap
        self.num_draws = num_draws
        self.seed = seed

    @property
    def family(self) -> Family:
        """The law's shape."""
        raise NotImplementedError

    def fit(self, X: pd.DataFrame, y: ArrayLike | None = None) -> Self:
        """Fit to runs.

        Raises:
            SchemaError: a column is missing.
            InvalidValueError: a value is not finite and positive, tokens repeat in a way that cannot be, N or
                D takes one value only, or there are fewer runs than parameters.
        """
        loss = _positive("loss", X["loss"] if y is None and "loss" in X else y)
        params, tokens, unique = _columns(X)
        if len(loss) != len(params):
            raise InvalidValueError("y", len(loss), f"must have one loss for each of the {len(params)} rows")
        _require_spread(params, tokens)
        self.center_ = (float(np.exp(np.log(params).mean())), float(np.exp(np.log(tokens).mean())))
        inputs = _inputs(params, tokens, unique, self.center_)
        starts = self.family.starts(inputs, loss)
        solution = self._settle(inputs, np.log(loss), starts)
        self.theta_, self.report_, self.residuals_ = solution.theta, solution.report, solution.residuals
        self.params_ = self.family.to_public(self.theta_, self.center_)
        self.draws_ = self._draw(inputs, np.log(loss), solution, _groups(X))
        return self

    def predict(self, X: pd.DataFrame, interval: float | None = None) -> Any:
        """Loss of every row, nats per token; with ``interval`` the range of a new run at that level."""
        self._require_fitted()
        inputs = _inputs(*_columns(X), self.center_)
        mean = np.exp(self.family.log_loss(self.theta_, inputs)[0])
        return mean if interval is None else self._interval(inputs, mean, interval)

    def param_intervals(self, level: float = 0.9) -> pd.DataFrame:
        """Central intervals of the published parameters: columns ``value``, ``lower``, ``upper``, by name."""
        self._require_fitted()
        draws = pd.DataFrame([self.family.to_public(theta, self.center_) for theta in self._require_draws()])
        held = quantile_interval(pd.Series(self.params_)[draws.columns], draws, level)
        return pd.DataFrame(
            {"value": held.mean, "lower": held.lower, "upper": held.upper}, index=draws.columns
        )

    @classmethod
    def from_params(cls, params: Mapping[str, float], **settings: Any) -> Self:
        """A law with given parameters, such as published ones; it predicts, but knows no intervals.

        Its report counts no observations and no starts.
        """
        law = cls(**settings)
        law.center_ = (1.0, 1.0)
        law.theta_ = law.family.from_public(params, law.center_)
        law.params_ = law.family.to_public(law.theta_, law.center_)
        law.draws_, law.residuals_ = np.empty((0, len(law.theta_))), np.empty(0)
        law.report_ = FitReport(FitStatus.CONVERGED, 0.0, 0, 0.0, (), 1.0, 0.0, 0, len(law.theta_), 0.0)
        return law

    def _settle(self, inputs: Inputs, log_loss: Array, starts: Array) -> Solution:
        """Solve; a prior is weighed against the noise of a fit that is as free as the data allow.

        Starting from the prior's own fit instead would let a prior that does not suit the data pass its
        misfit off as noise.
        """
        noise = _WEAK_PRIOR_NOISE
        if self.prior:
            for _ in range(_NOISE_PASSES):
                noise = _noise(self._solve(inputs, log_loss, starts[:3], noise), self.huber_delta)
        return self._solve(inputs, log_loss, starts, noise)

    def _solve(
        self, inputs: Inputs, log_loss: Array, starts: Array, noise: float, weights: Array | None = None
    ) -> Solution:
        family = self.family
        lower, upper = family.bounds()
        mean, sd = family.prior() if self.prior else (None, None)
        return solve(
            lambda theta: family.log_loss(theta, inputs)[0] - log_loss,
            starts,
            jacobian=lambda theta: family.log_loss(theta, inputs)[1],
            lower=lower,
            upper=upper,
            huber_delta=self.huber_delta,
            names=family.names,
            prior_mean=mean,
            prior_sd=sd,
            noise_sd=noise,
            weights=weights,
            polish=weights is None,
        )

    def _draw(self, inputs: Inputs, log_loss: Array, solution: Solution, groups: Array) -> Array:
        if self.bootstrap:
            noise = _noise(solution, self.huber_delta)
            return bootstrap(
                lambda weights: self._solve(inputs, log_loss, solution.theta, noise, weights).theta,
                groups,
                num_draws=self.num_draws,
                seed=self.seed,
            )
        rng = np.random.default_rng(self.seed)
        draws = rng.multivariate_normal(
            solution.theta, solution.covariance(), size=self.num_draws, method="eigh", check_valid="ignore"
        )
        return np.clip(draws, *self.family.bounds())

    def _interval(self, inputs: Inputs, mean: Array, level: float) -> Prediction:
        """Spread of the parameters and scatter of the runs together."""
        draws = self._require_draws()
        rng = np.random.default_rng(self.seed)
        scatter = self.residuals_ * np.sqrt(_degrees_factor(len(self.residuals_), draws.shape[1]))
        noise = rng.choice(scatter, size=(len(draws), len(mean)))
        losses = np.exp([self.family.log_loss(theta, inputs)[0] for theta in draws] - noise)
        return quantile_interval(mean, losses, level)

    def _require_draws(self) -> Array:
        if len(self.draws_) == 0:
            raise InvalidValueError(
                "interval", type(self).__name__, "needs draws of the parameters",
                "Fit the law to runs with num_draws > 0; given parameters have no intervals.",
            )  # fmt: skip
        return self.draws_

    def _state(self) -> dict[str, Any]:
        return {
            "params": self.params_,
            "theta": self.theta_,
            "center": self.center_,
            "draws": self.draws_,
            "residuals": self.residuals_,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.params_ = state["params"]
        self.theta_ = np.array(state["theta"], dtype=float)
        self.center_ = (float(state["center"][0]), float(state["center"][1]))
        self.draws_ = np.array(state["draws"], dtype=float).reshape(-1, len(self.theta_))
        self.residuals_ = np.array(state["residuals"], dtype=float)


def _noise(solution: Solution, huber_delta: float) -> float:
    """Standard deviation whose Gaussian penalty weighs like the Huber loss of these residuals."""
    size = np.abs(solution.residuals)
    weighted = float(np.mean(np.minimum(size, huber_delta) * size))
    factor = _degrees_factor(len(size), solution.report.num_params)
    return float(np.sqrt(max(weighted * factor, huber_delta * _LEAST_NOISE)))


def _degrees_factor(num_rows: int, num_params: int) -> float:
    """Variance inflation of residuals for the parameters that were fitted to them, at most fourfold."""
    return num_rows / max(num_rows - num_params, num_rows / 4)


def _columns(table: pd.DataFrame) -> tuple[Array, Array, Array]:
    missing = [name for name in ("params", "tokens") if name not in table]
    if missing:
        raise SchemaError(
            "runs", missing=missing, remedy="Columns: params, tokens, optionally unique_tokens, run."
        )
    params, tokens = _positive("params", table["params"]), _positive("tokens", table["tokens"])
    if "unique_tokens" not in table:
        return params, tokens, tokens
    return params, tokens, np.minimum(_positive("unique_tokens", table["unique_tokens"]), tokens)


def _positive(field: str, values: ArrayLike | None) -> Array:
    if values is None:
        raise SchemaError("runs", missing=["loss"], remedy="Give the losses as y or as the column 'loss'.")
    array = np.asarray(values, dtype=float)
    wrong = ~(np.isfinite(array) & (array > 0))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InvalidValueError(
            f"{field}[{row}]", float(array[row]), "must be finite and positive", "Drop or repair the row."
        )
    return array


def _require_spread(params: Array, tokens: Array) -> None:
    for field, values in (("params", params), ("tokens", tokens)):
        if len(np.unique(values)) < 2:
            raise InvalidValueError(
                field,
                float(values[0]),
                "must take at least two values",
                "A law of size and tokens needs both to vary.",
            )


def _inputs(params: Array, tokens: Array, unique: Array, center: tuple[float, float]) -> Inputs:
    log_n, log_d = np.log(params / center[0]), np.log(tokens / center[1])
    return Inputs(log_n, log_d, np.log(unique / center[1]), center)


def _groups(table: pd.DataFrame) -> Array:
    return table["run"].to_numpy() if "run" in table else np.arange(len(table), dtype=float)
