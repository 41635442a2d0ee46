"""A table of runs as finished decays: what the decay law reads, the checkpoint, and the schedules to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from decaylaws.errors import InvalidValueError
from decaylaws.mixtures import Mixture
from decaylaws.runs.importers import tidy_runs
from decaylaws.runs.table import (
    AVERAGED_START_LOSS,
    AVERAGED_START_TOKENS,
    DECAY_COLUMNS,
    HANDOVER_LR,
    LOSS,
    LOSS_ERROR,
    MIX,
    START_LOSS,
    WARMUP_TOKENS,
    values_by,
)
from decaylaws.schedules import SHAPES
from decaylaws.schedules.quantities import parse_tokens
from decaylaws.search import Choices, Target
from decaylaws.settings.mix import MixSettings
from decaylaws.tables.cells import counts, first_of, numbers
from decaylaws.tables.run_reading import RunTable

TRUNK = "trunk"
_START = ("start_loss:", "start_loss_", "start_loss/", "start_loss.")
_AVERAGED = tuple(f"averaged_{beginning}" for beginning in _START)
_LENGTHS = ("decay_tokens", "train_tokens", "tokens", "start_lr", "peak_lr", "lr", "learning_rate")
_LRS = {"start_lr", "end_lr", HANDOVER_LR}
_MOST_LENGTHS, _MOST_FACTORS = 5, 4  # of a table in which every run has its own
_LEAST_MIXTURES = 3  # one of them can be held out, and of the others one again
_SAME_MIXTURE = 1e-3  # difference of a share, as the decay law takes it
_SAME_LOSS = 4  # decimals of a start loss: more is another measurement of the same checkpoint


@dataclass(frozen=True)
class DecayTable:
    """Finished decays of a table.

    Attributes:
        runs: the runs table that the decay law is fitted on, in the order of the table. Losses that were expected from
            curves have standard errors (``loss_error:<domain>``).
        trunk: mixture before the decays.
        target: the checkpoint from which the decay is planned.
        choices: lengths, LRs, shapes and batch sizes that the runs hold.
        notes: sentences on how the table was read.
    """

    runs: pd.DataFrame
    trunk: Mixture
    target: Target
    choices: Choices
    notes: tuple[str, ...]


def differs_in_decay(table: RunTable) -> bool:
    """Whether the runs differ in length or LR, which a regression of mixtures does not know and the decay law does."""
    return any(name.lower() in _LENGTHS for name in table.differing)


def lacking(table: RunTable, settings: MixSettings) -> tuple[str, ...]:
    """What the decay law needs and the table and the settings do not say, by name; empty where nothing lacks."""
    if table.direction != "lower":
        return ("losses in place of scores",)
    if table.blocks:
        return ("one mixture for each run, in place of phases",)
    frame = _columns(table)
    found = []
    for name in (*DECAY_COLUMNS, *(START_LOSS + target for target in table.targets)):
        if name in settings.constants:
            continue
        if name not in frame:
            found.append(name)
        elif count := int(frame[name].isna().sum()):
            held = first_of((name,), table.others)
            text = [] if held is None else table.others.loc[frame[name].isna(), held].dropna().tolist()
            cell = f" (a cell holds '{text[0]}')" if text else ""
            found.append(f"{name} in {count} of {len(frame)} runs{cell}")
    if not settings.trunk and _control(table) is None:
        found.append(f"{TRUNK} (the mixture before the decays)")
    elif not found:
        shares = table.shares.to_numpy(dtype=float)
        others = shares[
            np.abs(shares - _trunk(table, settings).array(table.sources)).max(axis=1) >= _SAME_MIXTURE
        ]
        if len(np.unique(others.round(3), axis=0)) < _LEAST_MIXTURES:
            found.append(f"runs on at least {_LEAST_MIXTURES} mixtures beside the {TRUNK}'s")
    return tuple(found)


def read_decays(table: RunTable, settings: MixSettings) -> DecayTable:
    """The table as finished decays.

    Args:
        table: a table that lacks nothing (:func:`lacking`).
        settings: what holds for every run, the trunk's mixture, the limits and the budget.

    Raises:
        InvalidValueError: a cell, a shape or a constant is not what it must be, a source of the trunk that the table
            does not have, or a budget below the shortest decay.
        SchemaError: a constant that is also a column.
    """
    constants = {name: _constant(name, text, table.targets) for name, text in settings.constants.items()}
    trunk = _trunk(table, settings)
    frame = _columns(table)
    frame.insert(0, "run_id", list(table.runs))
    frame = pd.concat([frame, table.shares.add_prefix(MIX), table.losses.add_prefix(LOSS)], axis=1)
    if not table.finished.all():
        frame = pd.concat([frame, table.errors.add_prefix(LOSS_ERROR)], axis=1)
    tokens = {name: known.available_tokens for name, known in settings.sources.items()}
    known = {name: int(count) for name, count in tokens.items() if count is not None}
    runs = tidy_runs(
        frame,
        {},
        constants=constants,
        source_tokens=known if set(table.sources) <= set(known) else None,
        law="decay",
        what="the table of runs",
    )
    unknown = runs[~runs["decay_shape"].isin(list(SHAPES))]
    if len(unknown):
        run, shape = unknown[["run_id", "decay_shape"]].iloc[0]
        raise InvalidValueError(f"decay_shape of run '{run}'", shape, f"must be one of {', '.join(SHAPES)}")
    _refuse_plans(runs)
    shares = values_by(runs, MIX, table.sources)
    on_trunk = np.abs(shares - trunk.array(table.sources)).max(axis=1) < _SAME_MIXTURE
    starts = _starts(runs, table.targets)
    runs = runs.assign(
        role=np.where(on_trunk, "control", "simplex"), start_run_id=starts.map("start-{}".format)
    )
    target, told = _target(runs, starts, table.targets)
    choices, more = _choices(runs, target, settings)
    return DecayTable(runs, trunk, target, choices, (*told, *more))


def _refuse_plans(runs: pd.DataFrame) -> None:
    """Refuse decays that no trainer makes: tokens in another unit than the batch, an LR that rises.

    Raises:
        InvalidValueError: names the run and the value.
    """
    plan = runs[["decay_tokens", "batch_tokens", "start_lr", "end_lr"]].astype(float)
    for run, tokens, batch, start, end in zip(runs["run_id"], *(plan[name] for name in plan)):
        if tokens < batch:
            raise InvalidValueError(
                f"decay_tokens of run '{run}'", f"{tokens:.15g}",
                f"must be at least the {batch:,.0f} tokens of a batch",
                "Count single tokens in all columns, or write units (50B).",
            )  # fmt: skip
        if end > start:
            raise InvalidValueError(f"end_lr of run '{run}'", end, f"must be at most its start_lr, {start:g}")


def _columns(table: RunTable) -> pd.DataFrame:
    """The columns of the table that a decay law reads, under its names."""
    others = table.others
    found: dict[str, pd.Series] = {}
    for name in (*DECAY_COLUMNS, HANDOVER_LR, WARMUP_TOKENS):
        column = first_of((name,), others)
        if column is not None:
            read = numbers if name in _LRS else counts
            found[name] = others[column] if name == "decay_shape" else read(others[column])
    for ours, beginnings in ((START_LOSS, _START), (AVERAGED_START_LOSS, _AVERAGED)):
        for target in table.targets:
            column = first_of([beginning + target for beginning in beginnings], others)
            if column is not None:
                found[ours + target] = numbers(others[column])
    for name in (HANDOVER_LR, WARMUP_TOKENS):  # optional: known for every run, or for none
        if name in found and found[name].isna().any():
            del found[name]
    return pd.DataFrame(found, index=others.index)


def _constant(name: str, text: str, targets: Sequence[str]) -> object:
    """A value that holds for every run."""
    if name == "decay_shape":
        return text.strip()
    if name in (*DECAY_COLUMNS, WARMUP_TOKENS) and name not in _LRS:
        return parse_tokens(text, f"constants.{name}")
    losses = [beginning + target for beginning in (START_LOSS, AVERAGED_START_LOSS) for target in targets]
    if name not in _LRS and name not in losses:
        known = ", ".join((*DECAY_COLUMNS, HANDOVER_LR, WARMUP_TOKENS, f"{START_LOSS}TARGET"))
        raise InvalidValueError(
            f"constants.{name}", text, "is not a column of the decay law", f"It reads {known}."
        )
    try:
        return float(text)
    except ValueError:
        raise InvalidValueError(f"constants.{name}", text, "must be a number") from None


def _control(table: RunTable) -> Mixture | None:
    """The one mixture of the runs whose role is ``control``."""
    role = first_of(("role",), table.others)
    if role is None:
        return None
    shares = table.shares[(table.others[role].astype(str) == "control").to_numpy()]
    if shares.empty or (shares.max() - shares.min()).max() > _SAME_MIXTURE:
        return None
    return Mixture.normalised({str(name): float(share) for name, share in shares.mean().items()})


def _trunk(table: RunTable, settings: MixSettings) -> Mixture:
    if not settings.trunk:
        control = _control(table)
        if control is None:
            raise InvalidValueError(TRUNK, None, "must be given for the decay law")
        return control
    unknown = [name for name in settings.trunk if name not in table.sources]
    if unknown:
        raise InvalidValueError(
            f"{TRUNK}.{unknown[0]}", settings.trunk[unknown[0]], "is not a source of the table",
            f"Sources: {', '.join(table.sources[:20])}.",
        )  # fmt: skip
    try:
        return Mixture(settings.trunk)
    except InvalidValueError as error:
        remedy = "Give the share of every source before the decays, as parts of one."
        raise InvalidValueError(TRUNK, dict(settings.trunk), error.constraint, remedy) from None


def _starts(runs: pd.DataFrame, targets: Sequence[str]) -> pd.Series:
    """Number of the checkpoint of every run: equal size, tokens and losses are one."""
    names = ["non_embedding_params", "start_tokens", *(START_LOSS + name for name in targets)]
    return runs[names].astype(float).round(_SAME_LOSS).groupby(names, sort=False).ngroup()


def _target(runs: pd.DataFrame, starts: pd.Series, targets: Sequence[str]) -> tuple[Target, list[str]]:
    """The checkpoint that has seen most tokens; of several such, the one that most runs start from."""
    latest = runs["start_tokens"].astype(float) == float(runs["start_tokens"].astype(float).max())
    chosen = starts[latest].mode().iloc[0]
    row = runs[starts == chosen].iloc[0]
    averaged = {name: AVERAGED_START_LOSS + name for name in targets if AVERAGED_START_LOSS + name in runs}
    target = Target(
        non_embedding_params=int(row["non_embedding_params"]),
        start_tokens=int(row["start_tokens"]),
        batch_tokens=int(runs["batch_tokens"].mode().iloc[0]),
        start_loss={name: float(row[START_LOSS + name]) for name in targets},
        averaged_start_loss={
            name: float(row[column]) for name, column in averaged.items() if pd.notna(row[column])
        },
        averaged_start_tokens=float(row[AVERAGED_START_TOKENS])
        if pd.notna(row.get(AVERAGED_START_TOKENS))
        else None,
        handover_lr=float(row[HANDOVER_LR]) if HANDOVER_LR in runs else None,
        warmup_tokens=int(row[WARMUP_TOKENS]) if WARMUP_TOKENS in runs else 0,
    )
    told = [
        f"The decay is planned for a model of {target.non_embedding_params:,} parameters from the checkpoint at "
        f"{target.start_tokens:,} tokens, as the runs were. It says nothing of another size."
    ]
    if starts.nunique() > 1:
        told.append(
            f"The runs start from {starts.nunique()} checkpoints. {int((starts == chosen).sum())} of {len(runs)} start "
            "from this one, which has seen most tokens."
        )
    return target, told


def _choices(runs: pd.DataFrame, target: Target, settings: MixSettings) -> tuple[Choices, list[str]]:
    """Lengths, LRs, shapes and batch sizes that the runs hold, within the budget."""
    told = []
    falling = runs[runs["decay_shape"] != "constant"]
    falling = runs if falling.empty else falling
    held = sorted({int(tokens) for tokens in falling["decay_tokens"]})
    budget = settings.decay_tokens
    lengths = held if budget is None else [tokens for tokens in held if tokens <= budget]
    if not lengths:
        raise InvalidValueError(
            "decay_tokens",
            budget,
            f"must be at least the {held[0]:,} tokens of the shortest decay of the table",
        )
    if budget is not None and lengths[-1] < budget < held[-1]:
        lengths.append(budget)
    if budget is not None and budget > held[-1]:
        told.append(
            f"The budget is longer than the longest decay of the table, {held[-1]:,} tokens, so that counts."
        )
    rates = falling["start_lr"].astype(float)
    factors = sorted(set((falling["end_lr"].astype(float) / rates).round(3)))
    batches = sorted({int(tokens) for tokens in falling["batch_tokens"]})
    # checkpoints may differ in LR: the runs then say which factors of it were tried
    reached = rates
    if target.handover_lr is not None:
        reached = rates / falling[HANDOVER_LR].astype(float) * target.handover_lr
    many: Sequence[tuple[str, Sequence, int]] = (
        ("lengths", lengths, _MOST_LENGTHS),
        ("end LRs", factors, _MOST_FACTORS),
        ("batch sizes", batches, _MOST_FACTORS),
    )
    for what, values, most in many:
        if len(values) > most:
            told.append(
                f"The runs have {len(values)} {what}. The search chooses among {most} that span them."
            )
    return Choices(
        decay_tokens=tuple(_spanning(lengths, _MOST_LENGTHS)),
        start_lr=(float(reached.min()), float(reached.max())),
        shapes=tuple(dict.fromkeys(falling["decay_shape"].astype(str))),
        end_lr_factors=tuple(_spanning(factors, _MOST_FACTORS)),
        batch_tokens=tuple(_spanning(batches, _MOST_FACTORS)) if len(batches) > 1 else (),
    ), told


def _spanning(values: Sequence, most: int) -> list:
    """At most so many of sorted values, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(k * (len(values) - 1) / (most - 1))] for k in range(most)]
