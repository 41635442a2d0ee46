"""Losses of runs that had not ended, expected from their curves, and how much they count beside measured ones.

A measured loss has the variance ``noise^2`` around a law, an expected one ``noise^2 + error^2``. Rows count by the
inverse of their variance. What a law errs by is shown by measured losses alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.law import Array
from decaylaws.runs.table import LOSS_ERROR, names_with


def loss_errors(runs: pd.DataFrame, domains: Sequence[str]) -> Array:
    """Standard errors of the losses ``[n, d]``; 0 where the table does not say that a loss was only expected.

    Args:
        runs: a table with ``loss_error:<domain>`` for the domains of which some losses were expected.
        domains: names of the domains.

    Raises:
        InvalidValueError: a standard error that is negative or infinite.
    """
    found = np.zeros((len(runs), len(domains)))
    for column, name in enumerate(domains):
        if LOSS_ERROR + name in runs:
            found[:, column] = np.nan_to_num(
                runs[LOSS_ERROR + name].to_numpy(dtype=float), nan=0.0, posinf=np.inf
            )
    return checked_errors(found)


def finished_rows(runs: pd.DataFrame) -> pd.DataFrame:
    """Rows whose final losses were measured, and not expected from an unfinished curve."""
    return runs[~(loss_errors(runs, names_with(runs, LOSS_ERROR)) > 0).any(axis=1)]


def checked_errors(errors: Array) -> Array:
    """The standard errors, if they can be such.

    Raises:
        InvalidValueError: one is negative or not finite.
    """
    wrong = errors[~(np.isfinite(errors) & (errors >= 0))]
    if len(wrong):
        raise InvalidValueError(f"{LOSS_ERROR}*", float(wrong[0]), "must be standard errors, 0 or larger")
    return errors


def expected_notes(errors: Array) -> tuple[str, ...]:
    """What the runs that had not ended count for, in sentences; empty where all ended.

    Args:
        errors: standard errors of their losses, nats per token ``[n, d]``.
    """
    if not len(errors):
        return ()
    counted = (
        "1 run has not reached its end"
        if len(errors) == 1
        else f"{len(errors)} runs have not reached their end"
    )
    return (
        f"{counted}. In the law such a run has the final losses that its curve leads to expect. It counts the less the "
        f"larger their standard error is ({errors.mean():.4f} nats on average).",
    )


def row_sd(noise: ArrayLike, errors: ArrayLike) -> Array:
    """Standard deviation of losses around a law, in the unit of both.

    Args:
        noise: that of a measured loss.
        errors: standard errors of the expected ones, 0 for measured ones.
    """
    return np.asarray(np.hypot(noise, errors), dtype=float)


def row_weights(noise: float, errors: ArrayLike) -> Array:
    """How much losses count beside a measured one, which counts 1.

    Args:
        noise: standard deviation of a measured loss around a law.
        errors: standard errors of the expected ones, in the same unit; 0 for measured ones.
    """
    return np.square(noise / row_sd(noise, errors))
