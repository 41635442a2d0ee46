"""Finished runs out of a table: shares of sources, measured targets, and by name what cannot be used."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from decaylaws.errors import DataError, InvalidValueError, SchemaError
from decaylaws.io.tables import ROUNDING
from decaylaws.runs.columns import LOSS_ERROR, STABLE_TOKENS
from decaylaws.settings.mix import MixSettings
from decaylaws.tables.cells import (
    chosen_rows,
    counts,
    excluded_table,
    first_of,
    has_percent,
    numbers,
    renamed,
)
from decaylaws.tables.run_columns import RUN, Direction, found_columns, one_table
from decaylaws.tables.run_names import STEPS, exclude, exclude_repeats, names_by_seed, row_names, told_apart

PHASE = "@"
"""Between a source and its phase, where a run changes its mixture on the way: ``code@phase_0``."""

_STATE = ("state", "status")
_SIZE = (
    "non_embedding_params",
    "model_size",
    "params",
    "num_params",
    "params_nominal",
    "total_params",
    "size",
)
_PHASED = re.compile(r"share_(?P<phase>phase_?\d+)$")
_PLANS = (
    "decay_tokens", "train_tokens", "tokens", "train_flops", "start_lr", "peak_lr", "lr", "learning_rate", "end_lr",
    "batch_tokens", "batch_size", "decay_shape",
)  # fmt: skip
_PERCENT = 50  # what percentages sum to, nearly, and no shares
_ROUNDED_OFF = 1e-9  # what sums of floating-point shares leave over is no share of the rest
_SAME_PLAN = 0.05  # runs whose tokens or LRs differ by less are one plan
_LEAST_MEASURED = 0.5  # of the runs: a target that fewer hold would cost more runs than it is worth


@dataclass(frozen=True)
class RunTable:
    """Finished runs that differ in their mixture.

    Attributes:
        runs: names of the runs, in the order of the rows of the tables.
        shares: share of every source, ``[runs, sources]``; every phase sums to one phase's part of the whole.
        values: measured targets as the table states them, ``[runs, targets]``.
        losses: the same as losses, positive and better where lower: a score becomes its distance from the best one.
        errors: standard errors of values that were expected from the curves of runs that had not ended (columns
            ``loss_error:<target>``), 0 where a value was measured, ``[runs, targets]``.
        direction: which way is better in ``values``.
        best: the best score, where higher is better.
        blocks: sources of every phase with the part of the whole that it takes; empty without phases.
        others: the other columns of the rows.
        differing: columns of tokens, LRs and the like in which the runs differ; a regression takes them as equal.
        excluded: ``run`` and ``reason`` of the rows that were left out.
        notes: sentences on how the table was read.
    """

    runs: tuple[str, ...]
    shares: pd.DataFrame = field(repr=False)
    values: pd.DataFrame = field(repr=False)
    losses: pd.DataFrame = field(repr=False)
    errors: pd.DataFrame = field(repr=False)
    direction: Direction
    best: float | None
    blocks: Mapping[str, tuple[tuple[str, ...], float]]
    others: pd.DataFrame = field(repr=False)
    differing: tuple[str, ...]
    excluded: pd.DataFrame = field(repr=False)
    notes: tuple[str, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources."""
        return tuple(map(str, self.shares.columns))

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the measured targets."""
        return tuple(map(str, self.values.columns))

    @property
    def finished(self) -> NDArray[np.bool_]:
        """Runs all of whose targets were measured ``[runs]``."""
        return (self.errors.to_numpy(dtype=float) == 0).all(axis=1)

    def stated(self, loss: float) -> float:
        """A value of ``losses`` as the table would state it."""
        return loss if self.best is None else self.best - loss


def read_run_table(
    path: str | Path, metrics: str | Path | None = None, *, settings: MixSettings | None = None
) -> RunTable:
    """Finished runs of a table with a row for each run, or of a pair of files with shares and metrics.

    Columns are found by their names: ``w_web``, ``mix:web``, ``train_the_pile_web`` and the like are shares;
    ``loss_code``, ``bpb:arc``, ``eval/code/loss`` and the like are losses, ``acc_arc`` and the like are scores. The
    settings can name columns one by one, or what their names begin with. Percent signs are read, shares that are
    rounded or add up to 100 are divided by their sum.

    Args:
        path: the runs (CSV, JSON Lines or Parquet); of a pair, their shares.
        metrics: of a pair (RegMix's and olmix's files), what was measured.
        settings: how to read the table.

    Raises:
        DataError: a file that cannot be read, or no row that can be used.
        SchemaError: no column of shares or of targets, or one that is missing.
        InvalidValueError: a direction or a best score that must be stated, or that cannot be.
    """
    settings = settings or MixSettings()
    what = str(path) if metrics is None else f"{path} and {metrics}"
    notes: list[str] = []
    excluded: list[tuple[str, str]] = []
    table, prefixes = one_table(path, metrics, settings, excluded)
    table = chosen_rows(table, settings.where, what).reset_index(drop=True)
    table = renamed(table, settings.columns, what)
    run = first_of(("run_id", "run") if "run" in settings.columns else RUN, table)
    names = [f"row {k + 1}" for k in range(len(table))] if run is None else row_names(table[run])
    names, own_step = names_by_seed(names, table), first_of(STEPS, table)
    share_columns, target_columns, direction, told = found_columns(table, settings, prefixes, what)
    notes += told
    shares, blocks, wrong_shares, told = _read_shares(table, share_columns, settings, what)
    notes += told
    values = table[list(target_columns)].apply(numbers).set_axis(list(target_columns.values()), axis=1)
    if any(has_percent(table[column]) for column in target_columns):
        notes.append("Cells with a percent sign were read as hundredths.")
    reasons = pd.Series("", index=table.index, dtype=object)
    errors = _errors(table, list(values.columns))
    stopped, why = _not_finished(table)
    exclude(reasons, stopped & ~(errors > 0).all(axis=1), why)  # else all its values are expected ones
    exclude(
        reasons,
        ~((errors >= 0) & (errors < np.inf)).all(axis=1),
        f"a standard error ({LOSS_ERROR}TARGET) that is not a finite number of 0 or more",
    )
    others = [name for name in map(str, table) if name.startswith(LOSS_ERROR)]
    others = [name for name in others if name.removeprefix(LOSS_ERROR) not in values]
    exclude(
        reasons,
        (table[others].apply(numbers) > 0).any(axis=1) & ~(errors > 0).any(axis=1),
        f"its losses are expected from a curve, and no target has the name in {', '.join(others)}",
    )
    if STABLE_TOKENS in table:
        after_stage = numbers(table[STABLE_TOKENS]) > 0
        exclude(
            reasons,
            after_stage,
            f"a decay after a stable stage ({STABLE_TOKENS}), which a table does not know",
        )
    exclude(reasons, wrong_shares != "", wrong_shares)
    reasons = _one_size(table, reasons, settings)
    values, dropped = _measured_targets(values, reasons == "", settings)
    notes += dropped
    missing = ~np.isfinite(values.to_numpy(dtype=float))
    lacking = pd.Series([", ".join(values.columns[row][:3]) for row in missing], index=table.index)
    exclude(reasons, pd.Series(missing.any(axis=1), index=table.index), "no finite value of " + lacking)
    best = _best(values[reasons == ""], direction, settings)
    losses = values if best is None else best - values
    wrong = (losses.to_numpy(dtype=float) <= 0) & ~missing
    what_is_wrong = (
        "a loss that is not positive"
        if best is None
        else f"a score of the best possible value {best:g} or above"
    )
    exclude(reasons, pd.Series(wrong.any(axis=1), index=table.index), what_is_wrong)
    steps = None if own_step is None else table[own_step]
    exclude_repeats(reasons, pd.Series(names, index=table.index), shares, values, steps)
    kept = (reasons == "").to_numpy()
    names, told = told_apart(names, kept)
    notes += told
    excluded += [(name, reason) for name, reason in zip(names, reasons) if reason]
    if not kept.any():
        first = {reason: name for name, reason in reversed(excluded)}  # of each reason
        said = "; ".join(f"{name}: {reason}" for reason, name in list(first.items())[::-1][:3])
        raise DataError(f"{what} holds no run that can be used. {said}")
    if best is not None:
        notes.append(f"Higher is better: the regressions see how far each score lies below {best:g}.")
    others = table.drop(columns=[*share_columns, *target_columns])[kept].reset_index(drop=True)
    return RunTable(
        runs=tuple(name for name, keep in zip(names, kept) if keep),
        shares=shares[kept].reset_index(drop=True),
        values=values[kept].reset_index(drop=True),
        losses=losses[kept].reset_index(drop=True),
        errors=errors.loc[kept, list(values.columns)].reset_index(drop=True),
        direction=direction,
        best=best,
        blocks=blocks,
        others=others,
        differing=_differing(others),
        excluded=excluded_table(excluded),
        notes=tuple(notes),
    )


def _errors(table: pd.DataFrame, targets: Sequence[str]) -> pd.DataFrame:
    """Standard errors of the targets; 0 where the table has none, NaN where a cell holds no number."""
    found = pd.DataFrame(0.0, index=table.index, columns=list(targets))
    for name in targets:
        if LOSS_ERROR + name in table:
            cells = table[LOSS_ERROR + name]
            found[name] = numbers(cells).where(cells.notna(), 0.0)
    return found


def _read_shares(
    table: pd.DataFrame, columns: Mapping[str, str], settings: MixSettings, what: str
) -> tuple[pd.DataFrame, dict[str, tuple[tuple[str, ...], float]], pd.Series, list[str]]:
    """Shares by source, the sources of every phase, what is wrong with each row (empty: nothing), and sentences.

    An empty cell is a share of 0 where the others make up the whole.
    """
    told: list[str] = []
    phased = {name: match["phase"] for name in columns if (match := _PHASED.match(name))}
    named = dict(columns)
    rest = settings.rest
    if phased and len(phased) == len(columns):
        named = {name: f"scarce{PHASE}{phase}" for name, phase in phased.items()}
        rest = rest or "rest"
        told.append(
            "Each column states the share of one source ('scarce') in a phase of the run; the phases are taken to be "
            f"of equal length, and '{rest}' takes what the source leaves."
        )
    raw = table[list(named)]
    shares = raw.apply(numbers).set_axis(list(named.values()), axis=1)
    text = raw.notna().to_numpy() & ~np.isfinite(shares.to_numpy(dtype=float))
    negative = shares.to_numpy(dtype=float) < 0
    phases: dict[str, list[str]] = {}
    for source in shares.columns:
        phases.setdefault(source.partition(PHASE)[2], []).append(source)
    wrong = pd.Series("", index=table.index, dtype=object)
    for rows, words in ((text, "is no number"), (negative, "is negative")):
        for k, source in enumerate(shares.columns):
            why = f"the share of '{source}' {words} (" + raw.iloc[:, k].map(str) + ")"
            exclude(wrong, pd.Series(rows[:, k], index=table.index), why)
    parts: list[pd.DataFrame] = []
    blocks: dict[str, tuple[tuple[str, ...], float]] = {}
    for phase, members in phases.items():
        rest_name = f"{rest}{PHASE}{phase}" if rest and phase else rest
        own = _whole_shares(shares[members].fillna(0.0), wrong, rest_name, told) / len(phases)
        parts.append(own)
        if len(phases) > 1:
            blocks[phase] = (tuple(own.columns), 1 / len(phases))
    found = pd.concat(parts, axis=1)
    unused = [source for source in found if not found.loc[wrong == "", source].any()]
    if unused and len(unused) < found.shape[1]:
        found = found.drop(columns=unused)
        told.append(
            f"No run holds {', '.join(unused[:5])}: nothing can be said of {'it' if len(unused) == 1 else 'them'}."
        )
        blocks = {
            phase: (tuple(name for name in members if name not in unused), part)
            for phase, (members, part) in blocks.items()
        }
    if found.shape[1] < 2:
        raise SchemaError(
            what,
            missing=["a second source"],
            remedy="Name the source that takes the rest of the whole (--rest NAME).",
        )
    return found, blocks, wrong, list(dict.fromkeys(told))


def _whole_shares(own: pd.DataFrame, wrong: pd.Series, rest: str | None, told: list[str]) -> pd.DataFrame:
    """The shares of one phase that sum to 1 in every row in which they can.

    Args:
        own: as the table states them.
        wrong: what is wrong with each row; rows whose shares do not sum to 1 are told here.
        rest: source that takes what the others leave, if there is one.
        told: sentences on how the table was read; grows here.
    """
    total = own.sum(axis=1)
    percent = bool((total[wrong == ""].median() > _PERCENT) if rest is None else (own.max(axis=None) > 2))
    whole_is = 100 if percent else 1
    said = total.map(lambda value: f"shares sum to {value:.4g}, not to {whole_is}")
    if percent:
        own, total = own / 100, total / 100
        told.append("Shares were read as percentages.")
    if rest is None:
        over = (total - 1).abs() > ROUNDING
    else:
        if rest in own:
            raise InvalidValueError("rest", rest.partition(PHASE)[0], "must not be a source of the table")
        over = total > 1 + ROUNDING
        left = 1 - total
        own = own.assign(**{rest: left.where(left > _ROUNDED_OFF, 0.0)})
    exclude(wrong, over, said)
    whole = own.sum(axis=1).where(~over, 1.0)
    return own.div(whole.where(whole > 0, 1.0), axis=0)


def _not_finished(table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Rows of runs that did not reach their end, and why."""
    none = pd.Series(False, index=table.index)
    reached = first_of(("reached_target",), table)
    if reached is not None:
        words = table[reached].map(lambda cell: str(cell).strip().lower())
        return words.isin(["false", "0", "0.0", "no"]), pd.Series(
            "it stopped before its last planned token", index=table.index
        )
    state = first_of(_STATE, table)
    if state is None:
        return none, pd.Series("", index=table.index)
    words = table[state].fillna("").map(lambda cell: str(cell).strip().lower())
    failed = ~words.isin(["finished", "success", "succeeded", "completed", "complete", "done", "ok", ""])
    return failed, "its state is '" + words + "'"


def _one_size(table: pd.DataFrame, reasons: pd.Series, settings: MixSettings) -> pd.Series:
    """Rows of another model size than most are left out: a regression of mixtures knows one size."""
    size = next((name for name in (first_of((each,), table) for each in _SIZE) if name), None)
    if size is None or size in settings.where:
        return reasons
    words = table[size].map(str)
    common = words[reasons == ""].mode()
    if len(common):
        others = words.ne(common.iloc[0])
        exclude(reasons, others, f"its {size} is " + words + f", and most runs have {common.iloc[0]}")
    return reasons


def _differing(others: pd.DataFrame) -> tuple[str, ...]:
    """Columns of a plan in which runs differ."""
    found = []
    for name in filter(None, (first_of((each,), others) for each in _PLANS)):
        values = counts(others[name])
        if values.notna().all():
            differs = float(values.max() - values.min()) > _SAME_PLAN * float(values.abs().max())
        else:
            differs = others[name].map(str).nunique() > 1
        found += [name] if differs else []
    return tuple(found)


def _measured_targets(
    values: pd.DataFrame, usable: pd.Series, settings: MixSettings
) -> tuple[pd.DataFrame, list[str]]:
    """The targets that matter and that enough runs hold; sentences on the others.

    Raises:
        InvalidValueError: a weighted or guarded target is not in the table.
    """
    asked = {**settings.weights, **settings.guards}
    unknown = [name for name in asked if name not in values.columns]
    if unknown:
        known = ", ".join(map(str, values.columns[:20]))
        raise InvalidValueError("weights" if unknown[0] in settings.weights else "guards", unknown[0],
                                "is not a target of the table", f"Targets: {known}.")  # fmt: skip
    if settings.weights:
        values = values[[name for name in values.columns if name in asked]]
    share = np.isfinite(values[usable]).mean()
    few = [name for name in values.columns if share[name] < _LEAST_MEASURED and name not in asked]
    if len(few) == values.shape[1]:
        return values, []
    count = int(usable.sum())
    told = [
        f"'{name}' was measured in {round(share[name] * count)} of {count} runs and is left out."
        for name in few
    ]
    return values.drop(columns=few), told


def _best(values: pd.DataFrame, direction: Direction, settings: MixSettings) -> float | None:
    """The best score, where higher is better.

    Raises:
        InvalidValueError: the scores do not show it, and it is not stated.
    """
    if direction == "lower":
        if settings.best is not None:
            raise InvalidValueError(
                "best", settings.best, "belongs to scores of which a higher one is better"
            )
        return None
    if settings.best is not None:
        return settings.best
    low, high = (float(getattr(np, name)(values.to_numpy(dtype=float))) for name in ("nanmin", "nanmax"))
    if low >= 0 and high <= 1:
        return 1.0
    if low >= 0 and high <= 100:
        return 100.0
    raise InvalidValueError(
        "best", None, f"must be stated for scores from {low:.4g} to {high:.4g}", "Say --best VALUE."
    )
