"""Predictions of a schedule law as a table, for figures and errors by run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from decaylaws.laws.annealing.curves import LossCurve
from decaylaws.laws.annealing.estimator import ScheduleLaw


def prediction_table(law: ScheduleLaw, curves: Sequence[LossCurve], *, interval: float = 0.9) -> pd.DataFrame:
    """One row per evaluation: ``run_id``, ``tokens``, ``observed``, ``predicted``, ``lower``, ``upper``.

    Losses are in nats per token; ``observed`` is NaN for a curve without losses.

    Args:
        law: a fitted law.
        curves: curves to predict; their losses are only copied, never looked at.
        interval: level of the interval.
    """
    parts = []
    for curve in curves:
        found = law.predict([curve], interval=interval)
        parts.append(
            pd.DataFrame({
                "run_id": curve.run_id,
                "tokens": curve.tokens,
                "observed": np.full(len(curve.tokens), np.nan) if curve.loss is None else curve.loss,
                "predicted": found.mean,
                "lower": found.lower,
                "upper": found.upper,
            })
        )  # fmt: skip
    return pd.concat(parts, ignore_index=True)
