"""Laws ranked by what they predict on data that they have not seen, never by how well they fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from decaylaws.errors import DecaylawsError, InvalidValueError
from decaylaws.laws.kit.law import Array, Law


@dataclass(frozen=True)
class Fold:
    """One question to every law.

    Attributes:
        name: what is held out, such as ``longer horizon``.
        train: what ``fit`` gets: ``(X,)`` or ``(X, y)``.
        test: what ``predict`` gets.
        observed: the truth, shape ``[n]``.
    """

    name: str
    train: tuple[Any, ...]
    test: Any
    observed: Array


def compare(laws: Mapping[str, Law], folds: Iterable[Fold]) -> pd.DataFrame:
    """Fit every law on every fold's training data and score it on the rest.

    Args:
        laws: unfitted laws by name; each is copied for every fold.
        folds: the hold-outs.

    Returns:
        One row per law and fold, best mean error first: columns ``law``, ``fold``, ``mae``, ``rmse``,
        ``worst`` (nats per token), ``seconds``, ``status`` (the fit's status, or why it failed) and
        ``mean_mae`` over the folds. A law that cannot be fitted on a fold gets infinite error there: it ranks
        last and stays in sight.
    """
    questions = list(folds)
    if not laws or not questions:
        raise InvalidValueError(
            "folds", len(questions), "must hold at least one fold, and there must be a law"
        )
    rows = [_score(name, law, fold) for name, law in laws.items() for fold in questions]
    table = pd.DataFrame(rows)
    table["mean_mae"] = table.groupby("law")["mae"].transform("mean")
    return table.sort_values(["mean_mae", "law"], kind="stable").reset_index(drop=True)


def _score(name: str, law: Law, fold: Fold) -> dict[str, Any]:
    candidate = type(law)(**law.get_params())
    row: dict[str, Any] = {"law": name, "fold": fold.name}
    try:
        candidate.fit(*fold.train)
    except DecaylawsError as error:
        return {
            **row,
            "mae": np.inf,
            "rmse": np.inf,
            "worst": np.inf,
            "seconds": np.nan,
            "status": str(error),
        }
    errors = np.asarray(candidate.predict(fold.test)) - fold.observed
    return {
        **row,
        "mae": float(np.mean(np.abs(errors))),
        "rmse": float(np.sqrt(np.mean(errors**2))),
        "worst": float(np.max(np.abs(errors))),
        "seconds": candidate.report_.seconds,
        "status": candidate.report_.status.value,
    }
