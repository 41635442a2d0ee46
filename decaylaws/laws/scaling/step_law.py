"""Best learning rate and batch size from size and tokens (Step Law, arXiv 2503.04715).

::

    lr*(N, D) = c N^a D^b        batch*(D) = d D^e  tokens
    log L = level(N, D) + (h_u u^2 + 2 r sqrt(h_u h_v) u v + h_v v^2) / 2
    u = log(lr / lr*),  v = log(batch / batch*)

The paper takes the best run of every (N, D) and regresses its coordinates, so that the grid's spacing becomes
noise of the optimum. Here the whole neighbourhood of the optimum is fitted: a paraboloid shared by all (N,
D), whose levels are projected out. Its curvature also says what a wrong learning rate costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.draws import quantile_interval
from decaylaws.laws.kit.law import Array, Estimator
from decaylaws.laws.kit.numbers import target
from decaylaws.laws.kit.solver import solve
from decaylaws.laws.scaling.tables import columns, require_spread

NAMES = ("log_c", "a", "b", "log_d", "e", "log_h_u", "log_h_v", "atanh_r")
# arXiv 2503.04715; 95 % intervals: a -.774 to -.655, b .271 to .345, e .534 to .606.
PUBLISHED_STEP_LAW: Mapping[str, float] = MappingProxyType(
    {"c": 1.797, "a": -0.713, "b": 0.307, "d": 0.581, "e": 0.571}
)
_EXPONENT_SD = 0.2  # of the prior: five times the published intervals
_RUN_NOISE = 1e-3  # relative scatter of the losses of two equal runs
_COLUMNS = ("params", "tokens", "lr", "batch_tokens")
_LOWER = (-30.0, -3.0, -3.0, -30.0, -3.0, -14.0, -14.0, -3.0)
_UPPER = (30.0, 3.0, 3.0, 40.0, 3.0, 2.0, 2.0, 3.0)


class StepLaw(Estimator):
    """Optimal learning rate and batch size, with the cost of missing them.

    ``X`` has the columns ``params`` (N without embeddings), ``tokens`` (D), ``lr`` (peak) and
    ``batch_tokens``; ``y``, or the column ``loss``, is the final loss in nats per token.

    Args:
        window: rows whose loss lies within this share of the best of their (N, D) are fitted; farther out the
            loss is not a parabola.
        prior: whether the exponents get Gaussian priors at the published values; two sizes do not determine
            ``a``.
        num_draws: draws behind every interval.
        seed: seed of the draws.

    Attributes:
        params_: ``c, a, b, d, e, h_u, h_v, r`` of the module's formulas.
        report_: diagnosis of the fit.
        draws_: draws of the internal parameters, ``[num_draws, 8]``.
    """

    theta_: Array
    center_: tuple[float, float]
    draws_: Array

    def __init__(
        self, *, window: float = 0.01, prior: bool = True, num_draws: int = 200, seed: int = 0
    ) -> None:
        self.window = window
        self.prior = prior
        self.num_draws = num_draws
        self.seed = seed

    def fit(self, X: pd.DataFrame, y: ArrayLike | None = None) -> Self:
        """Fit to the runs near the optimum of their (N, D).

        Raises:
            SchemaError: a column is missing.
            InvalidValueError: a value is not finite and positive, ``window`` is not, the window holds fewer runs
                than parameters, or, without a prior, N and D do not vary on their own.
        """
        if not self.window > 0:
            raise InvalidValueError("window", self.window, "must be positive", "0.01 keeps runs within 1 %.")
        loss = target(X, y)
        params, tokens, lr, batch = columns(X, _COLUMNS)
        if not self.prior:
            require_spread(params, tokens)  # else nothing tells the exponents of N and D apart
        groups = pd.Series(zip(params, tokens))
        near = loss <= (1 + self.window) * pd.Series(loss).groupby(groups).transform("min").to_numpy()
        level = np.unique(groups[near], return_inverse=True)[1]
        self.center_ = (float(np.exp(np.log(params).mean())), float(np.exp(np.log(tokens).mean())))
        logs = self._logs(params, tokens, lr, batch)[near]
        return self._fit_window(logs, np.log(loss[near]), level)

    def predict(self, X: pd.DataFrame, interval: float | None = None) -> Any:
        """Relative excess of every row's loss over the optimum of its (N, D); 0.01 is one per cent."""
        self._require_fitted()
        logs = self._logs(*columns(X, _COLUMNS))
        mean = np.expm1(_excess(self.theta_, logs)[0])
        if interval is None:
            return mean
        return quantile_interval(mean, [np.expm1(_excess(theta, logs)[0]) for theta in self.draws_], interval)

    def optimum(self, X: pd.DataFrame, interval: float = 0.9) -> pd.DataFrame:
        """Best settings for every row of ``params`` and ``tokens``.

        Returns:
            Columns ``lr``, ``lr_lower``, ``lr_upper``, ``batch_tokens``, ``batch_tokens_lower``,
            ``batch_tokens_upper``: the point and the interval of the parameters at the level ``interval``.
        """
        self._require_fitted()
        params, tokens = columns(X, ("params", "tokens"))
        log_n, log_d = np.log(params / self.center_[0]), np.log(tokens / self.center_[1])
        draws = np.array([_centres(theta, log_n, log_d) for theta in self.draws_]).reshape(-1, 2, len(X))
        table = {}
        for column, name in enumerate(("lr", "batch_tokens")):
            best = _centres(self.theta_, log_n, log_d)[column]
            held = quantile_interval(best, draws[:, column], interval)
            table[name] = np.exp(held.mean)
            table[f"{name}_lower"], table[f"{name}_upper"] = np.exp(held.lower), np.exp(held.upper)
        return pd.DataFrame(table, index=X.index)

    def _fit_window(self, logs: Array, log_loss: Array, level: NDArray[np.intp]) -> Self:
        def residuals(theta: Array) -> Array:
            return _project(_excess(theta, logs)[0] - log_loss, level)

        def jacobian(theta: Array) -> Array:
            return _project(_excess(theta, logs)[1], level)

        mean, sd = self._prior() if self.prior else (None, None)
        solution = solve(
            residuals, self._starts(logs), jacobian=jacobian, lower=_LOWER, upper=_UPPER, names=NAMES,
            prior_mean=mean, prior_sd=sd, noise_sd=_RUN_NOISE,
        )  # fmt: skip
        self.theta_, self.report_ = solution.theta, solution.report
        self.params_ = self._public()
        rng = np.random.default_rng(self.seed)
        draws = rng.multivariate_normal(
            self.theta_, solution.covariance(), size=self.num_draws, method="eigh", check_valid="ignore"
        )
        self.draws_ = np.clip(draws, _LOWER, _UPPER)
        return self

    def _logs(self, params: Array, tokens: Array, lr: Array, batch: Array) -> Array:
        """Columns log N and log D (centred), log lr, log batch; shape ``[n, 4]``."""
        log_n, log_d = np.log(params / self.center_[0]), np.log(tokens / self.center_[1])
        return np.stack([log_n, log_d, np.log(lr), np.log(batch)], axis=1)

    def _starts(self, logs: Array) -> Array:
        """The published exponents through the middle of the window, with two curvatures."""
        p = PUBLISHED_STEP_LAW
        lr, batch = logs[:, 2].mean(), logs[:, 3].mean()
        return np.array([[lr, p["a"], p["b"], batch, p["e"], h, h, 0.0] for h in (-3.0, -5.0)])

    def _prior(self) -> tuple[Array, Array]:
        p = PUBLISHED_STEP_LAW
        mean, sd = np.full(len(NAMES), np.nan), np.full(len(NAMES), np.inf)
        mean[[1, 2, 4]], sd[[1, 2, 4]] = [p["a"], p["b"], p["e"]], _EXPONENT_SD
        return mean, sd

    def _public(self) -> dict[str, float]:
        log_c, a, b, log_d, e, log_h_u, log_h_v, atanh_r = (float(value) for value in self.theta_)
        log_n, log_t = np.log(self.center_)
        return {
            "c": float(np.exp(log_c - a * log_n - b * log_t)),
            "a": a,
            "b": b,
            "d": float(np.exp(log_d - e * log_t)),
            "e": e,
            "h_u": float(np.exp(log_h_u)),
            "h_v": float(np.exp(log_h_v)),
            "r": float(np.tanh(atanh_r)),
        }

    def _state(self) -> dict[str, Any]:
        return {"params": self.params_, "theta": self.theta_, "center": self.center_, "draws": self.draws_}

    def _restore(self, state: dict[str, Any]) -> None:
        self.params_ = state["params"]
        self.theta_ = np.array(state["theta"], dtype=float)
        self.center_ = (float(state["center"][0]), float(state["center"][1]))
        self.draws_ = np.array(state["draws"], dtype=float)


def published_optimum(table: pd.DataFrame) -> pd.DataFrame:
    """The paper's best ``lr`` and ``batch_tokens`` for every row of ``params`` and ``tokens``."""
    p = PUBLISHED_STEP_LAW
    n, d = columns(table, ("params", "tokens"))
    best = {"lr": p["c"] * n ** p["a"] * d ** p["b"], "batch_tokens": p["d"] * d ** p["e"]}
    return pd.DataFrame(best, index=table.index)


def _centres(theta: Array, log_n: Array, log_d: Array) -> tuple[Array, Array]:
    """Log of the best lr and batch tokens."""
    return theta[0] + theta[1] * log_n + theta[2] * log_d, theta[3] + theta[4] * log_d


def _excess(theta: Array, logs: Array) -> tuple[Array, Array]:
    """Log loss over the optimum's ``[n]`` and its Jacobian ``[n, 8]``."""
    log_n, log_d, log_lr, log_batch = logs.T
    best_lr, best_batch = _centres(theta, log_n, log_d)
    u, v = log_lr - best_lr, log_batch - best_batch
    h_u, h_v, r = np.exp(theta[5]), np.exp(theta[6]), np.tanh(theta[7])
    mixed = r * np.sqrt(h_u * h_v)
    value = 0.5 * (h_u * u**2 + h_v * v**2) + mixed * u * v
    by_u, by_v, cross = h_u * u + mixed * v, h_v * v + mixed * u, 0.5 * mixed * u * v
    jacobian = np.stack(
        [
            -by_u,
            -by_u * log_n,
            -by_u * log_d,
            -by_v,
            -by_v * log_d,
            0.5 * h_u * u**2 + cross,
            0.5 * h_v * v**2 + cross,
            (1 - r**2) * np.sqrt(h_u * h_v) * u * v,
        ],
        axis=1,
    )
    return value, jacobian


def _project(values: Array, level: NDArray[np.intp]) -> Array:
    """Take the mean of every (N, D) out: its level is a free, linear parameter."""
    counts = np.bincount(level).astype(float)
    flat = values.reshape(len(values), -1)
    means = np.stack([np.bincount(level, weights=column) / counts for column in flat.T], axis=1)
    return (flat - means[level]).reshape(values.shape)
