"""How far a decay law is to be believed: held-out intervals, the choice of the member, and margins of guards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import pandas as pd

from decaylaws.laws.decay.heldout import SURE_CHOICE, HeldOutFits
from decaylaws.laws.decay.law import DecayLaw
from decaylaws.progress import Progress, silent
from decaylaws.runs.noise import matched_control
from decaylaws.runs.table import LOSS, values_by

HELD_OUT_FOLDS = 4  # over mixtures, inside every fit without held-out runs
GUARD_CONFIDENCE = 0.95
GUARD_RUNS = 20  # held-out runs nearest the limit; fewer than 19 cannot certify 95 %
LEAST_COVERAGE = 0.7
"""Of 90 % intervals on held-out runs: below it no preference is to be believed. A handful may miss by chance."""


def choice_notes(member: str, votes: Mapping[str, float]) -> list[str]:
    """What to know where other held-out runs would have chosen another member.

    Args:
        member: the member that was chosen.
        votes: by member, how often it does best where the held-out runs are drawn anew.
    """
    rivals = {name: share for name, share in votes.items() if name != member and share > 0}
    if not rivals or votes.get(member, 0.0) >= SURE_CHOICE:
        return []
    rival = max(rivals, key=lambda name: rivals[name])
    return [
        f"The choice of the member is uncertain: if the held-out runs are resampled, '{member}' is best in "
        f"{100 * votes.get(member, 0.0):.0f} % of the samples and '{rival}' in {100 * rivals[rival]:.0f} %. The "
        f"default member is kept unless another is best in {100 * SURE_CHOICE:.0f} %. Outside the fitted range, the "
        "two can differ by more than the intervals show."
    ]


def coverage_doubts(predictions: pd.DataFrame) -> list[str]:
    """Where 90 % intervals miss so many held-out losses that a preference by the law is not to be believed."""
    inside = predictions["observed"].between(predictions["lower"], predictions["upper"])
    return [
        f"90 % intervals hold only {100 * held.mean():.0f} % of the losses on held-out {kind}."
        for kind, held in inside.groupby(predictions["held_out"], sort=False)
        if held.mean() < LEAST_COVERAGE
    ]


def held_out_predictions(
    fits: Sequence[HeldOutFits], runs: pd.DataFrame, progress: Progress = silent
) -> pd.DataFrame:
    """Held-out runs predicted with a 90 % interval by one member's fits without them, by kind (``held_out``).

    Args:
        fits: one member's fits without each set of held-out runs.
        runs: the fitted runs.
        progress: told how many are done.
    """
    pairs = [(each.kind, test, law) for each in fits for test, law in zip(each.tests, each.fitted)]
    parts: list[pd.DataFrame] = []
    for kind, test, fitted in pairs:
        progress("held-out intervals", len(parts), len(pairs), kind)
        law = cast(DecayLaw, fitted).with_intervals(HELD_OUT_FOLDS)
        found, rows = law.predict(runs[test], interval=0.9), runs[test]
        parts.append(
            pd.DataFrame(
                {
                    "held_out": kind,
                    "run_id": np.repeat(rows["run_id"].to_numpy(), len(law.domains_)),
                    "domain": np.tile(law.domains_, len(rows)),
                    "predicted": found.mean.ravel(),
                    "lower": found.lower.ravel(),
                    "upper": found.upper.ravel(),
                    "observed": values_by(rows, LOSS, law.domains_).ravel(),
                }
            )
        )
    progress("held-out intervals", len(pairs), len(pairs))
    return pd.concat(parts, ignore_index=True)


def guard_changes(law: DecayLaw, runs: pd.DataFrame, held_out: pd.DataFrame) -> pd.DataFrame:
    """Predicted and observed change against the matched control, one row per run that has one and domain.

    Args:
        law: the fitted law, which predicts the controls.
        runs: the fitted rows.
        held_out: predictions of every run by fits that saw no run of its mixture.
    """
    columns = [LOSS + domain for domain in law.domains_]
    expected = runs.assign(**dict(zip(columns, law.predict(runs).T)))
    others = (runs["role"] != "control").to_numpy()
    by_run = pd.DataFrame(
        {
            "run_id": np.repeat(runs["run_id"].to_numpy()[others], len(columns)),
            "domain": np.tile(law.domains_, int(others.sum())),
            "control_predicted": matched_control(expected, columns).to_numpy()[others].ravel(),
            "control_observed": matched_control(runs, columns).to_numpy()[others].ravel(),
        }
    ).dropna()
    matched = held_out.merge(by_run, on=["run_id", "domain"])
    return pd.DataFrame(
        {
            "run_id": matched["run_id"],
            "domain": matched["domain"],
            "predicted": matched["predicted"] - matched["control_predicted"],
            "observed": matched["observed"] - matched["control_observed"],
        }
    )


def margin_near(changes: pd.DataFrame, limit: float) -> float:
    """The 95 % quantile of observed minus predicted change, over the rows predicted nearest ``limit``, at least 0.

    Rows far from the limit say little about a mixture that lies on it: the error grows with the change.

    Args:
        changes: of one domain, with ``predicted`` and ``observed``, nats per token.
        limit: of the guard.
    """
    distance = (changes["predicted"] - limit).abs()
    nearest = changes.loc[distance.sort_values(kind="stable").index[:GUARD_RUNS]]
    return max(_quantile((nearest["observed"] - nearest["predicted"]).tolist(), GUARD_CONFIDENCE), 0.0)


def _quantile(errors: Sequence[float], confidence: float) -> float:
    """Conformal quantile: the next error lies below it with probability ``confidence``, as far as few can say."""
    if not errors:
        return 0.0
    rank = min(math.ceil(confidence * (len(errors) + 1)), len(errors))
    return sorted(errors)[rank - 1]
