"""Laws of size, tokens and mixture together, scored on sizes, tokens and mixtures that they did not see.

    python analysis/joint_law.py --data DIR --json OUT

``DIR`` holds ``runs.csv`` (``params``, ``tokens``, shares ``w_<source>`` and losses ``loss_<domain>``, whose columns
name the targets) or ``redpajama.csv`` (one row by run, step and validation domain, which names the target; a step is
about a million tokens). Rows with ``use == "fit"`` are fitted, the others predicted; errors are means over the
predicted rows of a size. A loss that is missing leaves its row out for that target; a target that no fitted row has
is left out by name; rows that copy another are counted and dropped.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import parse_args, read_table, run, without_copies, write_json

from decaylaws.errors import DataError, InvalidValueError, SchemaError
from decaylaws.io.tables import require_filled, with_numbers, with_unit_shares
from decaylaws.laws.continued.joint import JointLaw
from decaylaws.laws.continued.joint_forms import FORMS
from decaylaws.laws.kit.law import Prediction

DEFAULT = "stack"
ROUNDING = 0.05  # the weights of RedPajama are inferred, and sum to 1 within 0.02 only
TOKENS_PER_STEP = 1_000_000  # mixinglaws, README of the records
EXCLUDED_FROM_MEAN = ("loss_openhermes",)  # looks mis-aligned at the largest size (README of the records)


def main() -> None:
    given = parse_args(__doc__ or "")
    rows, targets, copies = read_records(given.data)
    fit, predict = rows[rows["use"] == "fit"], rows[rows["use"] != "fit"]
    if fit.empty or predict.empty:
        found = sorted(set(rows["use"].astype(str)))
        raise InvalidValueError("use", found, "must mark rows of both kinds", "Expected 'fit' and 'predict'.")
    unmeasured = [name for name in targets if not np.isfinite(fit[name]).any()]
    targets = [name for name in targets if name not in unmeasured]
    if not targets:
        raise DataError(
            "No target has a loss in a row to fit. Give columns loss_<domain> or rows by val_domain."
        )
    laws = {name: evaluate(name, fit, predict, targets) for name in (*FORMS, DEFAULT)}
    write_json(
        given.json,
        {
            "default": DEFAULT,
            "laws": laws,
            "excluded_targets": unmeasured,
            "unseen_sources": [name.removeprefix("w_") for name in shares_of(fit) if not fit[name].any()],
            "copied_rows": copies,
            "rows_without_loss": {name: int(rows[name].isna().sum()) for name in targets},
        },
    )
    for name, result in laws.items():
        means = ", ".join(f"{size}: {values['mean']:.4f}" for size, values in result["sizes"].items())
        held = "-" if result["coverage_90"] is None else f"{100 * result['coverage_90']:.0f} %"
        print(
            f"{name:13s} {result['num_parameters']:3d} parameters  {result['fit_seconds']:6.2f} s  {means}; "
            f"90 % intervals hold {held}"
        )


def read_records(folder: Path) -> tuple[pd.DataFrame, list[str], int]:
    """Rows with ``params``, ``tokens``, shares ``w_*`` and one column by target; the targets; copies dropped."""
    if (path := folder / "runs.csv").is_file():
        table, copies = without_copies(read_table(folder, path.name, ["params", "tokens", "use"]))
        targets = [name for name in table if name.startswith("loss_")]
        if not targets:
            raise SchemaError(str(path), missing=["loss_<domain>"])
        return checked(table, ["params", "tokens"], targets, path), targets, copies
    if (path := folder / "redpajama.csv").is_file():
        columns = ["step", "val_domain", "loss", "non_embedding_params", "use"]
        table, copies = without_copies(read_table(folder, path.name, columns))
        require_filled(table, ["val_domain"], path)
        return *wide(checked(table, ["step", "non_embedding_params"], ["loss"], path)), copies
    raise DataError(f"{folder} holds neither runs.csv nor redpajama.csv. Give the folder of one data set.")


def checked(table: pd.DataFrame, scale: list[str], losses: list[str], path: Path) -> pd.DataFrame:
    """Numbers where there must be some; shares renormalised, since published weights are rounded."""
    shares = shares_of(table)
    if not shares:
        raise SchemaError(str(path), missing=["w_<source>"])
    table = with_unit_shares(table, shares, path, rounding=ROUNDING)
    table = with_numbers(table, scale, path, positive=True)
    return with_numbers(table, losses, path, positive=True, empty=True)


def shares_of(table: pd.DataFrame) -> list[str]:
    return [name for name in table if name.startswith("w_")]


def wide(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """One row by run and step from one by run, step and domain; repeats of a run without a tag are averaged."""
    keys = ["step", "non_embedding_params", *shares_of(table), "use"]
    keys += [name for name in ("model_size", "run_tag") if name in table]
    found = table.groupby([*keys, "val_domain"], dropna=False)["loss"].mean()
    rows = found.unstack("val_domain").reset_index()
    rows["params"] = rows["non_embedding_params"]
    rows["tokens"] = rows["step"] * TOKENS_PER_STEP
    return rows, sorted(table["val_domain"].unique())


def evaluate(name: str, fit: pd.DataFrame, predict: pd.DataFrame, targets: list[str]) -> dict[str, Any]:
    cpu = time.process_time()
    law = JointLaw(name).fit(fit, fit[targets])
    cpu = time.process_time() - cpu
    found = law.predict(predict, interval=0.9)
    errors = np.abs(pd.DataFrame(found.mean, predict.index, targets) / predict[targets] - 1)
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
        **interval_scores(found, predict[targets]),
        "statuses": {key: report.status.value for key, report in law.reports_.items()},
    }


def interval_scores(found: Prediction, observed: pd.DataFrame) -> dict[str, float | None]:
    """Share of the measured losses that 90 % intervals hold, and their mean half width as a share of the loss."""
    truth = observed.to_numpy(dtype=float)
    counted = np.isfinite(truth) & ~np.isin(observed.columns, EXCLUDED_FROM_MEAN)
    if not counted.any():
        return {"coverage_90": None, "half_width_90": None}
    inside = (found.lower <= truth) & (truth <= found.upper)
    half = 0.5 * (found.upper - found.lower) / found.mean
    return {"coverage_90": float(inside[counted].mean()), "half_width_90": float(half[counted].mean())}


def last_tokens(rows: pd.DataFrame, size: float) -> pd.Series:
    return rows["tokens"] == rows.loc[rows["params"] == size, "tokens"].max()


def scores(errors: pd.DataFrame) -> dict[str, float]:
    """Mean error by target, NaN where no row of the size holds it; ``mean`` is over the measured ones."""
    by_target = errors.mean()
    counted = by_target.drop(labels=list(EXCLUDED_FROM_MEAN), errors="ignore")
    return {**by_target.to_dict(), "mean": float(counted.mean())}


if __name__ == "__main__":
    run(main)
