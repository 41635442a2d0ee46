"""Laws whose intervals are draws of the parameters and the scatter of the fit's own residuals."""

from __future__ import annotations

from typing import Any

import numpy as np

from decaylaws.laws.kit.law import Array, Law


class DrawnLaw(Law):
    """What such a law has learnt, as JSON values and back, and the scatter of new runs.

    Attributes:
        theta_: internal parameters, ``[p]``.
        draws_: draws of theta, ``[num_draws, p]``.
        residuals_: predicted minus observed, on the scale that the law is fitted on, ``[n]``.
        extrapolation_error_: mean absolute error on rows farther out than those of another fit; None where there
            are too few. Intervals are at least as wide.
        seed: of everything random.
    """

    theta_: Array
    draws_: Array
    residuals_: Array
    extrapolation_error_: float | None
    seed: int

    def _scatter(self, shape: tuple[int, ...]) -> Array:
        """What new runs may be off by, drawn anew with the law's seed, ``shape``."""
        scatter = widened(self.residuals_, len(self.theta_), self.extrapolation_error_)
        return np.random.default_rng(self.seed).choice(scatter, size=shape)

    def _state(self) -> dict[str, Any]:
        return {
            "params": self.params_,
            "theta": self.theta_,
            "draws": self.draws_,
            "residuals": self.residuals_,
            "extrapolation_error": self.extrapolation_error_,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.params_ = state["params"]
        self.theta_ = np.array(state["theta"], dtype=float)
        self.draws_ = np.array(state["draws"], dtype=float).reshape(-1, len(self.theta_))
        self.residuals_ = np.array(state["residuals"], dtype=float)
        self.extrapolation_error_ = state["extrapolation_error"]


def degrees_factor(num_rows: int, num_params: int) -> float:
    """Variance inflation of residuals for the parameters that were fitted to them, at most fourfold."""
    return num_rows / max(num_rows - num_params, num_rows / 4)


def widened(residuals: Array, num_params: int, extrapolation_error: float | None) -> Array:
    """Residuals ``[n]`` as the scatter of new runs: inflated for the fitted parameters, or until their mean size
    is the extrapolation error if that is more."""
    inflation = float(np.sqrt(degrees_factor(len(residuals), num_params)))
    size = float(np.mean(np.abs(residuals)))
    if extrapolation_error is not None and size > 0:
        inflation = max(inflation, extrapolation_error / size)
    return inflation * residuals
