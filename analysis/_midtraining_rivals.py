"""Published forms and baselines of the loss after a decay, beside which ``midtraining.py`` scores the default.

Each keeps the laws' contract. Their intervals are what a user of the published forms has: the residuals of the fitted
rows and a normal quantile.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import pandas as pd

from decaylaws.laws.kit.draws import normal_radius
from decaylaws.laws.kit.law import Array, Law, Prediction
from decaylaws.laws.kit.nearest import NEAREST, CopyNearest
from decaylaws.laws.kit.numbers import target
from decaylaws.laws.kit.report import FitReport, FitStatus, NotIdentifiedWarning
from decaylaws.laws.scaling import Chinchilla
from decaylaws.laws.scaling.midtraining import COLUMNS
from decaylaws.laws.scaling.tables import columns


class _Rival(Law):
    """A law of log loss on log N, log D and log d."""

    target = "loss"

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that ``fit`` and ``predict`` need."""
        return COLUMNS

    def fit(self, X: pd.DataFrame, y: Any = None) -> Self:
        """Fit to decays ``X``; losses ``y``, nats per token, or the column ``loss``."""
        loss = target(X, y)
        self.params_ = self._learn(self._logs(X), np.log(loss))
        residuals = np.log(self._mean(self._logs(X)) / loss)
        self._noise = float(np.sqrt(np.mean(residuals**2)))
        squares = float(0.5 * residuals @ residuals)
        count = self._num_params()
        self.report_ = FitReport(FitStatus.CONVERGED, squares, 1, 1.0, (), 1.0, 0.0, len(loss), count, 0.0)
        return self

    def predict(self, X: pd.DataFrame, interval: float | None = None) -> Any:
        """Losses ``[n]``; with ``interval`` a :class:`Prediction`."""
        self._require_fitted()
        mean = self._mean(self._logs(X))
        if interval is None:
            return mean
        half = normal_radius(interval) * self._noise
        return Prediction(mean, mean * np.exp(-half), mean * np.exp(half), interval)

    def _logs(self, X: pd.DataFrame) -> Array:
        return np.log(np.column_stack(columns(X, COLUMNS, what="decays")))

    @abstractmethod
    def _learn(self, logs: Array, log_loss: Array) -> dict[str, Any]:
        """Parameters from log N, log D, log d ``[n, 3]`` and log losses ``[n]``."""

    @abstractmethod
    def _mean(self, logs: Array) -> Array:
        """Losses ``[n]``."""

    def _num_params(self) -> int:
        return len(self.params_)


class PowerLawByLength(_Rival):
    """A power law in pre-training compute for each decay length (marin's fits of mid-training runs).

    It says nothing of other lengths: there it interpolates its lines in log d.
    """

    def _learn(self, logs: Array, log_loss: Array) -> dict[str, Any]:
        compute, lines = logs[:, 0] + logs[:, 1], {}
        for length in np.unique(logs[:, 2]):
            here = logs[:, 2] == length
            lines[repr(float(length))] = np.polyfit(compute[here], log_loss[here], 1).tolist()
        return lines

    def _mean(self, logs: Array) -> Array:
        lengths = np.array([float(name) for name in self.params_])
        lines = np.array(list(self.params_.values()))
        slope, start = (np.interp(logs[:, 2], lengths, lines[:, column]) for column in (0, 1))
        return np.exp(start + slope * (logs[:, 0] + logs[:, 1]))

    def _num_params(self) -> int:
        return 2 * len(self.params_)


class LogLinearForm(_Rival):
    """Log loss linear in log N, log D and log d: a product of three power laws."""

    def _learn(self, logs: Array, log_loss: Array) -> dict[str, Any]:
        design = np.column_stack([np.ones(len(logs)), logs])
        found = np.linalg.lstsq(design, log_loss, rcond=None)[0]
        return dict(zip(("log_A", "params", "pretrain_tokens", "decay_tokens"), found.tolist()))

    def _mean(self, logs: Array) -> Array:
        return np.exp(np.column_stack([np.ones(len(logs)), logs]) @ np.array(list(self.params_.values())))


class AdditiveForm(_Rival):
    """Chinchilla's ``E + A N^-alpha + B d^-beta`` on the tokens of the decay alone (arXiv 2203.15556)."""

    def _learn(self, logs: Array, log_loss: Array) -> dict[str, Any]:
        self._law = Chinchilla(prior=True, num_draws=0).fit(self._table(logs), np.exp(log_loss))
        return {name: self._law.params_[name] for name in ("E", "A", "alpha", "B", "beta")}

    def _mean(self, logs: Array) -> Array:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotIdentifiedWarning)  # the table of errors says it as well
            return np.asarray(self._law.predict(self._table(logs)), dtype=float)

    @staticmethod
    def _table(logs: Array) -> pd.DataFrame:
        return pd.DataFrame({"params": np.exp(logs[:, 0]), "tokens": np.exp(logs[:, 2])})


RIVALS: Mapping[str, Callable[[], Law]] = {
    "power_law_by_length": PowerLawByLength,
    "log_linear": LogLinearForm,
    "additive": AdditiveForm,
    NEAREST: lambda: CopyNearest(COLUMNS),
}
