"""Laws of size, tokens and mixture together, scored on sizes, tokens and mixtures that they did not see.

    python analysis/joint_law.py --data DIR --json OUT

``DIR`` holds ``runs.csv`` (``params``, ``tokens``, shares ``w_<source>`` and losses ``loss_<domain>``, whose columns
name the targets) or ``redpajama.csv`` (one row by run, step and validation domain, which names the target; a step is
about a million tokens). Rows with ``use == "fit"`` are fitted, the others predicted; errors are means over the
predicted rows of a size. A loss that is missing leaves its row out for that target; a target that no fitted row has
is left out by name.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
from _common import parse_args, read_table, run, write_json

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.laws.decay.joint import FORMS, JointLaw

DEFAULT = "stack"
TOKENS_PER_STEP = 1_000_000  # mixinglaws, README of the records
EXCLUDED_FROM_MEAN = ("loss_openhermes",)  # looks mis-aligned at the largest size (README of the records)


def main() -> None:
    given = parse_args(__doc__ or "")
    rows, targets = read_records(given.data)
    fit, predict = rows[rows["use"] == "fit"], rows[rows["use"] != "fit"]
    if fit.empty or predict.empty:
        raise InvalidValueError(
            "use",
            sorted(set(rows["use"].astype(str))),
            "must mark rows of both kinds",
            "Expected 'fit' and 'predict'.",
        )
    unmeasured = [name for name in targets if not np.isfinite(fit[name]).any()]
    targets = [name for name in targets if name not in unmeasured]
    if not targets:
        raise DataError(
            "No target has a loss in a row to fit. Give columns loss_<domain> or rows by val_domain."
        )
    laws = {name: evaluate(name, fit, predict, targets) for name in (*FORMS, DEFAULT)}
    write_json(given.json, {"default": DEFAULT, "laws": laws, "excluded_targets": unmeasured})
    for name, result in laws.items():
        means = ", ".join(f"{size}: {values['mean']:.4f}" for size, values in result["sizes"].items())
        print(f"{name:13s} {result['num_parameters']:3d} parameters  {result['fit_seconds']:6.2f} s  {means}")


def read_records(folder: Any) -> tuple[pd.DataFrame, list[str]]:
    """Rows with ``params``, ``tokens``, shares ``w_*`` and one column by target; and the targets."""
    if (folder / "runs.csv").is_file():
        table = read_table(folder, "runs.csv", ["params", "tokens", "use"])
        return checked(table), [name for name in table if name.startswith("loss_")]
    if (folder / "redpajama.csv").is_file():
        columns = ["step", "val_domain", "loss", "non_embedding_params", "use"]
        return wide(read_table(folder, "redpajama.csv", columns))
    raise DataError(f"{folder} holds neither runs.csv nor redpajama.csv. Give the folder of one data set.")


def wide(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """One row by run and step from one by run, step and domain."""
    shares = [name for name in table if name.startswith("w_")]
    keys = ["step", "non_embedding_params", *shares, "use"]
    keys += [name for name in ("model_size", "run_tag") if name in table]
    found = table.groupby([*keys, "val_domain"], dropna=False)["loss"].mean()
    rows = found.unstack("val_domain").reset_index()
    rows["params"] = rows["non_embedding_params"]
    rows["tokens"] = rows["step"] * TOKENS_PER_STEP
    return checked(rows), sorted(table["val_domain"].unique())


def checked(rows: pd.DataFrame) -> pd.DataFrame:
    """Shares renormalised: published weights are rounded."""
    shares = [name for name in rows if name.startswith("w_")]
    rows = rows.copy()
    rows[shares] = rows[shares].div(rows[shares].sum(axis=1), axis=0)
    return rows


def evaluate(name: str, fit: pd.DataFrame, predict: pd.DataFrame, targets: list[str]) -> dict[str, Any]:
    cpu = time.process_time()
    law = JointLaw(name).fit(fit, fit[targets])
    cpu = time.process_time() - cpu
    errors = np.abs(pd.DataFrame(law.predict(predict), predict.index, targets) / predict[targets] - 1)
    sizes = {
        str(int(size)): scores(errors[predict["params"] == size]) for size in sorted(set(predict["params"]))
    }
    last = {
        str(int(size)): scores(errors[(predict["params"] == size) & last_tokens(predict, size)])
        for size in sorted(set(predict["params"]))
    }
    return {
        "num_parameters": law.num_parameters,
        "fit_seconds": law.fit_seconds_,
        "fit_cpu_seconds": cpu,
        "sizes": sizes,
        "last_tokens": last,
        "statuses": {key: report.status.value for key, report in law.reports_.items()},
    }


def last_tokens(rows: pd.DataFrame, size: float) -> pd.Series:
    return rows["tokens"] == rows.loc[rows["params"] == size, "tokens"].max()


def scores(errors: pd.DataFrame) -> dict[str, float]:
    """Mean error by target, NaN where no row of the size holds it; ``mean`` is over the measured ones."""
    by_target = errors.mean()
    counted = by_target.drop(labels=list(EXCLUDED_FROM_MEAN), errors="ignore")
    return {**by_target.to_dict(), "mean": float(counted.mean())}


if __name__ == "__main__":
    run(main)
