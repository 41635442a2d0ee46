"""The estimator behind every schedule law: fit curves of one or several models, predict any schedule."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Self, overload

import numpy as np
from numpy.typing import ArrayLike

from decaylaws.errors import InvalidValueError
from decaylaws.laws.annealing.curves import LossCurve, LrPath, reference_units, warmup_tokens
from decaylaws.laws.annealing.descent import NOISE, Cut, FittedCurves, Models
from decaylaws.laws.annealing.evidence import Evidence, check_curves, evidence_of, spread_out
from decaylaws.laws.annealing.family import PER_MODEL, Family
from decaylaws.laws.annealing.sizes import OwnParameters, at_size
from decaylaws.laws.annealing.transient import Transient, fit_transient
from decaylaws.laws.kit.draws import one_step_draws, quantile_interval
from decaylaws.laws.kit.horizon import LEAST_STEPS, ONE_SD, Horizon
from decaylaws.laws.kit.law import Array, Law, Prediction
from decaylaws.laws.kit.rolling import SAME_STEP, BoolArray, rolled, rolling_origins, steps_of
from decaylaws.laws.kit.solver import Solution
from decaylaws.schedules import Schedule

_STRETCHES = 8
_MAX_DRAW_POINTS = 64
_OTHER_SIZE = 1.1  # ratio of sizes


class ScheduleLaw(Law):
    """Loss under any LR schedule, fitted on loss curves.

    The first ``burn_in`` of the longest LR integral of each model is left out of the main fit: what remains
    of the initialisation there is no power law, and fitting it biases the horizon. A decaying transient is
    added for it afterwards, so that early predictions are right too.

    Args:
        burn_in: share of the longest progress that only the transient describes.
        max_points: evaluations of one curve that enter the fit: neighbours say the same thing twice.
        run_sd: relative offset of a whole run that seeds and data order cause (published repeats differ by up to
            0.002 nats, three standard deviations); few runs cannot show it, so it is a setting.
        num_draws: draws behind intervals.
        seed: seed of the draws.
        origin_fits: refits to shorter curves, and to smaller models, that say how far the law errs beyond its fit. They
            are made where there are three lengths, or three sizes; 0 does without them.

    Attributes:
        params_: shared parameters by name, and ``models``: parameters of every model by name.
        report_: diagnosis of the fit.
        units_: LR and tokens that count as one, ``lr_unit`` and ``token_unit``.
        models_: names of the fitted models.
        evidence_: range of the schedules that were fitted.
        draws_: parameters under re-weighted runs and priors, shape ``[num_draws, p]``.
        horizon_: errors of final losses by distance beyond the fitted lengths and sizes; intervals there are at least
            as wide.

    Example::

        law = MultiPowerLaw().fit(curves)
        law.predict([LossCurve("new", schedule, [schedule.tokens])], interval=0.9)
    """

    def __init__(
        self,
        *,
        burn_in: float = 0.2,
        max_points: int = 40,
        run_sd: float = 2.5e-4,
        num_draws: int = 200,
        seed: int = 0,
        origin_fits: int = 1,
    ) -> None:
        self.burn_in = burn_in
        self.run_sd = run_sd
        self.max_points = max_points
        self.num_draws = num_draws
        self.seed = seed
        self.origin_fits = origin_fits

    @abstractmethod
    def _family(self) -> Family:
        """The terms of the law."""

    def fit(self, X: Sequence[LossCurve], y: Any = None) -> Self:
        """Fit on loss curves.

        Args:
            X: curves with losses; several models share the kernel. One curve is enough where it holds its LR and
                then lets it fall.
            y: unused, for scikit-learn.

        Raises:
            InvalidValueError: one schedule that does not tell progress from annealing, no curve in which the LR
                falls, a curve without losses, or fewer points than parameters.
        """
        if not 0 <= self.burn_in < 1:
            raise InvalidValueError("burn_in", self.burn_in, "must lie in [0, 1)")
        if self.num_draws < 1:
            raise InvalidValueError("num_draws", self.num_draws, "must be at least 1")
        if self.max_points < 1:
            raise InvalidValueError("max_points", self.max_points, "must be at least 1")
        if not self.run_sd >= 0:
            raise InvalidValueError("run_sd", self.run_sd, "must not be negative")
        if self.origin_fits < 0:
            raise InvalidValueError("origin_fits", self.origin_fits, "must not be negative")
        curves = check_curves(X, self.burn_in)
        self.units_ = dict(zip(("lr_unit", "token_unit"), reference_units(curves)))
        self.models_ = list(dict.fromkeys(curve.model for curve in curves))
        self.evidence_ = evidence_of(curves)
        sizes = {curve.model: curve.params for curve in curves}
        self._sizes = sizes if all(sizes.values()) else dict.fromkeys(sizes)
        cut = Cut.of(self._models, curves, self.burn_in, self.max_points)
        fitted = FittedCurves.of(cut, curves)
        solution = fitted.solve()
        self._take(solution.theta)
        self.report_ = solution.report
        self.draws_ = self._draws(solution, fitted)
        self.transients_ = {
            model: fit_transient(*self._early(curves, cut, model), scale=end / 4 if end > 0 else 1.0)
            for model, end in cut.progress.items()
        }
        # relative offset of a whole run from the law, at least what seeds and data order do
        edges = np.cumsum([len(each.log_loss) for each in fitted.curves])[:-1]
        offsets = np.array([np.median(part) for part in np.split(solution.residuals, edges)])
        self.run_sd_ = float(max(np.sqrt(np.mean(offsets**2)), self.run_sd))
        self.horizon_ = self._measured_horizon(curves)
        return self

    @overload  # type: ignore[override]  # narrower than the base, which does not say what it returns
    def predict(self, X: Sequence[LossCurve], interval: None = None) -> Array: ...

    @overload
    def predict(self, X: Sequence[LossCurve], interval: float) -> Prediction: ...

    def predict(self, X: Sequence[LossCurve], interval: float | None = None) -> Array | Prediction:
        """Loss at every evaluation of every curve, one after the other, in nats per token.

        Args:
            X: curves; their losses, if any, are not looked at. A model that was not fitted is predicted from its
                ``params``, if the fitted curves have theirs; see :mod:`decaylaws.laws.annealing.sizes`.
            interval: level of the interval, such as 0.9.
        """
        self._require_fitted()
        paths = [self._models.path(curve) for curve in X]
        mean = np.concatenate(
            [self.predict_path(path, model=curve.model, params=curve.params) for path, curve in zip(paths, X)]
        )
        if interval is None:
            return mean
        rng = np.random.default_rng(self.seed)
        offsets = [rng.normal(size=(len(self.draws_), 1)).repeat(len(path.progress), 1) for path in paths]
        noise = 1 + self.run_sd_ * np.concatenate(offsets, axis=1)
        found = quantile_interval(mean, self.predict_draws(X) * noise, interval)
        asked = {"tokens": np.concatenate([np.asarray(curve.tokens, dtype=float) for curve in X])}
        if all(self._sizes.values()):
            sizes = [float(self._params_of(curve) or 1.0) for curve in X]  # no size given: a fitted model's
            asked["size"] = np.repeat(sizes, [len(curve.tokens) for curve in X])
        return self.horizon_.widen(found, asked)

    def predict_draws(self, X: Sequence[LossCurve]) -> Array:
        """Predictions under every draw of the parameters, shape ``[num_draws, n]``, without the noise of runs.

        Differences between schedules are taken draw by draw, so that what they share cancels. Draws are carried
        through the law's derivatives: they stem from one linear step, which exact values would not honour in
        directions that the data leave open. On long curves they are interpolated between 64 evaluations.
        """
        self._require_fitted()
        return np.concatenate([self._curve_draws(curve) for curve in X], axis=1)

    def _curve_draws(self, curve: LossCurve) -> Array:
        few = curve.select(spread_out(len(curve.tokens), _MAX_DRAW_POINTS))
        own = self._own_parameters(curve.model, curve.params)
        _, by_shared, by_own = self._models.evaluate(
            self._models.path(few), self._params_of(curve), own, self._theta
        )
        slopes = np.concatenate([by_shared, by_own @ own.matrix, by_own @ own.spread], axis=1)
        # schedules of one model share what is not known of it
        rng = np.random.default_rng([self.seed, int(self._params_of(curve) or 0)])
        unknown = rng.normal(size=(len(self.draws_), own.spread.shape[1]))
        deviations = np.hstack([self.draws_ - self._theta, unknown]) @ slopes.T
        return self.predict([curve]) + np.array(
            [np.interp(curve.tokens, few.tokens, row) for row in deviations]
        )

    @property
    def sizes_(self) -> dict[str, float]:
        """Parameters of every fitted model by name; empty unless all of them are known."""
        self._require_fitted()
        return {model: size for model, size in self._sizes.items() if size}

    def predict_loss(
        self,
        schedule: Schedule,
        *,
        model: str | None = None,
        tokens: ArrayLike | None = None,
        params: float | None = None,
    ) -> Array:
        """Loss under a schedule, at its end or at ``tokens`` ``[n]``; of the last fitted model by default.

        Args:
            schedule: LR over tokens.
            model: one of the fitted models, or the name of another one; the last one if ``None``.
            tokens: positions at which to predict [n]; the end of the schedule if ``None``.
            params: parameters of a model that was not fitted.
        """
        self._require_fitted()
        at = np.asarray(schedule.tokens if tokens is None else tokens, dtype=float)
        question = LossCurve("question", schedule, at, model=model or self.models_[-1], params=params)
        return np.asarray(self.predict([question]))

    def predict_path(self, path: LrPath, *, model: str | None = None, params: float | None = None) -> Array:
        """Loss at the evaluations ``[n]`` of a path made in :attr:`units_`: the inner loop of searches."""
        name = model or self.models_[-1]
        own = self._own_parameters(name, params)
        value, _, _ = self._models.evaluate(path, self._sizes.get(name, params), own, self._theta)
        transient = self.transients_.get(name)
        return value if transient is None else value + transient.value(path.progress)

    def param_intervals(self, level: float = 0.9) -> dict[str, tuple[float, float]]:
        """Lower and upper end of every fitted parameter, in the coordinate in which it is fitted."""
        self._require_fitted()
        found = quantile_interval(self._theta, self.draws_, level)
        ends = zip(found.lower.tolist(), found.upper.tolist())
        return dict(zip(self._models.parameter_names, ends))

    def _measured_horizon(self, curves: Sequence[LossCurve]) -> Horizon:
        """Errors on the final losses of longer curves, and of larger models, by fits without them."""
        axes = {"tokens": np.array([float(curve.tokens[-1]) for curve in curves])}
        if all(self._sizes.values()):
            axes["size"] = np.array([float(curve.params or 1.0) for curve in curves])
        # another LR is another question
        peaks = np.array([float(curve.schedule.peak_lr) for curve in curves])
        # models are few and named: sizes a tenth apart are two of them, lengths a tenth apart are one plan
        apart = {"tokens": SAME_STEP, "size": _OTHER_SIZE}
        origins = [
            origin
            for axis, values in axes.items()
            if self.origin_fits and steps_of(values, factor=apart[axis]).max() + 1 >= LEAST_STEPS
            for origin in rolling_origins(
                {**axes, "peak_lr": peaks}, factor=apart[axis], most=self.origin_fits, alone=True
            )
            if origin.axis == axis
        ]
        ends = [curve.select(np.array([len(curve.tokens) - 1])) for curve in curves]
        observed = np.array([float(end.observed[0]) for end in ends])

        def predict(fitted: BoolArray, asked: BoolArray) -> Prediction:
            settings = {**self.get_params(), "origin_fits": 0}
            law = type(self)(**settings).fit([curves[index] for index in np.flatnonzero(fitted).tolist()])
            return law.predict([ends[index] for index in np.flatnonzero(asked).tolist()], interval=ONE_SD)

        return Horizon.measured(axes, rolled(origins, predict, observed), losses=observed)

    def _draws(self, solution: Solution, fitted: FittedCurves) -> Array:
        lengths = [len(curve.log_loss) for curve in fitted.curves]
        clusters = np.repeat(np.arange(len(lengths)), lengths)
        if len(lengths) == 1:
            # stretches of the one curve stand for runs: its evaluations are not independent
            clusters = np.arange(len(clusters)) * _STRETCHES // len(clusters)
        return one_step_draws(
            solution,
            clusters,
            num_draws=self.num_draws,
            seed=self.seed,
            lower=np.array([parameter.lower for parameter in fitted.parameters]),
            upper=np.array([parameter.upper for parameter in fitted.parameters]),
            huber_delta=NOISE,
            noise_sd=NOISE,
            group_sd=self.run_sd,
        )

    @property
    def _models(self) -> Models:
        return Models(self._family(), self.models_, self._sizes, self.units_)

    def _params_of(self, curve: LossCurve) -> float | None:
        return self._sizes.get(curve.model, curve.params)

    def _own_parameters(self, model: str, params: float | None) -> OwnParameters:
        if model in self.models_:
            size = self._sizes[model]
            if size is not None and params is not None and params != size:
                constraint = f"must be the {size:.10g} parameters of the fitted model '{model}'"
                raise InvalidValueError("params", params, constraint, "Name another model for another size.")
            return self._models.own(model)
        sizes = [size for size in self._sizes.values() if size]
        if params is None or not sizes:
            raise InvalidValueError(
                "model",
                model,
                f"must be one of the fitted models {self.models_}",
                "For another size, give 'params' of this curve and of the fitted ones.",
            )
        first = self._models.num_shared
        off = (self.draws_ - self._theta)[:, first:]
        return at_size(params, sizes, self._theta[first:], off.T @ off / len(off))

    def _early(self, curves: Sequence[LossCurve], cut: Cut, model: str) -> tuple[Array, Array]:
        """Progress and residuals of a model's evaluations inside the burn-in."""
        progress, residuals = [np.empty(0)], [np.empty(0)]
        for curve in curves:
            if curve.model != model:
                continue
            path = cut.models.path(curve)
            value, _, _ = cut.models.evaluate(path, self._sizes[model], cut.models.own(model), self._theta)
            early = (path.progress < cut.start(curve, path)) & (curve.tokens >= warmup_tokens(curve.schedule))
            progress.append(path.progress[early])
            residuals.append((curve.observed - value)[early])
        return np.concatenate(progress), np.concatenate(residuals)

    def _take(self, theta: Array) -> None:
        self._theta = theta
        values = dict(zip(self._models.parameter_names, theta.tolist()))
        shared = {name: value for name, value in values.items() if "." not in name}
        models = {model: {name: values[f"{model}.{name}"] for name in PER_MODEL} for model in self.models_}
        self.params_ = {**shared, "models": models}

    def _state(self) -> dict[str, Any]:
        return {
            "params": self.params_,
            "theta": self._theta,
            "draws": self.draws_,
            "units": self.units_,
            "models": self.models_,
            "sizes": self._sizes,
            "transients": {model: [t.amplitude, t.scale] for model, t in self.transients_.items()},
            "run_sd": self.run_sd_,
            "evidence": asdict(self.evidence_),
            "horizon": self.horizon_.to_list(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.params_ = state["params"]
        self._theta, self.draws_ = np.array(state["theta"]), np.array(state["draws"])
        self.units_, self.models_ = dict(state["units"]), list(state["models"])
        self._sizes = dict(state["sizes"])
        self.transients_ = {model: Transient(*values) for model, values in state["transients"].items()}
        self.run_sd_ = state["run_sd"]
        self.evidence_ = Evidence(**state["evidence"])
        self.horizon_ = Horizon.from_list(state.get("horizon", ()))
