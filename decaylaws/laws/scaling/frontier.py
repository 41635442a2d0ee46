"""How to spend a compute budget: the size and tokens that reach the lowest loss for given training FLOPs.

Of the three ways of Hoffmann et al. 2022 (arXiv 2203.15556) the third: the minimum of a fitted law along ``C = 6 N D``.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.draws import quantile_interval
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.numbers import positive
from decaylaws.laws.scaling.law import SizeTokenLaw

FLOPS_PER_PARAM_TOKEN = 6.0  # forward and backward pass of a dense transformer, attention left out
_PARAM_RANGE = (1e4, 1e15)
_GRID_POINTS = 600


def optimal_allocation(
    law: SizeTokenLaw,
    flops: ArrayLike,
    *,
    interval: float | None = None,
    unique_tokens: float | None = None,
    flops_per_param_token: float = FLOPS_PER_PARAM_TOKEN,
) -> pd.DataFrame:
    """Size and tokens that minimise a fitted law for given budgets.

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
