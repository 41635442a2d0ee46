"""The best schedule under a law: a decay length and shape, stages, or a free monotone curve.

A law is only as good near its optimum as the curves that it was fitted on: peak LRs, floors and horizons
outside the fitted range are the caller's choice and are reported as extrapolations, never taken silently.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, minimize_scalar

from decaylaws.errors import InvalidValueError
from decaylaws.laws.annealing import LossCurve, LrPath, ScheduleLaw, knot_path
from decaylaws.laws.kit.draws import quantile_interval
from decaylaws.laws.kit.law import Array, Prediction
from decaylaws.schedules import Schedule, cosine, from_points, multi_step, warmup, warmup_stable_decay
from decaylaws.schedules.quantities import round_tokens

FLAT_NATS = 1e-3  # what two seeds of one run differ by: schedules this near the optimum are as good
_FRACTIONS = np.array([0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
_KNOTS = 40


@dataclass(frozen=True)
class Budget:
    """What a schedule has to fill.

    Attributes:
        tokens: length, warm-up included.
        peak_lr: LR after the warm-up.
        warmup_tokens: tokens of the linear warm-up.
        floor_lr: lowest LR that a decay may reach.
        model: model to optimise for; the law's last fitted one by default.
        params: its parameters, where it was not fitted.
    """

    tokens: int
    peak_lr: float
    warmup_tokens: int = 0
    floor_lr: float = 0.0
    model: str | None = None
    params: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_tokens < self.tokens:
            raise InvalidValueError("warmup_tokens", self.warmup_tokens, f"must be below {self.tokens}")
        if not 0 <= self.floor_lr < self.peak_lr:
            raise InvalidValueError("floor_lr", self.floor_lr, f"must be below peak_lr ({self.peak_lr})")

    def wsd(self, fraction: float, shape: str = "linear") -> Schedule:
        """Warm-up, constant, and a decay over a fraction of the tokens after the warm-up."""
        length = max(round(fraction * (self.tokens - self.warmup_tokens)), 1)
        return warmup_stable_decay(
            self.tokens,
            self.peak_lr,
            warmup_tokens=self.warmup_tokens,
            decay_tokens=length,
            end_lr=self.floor_lr,
            shape=shape,
        )

    def cosine(self) -> Schedule:
        """Warm-up, then half a cosine to the floor."""
        return cosine(self.tokens, self.peak_lr, warmup_tokens=self.warmup_tokens, end_lr=self.floor_lr)


@dataclass(frozen=True)
class ScheduleOptimum:
    """The best schedule of a family, and what it is worth.

    Attributes:
        schedule: the schedule.
        loss: predicted final loss with interval, shape ``[1]``.
        gain_over_cosine: loss saved against cosine with the same peak and floor, nats per token, shape
            ``[1]``.
        gain_over_wsd20: the same against a linear decay over the last 20 %.
        near_optimal: lowest and highest value of the family's main variable (decay fraction) within
            ``FLAT_NATS`` of the optimum; None where the family has no such variable.
        extrapolations: in what respects the schedule leaves the fitted range, one sentence each.
        seconds: wall-clock time of the search.
    """

    schedule: Schedule
    loss: Prediction
    gain_over_cosine: Prediction
    gain_over_wsd20: Prediction
    near_optimal: tuple[float, float] | None
    extrapolations: tuple[str, ...]
    seconds: float


def best_decay(
    law: ScheduleLaw,
    budget: Budget,
    *,
    shapes: Sequence[str] = ("linear", "1-sqrt", "cosine"),
    level: float = 0.9,
) -> ScheduleOptimum:
    """Best decay fraction and shape of a warm-up-stable-decay schedule.

    Args:
        law: fitted law.
        budget: tokens, peak LR and floor.
        shapes: names of the decay shapes to choose from.
        level: level of the intervals.
    """
    if not shapes:
        raise InvalidValueError("shapes", shapes, "must name at least one decay shape")
    began = time.perf_counter()
    found = [_best_fraction(law, budget, shape) for shape in shapes]
    fraction, _, near, shape = min(found, key=lambda entry: entry[1])
    return _report(law, budget, budget.wsd(fraction, shape), near, level, began)


def best_steps(law: ScheduleLaw, budget: Budget, *, stages: int = 3, level: float = 0.9) -> ScheduleOptimum:
    """Best multi-step schedule: when to drop, and by how much.

    Args:
        law: fitted law.
        budget: tokens, peak LR and floor.
        stages: constant stages, the first at the peak.
        level: level of the intervals.
    """
    if stages < 2:
        raise InvalidValueError("stages", stages, "must be at least 2")
    began = time.perf_counter()
    drops = stages - 1

    def schedule(theta: Array) -> Schedule:
        left = (budget.tokens - budget.warmup_tokens) * np.cumprod(1 - theta[:drops])
        milestones = (budget.tokens - left).round().astype(int)
        lrs = budget.floor_lr + (budget.peak_lr - budget.floor_lr) * np.cumprod(theta[drops:])
        unique = np.concatenate([[True], np.diff(milestones) > 0]) & (milestones < budget.tokens)
        lrs_all = [budget.peak_lr, *lrs[unique].tolist()]
        return multi_step(
            budget.tokens, lrs_all, milestones[unique].tolist(), warmup_tokens=budget.warmup_tokens
        )

    start = np.concatenate([[0.7], np.full(drops - 1, 0.5), np.full(drops, 0.4)])
    found = minimize(
        lambda theta: _loss(law, budget, schedule(np.clip(theta, 0.02, 0.98))),
        start,
        method="Nelder-Mead",
        bounds=[(0.02, 0.98)] * (2 * drops),
        options={"xatol": 1e-3, "fatol": 1e-6, "maxfev": 400 * drops},
    )
    return _report(law, budget, schedule(np.clip(found.x, 0.02, 0.98)), None, level, began)


def best_curve(
    law: ScheduleLaw, budget: Budget, *, knots: int = _KNOTS, level: float = 0.9
) -> ScheduleOptimum:
    """Best non-increasing curve: linear between knots that lie denser towards the end, or in steps.

    The loss has several local optima, smooth ones and stepwise ones: the search starts from the best of each
    family, and keeps a family's own schedule where 40 knots cannot express it as well.

    Args:
        law: fitted law.
        budget: tokens, peak LR and floor.
        knots: number of knots after the warm-up.
        level: level of the intervals.
    """
    began = time.perf_counter()
    span, above = budget.tokens - budget.warmup_tokens, budget.peak_lr - budget.floor_lr
    left = span * (1 - np.linspace(0, 1, knots + 1)) ** 2
    places = np.unique((budget.tokens - left).round().astype(np.int64))

    def lrs(ratios: Array) -> Array:
        return budget.floor_lr + above * np.concatenate([[1.0], np.cumprod(ratios)])

    def objective(ratios: Array) -> float:
        path = _with_warmup(budget, places.astype(float), lrs(ratios), law.units_)
        return float(law.predict_path(path, model=budget.model, params=budget.params)[0])

    candidates = [best_decay(law, budget, shapes=[shape]).schedule for shape in ("linear", "1-sqrt")]
    candidates.append(best_steps(law, budget).schedule)
    starts = [_ratios((rival.lr(places[1:]) - budget.floor_lr) / above) for rival in candidates]
    for start in starts:
        curve = from_points(places - budget.warmup_tokens, lrs(_descend(objective, start)))
        rise = budget.warmup_tokens
        candidates.append(warmup(rise, budget.peak_lr).then(curve) if rise else curve)
    best = min(candidates, key=lambda schedule: _loss(law, budget, schedule))
    return _report(law, budget, best, None, level, began)


def _with_warmup(budget: Budget, places: Array, lrs: Array, units: Mapping[str, float]) -> LrPath:
    if budget.warmup_tokens == 0:
        return knot_path(places, lrs, **units)
    return knot_path(np.concatenate([[0.0], places]), np.concatenate([[0.0], lrs]), **units)


def _descend(objective: Callable[[Array], float], start: Array) -> Array:
    bounds = [(1e-3, 1.0)] * len(start)
    found = minimize(
        objective,
        start,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 300, "maxfun": 10**5, "ftol": 1e-13},
    )
    return np.asarray(found.x, dtype=float)


def _ratios(values: Array) -> Array:
    """Each LR over the one before, both above the floor; the first one before is the peak."""
    kept = np.maximum(values, 1e-3)
    return np.clip(kept / np.concatenate([[1.0], kept[:-1]]), 1e-3, 1.0)


def _loss(law: ScheduleLaw, budget: Budget, schedule: Schedule) -> float:
    return float(law.predict_loss(schedule, model=budget.model, params=budget.params)[0])


def _best_fraction(
    law: ScheduleLaw, budget: Budget, shape: str
) -> tuple[float, float, tuple[float, float], str]:
    """Best decay fraction of a shape, its loss, and the fractions that are as good."""
    losses = np.array([_loss(law, budget, budget.wsd(fraction, shape)) for fraction in _FRACTIONS])
    at = int(np.argmin(losses))
    low, high = _FRACTIONS[max(at - 1, 0)], _FRACTIONS[min(at + 1, len(_FRACTIONS) - 1)]
    found = minimize_scalar(
        lambda fraction: _loss(law, budget, budget.wsd(fraction, shape)), bounds=(low, high), method="bounded"
    )
    fraction, loss = (found.x, found.fun) if found.fun < losses[at] else (_FRACTIONS[at], losses[at])
    fine = np.linspace(_FRACTIONS[0], 1.0, 200)
    near = fine[np.interp(fine, _FRACTIONS, losses) <= loss + FLAT_NATS]
    limits = (
        (min(float(near.min()), fraction), max(float(near.max()), fraction)) if len(near) else (fraction,) * 2
    )
    return float(fraction), float(loss), limits, shape


def _report(
    law: ScheduleLaw,
    budget: Budget,
    schedule: Schedule,
    near: tuple[float, float] | None,
    level: float,
    began: float,
) -> ScheduleOptimum:
    seconds = time.perf_counter() - began
    rivals = [schedule, budget.cosine(), budget.wsd(0.2)]
    model = budget.model or law.models_[-1]
    questions = [
        LossCurve("question", rival, np.array([float(rival.tokens)]), model=model, params=budget.params)
        for rival in rivals
    ]
    mean, draws = law.predict(questions), law.predict_draws(questions)
    over_cosine, over_wsd = (
        quantile_interval(mean[[i]] - mean[[0]], draws[:, [i]] - draws[:, [0]], level) for i in (1, 2)
    )
    loss = law.predict(questions[:1], interval=level)
    notes = extrapolations(law, schedule, None if model in law.models_ else budget.params)
    return ScheduleOptimum(schedule, loss, over_cosine, over_wsd, near, notes, seconds)


def extrapolations(law: ScheduleLaw, schedule: Schedule, params: float | None = None) -> tuple[str, ...]:
    """In what respects a schedule leaves the range that the law was fitted on, one sentence each.

    Args:
        law: fitted law.
        schedule: the schedule that is predicted.
        params: parameters of its model, where that was not fitted.
    """
    seen = law.evidence_
    notes = [] if params is None else [size_words(law, params)]
    if schedule.tokens > 1.05 * seen.longest_tokens:
        ratio = schedule.tokens / seen.longest_tokens
        notes.append(f"The horizon is {ratio:.2g} times the longest one fitted.")
    if not 0.999 * seen.lowest_peak <= schedule.peak_lr <= 1.001 * seen.highest_peak:
        notes.append(
            f"The peak LR {schedule.peak_lr:.3g} lies outside those fitted, "
            f"{seen.lowest_peak:.3g} to {seen.highest_peak:.3g}."
        )
    if schedule.end_lr < 0.999 * seen.lowest_end:
        notes.append(
            f"The end LR {schedule.end_lr:.3g} lies below the lowest one fitted, {seen.lowest_end:.3g}."
        )
    return tuple(notes)


def size_words(law: ScheduleLaw, params: float) -> str:
    """Where a size that was not fitted lies among the fitted ones, and how far the law errs at such sizes."""
    sizes = sorted(law.sizes_.values())
    asked, smallest, largest = (round_tokens(round(size)) for size in (params, sizes[0], sizes[-1]))
    if params > sizes[-1]:
        where = f"outside the fitted sizes: it is {params / sizes[-1]:.3g} times the largest, {largest}"
    elif params < sizes[0]:
        where = f"outside the fitted sizes: it is {params / sizes[0]:.2g} of the smallest, {smallest}"
    else:
        where = f"between the fitted sizes, {smallest} to {largest}, and was not fitted itself"
    return f"The size of {asked} parameters lies {where}. {_size_error_words(law, params)}"


def _size_error_words(law: ScheduleLaw, params: float) -> str:
    """How far the law errs at sizes that it was not fitted on, as far as the fitted ones can tell."""
    reach = next((each for each in law.horizon_.reaches if each.axis == "size"), None)
    if reach is None or not reach.origins:
        wanted = " and ".join(round_tokens(round(size)) for size in reach.wanted) if reach else ""
        why = (
            f"two sizes to fit and one to predict are needed. Curves of {wanted} parameters would measure it"
            if wanted
            else "no fit to the smaller sizes alone was made"
        )
        return (
            f"The law's error at other sizes was not measured: {why}. The interval rests on how the fitted sizes "
            "differ and on published slopes."
        )
    said = (
        f"Fitted to the smaller sizes, the law errs by {100 * reach.error:.1f} % of the final loss at up to "
        f"{reach.factor:.2g} times the largest of them."
    )
    far = params / reach.high > reach.factor
    return f"{said} No fitted size tests it as far out as this one." if far else said
