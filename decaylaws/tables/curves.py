"""The loss curve under a schedule that was not run, from curves of runs that were, and the best decay of a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from decaylaws.errors import DecaylawsError, InvalidValueError
from decaylaws.io.values import AS_JSON
from decaylaws.laws.annealing import (
    LossCurve,
    MomentumLaw,
    MultiPowerLaw,
    ReducibleMultiPowerLaw,
    ScheduleLaw,
    held_out_folds,
    prediction_table,
    warmup_tokens,
)
from decaylaws.laws.annealing.optimum import Budget, best_decay, extrapolations, size_words
from decaylaws.laws.kit.compare import compare
from decaylaws.laws.kit.draws import coverage
from decaylaws.laws.kit.law import Prediction
from decaylaws.progress import Progress, silent
from decaylaws.runs.stated_schedules import stated_params
from decaylaws.schedules import SHAPES, Schedule
from decaylaws.search.certainty import LEVEL
from decaylaws.search.recommendation import Estimate
from decaylaws.tables.curve_reading import LossCurves

SCHEDULE_LAWS: Mapping[str, type[ScheduleLaw]] = {
    "reducible_multi_power": ReducibleMultiPowerLaw,
    "multi_power": MultiPowerLaw,
    "momentum": MomentumLaw,
}
"""Laws by name, the default first."""

DECAY_SHAPES = ("linear", "1-sqrt", "cosine")
QUESTION = "asked"
"""Name of the curve that is asked for, in the table of predictions."""

_POINTS = 200  # of the predicted curve


@dataclass(frozen=True)
class BestDecay:
    """The best decay of a budget, among warm-up, constant LR and one decay.

    Attributes:
        schedule: the whole schedule.
        shape: of the decay.
        decay_tokens: length of the decay.
        decay_fraction: the same as a share of what comes after the warm-up.
        near_optimal: decay fractions that are as good within what two seeds differ by.
        final_loss: predicted at the end, nats per token.
        gain_over_cosine: what it gains on a cosine to the same LR.
        gain_over_linear_20: what it gains on a linear decay over the last fifth.
        notes: in what respects it leaves the range of the fitted curves.
    """

    schedule: Schedule = field(metadata={AS_JSON: str})
    shape: str
    decay_tokens: int
    decay_fraction: float
    near_optimal: tuple[float, float] | None
    final_loss: Estimate
    gain_over_cosine: Estimate
    gain_over_linear_20: Estimate
    notes: tuple[str, ...]


@dataclass(frozen=True)
class CurvePrediction:
    """What a schedule law says of a schedule, and how far it was off where that is known.

    Attributes:
        schedule: what was asked for, if anything was.
        final_loss: its predicted final loss with a 90 % interval, nats per token.
        points: ``run_id``, ``tokens``, ``observed``, ``predicted``, ``lower``, ``upper`` of the curve that was asked
            for and of the runs that were predicted and not fitted.
        errors: of every run that was predicted and not fitted: ``run``, ``mae``, ``rmse``, ``worst_relative_error``,
            ``final_error`` (predicted minus observed), ``coverage_90``.
        held_out: error of this law and others on fitted curves that were left out one at a time, where there are
            enough of them: ``law``, ``left_out``, ``mae``, ``worst``, the best law first.
        best: the best decay of a budget, if it was asked for.
        law: name of the law.
        parameters: its fitted parameters.
        fitted: names of the fitted runs.
        model: the model whose schedule or budget was asked for; None where the curves hold several and nothing was.
        params: its non-embedding parameters, where they are known.
        unit: what schedules count, ``tokens`` or ``steps``.
        excluded: runs that were left out, with the reason.
        notes: sentences for the reader.
    """

    schedule: Schedule | None = field(metadata={AS_JSON: lambda value: None if value is None else str(value)})
    final_loss: Estimate | None
    points: pd.DataFrame
    errors: pd.DataFrame
    held_out: pd.DataFrame
    best: BestDecay | None
    law: str
    parameters: Mapping[str, object]
    fitted: tuple[str, ...]
    model: str | None
    params: float | None
    unit: str
    excluded: pd.DataFrame
    notes: tuple[str, ...]


def predict_curve(
    curves: LossCurves,
    *,
    schedule: Schedule | None = None,
    unfitted: Sequence[str] = (),
    budget: int | None = None,
    peak_lr: float | None = None,
    warmup: int | None = None,
    end_lr: float | None = None,
    shapes: Sequence[str] = DECAY_SHAPES,
    law: str = "reducible_multi_power",
    model: str | None = None,
    progress: Progress = silent,
) -> CurvePrediction:
    """Fit a schedule law on loss curves, and predict other schedules with it.

    Args:
        curves: what :func:`~decaylaws.tables.read_loss_curves` read.
        schedule: the schedule that was not run, in the curves' unit.
        unfitted: names of runs that are predicted and not fitted: how far the law is off on them is known.
        budget: tokens (or steps) of a whole run, warm-up included, for which the best decay is looked for.
        peak_lr: LR after the warm-up of the budget's run; that of ``schedule``, else the highest of the curves.
        warmup: its warm-up; that of ``schedule``, else the longest of the curves.
        end_lr: lowest LR that its decay may reach; by default the lowest that the fitted curves reached.
        shapes: shapes of the decay to choose from.
        law: one of :data:`SCHEDULE_LAWS`.
        model: the model to predict, where the curves hold several; or a size such as ``1.4B`` that was not fitted,
            where the sizes of the fitted models are known.
        progress: told of the stages.

    Raises:
        InvalidValueError: an unknown law, run, model or shape, nothing to predict, or curves that cannot tell progress
            from annealing.
    """
    _check(curves, schedule, unfitted, budget, shapes, law)
    fit = [curve for curve in curves.curves if curve.run_id not in unfitted]
    left_out = [curve for curve in curves.curves if curve.run_id in unfitted]
    if warmup is None:
        warmup = max(map(warmup_tokens, [schedule] if schedule else [each.schedule for each in fit]))
    if budget is not None and budget <= warmup:
        raise InvalidValueError(
            "budget", budget, f"must be longer than the warm-up, {warmup:,} {curves.unit}",
            "Give a longer budget, or a shorter warm-up (--warmup).",
        )  # fmt: skip
    progress("fit", 0, 1)
    fitted = SCHEDULE_LAWS[law]().fit(fit)
    progress("fit", 1, 1)
    asked_model, asked_params = None, None
    if schedule is not None or budget is not None or model is not None or len(fitted.models_) == 1:
        asked_model, asked_params = _model(fitted, model)
    other_size = None if asked_model in fitted.models_ else asked_params
    questions = list(left_out)
    if schedule is not None and asked_model is not None:
        first = max(warmup_tokens(schedule), 1)
        at = np.unique(np.linspace(first, schedule.tokens, _POINTS).round())
        questions.insert(0, LossCurve(QUESTION, schedule, at, model=asked_model, params=asked_params))
    points = pd.DataFrame(columns=["run_id", "tokens", "observed", "predicted", "lower", "upper"])
    if questions:
        points = prediction_table(fitted, questions, interval=LEVEL)
    final = None
    if schedule is not None:
        end = points[points["run_id"] == QUESTION].iloc[-1]
        final = Estimate(*(float(end[name]) for name in ("predicted", "lower", "upper")))
    best = None
    if budget is not None and asked_model is not None:
        progress("best decay", 0, 1)
        highest = schedule.peak_lr if schedule else max(each.schedule.peak_lr for each in fit)
        lowest = float(f"{fitted.evidence_.lowest_end:.3g}") if end_lr is None else end_lr
        asked = Budget(budget, peak_lr or highest, warmup, lowest, asked_model, asked_params)
        best = _best(fitted, asked, shapes)
        progress("best decay", 1, 1)
    notes = [*curves.notes, fitted.report_.status.sentence]
    if schedule is not None:
        notes += extrapolations(fitted, schedule, other_size)
    others = {curve.params for curve in left_out if curve.params and curve.model not in fitted.models_} - {
        other_size
    }
    notes += [size_words(fitted, params) for params in sorted(others)]
    held_out = _held_out(fit, law, progress)
    notes += _held_out_notes(held_out, law)
    return CurvePrediction(
        schedule=schedule,
        final_loss=final,
        points=points,
        errors=pd.DataFrame([_errors(fitted, curve) for curve in left_out], columns=list(_ERRORS)),
        held_out=held_out,
        best=best,
        law=law,
        parameters=fitted.params_,
        fitted=tuple(curve.run_id for curve in fit),
        model=asked_model,
        params=asked_params,
        unit=curves.unit,
        excluded=curves.excluded,
        notes=tuple(notes),
    )  # fmt: skip


_ERRORS = ("run", "mae", "rmse", "worst_relative_error", "final_error", "coverage_90")


def _check(
    curves: LossCurves,
    schedule: Schedule | None,
    unfitted: Sequence[str],
    budget: int | None,
    shapes: Sequence[str],
    law: str,
) -> None:
    """Refuse a question that no fit would answer."""
    if law not in SCHEDULE_LAWS:
        raise InvalidValueError("law", law, f"must be one of {list(SCHEDULE_LAWS)}")
    unknown = [name for name in unfitted if name not in curves.names]
    if unknown:
        raise InvalidValueError("unfitted", unknown[0], f"must be one of the runs {', '.join(curves.names)}")
    if schedule is None and budget is None and not unfitted:
        raise InvalidValueError(
            "schedule",
            None,
            "must be given",
            "Or give a budget, or the name of a run to leave out of the fit.",
        )
    if all(curve.run_id in unfitted for curve in curves.curves):
        raise InvalidValueError("unfitted", list(unfitted), "must leave a curve to fit")
    unknown = [shape for shape in shapes if shape not in SHAPES]
    if unknown or not shapes:
        raise InvalidValueError("shapes", unknown or list(shapes), f"must be among {list(SHAPES)}")


def _model(law: ScheduleLaw, model: str | None) -> tuple[str, float | None]:
    """The model that is asked for, and its parameters where they are known."""
    if model is None and len(law.models_) == 1:
        model = law.models_[0]
    if model in law.models_:
        return model, law.sizes_.get(model)
    params = None if model is None else stated_params(model)
    same = [name for name, size in law.sizes_.items() if size == params]
    if len(same) == 1:  # .1B where the curves say 100M
        return same[0], params
    if model is None or params is None or not law.sizes_:
        remedy = (
            "A size that was not fitted can be asked for too, such as 1.4B."
            if law.sizes_
            else "Another size can be predicted where the sizes of the fitted models are known: name them by their "
            "size (25M), or give the table a column 'params'."
        )
        raise InvalidValueError("model", model, f"must be one of the fitted models {law.models_}", remedy)
    return model, params


def _errors(law: ScheduleLaw, curve: LossCurve) -> dict[str, object]:
    found = law.predict([curve], interval=LEVEL)
    error = found.mean - curve.observed
    return {
        "run": curve.run_id,
        "mae": float(np.mean(np.abs(error))),
        "rmse": float(np.sqrt(np.mean(error**2))),
        "worst_relative_error": float(np.max(np.abs(error) / curve.observed)),
        "final_error": float(error[-1]),
        "coverage_90": coverage(found, curve.observed),
    }


def _held_out(fit: Sequence[LossCurve], law: str, progress: Progress) -> pd.DataFrame:
    """Errors on curves that were left out, by the chosen law and the others."""
    columns, folds = ["law", "left_out", "mae", "worst"], held_out_folds(fit)
    parts = []
    for done, fold in enumerate(folds):
        progress("left-out curves", done, len(folds))
        try:
            parts.append(compare({name: kind() for name, kind in SCHEDULE_LAWS.items()}, [fold]))
        except DecaylawsError:  # what is left does not identify any law
            continue
    if not parts:
        return pd.DataFrame(columns=columns)
    progress("left-out curves", len(folds), len(folds))
    found = pd.concat(parts, ignore_index=True).rename(columns={"fold": "left_out"})
    order = found.groupby("law")["mae"].transform("mean")
    return (
        found.assign(order=order).sort_values(["order", "law"], kind="stable")[columns].reset_index(drop=True)
    )


def _held_out_notes(held_out: pd.DataFrame, law: str) -> list[str]:
    """How far the law errs on left-out curves, and whether another law errs less."""
    if held_out.empty:
        return [
            "There are too few curves to leave one out of the fit: the law's error on such runs was not measured."
        ]
    errors = held_out.groupby("law", sort=False)["mae"].mean()
    said = [f"On curves that were left out of the fit '{law}' errs by {errors[law]:.4f} nats on average."]
    if errors.index[0] != law:
        said.append(
            f"'{errors.index[0]}' errs by {errors.iloc[0]:.4f} nats there, less than '{law}'. "
            f"Compare its prediction with --law {errors.index[0]}."
        )
    return said


def _best(law: ScheduleLaw, budget: Budget, shapes: Sequence[str]) -> BestDecay:
    found = best_decay(law, budget, shapes=shapes, level=LEVEL)
    last = found.schedule.segments[-1]
    return BestDecay(
        schedule=found.schedule,
        shape=last.shape,
        decay_tokens=last.tokens,
        decay_fraction=last.tokens / (budget.tokens - budget.warmup_tokens),
        near_optimal=found.near_optimal,
        final_loss=_estimate(found.loss),
        gain_over_cosine=_estimate(found.gain_over_cosine),
        gain_over_linear_20=_estimate(found.gain_over_wsd20),
        notes=found.extrapolations,
    )


def _estimate(found: Prediction) -> Estimate:
    return Estimate(float(found.mean[0]), float(found.lower[0]), float(found.upper[0]))
