"""Laws of size, tokens and mixture together, scored on sizes, tokens and mixtures that they did not see.

    python analysis/joint_law.py --data DIR --json OUT

``DIR`` holds ``runs.csv`` (one column ``loss_<target>`` by target, ``params``, ``tokens``, shares ``w_<source>``) or
``redpajama.csv`` (one row by run, step and validation domain; a step is about a million tokens). Rows with
``use == "fit"`` are fitted, the others predicted; errors are means over the predicted rows of a size. A loss
that is missing leaves its row out for that target; a target that no fitted row has is left out by name.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from _common import parse_args, run, write_json

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.laws.decay.joint import FORMS, JointLaw

DEFAULT = "stack"
TOKENS_PER_STEP = 1_000_000  # mixinglaws, README of the records
EXCLUDED_FROM_MEAN = ("openhermes",)  # looks mis-aligned at the largest size (README of the records)


def main() -> None:
    given = parse_args(__doc__ or "")
    rows, targets = read_records(given.data)
    fit, predict = rows[rows["use"] == "fit"], rows[rows["use"] != "fit"]
    if fit.empty or predict.empty:
        raise InvalidValueError(
            "use", sorted(set(rows["use"])), "must mark rows of both kinds", "Expected 'fit' and 'predict'."
        )
    unmeasured = [name for name in targets if not np.isfinite(fit[name]).any()]
    targets = [name for name in targets if name not in unmeasured]
    laws = {name: evaluate(name, fit, predict, targets) for name in (*FORMS, DEFAULT)}
    write_json(given.json, {"default": DEFAULT, "laws": laws, "excluded_targets": unmeasured})
    for name, result in laws.items():
        means = ", ".join(f"{size}: {values['mean']:.4f}" for size, values in result["sizes"].items())
        print(f"{name:13s} {result['num_parameters']:3d} parameters  {result['fit_seconds']:6.2f} s  {means}")


def read_records(folder: Any) -> tuple[pd.DataFrame, list[str]]:
    """Rows with ``params``, ``tokens``, shares ``w_*`` and one column by target; and the targets."""
    if (folder / "runs.csv").is_file():
        table = pd.read_csv(folder / "runs.csv")
        targets = [name for name in table if name.startswith("loss_")]
        table = table.rename(columns={name: name.removeprefix("loss_") for name in targets})
        return checked(table), [name.removeprefix("loss_") for name in targets]
    if (folder / "redpajama.csv").is_file():
        return wide(pd.read_csv(folder / "redpajama.csv"))
    raise DataError(f"{folder} holds neither runs.csv nor redpajama.csv. Give the folder of one data set.")


def wide(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """One row by run and step from one by run, step and domain."""
    shares = [name for name in table if name.startswith("w_")]
    keys = ["model_size", "run_tag", "step", "non_embedding_params", *shares, "use"]
    rows = table.pivot_table(index=keys, columns="val_domain", values="loss").reset_index()
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
    law = JointLaw(name).fit(fit, fit[targets])
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
        "sizes": sizes,
        "last_tokens": last,
        "statuses": {key: report.status.value for key, report in law.reports_.items()},
    }


def last_tokens(rows: pd.DataFrame, size: float) -> pd.Series:
    return rows["tokens"] == rows.loc[rows["params"] == size, "tokens"].max()


def scores(errors: pd.DataFrame) -> dict[str, float]:
    by_target = {str(name): float(value) for name, value in errors.mean().items()}
    counted = [value for name, value in by_target.items() if name not in EXCLUDED_FROM_MEAN]
    return {**by_target, "mean": float(np.mean(counted))}


if __name__ == "__main__":
    run(main)
