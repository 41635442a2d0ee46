"""Loss curves out of a table: one row for each logged point, with the schedule of every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from decaylaws.errors import DataError, DecaylawsError, InvalidValueError, SchemaError
from decaylaws.io.tables import read_table
from decaylaws.laws.annealing import LossCurve
from decaylaws.runs.curve_importers import read_wandb_curves
from decaylaws.runs.stated_schedules import STATED_COLUMNS, stated_params, stated_schedule
from decaylaws.schedules import Schedule, from_points
from decaylaws.tables.cells import chosen_rows, excluded_table, first_of, held, numbers, renamed

ONE_RUN = "curve"
"""Name of the run of a table that names none."""

_LEAST_TOKENS = 10_000  # that a logged run reaches
_DIVERGED_NATS = 0.5
"""A curve that ends so far above its beginning says nothing of annealing."""

_RUN = ("run_id", "run", "name", "run_name", "run name", "id")
_MODEL = ("model", "model_size", "size")
_PARAMS = ("params", "non_embedding_params", "num_params", "n_params", "parameters", "num_parameters")
_STEP = ("step", "_step", "global_step", "trainer/global_step", "iteration", "iter")
_LOSS = ("loss", "val_loss", "train_loss", "train/loss", "eval/loss", "lm loss", "value")
_LR = ("lr", "learning_rate", "learning-rate", "train/learning_rate", "train/lr", "optim/learning_rate")


@dataclass(frozen=True)
class LossCurves:
    """Loss curves of finished runs.

    Attributes:
        curves: a curve of every run that can be used.
        excluded: ``run`` and ``reason`` of the runs that were left out.
        notes: sentences on how the table was read.
        unit: what the schedules count: ``tokens``, or ``steps`` where the table says nothing of tokens.
    """

    curves: tuple[LossCurve, ...]
    excluded: pd.DataFrame
    notes: tuple[str, ...]
    unit: str = "tokens"
    what: str = field(default="curves", repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the runs."""
        return tuple(curve.run_id for curve in self.curves)


def read_loss_curves(
    path: str | Path,
    *,
    schedules: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, str] | None = None,
    tokens_per_step: int | None = None,
    warmup: int | None = None,
    domain: str | None = None,
) -> LossCurves:
    """Loss curves of a CSV, JSON Lines or Parquet file with one row for each logged point.

    Args:
        path: columns ``run`` (one run where there is none), ``tokens`` or ``step``, ``loss`` (nats per token), and
            ``lr`` where ``schedules`` is not given; ``model`` or ``model_size`` where sizes differ, and ``params``, the
            non-embedding parameters, where the names of the models do not state them. Usual other names are known.
            Or a chart exported from Weights & Biases, whose columns are ``<run> - <metric>``.
        schedules: a table with a row for each run: ``run`` and ``schedule`` in arrow notation, or the columns of
            ``decaylaws.runs.stated_schedules``. Without it the logged LR is the schedule.
        columns: our name to the table's, for columns under other names.
        where: value by column; only such rows count, of both files where both have the column.
        tokens_per_step: tokens of a step; 1 where not given, so that schedules count steps.
        warmup: tokens (or steps) of a linear warm-up that the logged LR does not show.
        domain: whose losses count, where the table holds several.

    Raises:
        DataError: a file that cannot be read, no row that is asked for, or no curve that can be used.
        SchemaError: a column is missing.
        InvalidValueError: a schedule that cannot be read, or several domains of which none is named.
    """
    step_tokens = 1 if tokens_per_step is None else tokens_per_step
    if step_tokens < 1:
        raise InvalidValueError("tokens_per_step", tokens_per_step, "must be at least 1")
    notes: list[str] = []
    columns, where = columns or {}, where or {}
    plans, asked = None, where
    if schedules is not None:
        stated = read_table(schedules, text=_RUN)
        plans = _plans(stated, schedules, where, columns)
        asked = {name: value for name, value in where.items() if name not in stated.columns}
    table = read_table(path, text=_RUN)
    asked = {**asked, **{name: value for name, value in where.items() if name in table.columns}}
    table = _of_domain(_points(chosen_rows(table, asked, path), path, columns, step_tokens), domain, path)
    in_tokens = tokens_per_step is not None or "tokens" in table.columns
    if "tokens" not in table.columns:
        table = table.assign(tokens=numbers(table["step"]) * step_tokens)
    _require_numbers(table, path)
    table = table.assign(tokens=numbers(table["tokens"]), loss=numbers(table["loss"]))
    _require_single(table["tokens"].to_numpy(dtype=float), in_tokens)
    curves: list[LossCurve] = []
    excluded: list[tuple[str, str]] = []
    several = table["model"].nunique() > 1
    params = _sizes(table, path)
    for (model, run), points in table.groupby(["model", "run"], sort=False):
        name = f"{model}/{run}" if several else str(run)
        if plans is not None and (str(model), str(run)) not in plans and ("", str(run)) not in plans:
            excluded.append((name, f"{schedules} does not state its schedule"))
            continue
        try:
            points, told = _cleaned(points, name)
            notes += told
            row = None
            if plans is not None:
                row = plans.get((str(model), str(run)), plans.get(("", str(run))))
            schedule = (
                _logged_schedule(points, name, warmup)
                if row is None
                else stated_schedule(row, step_tokens=step_tokens, run=name)
            )
            curve = LossCurve(
                name, schedule, points["tokens"].to_numpy(), points["loss"].to_numpy(), str(model),
                params[str(model)],
            )  # fmt: skip
        except DecaylawsError as error:
            excluded.append((name, str(error)))
            continue
        curves.append(curve)
    if not curves:
        reasons = "; ".join(f"{run}: {reason.rstrip('.')}" for run, reason in excluded[:3])
        counted = (
            ""
            if in_tokens or plans is None
            else (
                " The table counts steps. If the schedules count tokens, say how many a step has (--tokens-per-step)."
            )
        )
        raise DataError(f"{path} holds no curve that can be used. {reasons}.{counted}")
    unit = "tokens" if in_tokens else "steps"
    if plans is None:
        notes.append(
            "The schedule of every run is its logged LR. Before the first logged point the LR is taken to "
            + (
                "be that of the first point."
                if warmup is None
                else f"rise over {warmup:,} {unit} and then to hold."
            )
        )
    return LossCurves(tuple(curves), excluded_table(excluded), tuple(notes), unit, str(path))


def _points(
    table: pd.DataFrame, path: str | Path, columns: Mapping[str, str], step_tokens: int
) -> pd.DataFrame:
    """The logged points under our names: ``run``, ``model``, ``loss``, ``tokens`` or ``step``, perhaps ``lr``."""
    if not columns and any(" - " in str(name) for name in table.columns[1:]):
        # a chart of Weights & Biases: one column per run
        table = read_wandb_curves(path, domain=ONE_RUN, tokens_per_step=step_tokens, resumed="last")
        return table.rename(columns={"run_id": "run"}).drop(columns=["lr", "domain"]).assign(model="model")
    table = renamed(table, columns, path)
    usual = {
        "run": _RUN,
        "model": _MODEL,
        "params": _PARAMS,
        "step": _STEP,
        "loss": _LOSS,
        "lr": _LR,
        "tokens": ("tokens",),
    }
    found = {ours: first_of((ours, *names), table) for ours, names in usual.items()}
    table = table.rename(columns={theirs: ours for ours, theirs in found.items() if theirs})
    missing = [name for name in ("loss",) if name not in table.columns]
    if "tokens" not in table.columns and "step" not in table.columns:
        missing.append("tokens or step")
    if missing:
        remedy = f"Name the column that holds it, as in --map loss=NAME. The table holds {held(table)}."
        raise SchemaError(str(path), missing=missing, remedy=remedy)
    if "run" not in table.columns:
        _require_one_run(table, path)
    if "model" not in table.columns and "params" in table.columns and table["params"].nunique() > 1:
        table["model"] = table["params"]
    for name, one in (("run", ONE_RUN), ("model", "model")):
        table[name] = table[name].map(str) if name in table.columns else one
    return table


def _require_one_run(table: pd.DataFrame, path: str | Path) -> None:
    """Refuse a table that names no run and has a column of a few texts, each of which may be a curve of its own.

    Raises:
        SchemaError: names these columns.
    """
    telling = []
    for name in table.columns:
        words = table[name].dropna()
        is_text = len(words) > 0 and not numbers(words).notna().any()
        if is_text and name not in ("model", "domain") and 1 < words.nunique() <= len(words) / 2:
            telling.append(str(name))
    if telling:
        raise SchemaError(
            str(path),
            missing=["run"],
            remedy=f"Several curves may stand in it, told apart by {', '.join(telling)}. Say which column names the "
            f"run (--map 'run={telling[0]}'), or choose the rows of one curve (--where '{telling[0]}=VALUE').",
        )


def _require_numbers(table: pd.DataFrame, path: str | Path) -> None:
    """Refuse a column of tokens or losses in which no cell is a number.

    Raises:
        InvalidValueError: names the column and a cell.
    """
    for name in ("tokens", "loss"):
        cells = table[name].dropna()
        if len(cells) and not numbers(cells).notna().any():
            raise InvalidValueError(
                f"{path}: {name}", cells.iloc[0], "must be a number", "Write numbers with a decimal point."
            )


def _sizes(table: pd.DataFrame, path: str | Path) -> dict[str, float | None]:
    """Parameters of every model: those that the table gives, else those that its name states; None if neither does.

    Raises:
        InvalidValueError: a size that cannot be, or several of one model.
    """
    sizes: dict[str, float | None] = {}
    for model, rows in table.groupby("model", sort=False):
        where, given = f"params of model {model} in {path}", []
        if "params" in rows.columns:
            given = rows["params"].dropna().unique().tolist()
        for cell in given:
            size = stated_params(str(cell)) or float(numbers(pd.Series([cell])).iloc[0])
            if not 0 < size < np.inf:
                raise InvalidValueError(where, cell, "must be a number above zero, such as 25M or 25e6")
        if len(given) > 1:
            raise InvalidValueError(
                where,
                given,
                "must be one number",
                "Give models of different sizes different names ('model').",
            )
        sizes[str(model)] = size if given else stated_params(str(model))
    return sizes


def _plans(
    table: pd.DataFrame, path: str | Path, where: Mapping[str, str], columns: Mapping[str, str]
) -> dict[tuple[str, str], dict[str, object]]:
    """Rows that state schedules, by model (empty where the table names none) and run."""
    table = chosen_rows(table, {name: value for name, value in where.items() if name in table.columns}, path)
    table = renamed(
        table, {ours: theirs for ours, theirs in columns.items() if theirs in table.columns}, path
    )
    run, model = first_of(("run", *_RUN), table), first_of(("model", *_MODEL), table)
    missing = [
        name for name, theirs in (("run", run), ("schedule", first_of(("schedule",), table))) if not theirs
    ]
    if missing:
        remedy = f"Give arrow notation, or the columns {', '.join(STATED_COLUMNS)}. It holds {held(table)}."
        raise SchemaError(str(path), missing=missing, remedy=remedy)
    table = table.rename(columns={str(run): "run", **({model: "model"} if model else {})})
    names = [(str(row.get("model", "")), str(row["run"])) for row in table.to_dict("records")]
    twice = sorted({"/".join(filter(None, name)) for name in names if names.count(name) > 1})
    if twice:
        raise SchemaError(str(path), unexpected=twice, remedy="Each run must be in the table once.")
    return dict(zip(names, table.to_dict("records")))


def _of_domain(table: pd.DataFrame, domain: str | None, path: str | Path) -> pd.DataFrame:
    if domain is not None:
        return chosen_rows(table, {"domain": domain}, path)
    domains = sorted(table["domain"].astype(str).unique()) if "domain" in table.columns else []
    if len(domains) > 1:
        raise InvalidValueError(
            "domain",
            None,
            f"must name one of the domains of {path}: {', '.join(domains)}",
            "On the command line it is --domain.",
        )
    return table


def _cleaned(points: pd.DataFrame, name: str) -> tuple[pd.DataFrame, list[str]]:
    """Points of one run in the order of its tokens, and sentences on what was left out.

    Raises:
        DataError: nothing is left.
    """
    told = []
    finite = np.isfinite(points["tokens"]) & np.isfinite(points["loss"])
    if not finite.all():
        told.append(f"Run {name}: {int((~finite).sum())} points without a finite loss were left out.")
    points = points[finite]
    tokens = points["tokens"].to_numpy()
    if len(tokens) > 1 and (np.diff(tokens) < 0).all():  # a file that runs backwards
        points, tokens = points.iloc[::-1], tokens[::-1]
    # after a resume from an older checkpoint, what the attempt before logged from there on does not count
    kept = tokens < np.append(np.minimum.accumulate(tokens[::-1])[::-1][1:], np.inf)
    if not kept.all():
        told.append(f"Run {name}: {int((~kept).sum())} points of an earlier attempt were left out.")
    points = points[kept]
    if points.empty:
        raise DataError("no point has a finite loss")
    loss = points["loss"].to_numpy()
    tenth = max(len(loss) // 10, 1)
    began, ends = float(loss[:tenth].max()), float(np.median(loss[-tenth:]))
    if ends > began + _DIVERGED_NATS:
        raise DataError(f"its loss ends at {ends:.2f}, above the {began:.2f} that it began with: it diverged")
    return points, told


def _require_single(tokens: np.ndarray, in_tokens: bool) -> None:
    """Refuse a count in billions: a law would take a run of 100 billion tokens for one of 100.

    Raises:
        InvalidValueError: names a value.
    """
    finite = tokens[np.isfinite(tokens)]
    fractions = finite[np.abs(finite - np.round(finite)) > 1e-6]
    remedy = "If the column counts billions, read it as steps of that many: --map step=COLUMN --tokens-per-step 1B."
    if len(fractions) and finite.max() < 1e6:
        raise InvalidValueError("tokens", float(fractions[0]), "must be whole numbers", remedy)
    if in_tokens and len(finite) and finite.max() < _LEAST_TOKENS:
        raise InvalidValueError("tokens", float(finite.max()), "must count single tokens", remedy)


def _logged_schedule(points: pd.DataFrame, name: str, warmup: int | None) -> Schedule:
    """The LR through the logged points, from 0.

    Raises:
        SchemaError: no LR was logged.
        InvalidValueError: an LR that is missing or cannot be, or a warm-up beyond the first point.
    """
    if "lr" not in points.columns:
        raise SchemaError(
            f"run {name}", missing=["lr"], remedy="Log the LR, or give a table of the runs' schedules."
        )
    lrs = numbers(points["lr"]).to_numpy()
    tokens = points["tokens"].round().astype(np.int64).to_numpy()
    if not (np.isfinite(lrs) & (lrs >= 0)).all():
        row = int(np.argmin(np.isfinite(lrs) & (lrs >= 0)))
        raise InvalidValueError(f"lr of run {name}", float(lrs[row]), "must be a finite LR in every row")
    first = int(tokens[0])
    if warmup is not None and not 0 < warmup <= max(first, 1):
        raise InvalidValueError(
            "warmup", warmup, f"must lie before the first logged point of {name}, {first}"
        )
    start: Sequence[tuple[int, float]] = [] if first == 0 else [(0, float(lrs[0]))]
    if warmup is not None:
        start = [(0, 0.0), *([(warmup, float(lrs[0]))] if warmup < first else [])]
    knots = [*start, *zip(tokens.tolist(), lrs.tolist())]
    return from_points([at for at, _ in knots], [lr for _, lr in knots])
