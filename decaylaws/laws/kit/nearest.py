"""Copying the nearest run: what every law that extrapolates has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pandas as pd

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.kit.draws import conformal_radius
from decaylaws.laws.kit.law import Array, Law, Prediction
from decaylaws.laws.kit.numbers import floats
from decaylaws.laws.kit.report import FitReport, FitStatus
from decaylaws.runs.table import LOSS, names_with

NEAREST = "copy_nearest"
"""Name of this baseline in every table of errors."""


class CopyNearest(Law):
    """The losses of the fitted run that is nearest to the one asked about.

    First the same mixture and the same of all that is in ``same`` counts, then the distance of the logs of ``scale``:
    with sizes and lengths it is the same mixture at the nearest size and length, with LRs the same LR at the longest
    fitted horizon. Where several runs are equally near, their losses are averaged.

    Args:
        scale: columns whose logs are compared, such as size and tokens.
        same: columns of which the nearest value counts before the scale, such as the LR; logs as well.
        prefix: prefix of the columns that hold shares; total variation between mixtures counts before the scale.

    Attributes:
        targets_: order of the columns of a prediction.
        errors_: by target, absolute error of each fitted run copied from the others [n]: the scale of intervals.
    """

    target = "loss"
    targets_: list[str]
    errors_: list[Array]

    def __init__(
        self, scale: Sequence[str] = ("params", "tokens"), same: Sequence[str] = (), *, prefix: str = "w_"
    ) -> None:
        self.scale = scale
        self.same = same
        self.prefix = prefix

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that ``fit`` and ``predict`` need."""
        return (*self.scale, *self.same)

    def fit(self, X: pd.DataFrame, y: Any = None) -> Self:
        """Remember runs and their losses ``y`` ``[n]`` or ``[n, d]``, else the column ``loss`` or ``loss:<target>``.

        Raises:
            SchemaError: a column is missing.
            InvalidValueError: a value of a scale is not finite and positive, or no loss is.
        """
        self.sources_ = [str(name) for name in X.columns if str(name).startswith(self.prefix)]
        targets = [LOSS + name for name in names_with(X, LOSS)]
        if y is None and self.target not in X and not targets:
            raise SchemaError("losses", missing=[self.target])
        given = (X[self.target] if self.target in X else X[targets]) if y is None else y
        losses = floats("loss", given)
        self._is_table = losses.ndim == 2
        losses = losses if self._is_table else losses[:, None]
        names = list(getattr(given, "columns", range(losses.shape[1])))
        self.targets_ = [str(name).removeprefix(LOSS) for name in names]
        if len(losses) != len(X) or not np.isfinite(losses).any():
            raise InvalidValueError("loss", losses.shape, f"must be {len(X)} losses, some of them finite")
        self.params_ = {"features": self._features(X), "losses": losses}
        order = np.lexsort((*losses.T, *self.params_["features"].T))  # the order of the rows does not matter
        self.params_ = {name: values[order] for name, values in self.params_.items()}
        self.errors_ = [self._left_out(column) for column in range(losses.shape[1])]
        self.report_ = FitReport(FitStatus.CONVERGED, 0.0, 1, 1.0, (), 1.0, 0.0, len(X), 0, 0.0)
        return self

    def predict(self, X: pd.DataFrame, interval: float | None = None) -> Any:
        """Losses ``[n]`` or ``[n, d]``; with ``interval`` a prediction as wide as fitted runs err about one another."""
        self._require_fitted()
        asked = self._features(X)
        found = np.column_stack([self._copied(asked, column) for column in range(len(self.targets_))])
        half = np.zeros_like(found)
        if interval is not None:
            half += [conformal_radius(errors, interval) for errors in self.errors_]
        if not self._is_table:
            found, half = found[:, 0], half[:, 0]
        return found if interval is None else Prediction(found, found - half, found + half, interval)

    def _copied(self, asked: Array, column: int, without: int | None = None) -> Array:
        """Losses of the nearest of the fitted runs, but for one ``without``, ``[n]``."""
        values = self.params_["losses"][:, column].copy()
        if without is not None:
            values[without] = np.nan
        distance = np.abs(self.params_["features"] - asked[:, None]).sum(axis=2)
        distance[:, ~np.isfinite(values)] = np.inf
        nearest = distance <= distance.min(axis=1, keepdims=True) + 1e-9
        return np.where(nearest, np.nan_to_num(values), 0.0).sum(axis=1) / nearest.sum(axis=1)

    def _left_out(self, column: int) -> Array:
        """Absolute errors of each fitted run copied from the others."""
        values = self.params_["losses"][:, column]
        rows = np.flatnonzero(np.isfinite(values))
        if len(rows) < 2:
            return np.empty(0)
        features = self.params_["features"]
        return np.array(
            [abs(self._copied(features[[row]], column, row)[0] - values[row]) for row in rows.tolist()]
        )

    def _features(self, runs: pd.DataFrame) -> Array:
        missing = [name for name in (*self.columns, *self.sources_) if name not in runs]
        if missing:
            raise SchemaError("runs", missing=missing)
        values = runs[list(self.columns)].to_numpy(dtype=float).reshape(len(runs), -1)
        if not (np.isfinite(values) & (values > 0)).all():
            raise InvalidValueError(
                ", ".join(self.columns), values.tolist()[:3], "must be finite and positive in every row"
            )
        shares = runs[self.sources_].to_numpy(dtype=float).reshape(len(runs), -1)
        weights = np.array([1.0] * len(self.scale) + [_FIRST] * len(self.same))
        return np.hstack([0.5 * _FIRST * shares, weights * np.log(values)])

    def _state(self) -> dict[str, Any]:
        return {
            "params": self.params_, "targets": self.targets_, "sources": self.sources_, "is_table": self._is_table,
            "errors": self.errors_,
        }  # fmt: skip

    def _restore(self, state: dict[str, Any]) -> None:
        self.params_ = {name: np.array(values, dtype=float) for name, values in state["params"].items()}
        self.targets_, self.sources_ = list(state["targets"]), list(state["sources"])
        self._is_table = bool(state["is_table"])
        self.errors_ = [np.array(each, dtype=float) for each in state["errors"]]


_FIRST = 1e3  # what counts before the scale: a total variation of .001 outweighs a factor of e
