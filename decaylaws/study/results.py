"""What a sweep leaves in the runs table, as the laws read it: decays, and the losses from which they start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from decaylaws.errors import StudyError
from decaylaws.runs.config import RunConfig
from decaylaws.runs.table import (
    AVERAGED_LOSS,
    AVERAGED_START_LOSS,
    EVALUATION,
    LOSS,
    READ_OUT,
    START_LOSS,
    config_row,
    names_with,
)


def with_averaged_starts(runs: pd.DataFrame) -> pd.DataFrame:
    """The table with ``averaged_start_loss:<domain>`` of every run that starts at the end of a trunk.

    Left out where one trunk has no average: a law fitted on the others could say nothing about its decays.
    """
    if runs.empty:
        return runs
    is_trunk = (runs["kind"] == "trunk") & runs["reached_target"].astype(bool)
    trunks = runs[is_trunk].set_index(_measured(runs, "run_id")[is_trunk])
    starts = _measured(runs, "start_run_id")
    at_end = trunks["decay_tokens"].reindex(starts).to_numpy() == runs["start_tokens"].to_numpy()
    return runs.assign(
        **{
            AVERAGED_START_LOSS + domain: np.where(at_end, averages.reindex(starts).to_numpy(), np.nan)
            for domain in names_with(runs, AVERAGED_LOSS)
            if (averages := trunks[AVERAGED_LOSS + domain]).notna().all()
        }
    )


def _measured(runs: pd.DataFrame, column: str) -> pd.Series:
    """A run of every row with the held-out tokens that measured the row: one trunk may be measured on several."""
    if EVALUATION not in runs.columns:
        return runs[column].astype(str)
    return runs[column].astype(str) + "/" + runs[EVALUATION].fillna(-1).astype(int).astype(str)


def decays(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows that a decay law may learn from: decays of the sweep, none that confirm it or were only read out."""
    role = runs["role"].astype(str)
    return runs[(runs["kind"] == "decay") & ~role.str.startswith(("confirm", "launch", READ_OUT))]


def planned_rows(
    configs: Sequence[RunConfig], runs: pd.DataFrame, available_tokens: Mapping[str, int]
) -> pd.DataFrame:
    """Planned decays as rows that a law predicts: config columns and the losses of their trunks.

    Args:
        configs: the decays.
        runs: a runs table that holds their trunks.
        available_tokens: train tokens by source.

    Raises:
        StudyError: a trunk has not been trained.
    """
    return pd.DataFrame(
        [{**config_row(config, available_tokens), **start_losses(config, runs)} for config in configs]
    )


def start_losses(config: RunConfig, runs: pd.DataFrame) -> dict[str, float]:
    """Losses from which a decay starts, as columns: those at the end of the trunk from which it forks.

    ``start_loss:<domain>`` and, where the trunk's weights were averaged, ``averaged_start_loss:<domain>``.

    Raises:
        StudyError: the trunk has not been trained.
    """
    trunk = runs[runs["run_id"] == config.start_run_id]
    if len(trunk) != 1:
        raise StudyError(f"The trunk {config.start_run_id} has no result yet. Run 'decaylaws run' first.")
    row = trunk.iloc[0]
    return {
        to + domain: float(row[of + domain])
        for of, to in ((LOSS, START_LOSS), (AVERAGED_LOSS, AVERAGED_START_LOSS))
        for domain in names_with(runs, of)
        if pd.notna(row[of + domain])
    }
