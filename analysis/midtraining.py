"""Mid-training at scale: the loss at the end of a decay from size, pre-training tokens and decay tokens.

    python analysis/midtraining.py --data DIR --json OUT

``DIR/runs.csv`` (or that of the one folder in DIR with these columns): ``series``, ``params``, ``pretrain_tokens``,
``decay_tokens``, ``math_val_loss``, ``use``. Rows with ``use`` = fit of the fixed-length series (``tok*``) are fitted.
Every other series is predicted and scored apart, since its rows are of another kind: in the published records its
larger runs were trained on near-duplicates of the evaluation text. Where ``math_share`` and ``lr_factor`` are given
they must have one value each: no law here reads them.

Rolling origins are made inside the fit rows: a law sees the smaller checkpoints and predicts the larger ones. The
default is ``MidtrainingLaw``; the other laws are published forms and baselines, fitted to the same rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from _common import parse_args, read_table, run, write_json
from _midtraining_rivals import RIVALS

from decaylaws.errors import DataError, DecaylawsError, InvalidValueError
from decaylaws.laws.kit.law import Law, Prediction
from decaylaws.laws.scaling.midtraining import LEAST_CHECKPOINTS, MidtrainingLaw

DEFAULT = "midtraining"
LAWS: Mapping[str, Callable[[], Law]] = {DEFAULT: MidtrainingLaw, **RIVALS}
COLUMNS = ["series", "params", "pretrain_tokens", "decay_tokens", "math_val_loss", "use"]
FIXED_LENGTH = "tok"
LEVEL = 0.9


def main() -> None:
    """Fit, predict, score."""
    arguments = parse_args("Loss after a decay from size, pre-training tokens and decay tokens")
    table = load(arguments)
    fixed = table["series"].astype(str).str.startswith(FIXED_LENGTH)
    fit = table[fixed & (table["use"] == "fit")]
    if fit.empty:
        raise DataError(f"{arguments.data} has no row of a series '{FIXED_LENGTH}*' with use = fit.")
    scored = table[~table.index.isin(fit.index)]
    write_json(
        arguments.json,
        {
            "default": DEFAULT,
            "laws": {name: score(make(), fit, scored) for name, make in LAWS.items()},
            "rolling_origin": [
                row for name, make in LAWS.items() for row in rolling_origins(name, make, fit)
            ],
            "num_fitted": len(fit),
            "num_scored": len(scored),
        },
    )


def load(arguments: Any) -> pd.DataFrame:
    """The rows, with the loss as ``loss`` and the checkpoint's pre-training compute as ``flops``."""
    data = arguments.data
    inside = sorted(path.parent for path in data.glob("*/runs.csv") if holds_midtraining(path))
    folder = inside[0] if len(inside) == 1 and not (data / "runs.csv").is_file() else data
    table = read_table(folder, "runs.csv", COLUMNS, ["series", "use"])
    for column in ("math_share", "lr_factor"):
        if column in table and table[column].nunique() > 1:
            found = sorted(table[column].unique().tolist())
            raise InvalidValueError(column, found, "must be one value", "Keep the rows of one of them.")
    return table.assign(
        loss=table["math_val_loss"], flops=6.0 * table["params"].astype(float) * table["pretrain_tokens"]
    )


def holds_midtraining(path: Any) -> bool:
    """Whether a table has the columns of this script."""
    with open(path, encoding="utf-8") as file:
        return set(COLUMNS) <= set(file.readline().strip().split(","))


def score(law: Law, fit: pd.DataFrame, rest: pd.DataFrame) -> dict[str, Any]:
    """Errors of a law on the rows that it did not see; the unlabelled means are over the fixed-length series."""
    began = time.perf_counter()
    try:
        law.fit(fit)
    except DecaylawsError as error:
        return {"refused": str(error)}
    seconds = time.perf_counter() - began
    result: dict[str, Any] = {"fit_seconds": seconds, "num_parameters": law.report_.num_params}
    fixed = rest["series"].astype(str).str.startswith(FIXED_LENGTH)
    if fixed.any():
        result |= errors(law, rest[fixed])
    result["series"] = {str(name): errors(law, rows) for name, rows in rest.groupby("series", sort=False)}
    result["params"] = law.params_
    return result


def errors(law: Law, rows: pd.DataFrame) -> dict[str, float]:
    """Mean absolute relative error, mean relative error (bias) and coverage of the intervals."""
    predicted = law.predict(rows, interval=LEVEL)
    observed = rows["loss"].to_numpy()
    assert isinstance(predicted, Prediction)
    relative = predicted.mean / observed - 1
    held = (predicted.lower <= observed) & (observed <= predicted.upper)
    return {
        "mean_relative_error": float(np.abs(relative).mean()),
        "bias": float(relative.mean()),
        "coverage_90": float(held.mean()),
    }


def rolling_origins(name: str, make: Callable[[], Law], fit: pd.DataFrame) -> list[dict[str, Any]]:
    """A law fitted to the smallest checkpoints predicts each larger one, for every number that it can be fitted to."""
    flops = np.unique(fit["flops"].to_numpy())
    found = []
    for count in range(LEAST_CHECKPOINTS - 1, len(flops)):
        try:
            law = make().fit(fit[fit["flops"] <= flops[count - 1]])
        except DecaylawsError:
            continue  # the default needs one checkpoint more than the others to weigh its members
        for later in flops[count:]:
            scores = errors(law, fit[fit["flops"] == later])
            found.append(
                {
                    "law": name,
                    "fitted_up_to_flops": float(flops[count - 1]),
                    "predicted_flops": float(later),
                    "mean_relative_error": scores["mean_relative_error"],
                    "coverage_90": scores["coverage_90"],
                }
            )
    return found


if __name__ == "__main__":
    run(main)
