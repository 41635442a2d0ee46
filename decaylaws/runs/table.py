"""The runs and curves tables: the only data that passes from training to analysis.

A *runs table* is a plain DataFrame with one row per run. Its fixed columns:

| column | content |
|---|---|
| ``run_id`` | content hash of the run's config |
| ``kind`` | ``trunk``, ``checkpoint`` (one that exists and was only measured), ``stable`` or ``decay`` |
| ``role`` | the question that the run answers: ``grid``, ``simplex``, ``control``, ... |
| ``status``, ``reason`` | ``finished``, ``diverged``, ``pruned``, ``interrupted`` or ``failed``, and why |
| ``reached_target`` | whether the loss at the last planned token exists. A fit uses only such rows. |
| ``non_embedding_params``, ``total_params`` | parameters of the model |
| ``start_run_id``, ``start_tokens`` | the trunk or checkpoint from which a decay forked, and the tokens it had seen |
| ``decay_tokens`` | tokens of the run itself |
| ``start_lr``, ``end_lr``, ``decay_shape`` | learning rates at both ends, and the shape between them |
| ``batch_tokens`` | tokens of one optimiser step |
| ``seed`` | seed of the data order, and of the weights of a trunk |
| ``train_flops`` | FLOPs of the run's own tokens |
| ``data_fingerprint`` | fingerprint of the corpus |

Columns by source and by domain:

| column | content |
|---|---|
| ``mix:<source>`` | share of the run's tokens |
| ``epochs:<source>`` | passes over the source |
| ``start_loss:<domain>``, ``loss:<domain>`` | loss before and after the run, nats per token |
| ``bpb:<domain>`` | loss after the run, bits per byte |
| ``loss_error:<domain>`` | of an unfinished run: standard error of ``loss:<domain>``, expected from its curve |
| ``bpb_error:<domain>`` | standard error of it over documents or questions (evaluation domains, question sets) |
| ``accuracy:<set>``, ``accuracy_error:<set>`` | share of questions whose right choice is the most probable one |
| ``averaged_loss:<domain>`` | of a trunk or checkpoint: loss of the mean of the last weights of its run |
| ``averaged_start_loss:<domain>`` | of a decay: the same loss of its trunk or checkpoint |
| ``averaged_tokens``, ``averaged_start_tokens`` | stretch over which they lie; a tenth of the run without it |

A domain is a source (its held-out text), an evaluation domain or a question set. The loss of a question set is its
bits per byte (the mean over questions) in nats per token of all gold answers, so that ``bpb:`` and ``loss:`` differ by
one factor.

The table of a study has further columns, because they also decide the numbers of a row: ``evaluation_tokens`` (held-out
tokens per domain), ``evaluation_sets`` (fingerprint of evaluation domains and question sets, where there are any),
``numerics`` (version of the trainer's arithmetic) and ``pools`` (fingerprint of how much of each source the run can
draw from). A run that was measured on two numbers of held-out tokens, or on two question sets, has two rows.

A decay after a stable stage also has ``stable_tokens``, the tokens of that stage at the trunk's last LR, and
``stable_mix:<source>``, its shares. Its ``start_run_id``, ``start_tokens`` and ``start_loss:`` are then those of the
trunk, and its ``epochs:`` count both stages; the loss at the end of the stage stands in the row of the ``stable`` run.

Two columns are there where they are needed: ``handover_lr``, the LR of the last step of a decay's start, if starts
differ in it; ``warmup_tokens``, the tokens over which a decay first raises the LR from 0 to ``start_lr``.

A *curves table* has one row per evaluation: ``run_id``, ``tokens``, ``step``, ``lr``, ``domain``, ``loss`` (nats per
token) and ``bits_per_byte`` (empty if it was not measured).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from decaylaws.errors import DataError, InvalidValueError, SchemaError
from decaylaws.io.files import atomic_write, check_record
from decaylaws.io.tables import DAMAGED_TABLE, read_csv, require_filled, with_numbers, without_text
from decaylaws.runs.columns import (
    ACCURACY,
    ACCURACY_ERROR,
    AVERAGED_LOSS,
    AVERAGED_SHARE,
    AVERAGED_START_LOSS,
    AVERAGED_START_TOKENS,
    AVERAGED_TOKENS,
    BPB,
    BPB_ERROR,
    CURVE_COLUMNS,
    EPOCHS,
    EVALUATION,
    EVALUATION_SETS,
    HANDOVER_LR,
    LOSS,
    LOSS_ERROR,
    MEASURED_ON,
    MIX,
    NUMERICS,
    POOLS,
    READ_OUT,
    READ_OUT_SHAPES,
    RUN_COLUMNS,
    STABLE_MIX,
    STABLE_TOKENS,
    START_LOSS,
    WARMUP_TOKENS,
    config_row,
)

_LABELS = ("run_id", "role", "status", "reason", "reached_target")  # say nothing of what was run or measured
DECAY_COLUMNS = (
    "non_embedding_params", "start_tokens", "decay_tokens", "start_lr", "end_lr", "batch_tokens", "decay_shape",
)  # fmt: skip
"""Fixed columns that a decay law reads."""
_COUNTS = (
    "non_embedding_params", "total_params", "start_tokens", "decay_tokens", "batch_tokens", "seed", EVALUATION,
    WARMUP_TOKENS, STABLE_TOKENS,
)  # fmt: skip
_MEASURED = ("start_lr", "end_lr", "train_flops", HANDOVER_LR)
_CURVE_NUMBERS = ("tokens", "step", "lr", "loss", "bits_per_byte", EVALUATION)
_MEASURED_BY_NAME = (START_LOSS, LOSS, LOSS_ERROR, AVERAGED_LOSS, BPB, BPB_ERROR, ACCURACY, ACCURACY_ERROR)
_BY_NAME = (EPOCHS, *_MEASURED_BY_NAME, AVERAGED_START_LOSS)

__all__ = [
    "ACCURACY",
    "ACCURACY_ERROR",
    "AVERAGED_LOSS",
    "AVERAGED_SHARE",
    "AVERAGED_START_LOSS",
    "AVERAGED_START_TOKENS",
    "AVERAGED_TOKENS",
    "BPB",
    "BPB_ERROR",
    "CURVE_COLUMNS",
    "DECAY_COLUMNS",
    "EPOCHS",
    "EVALUATION",
    "EVALUATION_SETS",
    "HANDOVER_LR",
    "LOSS",
    "LOSS_ERROR",
    "MEASURED_ON",
    "MIX",
    "NUMERICS",
    "POOLS",
    "READ_OUT",
    "READ_OUT_SHAPES",
    "RUN_COLUMNS",
    "STABLE_MIX",
    "STABLE_TOKENS",
    "START_LOSS",
    "WARMUP_TOKENS",
    "config_row",
    "curves_table",
    "fit_ready",
    "measured_on",
    "names_with",
    "read_curves",
    "read_runs",
    "require_decays",
    "runs_table",
    "validate_runs",
    "values_by",
    "write_table",
]


def measured_on(frame: pd.DataFrame) -> pd.Series:
    """What every row was measured on, as one text: rows of the same run and text are the same row."""
    tokens = frame[EVALUATION] if EVALUATION in frame else pd.Series(np.nan, index=frame.index)
    sets = frame[EVALUATION_SETS] if EVALUATION_SETS in frame else pd.Series(None, index=frame.index)
    filled = sets.astype(object).where(sets.notna(), "").astype(str)
    return tokens.fillna(-1).astype(int).astype(str) + "/" + filled


def names_with(frame: pd.DataFrame, prefix: str) -> list[str]:
    """Sources or domains of the columns that start with ``prefix``, in the table's order."""
    return [str(column).removeprefix(prefix) for column in frame.columns if str(column).startswith(prefix)]


def values_by(frame: pd.DataFrame, prefix: str, names: Sequence[str]) -> np.ndarray:
    """The columns ``prefix + name`` as an array ``[runs, names]``; a missing column is a SchemaError.

    Args:
        frame: a runs table.
        prefix: family of columns, such as ``loss:``.
        names: sources or domains.
    """
    columns = [prefix + name for name in names]
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        held = ", ".join(names_with(frame, prefix))
        remedy = (
            f"It holds {prefix}<name> for {held}." if held else f"It holds no column {prefix}<name> at all."
        )
        raise SchemaError("runs table", missing=missing, remedy=remedy)
    return frame[columns].to_numpy(dtype=float)


def require_decays(runs: pd.DataFrame, domains: Sequence[str], what: object = "runs table") -> None:
    """Refuse rows that do not say what a decay law predicts from.

    Args:
        runs: finished or planned decays.
        domains: domains whose loss at the checkpoint (``start_loss:<domain>``) must be known.
        what: the table, for the message.

    Raises:
        SchemaError: columns that are missing, or empty in some rows; all of them in one message.
    """
    needed = [*DECAY_COLUMNS, *(START_LOSS + name for name in domains)]
    missing = [column for column in needed if column not in runs]
    counts = {column: int(runs[column].isna().sum()) for column in needed if column not in missing}
    missing += [f"{column} in {count} of {len(runs)} rows" for column, count in counts.items() if count]
    if missing:
        raise SchemaError(
            str(what),
            missing=missing,
            remedy="A decay law predicts from the size, the checkpoint's tokens and losses (start_loss:<domain>), and "
            "the decay's tokens, shape, batch and LR at both ends. A mixture regression needs none of them.",
        )


def runs_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A validated runs table from one mapping per run; fixed columns first, then mix, epochs and losses."""
    frame = pd.DataFrame(list(rows))
    if frame.empty:
        return pd.DataFrame(columns=list(RUN_COLUMNS))
    prefixed = [
        prefix + name for prefix in (MIX, EPOCHS, *_MEASURED_BY_NAME) for name in names_with(frame, prefix)
    ]
    known = [column for column in RUN_COLUMNS if column in frame.columns]
    rest = [column for column in frame.columns if column not in known and column not in prefixed]
    # few rows have these: where they stand must not depend on which of the rows comes first
    few = (WARMUP_TOKENS, STABLE_TOKENS, STABLE_MIX)
    rest.sort(key=lambda column: str(column) if str(column).startswith(few) else "")
    return validate_runs(frame[known + rest + prefixed])


def validate_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """Return ``frame`` if it is a runs table.

    Raises:
        SchemaError: a fixed column is missing, or a run stands in it twice, measured on the same.
    """
    missing = [column for column in RUN_COLUMNS if column not in frame.columns]
    if missing:
        raise SchemaError("runs table", missing=missing)
    _require_once(frame, [column for column in ("run_id", *MEASURED_ON) if column in frame.columns])
    return frame


def _require_once(frame: pd.DataFrame, identity: Sequence[str] = ("run_id",)) -> None:
    doubled = frame.loc[frame.duplicated(list(identity)), "run_id"].astype(str).tolist()
    if doubled:
        raise SchemaError("runs table", unexpected=doubled, remedy="Each run_id must be in the table once.")


def _require_one_corpus(frame: pd.DataFrame) -> None:
    corpora = sorted(frame["data_fingerprint"].dropna().astype(str).unique())
    if len(corpora) > 1:
        raise DataError(
            f"The runs table mixes {len(corpora)} corpora (data_fingerprint {', '.join(corpora[:3])}): their losses "
            "cannot be compared. Name the one to fit with data_fingerprint=."
        )


def curves_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A validated curves table from one mapping per evaluation."""
    frame = pd.DataFrame(list(rows))
    columns = [*CURVE_COLUMNS, *(name for name in MEASURED_ON if name in frame.columns)]
    order = [name for name in ("run_id", *MEASURED_ON, "tokens", "domain") if name in columns]
    return frame.reindex(columns=columns).sort_values(order, ignore_index=True)


def read_runs(path: str | Path) -> pd.DataFrame:
    """Read a runs table written by ``write_table`` (CSV or Parquet by the file's suffix).

    Raises:
        DataError: there is no such table, or a row without a name.
        SchemaError: a fixed column is missing, or a run stands in it twice.
        InvalidValueError: a count or a measurement is no number; names column, row and value.
    """
    frame = _read(path)
    if "run_id" in frame:
        require_filled(frame, ["run_id"], path)
    numbers = [name for name in frame.columns if name in _MEASURED or str(name).startswith(_BY_NAME)]
    # what is read is kept as it is: a table that is written again should be the same file
    without_text(frame, numbers, path)
    with_numbers(frame, [name for name in _COUNTS if name in frame], path, whole=True, empty=True)
    shares = [name for name in frame.columns if str(name).startswith((MIX, STABLE_MIX))]
    with_numbers(frame, shares, path, upper=1.0, empty=True)
    return validate_runs(frame)


def read_curves(path: str | Path) -> pd.DataFrame:
    """Read a curves table written by ``write_table``."""
    frame = _read(path)
    missing = [column for column in CURVE_COLUMNS if column not in {*frame.columns, "bits_per_byte"}]
    if missing:
        raise SchemaError(f"curves table {path}", missing=missing)
    without_text(frame, [name for name in _CURVE_NUMBERS if name in frame], path)
    return frame if "bits_per_byte" in frame else frame.assign(bits_per_byte=np.nan)


def _read(path: str | Path) -> pd.DataFrame:
    path = Path(path)
    if not path.is_file():
        raise DataError(f"There is no table at {path}. Run the verb that writes it, or give another path.")
    if path.suffix == ".parquet":
        check_record(path, DAMAGED_TABLE)
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is not a Parquet file: {error}") from None
    # run ids are hex strings: some look like numbers, and would lose digits if pandas guessed
    return read_csv(path, text=("run_id", "start_run_id", "data_fingerprint", POOLS, EVALUATION_SETS))


def write_table(frame: pd.DataFrame, path: str | Path, *, recorded: bool = False) -> None:
    """Write a table atomically: a reader sees the old file or the new one, never half of it.

    Args:
        frame: the table.
        path: the file, CSV or Parquet by its suffix.
        recorded: whether its SHA-256 is kept beside it, and compared when it is read.
    """
    path = Path(path)
    with atomic_write(path, recorded=recorded) as handle:
        if path.suffix == ".parquet":
            frame.to_parquet(handle, index=False)
        else:
            frame.to_csv(handle, index=False)


def fit_ready(
    runs: pd.DataFrame, domains: Sequence[str], *, data_fingerprint: str | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split a runs table into the rows that a fit may use and the rest with the reason.

    A row counts only if its loss at the target step exists for every domain; its status word is not asked
    (in Marin's audit 12 usable runs said "failed" and 4 unusable ones "completed"). A row that repeats another one
    in everything but its name is a copy and no replicate, whose losses would differ: it would make the noise between
    replicates look like nothing.

    Args:
        runs: a runs table.
        domains: domains whose losses the fit needs.
        data_fingerprint: the corpus that the fit is about; rows of another corpus are excluded.

    Returns:
        ``(kept, excluded)``; ``excluded`` has the columns ``run_id`` and ``reason``.

    Raises:
        SchemaError: a domain without a column, or a run that stands in the table twice.
        DataError: the table mixes corpora and ``data_fingerprint`` does not say which one counts.
        InvalidValueError: a value of ``reached_target`` is neither true nor false.
    """
    _require_once(runs)
    if data_fingerprint is None:
        _require_one_corpus(runs)
    losses = values_by(runs, LOSS, domains)
    reasons = pd.Series("", index=runs.index, dtype=object)
    incomplete = ~np.isfinite(losses).all(axis=1)
    reasons[incomplete] = "no finite loss for every domain"
    short = ~_reached(runs["reached_target"])
    reasons[short & (reasons == "")] = "stopped before its last planned token"
    if data_fingerprint is not None:
        other = runs["data_fingerprint"].astype(str) != data_fingerprint
        reasons[other & (reasons == "")] = "measured on another corpus (data_fingerprint)"
    for copy, original in _copies(runs[reasons == ""]).items():
        reasons[copy] = f"an exact copy of run {original}"
    excluded = pd.DataFrame({"run_id": runs["run_id"], "reason": reasons})
    return runs[reasons == ""], excluded[reasons != ""]


def _copies(runs: pd.DataFrame) -> dict[Hashable, str]:
    """Index of every row that repeats an earlier one in all but its name, and the name of that one."""
    told = runs.drop(columns=[name for name in _LABELS if name in runs])
    told = told[[name for name in told if told[name].notna().any()]]
    if not told.duplicated().any():  # the usual case, at a tenth of what groups cost
        return {}
    first = told.groupby(list(told), dropna=False, sort=False).ngroup()
    names = runs["run_id"].groupby(first).transform("first")
    return {index: str(names[index]) for index in runs.index[first.duplicated()]}


def _reached(column: pd.Series) -> pd.Series:
    """The column as booleans, false where a cell is empty; a word such as "no" would count as true."""
    filled = column.astype(object).where(column.notna(), False)
    wrong = [
        row
        for row, value in enumerate(filled)
        if not isinstance(value, bool | np.bool_) and value not in (0, 1)
    ]
    if wrong:
        raise InvalidValueError(
            f"reached_target of row {wrong[0] + 1}", filled.iloc[wrong[0]], "must be true, false or empty"
        )
    return filled.astype(bool)
