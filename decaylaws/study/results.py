"""What a sweep leaves in the runs table, as the laws read it: decays, and what is known of their starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from decaylaws.errors import StudyError
from decaylaws.runs.config import RunConfig
from decaylaws.runs.table import (
    AVERAGED_LOSS,
    AVERAGED_START_LOSS,
    AVERAGED_START_TOKENS,
    AVERAGED_TOKENS,
    HANDOVER_LR,
    LOSS,
    READ_OUT,
    STABLE_TOKENS,
    START_LOSS,
    config_row,
    measured_on,
    names_with,
)


def with_starts(runs: pd.DataFrame) -> pd.DataFrame:
    """The table with what a law needs of the start of every decay.

    ``averaged_start_loss:<domain>`` of every run that starts at the end of a trunk is left out where one start has no
    average: a law fitted on the others could say nothing about its decays. ``handover_lr`` is left out where all starts
    end at one LR.
    """
    if runs.empty:
        return runs
    # these were worked out for rows that may be gone now
    runs = _with_averages(runs.drop(columns=[HANDOVER_LR, AVERAGED_START_TOKENS], errors="ignore"))
    is_start = runs["kind"].isin(["trunk", "checkpoint"]) & runs["reached_target"].astype(bool)
    ended = runs[is_start].set_index(_measured(runs, "run_id")[is_start])
    starts = _measured(runs, "start_run_id")
    at_end = ended["decay_tokens"].reindex(starts).to_numpy() == runs["start_tokens"].to_numpy()

    def of_start(column: str) -> Any:
        return np.where(at_end, ended[column].reindex(starts).to_numpy(), np.nan)

    found = {
        AVERAGED_START_LOSS + domain: of_start(AVERAGED_LOSS + domain)
        for domain in names_with(runs, AVERAGED_LOSS)
        if ended[AVERAGED_LOSS + domain].notna().all()
    }
    if AVERAGED_TOKENS in ended:
        found[AVERAGED_START_TOKENS] = of_start(AVERAGED_TOKENS)
    if "end_lr" in ended and ended["end_lr"].nunique() > 1:
        found[HANDOVER_LR] = of_start("end_lr")
    runs = runs.assign(**found)
    if STABLE_TOKENS in runs:  # the trainer measured the end of the stable stage, which has a row of its own
        staged = runs[STABLE_TOKENS].gt(0).to_numpy()
        for domain in names_with(runs, START_LOSS):
            runs.loc[staged, START_LOSS + domain] = of_start(LOSS + domain)[staged]
    return runs


def _with_averages(runs: pd.DataFrame) -> pd.DataFrame:
    """The table with ``averaged_loss:<domain>`` of checkpoints, out of the rows that measured the means of weights."""
    means = runs[(runs["kind"] == "average") & runs["reached_target"].astype(bool)]
    if means.empty:
        return runs
    means = means.set_index(_measured(means, "start_run_id"))
    of = _measured(runs, "run_id")
    is_averaged = (runs["kind"] == "checkpoint") & of.isin(means.index)
    found = {AVERAGED_LOSS + domain: LOSS + domain for domain in names_with(runs, LOSS)}
    runs = runs.assign(**{name: np.nan for name in found if name not in runs})
    for column, source in {**found, AVERAGED_TOKENS: AVERAGED_TOKENS}.items():
        runs.loc[is_averaged, column] = means[source].reindex(of[is_averaged]).to_numpy()
    return runs


def _measured(runs: pd.DataFrame, column: str) -> pd.Series:
    """A run of every row with what it was measured on: one trunk may have been measured on several."""
    return runs[column].astype(str) + "/" + measured_on(runs)


def decays(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows that a decay law may learn from: decays of the sweep, none that confirm it or were only read out."""
    role = runs["role"].astype(str)
    return runs[(runs["kind"] == "decay") & ~role.str.startswith(("confirm", "launch", READ_OUT))]


def planned_rows(
    configs: Sequence[RunConfig], runs: pd.DataFrame, available_tokens: Mapping[str, int]
) -> pd.DataFrame:
    """Planned decays as rows that a law predicts: config columns, and losses and LR of their starts.

    Args:
        configs: the decays.
        runs: a runs table that holds their starts.
        available_tokens: train tokens by source.

    Raises:
        StudyError: a trunk has not been trained, or a checkpoint not been measured.
    """
    return pd.DataFrame(
        [{**config_row(config, available_tokens), **start_losses(config, runs)} for config in configs]
    )


def start_losses(config: RunConfig, runs: pd.DataFrame) -> dict[str, float]:
    """What a decay starts from, as columns: losses and LR at the end of the trunk or checkpoint from which it forks.

    ``start_loss:<domain>``, ``handover_lr`` and, where the start's weights were averaged,
    ``averaged_start_loss:<domain>``.

    Raises:
        StudyError: the trunk has not been trained, or the checkpoint not been measured.
    """
    start = runs[runs["run_id"] == config.trunk_run_id]
    if len(start) != 1:
        kind = "trunk" if config.start is None else "checkpoint"
        raise StudyError(f"The {kind} {config.trunk_run_id} has no result yet. Run 'decaylaws run' first.")
    row = start.iloc[0]
    return (
        {HANDOVER_LR: float(row["end_lr"])}
        | {
            to + domain: float(row[of + domain])
            for of, to in ((LOSS, START_LOSS), (AVERAGED_LOSS, AVERAGED_START_LOSS))
            for domain in names_with(runs, of)
            if pd.notna(row[of + domain])
        }
        | ({AVERAGED_START_TOKENS: float(row[AVERAGED_TOKENS])} if pd.notna(row.get(AVERAGED_TOKENS)) else {})
    )
