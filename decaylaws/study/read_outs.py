"""How far merged read-outs are from the decays that they emulate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from decaylaws.designs.design import Design
from decaylaws.io.tables import read_csv
from decaylaws.runs.config import RunConfig
from decaylaws.runs.table import EVALUATION, LOSS, READ_OUT, READ_OUT_SHAPES, measured_on
from decaylaws.schedules import decay
from decaylaws.study.sweep import MeasuredSweep


def emulated_runs(config: RunConfig) -> dict[str, str]:
    """``run_id`` of the real decay that a constant-LR run emulates, by shape: same trunk, data, LR and length."""
    lr = config.schedule.start_lr
    return {
        shape: config.with_changes(schedule=decay(config.tokens, lr, shape=shape)).run_id
        for shape in READ_OUT_SHAPES
    }


def compare(configs: Sequence[RunConfig], runs: pd.DataFrame, read_outs: pd.DataFrame) -> pd.DataFrame:
    """Read-outs beside the real decays that the study has.

    Args:
        configs: constant-LR runs that were read out.
        runs: the runs table.
        read_outs: the read-outs table.

    Returns:
        One row per real decay and domain: ``run_id`` (of the decay), ``decay_shape``, ``domain``, ``read_out``,
        ``decayed``, ``error`` (read-out minus decay), nats per token.
    """
    real = runs[runs["reached_target"].astype(bool)].set_index("run_id")
    emulated: Mapping[tuple[str, str], str] = {
        (config.run_id, shape): run_id
        for config in configs
        for shape, run_id in emulated_runs(config).items()
        if run_id in real.index
    }
    rows = [
        {
            "run_id": emulated[row.run_id, row.decay_shape],
            "decay_shape": row.decay_shape,
            "domain": row.domain,
            "read_out": row.loss,
            "decayed": float(real.at[emulated[row.run_id, row.decay_shape], LOSS + row.domain]),
        }
        for row in read_outs.itertuples()
        if (row.run_id, row.decay_shape) in emulated
    ]
    frame = pd.DataFrame(rows, columns=["run_id", "decay_shape", "domain", "read_out", "decayed"])
    return frame.assign(error=frame["read_out"] - frame["decayed"])


def read_out_errors(path: Path, design: Design, sweep: MeasuredSweep) -> pd.DataFrame:
    """Errors of a sweep's read-outs by shape; empty where it has none.

    Args:
        path: the read-outs table, which need not exist.
        design: the planned runs.
        sweep: holds the finished ones.

    Returns:
        ``decay_shape``, ``decays`` (real ones beside), ``mean_error``, ``mae`` (nats per token) and ``spearman``, the
        rank correlation over decays of the mean loss; NaN below three decays.
    """
    if not path.is_file():
        return pd.DataFrame()
    configs = [item.config for item in design if item.role == READ_OUT]
    read_outs = read_csv(path, text=("run_id",))
    if EVALUATION in read_outs:
        read_outs = read_outs[measured_on(read_outs) == sweep.question.measured_on]
    pairs = compare(configs, sweep.runs, read_outs)
    rows = []
    for shape, part in pairs.groupby("decay_shape"):
        means = part.groupby("run_id")[["read_out", "decayed"]].mean()
        rows.append(
            {
                "decay_shape": shape,
                "decays": len(means),
                "mean_error": part["error"].mean(),
                "mae": part["error"].abs().mean(),
                "spearman": means["read_out"].rank().corr(means["decayed"].rank())
                if len(means) > 2
                else float("nan"),
            }
        )
    return pd.DataFrame(rows)
