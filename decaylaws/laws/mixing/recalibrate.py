"""Carry a fit on small proxies to a larger scale with a handful of runs there: affine in log loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.law import Array, Prediction
from decaylaws.laws.mixing.base import MixtureRegression
from decaylaws.laws.mixing.data import read_losses

MIN_RECALIBRATION_RUNS = 3


@dataclass(frozen=True)
class Recalibration:
    """``log L_target = intercept + slope * log L_proxy``, by target.

    The ranking of mixtures is the proxy's (the slope is kept positive); level and contrast are the target's.

    Attributes:
        intercept: [targets].
        slope: [targets].
        residual_sd: of log loss at the target scale [targets].
        num_runs: runs that it rests on.
    """

    intercept: Array
    slope: Array
    residual_sd: Array
    num_runs: int

    @classmethod
    def fit(cls, predicted: Any, observed: Any) -> Recalibration:
        """Least squares on ``predicted`` and ``observed`` losses [runs] or [runs, targets], weak prior.

        The slope is drawn towards 1 as if by one further run at the spread of the others, so that eight runs
        of similar mixtures cannot turn it round; it is held between 0.1 and 10.

        Raises:
            InvalidValueError: fewer than three runs, or a loss that is not positive and finite.
        """
        proxy, target = _log_matrix("predicted", predicted), _log_matrix("observed", observed)
        if proxy.shape != target.shape:
            raise InvalidValueError(
                "observed", target.shape, f"must have the shape of predicted {proxy.shape}"
            )
        if len(proxy) < MIN_RECALIBRATION_RUNS:
            raise InvalidValueError("runs", len(proxy), f"must be at least {MIN_RECALIBRATION_RUNS}")
        centre, level = proxy.mean(axis=0), target.mean(axis=0)
        spread = np.maximum(proxy.var(axis=0), 1e-12)
        covariance = np.mean((proxy - centre) * (target - level), axis=0)
        slope = np.clip((len(proxy) * covariance + spread) / ((len(proxy) + 1) * spread), 0.1, 10.0)
        intercept = level - slope * centre
        residual = target - intercept - slope * proxy
        residual_sd = np.sqrt(np.sum(residual**2, axis=0) / max(len(proxy) - 2, 1))
        return cls(intercept, slope, residual_sd, len(proxy))

    def apply(self, predicted: Any) -> Array:
        """Losses at the target scale, in the shape of ``predicted`` [runs] or [runs, targets]."""
        values = np.asarray(predicted, dtype=float)
        logs = np.log(values.reshape(len(values), -1))
        return np.exp(self.intercept + self.slope * logs).reshape(values.shape)

    def interval(self, prediction: Prediction) -> Prediction:
        """The proxy's interval at the target scale, widened by the residuals of the recalibration itself."""
        factor = float(stdtrit(max(self.num_runs - 2, 1), 0.5 + prediction.level / 2))
        mean = self.apply(prediction.mean)
        own = (factor * self.residual_sd * np.sqrt(1 + 1 / self.num_runs)).reshape(-1)
        low = np.log(mean / self.apply(prediction.lower)).reshape(len(mean), -1)
        high = np.log(self.apply(prediction.upper) / mean).reshape(len(mean), -1)
        lower = mean * np.exp(-np.hypot(low, own)).reshape(mean.shape)
        return Prediction(
            mean, lower, mean * np.exp(np.hypot(high, own)).reshape(mean.shape), prediction.level
        )


def recalibrate(law: MixtureRegression, X: Any, y: Any) -> Recalibration:
    """Recalibrate a fitted ``law`` on runs of another scale: shares ``X`` and losses ``y`` there.

    Args:
        law: a regression fitted at another scale.
        X: shares of runs at this scale [runs, sources].
        y: their losses [runs] or [runs, targets].
    """
    return Recalibration.fit(law.predict(X), y)


def _log_matrix(field: str, values: Any) -> Array:
    array = (
        values.to_numpy(dtype=float) if isinstance(values, pd.DataFrame) else np.asarray(values, dtype=float)
    )
    matrix, _, _ = read_losses(array, len(array))
    if not np.isfinite(matrix).all():
        raise InvalidValueError(field, "NaN", "must hold a loss for every run", "Leave that run out.")
    return np.log(matrix)
