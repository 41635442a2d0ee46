"""Which decay fraction and peak LR would a law choose, and how far off are its losses?

    python analysis/decay_grid.py --data DIR --json OUT [--figure PNG]

Reads the format of the lr_scheduling records (arXiv 2501.18965, 2405.18392), fits the default law on the
``fit`` and ``size_fit`` rows of each data set (one kernel for its model sizes) and predicts ``final_val_loss`` of
every other row. Defaults: evaluations beyond the burn-in, 12 per curve; the loss at the end of a run enters as
one more evaluation, less the constant by which the full validation set lies above the curve's. Intervals are
conformal: the errors of the decayed fit runs of the same model, which fall with a run's length, and beyond the
longest fitted run at least the law's own horizon. A model without
fit rows lies on the line through the other sizes of its data set; where there is none, the law of the data set
with most rows answers (``law_of``), shifted by the two data sets' difference on common sizes. Rows of a scheduler or
decay that is not known here are left out by name (``left_out``).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import parse_args, read_table, run, write_json

from decaylaws.errors import InvalidValueError
from decaylaws.laws.annealing import DEFAULT_LAW, LossCurve, ScheduleLaw
from decaylaws.laws.kit.draws import conformal_radius
from decaylaws.schedules import Schedule, constant, decay, warmup

RUN_COLUMNS = [
    "run_id",
    "dataset",
    "params",
    "tokens_per_step",
    "peak_lr",
    "scheduler",
    "decay_type",
    "decay_frac",
    "cos_final_lr",
    "warmup_steps",
    "total_steps",
    "final_val_loss",
    "use",
]
LABELS = ("run_id", "dataset", "scheduler", "decay_type", "use")
FIT_USES = ("fit", "size_fit")
WARMUP_START = 0.01  # of the peak, as the logged LRs show
COSINE_FLOOR = 0.1  # of the peak, where cos_final_lr does not say
SCHEDULERS = ("cos", "wsd")
SHAPES = {"linear": "linear", "sqrt": "1-sqrt"}
POINTS = 12
MIN_SCORES = 10
LEVEL = 0.9
GRID_DATASET, GRID_PARAMS = "slimpajama", (1.1e8, 1.4e8)


@dataclass(frozen=True)
class Scatter:
    """Error of a run's final loss around its law, falling with the run's length as the law's own terms do.

    Attributes:
        radius: nats that hold with probability ``LEVEL`` for a run of the longest fitted length.
        exponent: how the error falls with length.
    """

    radius: float
    exponent: float

    def at(self, length: float) -> float:
        """Radius for a length relative to the longest fitted one."""
        return self.radius * length**-self.exponent


@dataclass(frozen=True)
class Fitted:
    """A law of one data set, and how its losses become those of the full validation set.

    Attributes:
        law: fitted law.
        offsets: nats by which the full set lies above the curve's, by model.
        scatter: error of runs, by model where it has enough of them; the key ``""`` holds all models'.
    """

    law: ScheduleLaw
    offsets: dict[str, float]
    scatter: dict[str, Scatter]


def main() -> None:
    arguments = parse_args(__doc__ or "")
    runs = read_table(arguments.data, "runs.csv", RUN_COLUMNS, LABELS)
    curves = read_table(arguments.data, "curves.csv", ["run_id", "step", "val_loss"], LABELS)
    _check(runs)
    runs, left_out = _known(runs)
    points = dict(list(curves.groupby("run_id", sort=False)))
    fit_rows = runs[runs["use"].isin(FIT_USES)]
    laws = {
        str(name): _fit(rows, points)
        for name, rows in fit_rows.groupby("dataset", sort=False)
        if len(rows) > 1
    }
    if not laws:
        raise InvalidValueError(
            "use", sorted(set(runs["use"])), "must be 'fit' for at least 2 rows of a data set"
        )
    most = str(fit_rows["dataset"].value_counts().index[0])
    asked = runs[~runs["use"].isin(FIT_USES)]
    predictions = [_predict(row, laws, most) for row in asked.itertuples()]
    write_json(arguments.json, {**_summary(asked, predictions, laws), "left_out": left_out})
    for run_id, reason in left_out.items():
        print(f"left out {run_id}: {reason}")
    if arguments.figure:
        _draw(arguments.figure, asked, predictions)


def _check(runs: pd.DataFrame) -> None:
    for column in ("peak_lr", "total_steps", "tokens_per_step", "params", "final_val_loss"):
        bad = runs[~(np.isfinite(runs[column]) & (runs[column] > 0))]
        if len(bad):
            field = f"{column} of run {bad['run_id'].iloc[0]}"
            raise InvalidValueError(field, bad[column].iloc[0], "must be finite and positive")
    if runs["run_id"].duplicated().any():
        twice = runs.loc[runs["run_id"].duplicated(), "run_id"].iloc[0]
        raise InvalidValueError("run_id", twice, "must be unique")


def _known(runs: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """The rows whose schedule can be drawn, and the others by name with the reason."""
    left_out = {}
    for row in runs.itertuples():
        if row.scheduler not in SCHEDULERS:
            left_out[str(row.run_id)] = f"scheduler {row.scheduler!r} is not one of {', '.join(SCHEDULERS)}"
        elif row.scheduler == "wsd" and row.decay_frac > 0 and row.decay_type not in SHAPES:
            left_out[str(row.run_id)] = f"decay_type {row.decay_type!r} is not one of {', '.join(SHAPES)}"
    return runs[~runs["run_id"].astype(str).isin(left_out)], left_out


def _schedule(row: Any) -> Schedule:
    step = int(row.tokens_per_step)
    total, rise = int(row.total_steps) * step, int(row.warmup_steps) * step
    start = warmup(rise, row.peak_lr, start_lr=WARMUP_START * row.peak_lr)
    if row.scheduler == "cos":
        end = row.cos_final_lr if row.cos_final_lr > 0 else COSINE_FLOOR * row.peak_lr
        return start.then(decay(total - rise, row.peak_lr, end, "cosine"))
    length = min(round(row.decay_frac * total), total - rise)
    if total - rise > length:
        start = start.then(constant(total - rise - length, row.peak_lr))
    if length == 0:
        return start
    return start.then(decay(length, row.peak_lr, 0.0, SHAPES[row.decay_type]))


def _model(row: Any) -> str:
    return f"{row.dataset}/{int(row.params)}"


def _question(row: Any, loss: float | None = None) -> LossCurve:
    schedule = _schedule(row)
    losses = None if loss is None else np.array([loss])
    return LossCurve(str(row.run_id), schedule, [schedule.tokens], losses, _model(row), float(row.params))


def _curve(row: Any, points: pd.DataFrame | None, offset: float) -> LossCurve:
    """Evaluations after the warm-up, and the final loss in the curve's own units."""
    end = _question(row, row.final_val_loss - offset)
    if points is None:
        return end
    inside = points[(points["step"] > row.warmup_steps) & (points["step"] < row.total_steps)]
    return LossCurve(
        end.run_id,
        end.schedule,
        np.append(inside["step"].to_numpy(float) * row.tokens_per_step, end.tokens),
        np.append(inside["val_loss"].to_numpy(float), end.loss),
        end.model,
        end.params,
    )


def _fit(rows: pd.DataFrame, points: dict[Any, pd.DataFrame]) -> Fitted:
    """Fit one data set; then the constant and the error of a run are read off its own finals."""
    listed = list(rows.itertuples())
    raw: dict[str, list[float]] = {}
    for row in listed:
        gaps = raw.setdefault(_model(row), [])
        if row.run_id in points:
            gaps.append(row.final_val_loss - points[row.run_id]["val_loss"].iloc[-1])
    # A steep decay falls on after its last evaluation, which makes the gap look small: hence an upper quartile.
    offsets = {model: float(np.quantile(gaps, 0.75)) if gaps else 0.0 for model, gaps in raw.items()}
    law = DEFAULT_LAW(max_points=POINTS)
    law.fit([_curve(row, points.get(row.run_id), offsets[_model(row)]) for row in listed])
    return Fitted(law, offsets, _scatter(listed, law, offsets))


def _scatter(rows: list[Any], law: ScheduleLaw, offsets: dict[str, float]) -> dict[str, Scatter]:
    """Errors of decayed fit runs; a run that ends at its peak LR errs otherwise and is left out."""
    decayed = [row for row in rows if _schedule(row).end_lr < row.peak_lr] or rows
    models = np.array([_model(row) for row in decayed])
    errors = np.array([row.final_val_loss - offsets[_model(row)] for row in decayed])
    errors = np.abs(errors - law.predict([_question(row) for row in decayed]))
    lengths = np.array([_length(row, law) for row in decayed])
    found = {"": _fit_scatter(lengths, errors)}
    for model in np.unique(models):
        mine = models == model
        if mine.sum() >= MIN_SCORES:
            found[str(model)] = _fit_scatter(lengths[mine], errors[mine])
    return found


def _fit_scatter(lengths: np.ndarray, errors: np.ndarray) -> Scatter:
    exponent = 0.0
    if len(np.unique(lengths)) > 1 and len(errors) >= MIN_SCORES:
        slope = np.polyfit(np.log(lengths), np.log(errors + 0.1 * np.median(errors)), 1)[0]
        exponent = float(np.clip(-slope, 0.0, 1.5))
    return Scatter(conformal_radius(errors * lengths**exponent, LEVEL), exponent)


def _length(row: Any, law: ScheduleLaw) -> float:
    return row.total_steps * row.tokens_per_step / law.units_["token_unit"]


def _predict(row: Any, laws: dict[str, Fitted], most: str) -> dict[str, Any]:
    fitted, question, shift = _ask(row, laws, most)
    offset = fitted.offsets.get(_model(row), float(np.mean(list(fitted.offsets.values()))))
    found = fitted.law.predict([question], interval=LEVEL)
    below, above = found.mean[0] - found.lower[0], found.upper[0] - found.mean[0]
    scatter = fitted.scatter.get(_model(row))
    if scatter is None:  # too few runs of this model: what is not known of the law itself comes on top
        radius = fitted.scatter[""].at(_length(row, fitted.law))
        below, above = np.hypot(below, radius), np.hypot(above, radius)
    else:
        # errors of the fitted runs fall with length; those beyond the longest one grow with the distance from it
        beyond = fitted.law.horizon_.half_width({"tokens": question.tokens}, LEVEL)[0] * found.mean[0]
        below = above = max(scatter.at(_length(row, fitted.law)), beyond)
    predicted = found.mean[0] + shift + offset
    return {
        "run_id": row.run_id,
        "predicted": predicted,
        "lower": predicted - below,
        "upper": predicted + above,
        "observed": row.final_val_loss,
        "law_of": next(name for name, entry in laws.items() if entry is fitted),
        "model": question.model,
    }


def _ask(row: Any, laws: dict[str, Fitted], most: str) -> tuple[Fitted, LossCurve, float]:
    """The law that answers for a row, the question to it, and what to add to the answer.

    A data set's own law answers where it knows the model or several sizes. Otherwise the law with most rows does,
    and the two data sets' difference on the sizes that both have is added.
    """
    question = _question(row)
    own, other = laws.get(row.dataset), laws[most]
    if own is not None and _answers(own.law, question):
        return own, question, 0.0
    shift = [] if own is None else _differences(own, other, question)
    return other, question, float(np.mean(shift)) if shift else 0.0


def _answers(law: ScheduleLaw, question: LossCurve) -> bool:
    return question.model in law.models_ or len({name.split("/")[1] for name in law.models_}) > 1


def _differences(own: Fitted, other: Fitted, question: LossCurve) -> list[float]:
    """Difference of two data sets' final losses at the sizes that both were fitted on."""
    found = []
    for mine in own.law.models_:
        theirs = next((name for name in other.law.models_ if name.split("/")[1] == mine.split("/")[1]), None)
        if theirs is not None:
            here = own.law.predict([replace(question, model=mine, params=None)])[0] + own.offsets[mine]
            there = (
                other.law.predict([replace(question, model=theirs, params=None)])[0] + other.offsets[theirs]
            )
            found.append(float(here - there))
    return found


def _summary(
    asked: pd.DataFrame, predictions: list[dict[str, Any]], laws: dict[str, Fitted]
) -> dict[str, Any]:
    table = asked.assign(
        **{key: [entry[key] for entry in predictions] for key in ("predicted", "lower", "upper", "observed")}
    )
    table["error"] = (table["predicted"] - table["observed"]).abs()
    table["held"] = (table["lower"] <= table["observed"]) & (table["observed"] <= table["upper"])
    main_rows = table[table["use"] == "predict"]
    others = table[table["use"] != "predict"]
    return {
        "law": DEFAULT_LAW.__name__,
        "fits": {
            name: {
                "seconds": fitted.law.report_.seconds,
                "status": fitted.law.report_.sentence,
                "params": fitted.law.params_,
                "offsets": fitted.offsets,
                "scatter": {name: asdict(entry) for name, entry in fitted.scatter.items()},
            }
            for name, fitted in laws.items()
        },
        "predictions": predictions,
        "mae": main_rows["error"].mean() if len(main_rows) else None,
        "coverage_90": main_rows["held"].mean() if len(main_rows) else None,
        **_choice(main_rows),
        "groups": {
            str(use): {"mae": rows["error"].mean(), "coverage_90": rows["held"].mean()}
            for use, rows in others.groupby("use")
        },
    }


def _choice(table: pd.DataFrame) -> dict[str, Any]:
    """The linear decay that the law would run at the longest horizon, and what it costs to follow it."""
    grid = table[
        (table["dataset"] == GRID_DATASET)
        & table["params"].between(*GRID_PARAMS)
        & (table["scheduler"] == "wsd")
        & (table["decay_type"] == "linear")
        & (table["decay_frac"] > 0)
    ]
    grid = grid[grid["total_steps"] == grid["total_steps"].max()]
    if len(grid) == 0:
        return {"chosen": None, "regret": None}
    best = grid.loc[grid["predicted"].idxmin()]
    chosen = {key: best[key] for key in ("run_id", "decay_frac", "peak_lr")}
    return {"chosen": chosen, "regret": best["observed"] - grid["observed"].min()}


def _draw(path: Path, asked: pd.DataFrame, predictions: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    table = asked.assign(predicted=[entry["predicted"] for entry in predictions])
    table = table[(table["use"] == "predict") & (table["decay_type"] == "linear")]
    figure, axis = plt.subplots(figsize=(6, 4))
    for peak, rows in table[table["decay_frac"] > 0].groupby("peak_lr"):
        ordered = rows.sort_values("decay_frac")
        points = axis.plot(ordered["decay_frac"], ordered["final_val_loss"], "o", label=f"peak LR {peak:g}")
        axis.plot(ordered["decay_frac"], ordered["predicted"], "--", color=points[0].get_color())
    axis.set(
        xlabel="decay fraction", ylabel="final loss (nats/token)", title="points observed, dashed predicted"
    )
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run(main)
