"""Two evaluations on disk, tested against each other on the documents that they share."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from decaylaws.errors import DataError, DecaylawsError
from decaylaws.evaluation.paired import holm, paired_test, verdict
from decaylaws.evaluation.records import Metric, read_documents, read_evaluation


def compare_evaluations(
    first: Path, second: Path, *, level: float = 0.95, num_resamples: int = 9_999, seed: int = 0
) -> pd.DataFrame:
    """Paired tests on every task and metric that two evaluations share.

    Args:
        first: folder of the first evaluation.
        second: folder of the second.
        level: of the intervals; verdicts use Holm-adjusted p-values at ``1 - level``.
        num_resamples: bootstrap draws and sign flips of each test.
        seed: of both.

    Returns:
        One row per task and metric: ``task``, ``metric``, the fields of ``PairedTest``, ``p_holm`` (adjusted
        over the rows), and ``unpaired``: documents that only one of the two holds.

    Raises:
        DataError: a folder holds no evaluation, or the two share no document of any task.
    """
    a, b = read_evaluation(first), read_evaluation(second)
    same_tokenizer = a.tokenizer == b.tokenizer
    rows = []
    for task in a.tasks:
        other = b.task(task.name)
        if other is None or other.kind != task.kind:
            continue
        pairs = read_documents(first, task).merge(
            read_documents(second, other), on="document", suffixes=("_a", "_b"), how="outer", indicator=True
        )
        both = pairs[pairs["_merge"] == "both"]
        for metric in task.metrics:
            if metric in other.metrics and len(both) and (same_tokenizer or metric.across_tokenizers):
                test = _test(task.name, metric, both, level, num_resamples, seed)
                rows.append({**test, "unpaired": len(pairs) - len(both)})
    if not rows:
        raise DataError(
            f"{first} and {second} have no task in common with the same documents. Evaluate both checkpoints on the "
            "same --domains and --tasks."
        )
    return _with_holm(pd.DataFrame(rows), level)


def _test(
    task: str, metric: Metric, pairs: pd.DataFrame, level: float, num_resamples: int, seed: int
) -> dict[str, object]:
    sides = [_side(pairs, suffix) for suffix in ("_a", "_b")]
    denominators = [metric.denominators(side) for side in sides]
    if not np.array_equal(denominators[0], denominators[1]):
        raise DataError(
            f"Task '{task}': the two evaluations count different {metric.denominator} for the same documents. "
            "Evaluate both with the same version and settings."
        )
    try:
        test = paired_test(
            metric.numerators(sides[0]),
            metric.numerators(sides[1]),
            denominators[0],
            sides[0]["cluster"],
            higher_is_better=metric.higher_is_better,
            level=level,
            num_resamples=num_resamples,
            seed=seed,
        )
    except DecaylawsError as error:
        raise DataError(f"Task '{task}', {metric.name}: {error}") from None
    return {
        "task": task,
        "metric": metric.name,
        "higher_is_better": metric.higher_is_better,
        **asdict(test),
    }


def _side(pairs: pd.DataFrame, suffix: str) -> pd.DataFrame:
    """The columns of one of two merged tables, under their own names."""
    own = {name: name.removesuffix(suffix) for name in pairs if name.endswith(suffix)}
    return pairs[list(own)].rename(columns=own)


def _with_holm(table: pd.DataFrame, level: float) -> pd.DataFrame:
    """Adjusted p-values, and the verdicts that they leave standing."""
    table = table.assign(p_holm=holm(table["p_permutation"].tolist()))
    table["verdict"] = [
        verdict(row.lower, row.upper, row.p_holm, level=level, higher_is_better=row.higher_is_better)
        for row in table.itertuples()
    ]
    return table
