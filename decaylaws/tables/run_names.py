"""Which rows of a table are one run: names, replicates of other seeds, copies, and points of one curve."""

from __future__ import annotations

import numpy as np
import pandas as pd

from decaylaws.tables.cells import counts, first_of

STEPS = ("step", "_step", "global_step", "trainer/global_step", "iteration", "tokens", "checkpoint")
_SEED = ("seed", "data_seed", "train_seed")


def exclude(reasons: pd.Series, rows: pd.Series, why: pd.Series | str) -> None:
    """Give rows a reason to be left out, unless they have one."""
    new = rows & (reasons == "")
    reasons[new] = why[new] if isinstance(why, pd.Series) else why


def row_names(column: pd.Series) -> list[str]:
    """What the column calls each row; the number of the row where its cell is empty."""
    return [f"row {k + 1}" if pd.isna(cell) else str(cell).strip() for k, cell in enumerate(column)]


def names_by_seed(names: list[str], table: pd.DataFrame) -> list[str]:
    """Names of the rows, with the seed beside those that rows of several seeds bear."""
    seed = first_of(_SEED, table)
    if seed is None:
        return names
    words = table[seed].map(str, na_action="ignore")  # a cell of a Parquet file may be a list
    seeds = words.groupby(names).nunique()
    return [
        f"{name}, seed {word}" if seeds[name] > 1 and pd.notna(word) else name
        for name, word in zip(names, words)
    ]


def told_apart(names: list[str], kept: np.ndarray) -> tuple[list[str], list[str]]:
    """Names of the rows, with the row beside those that several kept rows of other mixtures bear."""
    counts = pd.Series([name for name, keep in zip(names, kept) if keep]).value_counts()
    doubled = set(counts[counts > 1].index)
    if not doubled:
        return names, []
    told = f"{len(doubled)} names stand in rows of different mixtures, such as {min(doubled)}: rows tell them apart."
    return [f"{name} (row {k + 1})" if name in doubled else name for k, name in enumerate(names)], [told]


def exclude_repeats(
    reasons: pd.Series,
    names: pd.Series,
    shares: pd.DataFrame,
    values: pd.DataFrame,
    steps: pd.Series | None,
) -> None:
    """Leave out exact copies, and runs of one name and mixture whose values differ: which counts is unknown."""
    usable = reasons == ""
    copies, first = _repeated(pd.concat([shares, values], axis=1, ignore_index=True)[usable], names)
    exclude(reasons, copies.reindex(reasons.index, fill_value=False), "an exact copy of run " + first)
    usable = reasons == ""
    mixtures = pd.concat([names, shares.round(9)], axis=1, ignore_index=True)[usable]
    doubled = mixtures.duplicated(keep=False).reindex(reasons.index, fill_value=False)
    remedy = "map run to a column that tells them apart"
    reached = None if steps is None else counts(steps[doubled])
    if steps is not None and reached is not None and reached.nunique() > 1:
        last = f"--where {steps.name}={steps[reached.idxmax()]}"
        remedy = f"take one row of each run, such as that of the last step ({last})"
    exclude(
        reasons,
        doubled,
        f"its name and mixture stand in the table more than once, with different values: {remedy}",
    )


def _repeated(rows: pd.DataFrame, names: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Which rows repeat an earlier one, and the name of the first of their kind."""
    groups = rows.groupby(list(rows.columns), dropna=False, sort=False).ngroup()
    first = names[rows.index].groupby(groups).transform("first")
    return groups.duplicated(), first.reindex(names.index, fill_value="")
