"""Which columns of a table of runs are shares of sources and which are measured targets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from decaylaws.errors import DataError, InvalidValueError, SchemaError
from decaylaws.io.tables import ROUNDING, read_table, without_index
from decaylaws.runs.columns import LOSS_ERROR
from decaylaws.settings.mix import MixSettings
from decaylaws.tables.cells import first_of, held, numbers

Direction = Literal["lower", "higher"]

RUN = ("run_id", "run", "name", "run_name", "run name", "mixture_id", "index", "id")
"""What tables call the column that names a run."""

_SHARES = (
    "mix:", "mix_", "mix.", "mix/", "mixture:", "mixture_", "mixture.", "mixture/", "w_", "w:", "weight_", "weights.",
    "weights/", "ratio_", "ratios.", "share:", "share_", "shares.", "train_the_pile_", "data.mix.", "config.mixture.",
)  # fmt: skip
# what a target's name begins or ends with, and which way is better; the first kind that a table holds is taken
_LOSSES = (
    "loss:", "loss_", "loss/", "loss.", "bpb:", "bpb_", "bpb/", "ce_", "nll_", "ppl_", "metric/the_pile_", "val_loss/",
    "eval/loss/", "eval_loss_", "val_loss_",
)  # fmt: skip
_LOSS_ENDS = ("_bpb", "/bpb", " bpb", "_loss", "/loss", " loss", "_nll", "_ppl", "(bpb)")
_SCORES = ("score:", "score_", "score/", "acc:", "acc_", "acc/", "accuracy:", "accuracy_", "accuracy/")
_SCORE_ENDS = (
    "_acc",
    "/acc",
    " acc",
    "_accuracy",
    "/accuracy",
    " accuracy",
    "_score",
    "/score",
    "_acc_norm",
    "/em",
)


_SPREAD = re.compile(r"[_ /.:-]?(std|stdev|stddev|stderr|sem|error)$", re.IGNORECASE)
_NOT_FINAL = ("start_loss", "averaged_start_loss", "train_loss", "train/loss")
"""Beginnings of losses that do not say how a run ended on held-out text."""


def one_table(
    path: str | Path, metrics: str | Path | None, settings: MixSettings, excluded: list[tuple[str, str]]
) -> tuple[pd.DataFrame, tuple[str, str] | None]:
    """The rows, and for a pair of files whose names say nothing, what shares and targets begin with here."""
    text = (*RUN, "ID", "Name", "Run Name", *settings.columns.values())
    left = without_index(read_table(path, text=text))
    if metrics is None:
        return left, None
    right = without_index(read_table(metrics, text=text))
    runs = [first_of([settings.columns.get("run", ""), *RUN], table) for table in (left, right)]
    for table, run, file in zip((left, right), runs, (path, metrics)):
        if run is None:
            raise SchemaError(
                str(file), missing=["a column that names the run"], remedy=f"It holds {held(table)}."
            )
        doubled = table.loc[table[run].duplicated(), run].astype(str).tolist()
        if doubled:
            raise SchemaError(str(file), unexpected=doubled[:5], remedy="Each run must be in each file once.")
    own = set(runs) | {"run", "name", "index"}
    prefixes = None
    if not any(str(column).lower().startswith(_SHARES) for column in left):
        # olmix's files: the columns bear the names of sources and metrics, and nothing else
        left = left.rename(columns={name: f"mix:{name}" for name in left if name not in own})
        metric_names = [str(name) for name in right if name not in own]
        prefixes = ("mix:", "" if _of_kind(metric_names, _LOSSES, _LOSS_ENDS) else "metric:")
        if prefixes[1]:
            right = right.rename(columns={name: f"metric:{name}" for name in metric_names})
    right = right.drop(columns=[name for name in own if name in right and name != runs[1]], errors="ignore")
    right = right.rename(columns={runs[1]: runs[0]})
    run = str(runs[0])
    left[run], right[run] = left[run].map(str), right[run].map(str)
    for table, file in ((left, path), (right, metrics)):
        if table.empty:
            raise DataError(f"{file} has a header and no rows.")
    if not left[run].isin(right[run]).any():
        raise DataError(
            f"{path} and {metrics} have no run in common. The first names '{left[run].iloc[0]}', the second "
            f"'{right[run].iloc[0]}'."
        )
    for table, other, file in ((left, right, path), (right, left, metrics)):
        alone = table.loc[~table[run].isin(other[run]), run]
        excluded += [(str(name), f"it is only in {file}") for name in alone]
    return left.merge(right, on=run, validate="one_to_one"), prefixes


def found_columns(
    table: pd.DataFrame, settings: MixSettings, prefixes: tuple[str, str] | None, what: str
) -> tuple[dict[str, str], dict[str, str], Direction, list[str]]:
    """Share columns to sources, target columns to targets, which way is better in them, and sentences on the choice."""
    columns = [str(column) for column in table.columns]
    numeric = [name for name in columns if numbers(table[name]).notna().any()]
    share_prefixes = (settings.shares,) if settings.shares else (prefixes[0],) if prefixes else _SHARES
    families = [
        {name: name[len(prefix) :].strip() for name in columns if name.lower().startswith(prefix.lower())}
        for prefix in share_prefixes
    ]
    # nothing is left of a name that is only a beginning
    families = [{name: source for name, source in each.items() if source} for each in families]
    shares = max(families, key=lambda each: (_whole_rows(table[list(each)]), len(each)))
    if not shares:
        remedy = "Say what their names begin with (--shares PREFIX), or name them (--map mix:web=COLUMN). "
        raise SchemaError(what, missing=["columns of shares"], remedy=f"{remedy}It holds {held(table)}.")
    rest = [name for name in numeric if name not in shares and not name.startswith(LOSS_ERROR)]
    if settings.targets or (prefixes and prefixes[1]):
        asked = settings.targets or str(prefixes and prefixes[1])
        found = _of_kind(rest, (asked,), (asked,))
        known: Direction | None = "lower" if _of_kind(list(found), _LOSSES, _LOSS_ENDS) else None
    else:
        found, known = _of_kind(rest, _LOSSES, _LOSS_ENDS), "lower"
        if not found:
            found, known = _of_kind(rest, _SCORES, _SCORE_ENDS), None
    if not found:
        _refuse_text(table, [name for name in columns if name not in shares], settings.targets, what)
        remedy = (
            "Say what their names begin or end with (--targets TEXT), or name them (--map loss:code=COLUMN). "
        )
        raise SchemaError(
            what, missing=["columns of losses or scores"], remedy=f"{remedy}It holds {held(table)}."
        )
    told, found = _without_side_columns(found)
    if not settings.targets and not prefixes:
        others = [name for name in rest if name not in found and _of_kind([name], _LOSSES, _LOSS_ENDS)]
        others = [name for name in others if not _SPREAD.search(name) and not name.startswith(_NOT_FINAL)]
        if others and known == "lower":
            told.append(
                f"{_first(others)} may hold losses too. The targets are {_first(list(found))}. Others are chosen by "
                "what their names begin or end with (--targets TEXT)."
            )
    direction = settings.direction or known
    if direction is None:
        raise InvalidValueError(
            "direction", None, f"must be stated for {', '.join(list(found)[:3])}",
            "Say --direction higher for scores, or --direction lower for losses.",
        )  # fmt: skip
    return shares, found, direction, told


def _without_side_columns(found: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Sentences on columns beside the targets, and the columns without them: errors of other targets, and the loss on
    the training text, which is another text in every mixture.
    """
    targets = {*found.values()}
    spreads = [name for name, target in found.items() if _SPREAD.sub("", target) in targets - {target}]
    training = [name for name, target in found.items() if target.lower() == "train" and len(targets) > 1]
    told = []
    if spreads:
        told.append(f"{_first(spreads)} state how uncertain targets are, and are none themselves.")
    if training:
        told.append(f"{_first(training)} is no target: it was measured on another text in every mixture.")
    return told, {name: target for name, target in found.items() if name not in (*spreads, *training)}


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _refuse_text(table: pd.DataFrame, names: Sequence[str], asked: str | None, what: str) -> None:
    """Say what columns hold whose names are those of losses or scores, if none of their cells is a number.

    Raises:
        DataError: the table has no rows.
        InvalidValueError: names a column and a cell.
    """
    if table.empty:
        raise DataError(f"{what} has a header and no rows.")
    begins, ends = ((asked,), (asked,)) if asked else ((*_LOSSES, *_SCORES), (*_LOSS_ENDS, *_SCORE_ENDS))
    for name in _of_kind(names, begins, ends):
        cells = table[name].dropna()
        if len(cells):
            raise InvalidValueError(
                f"{what}: {name}", cells.iloc[0], "must be a number", "Write numbers with a decimal point."
            )
        raise InvalidValueError(f"{what}: {name}", None, "must hold a number in some row")


def _whole_rows(table: pd.DataFrame) -> bool:
    """Whether the cells of most rows add up to 1 or to 100, as shares do and ``mixture_id`` does not."""
    totals = table.apply(numbers).sum(axis=1) if table.shape[1] > 1 else pd.Series([0.0])
    near = ((totals - 1).abs() <= ROUNDING) | ((totals - 100).abs() <= 100 * ROUNDING)
    return bool(near.mean() > 0.5)


def _of_kind(names: Sequence[str], begins: Sequence[str], ends: Sequence[str]) -> dict[str, str]:
    """Columns that begin or end so, to the names of their targets; all of one kind of beginning or ending."""
    for begin in begins:
        found = {
            name: name[len(begin) :].strip()
            for name in names
            if name.lower().startswith(begin.lower()) and name != begin
        }
        if found:
            ours = {name: target.removesuffix("_val_loss") for name, target in found.items()}
            return ours if len(set(ours.values())) == len(ours) else found
    for end in ends:
        found = {
            name: name[: -len(end)] for name in names if name.lower().endswith(end.lower()) and name != end
        }
        if found:
            return found
    return {}
