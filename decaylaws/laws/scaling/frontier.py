"""How to spend a compute budget: the size and tokens that reach the lowest loss for given training FLOPs.

Two of the three ways of Hoffmann et al. 2022 (arXiv 2203.15556) to the frontier ``N = G C^a``, ``D = H C^(1-a)``:

- :class:`IsoFlopFrontier` (approach 2): at every budget the vertex of a parabola of loss over log size. It assumes no
  shape of the law, but needs runs around the optimum of every budget.
- :func:`optimal_allocation` (approach 3): the minimum of a fitted law along ``C = 6 N D``.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.draws import quantile_interval
from decaylaws.laws.kit.law import Array, Estimator
from decaylaws.laws.kit.solver import Solution, solve
from decaylaws.laws.scaling.law import SizeTokenLaw
from decaylaws.laws.scaling.tables import columns, positive, target

FLOPS_PER_PARAM_TOKEN = 6.0  # forward and backward pass of a dense transformer, attention left out
_PARAM_RANGE = (1e4, 1e15)
_GRID_POINTS = 600
_MIN_RUNS = 4  # a parabola and one degree of freedom
_NAMES = ("log_G", "a")


def optimal_allocation(
    law: SizeTokenLaw,
    flops: ArrayLike,
    *,
    interval: float | None = None,
    unique_tokens: float | None = None,
    flops_per_param_token: float = FLOPS_PER_PARAM_TOKEN,
) -> pd.DataFrame:
    """Size and tokens that minimise a fitted law for given budgets (approach 3).

    Args:
        law: a fitted law.
        flops: training FLOPs, one budget or ``[n]``.
        interval: level of intervals from the law's draws; none without it.
        unique_tokens: tokens that exist; more are repeats, which a data-constrained law discounts.
        flops_per_param_token: FLOPs of training one parameter on one token.

    Returns:
        One row per budget: ``flops``, ``params``, ``tokens``, ``loss``, ``tokens_per_param``, and with
        ``interval`` ``params_lower``, ``params_upper``, ``tokens_lower``, ``tokens_upper``.

    Warns:
        NotIdentifiedWarning: the law's runs do not determine its parameters, and with them the best size.

    Raises:
        NotFittedError: before ``fit``.
        InvalidValueError: a budget is not positive, or its best size lies outside 1e4 to 1e15 parameters.
    """
    law._require_fitted()
    law.report_.warn_unless_identified("the best size for a budget")
    budgets = positive("flops", np.atleast_1d(np.asarray(flops, dtype=float)))
    positive("flops_per_param_token", [flops_per_param_token])
    params = _best_params(law, law.theta_, budgets, unique_tokens, flops_per_param_token)
    _require_inside(params, budgets)
    table = pd.DataFrame(
        {"flops": budgets, "params": params, "tokens": budgets / (flops_per_param_token * params)}
    )
    table["loss"] = law.point(_with_unique(table, unique_tokens))
    table["tokens_per_param"] = table["tokens"] / table["params"]
    if interval is None:
        return table
    draws = [_best_params(law, theta, budgets, unique_tokens, flops_per_param_token) for theta in law.draws_]
    return _bounded(table, params, np.array(draws), interval, flops_per_param_token)


class IsoFlopFrontier(Estimator):
    """Approach 2: ``N = G C^a`` fitted to the optima of several budgets.

    Each optimum is the vertex of a parabola of loss over log size. The frontier gives a size and a number
    of tokens, not a loss.

    Args:
        budget_width: runs whose log FLOPs lie within this of their neighbour's share a budget.
        num_draws: draws behind every interval.
        seed: seed of the draws.

    Attributes:
        params_: ``G, a`` of the size and ``H, b`` of the tokens, ``D = H C^b`` with ``b = 1 - a``.
        report_: diagnosis of the regression.
        optima_: the optima that were regressed: ``flops``, ``params``, ``loss``, ``weight`` and ``num_runs``.
        draws_: draws of ``(log G, a)``, ``[num_draws, 2]``, with G at the centre of the budgets.
    """

    optima_: pd.DataFrame
    draws_: Array

    def __init__(self, *, budget_width: float = 0.05, num_draws: int = 200, seed: int = 0) -> None:
        self.budget_width = budget_width
        self.num_draws = num_draws
        self.seed = seed

    def fit(self, X: pd.DataFrame, y: ArrayLike | None = None) -> Self:
        """Find the optima and regress log size on log FLOPs.

        Args:
            X: columns ``params``, ``tokens``, ``flops`` (6 N D without it).
            y: losses; the column ``loss`` without it.

        Raises:
            SchemaError: a column is missing.
            InvalidValueError: a value is not finite and positive, or fewer than two budgets have an optimum
                inside the sizes that were run.
        """
        runs = _runs(X, y)
        self.flops_per_param_token_ = float(np.median(runs["flops"] / (runs["params"] * runs["tokens"])))
        self.optima_ = self._optima(runs)
        if len(self.optima_) < 2:
            constraint = "must hold two budgets or more whose best size lies inside those that were run"
            remedy = "Add smaller and larger models to the budgets."
            raise InvalidValueError("flops", len(self.optima_), constraint, remedy)
        self.center_ = float(np.exp(np.log(self.optima_["flops"]).mean()))
        solution = self._regress(self.optima_)
        self.theta_, self.report_ = solution.theta, solution.report
        self.draws_ = self._draw(runs, solution)
        self.params_ = self._public(self.theta_)
        return self

    def predict(self, X: pd.DataFrame, interval: float | None = None) -> pd.DataFrame:
        """Best ``params`` and ``tokens`` for every row of ``flops``; bounds with ``interval``."""
        self._require_fitted()
        (budgets,) = columns(X, ("flops",))
        params = self._size(self.theta_, budgets)
        table = pd.DataFrame({"flops": budgets, "params": params})
        table["tokens"] = budgets / (self.flops_per_param_token_ * params)
        if interval is None:
            return table
        draws = np.array([self._size(theta, budgets) for theta in self.draws_]).reshape(-1, len(budgets))
        return _bounded(table, params, draws, interval, self.flops_per_param_token_)

    def exponent_interval(self, level: float = 0.9) -> tuple[float, float]:
        """Central interval of ``a``."""
        self._require_fitted()
        held = quantile_interval(self.theta_[1:2], self.draws_[:, 1:2], level)
        return float(held.lower[0]), float(held.upper[0])

    def _optima(self, runs: pd.DataFrame) -> pd.DataFrame:
        ordered = runs.sort_values("flops")
        budget = (np.log(ordered["flops"]).diff() > self.budget_width).cumsum()
        vertices = [_vertex(group) for _, group in ordered.groupby(budget)]
        return pd.DataFrame([vertex for vertex in vertices if vertex is not None])

    def _draw(self, runs: pd.DataFrame, solution: Solution) -> Array:
        """The regression's covariance, at least that of the vertices' own variances."""
        rng = np.random.default_rng(self.seed)
        residuals = solution.residuals
        variance = max(1.0, float(residuals @ residuals) / max(len(residuals) - len(_NAMES), 1))
        return rng.multivariate_normal(solution.theta, solution.covariance(variance), size=self.num_draws)

    def _regress(self, optima: pd.DataFrame) -> Solution:
        budgets = np.log(optima["flops"].to_numpy() / self.center_)
        design = np.stack([np.ones_like(budgets), budgets], axis=1)
        target = np.log(optima["params"].to_numpy())
        root = np.sqrt(optima["weight"].to_numpy())
        return solve(
            lambda theta: root * (design @ theta - target),
            np.array([target.mean(), 0.5]),
            jacobian=lambda theta: root[:, None] * design,
            names=_NAMES,
        )

    def _size(self, theta: Array, budgets: Array) -> Array:
        return np.exp(theta[0] + theta[1] * np.log(budgets / self.center_))

    def _public(self, theta: Array) -> dict[str, float]:
        a = float(theta[1])
        size = float(np.exp(theta[0] - a * np.log(self.center_)))
        return {"G": size, "a": a, "H": 1 / (self.flops_per_param_token_ * size), "b": 1 - a}

    def _state(self) -> dict[str, Any]:
        return {
            "params": self.params_,
            "theta": self.theta_,
            "center": self.center_,
            "flops_per_param_token": self.flops_per_param_token_,
            "draws": self.draws_,
            "optima": self.optima_.to_dict(orient="list"),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.params_ = state["params"]
        self.theta_ = np.array(state["theta"], dtype=float)
        self.center_ = float(state["center"])
        self.flops_per_param_token_ = float(state["flops_per_param_token"])
        self.draws_ = np.array(state["draws"], dtype=float).reshape(-1, len(_NAMES))
        self.optima_ = pd.DataFrame(state["optima"])


def _vertex(group: pd.DataFrame) -> dict[str, float] | None:
    """Vertex of the parabola of loss over log size; None without a minimum inside the sizes."""
    log_n, loss = np.log(group["params"].to_numpy()), group["loss"].to_numpy()
    if len(group) < _MIN_RUNS or len(np.unique(log_n)) < 3:
        return None
    centre = log_n.mean()
    design = np.stack([np.ones_like(log_n), log_n - centre, (log_n - centre) ** 2], axis=1)
    coefficients, *_ = np.linalg.lstsq(design, loss, rcond=None)
    level, slope, curvature = coefficients
    shift = -slope / (2 * curvature) if curvature > 0 else np.inf
    if not log_n.min() - centre < shift < log_n.max() - centre:
        return None
    scatter = loss - design @ coefficients
    variance = float(scatter @ scatter) / max(len(loss) - 3, 1)
    gradient = np.array([0.0, -1 / (2 * curvature), slope / (2 * curvature**2)])
    spread = variance * float(gradient @ np.linalg.pinv(design.T @ design) @ gradient)
    return {
        "flops": float(np.exp(np.log(group["flops"]).mean())),
        "params": float(np.exp(centre + shift)),
        "loss": float(level - slope**2 / (4 * curvature)),
        "weight": 1 / max(spread, 1e-8),
        "num_runs": float(len(group)),
    }


def _runs(X: pd.DataFrame, y: ArrayLike | None) -> pd.DataFrame:
    params, tokens = columns(X, ("params", "tokens"))
    loss = target(X, y)
    if len(loss) == 0:
        raise InvalidValueError("runs", 0, "must hold at least one row")
    flops = positive("flops", X["flops"]) if "flops" in X else FLOPS_PER_PARAM_TOKEN * params * tokens
    return pd.DataFrame({"params": params, "tokens": tokens, "flops": flops, "loss": loss})


def _best_params(
    law: SizeTokenLaw, theta: Array, budgets: Array, unique_tokens: float | None, flops_per_param_token: float
) -> Array:
    """Minimum along every budget: a log grid of sizes, then the parabola through its three lowest points."""
    grid = np.linspace(np.log(_PARAM_RANGE[0]), np.log(_PARAM_RANGE[1]), _GRID_POINTS)
    step = grid[1] - grid[0]
    best = np.empty(len(budgets))
    for row, flops in enumerate(budgets):
        table = pd.DataFrame(
            {"params": np.exp(grid), "tokens": flops / (flops_per_param_token * np.exp(grid))}
        )
        losses = law.log_loss(_with_unique(table, unique_tokens), theta)
        lowest = int(np.clip(np.argmin(losses), 1, len(grid) - 2))
        before, here, after = losses[lowest - 1 : lowest + 2]
        bend = before - 2 * here + after
        # between the neighbours of the lowest point lies the minimum; at an end of the grid there is none
        shift = 0.5 * (before - after) / bend if bend > 0 else float(np.sign(before - after))
        best[row] = grid[lowest] + step * np.clip(shift, -1.0, 1.0)
    return np.exp(best)


def _require_inside(params: Array, budgets: Array) -> None:
    outside = ~((params > 1.001 * _PARAM_RANGE[0]) & (params < 0.999 * _PARAM_RANGE[1]))
    if outside.any():
        raise InvalidValueError(
            "flops",
            float(budgets[outside][0]),
            f"must have its best size between {_PARAM_RANGE[0]:g} and {_PARAM_RANGE[1]:g} parameters",
            "Check its unit (FLOPs, not PFLOPs or FLOP/s), and the law's exponents.",
        )


def _with_unique(table: pd.DataFrame, unique_tokens: float | None) -> pd.DataFrame:
    return (
        table
        if unique_tokens is None
        else table.assign(unique_tokens=np.minimum(table["tokens"], unique_tokens))
    )


def _bounded(
    table: pd.DataFrame, params: Array, draws: Array, level: float, flops_per_param_token: float
) -> pd.DataFrame:
    held = quantile_interval(params, draws, level)
    scale = table["flops"] / flops_per_param_token
    bounds = {"params_lower": held.lower, "params_upper": held.upper}
    return table.assign(**bounds, tokens_lower=scale / held.upper, tokens_upper=scale / held.lower)
