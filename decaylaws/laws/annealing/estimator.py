"""The estimator behind every schedule law: fit curves of one or several models, predict any schedule."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self, overload

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import nnls

from decaylaws.errors import InvalidValueError
from decaylaws.laws.annealing.curves import LossCurve, LrPath, lr_path, reference_units, warmup_tokens
from decaylaws.laws.annealing.evidence import Evidence, check_curves, evidence_of, spread_out
from decaylaws.laws.annealing.family import PER_MODEL, WORTH, Family, fixed
from decaylaws.laws.annealing.sizes import OwnParameters, at_size, of_fitted
from decaylaws.laws.annealing.transient import Transient, fit_transient
from decaylaws.laws.kit.draws import one_step_draws, quantile_interval
from decaylaws.laws.kit.horizon import LEAST_STEPS, ONE_SD, Horizon
from decaylaws.laws.kit.law import Array, Law, Prediction
from decaylaws.laws.kit.rolling import SAME_STEP, BoolArray, rolled, rolling_origins, steps_of
from decaylaws.laws.kit.solver import Solution, solve
from decaylaws.schedules import Schedule

# Residuals of a smoothed training curve are about 1e-3 of the loss; also Huber's threshold of the literature.
_NOISE = 1e-3
_TIME_STARTS = (-1.5, 0.0, 1.5)  # shifts of the kernel's log time
_STRETCHES = 8
_LATER_HALF = 0.5
_SEVERAL_PEAKS = 3.0  # ratio of peak LRs from which runs tell what a token at a higher LR is worth
_MAX_DRAW_POINTS = 64
_OTHER_SIZE = 1.1  # ratio of sizes
_NUM_OWN = len(PER_MODEL)


@dataclass(frozen=True)
class _Group:
    """One fitted curve: its path, log losses, and where its model's parameters stand."""

    path: LrPath
    log_loss: Array
    model: int
    params: float | None
    own: OwnParameters


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
        groups, cuts = self._groups(curves)
        solution = self._solve(groups, curves)
        self._take(solution.theta)
        self.report_ = solution.report
        self.draws_ = self._draws(solution, groups)
        self.transients_ = {
            model: fit_transient(
                *self._early(curves, model, cuts[model]), scale=cuts[model] / 4 if cuts[model] > 0 else 1.0
            )
            for model in self.models_
        }
        self.run_sd_ = self._run_spread(solution, groups)
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
        paths = self._paths(X)
        mean = np.concatenate([self._value(curve, path) for path, curve in paths])
        if interval is None:
            return mean
        rng = np.random.default_rng(self.seed)
        offsets = [rng.normal(size=(len(self.draws_), 1)).repeat(len(path.progress), 1) for path, _ in paths]
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
        path = lr_path(few.schedule, few.tokens, **self.units_)
        own = self._own_parameters(curve.model, curve.params)
        _, by_shared, by_own = self._evaluate(path, self._params_of(curve), own, self._theta)
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
        value, _, _ = self._evaluate(path, self._sizes.get(name, params), own, self._theta)
        transient = self.transients_.get(name)
        return value if transient is None else value + transient.value(path.progress)

    def param_intervals(self, level: float = 0.9) -> dict[str, tuple[float, float]]:
        """Lower and upper end of every fitted parameter, in the coordinate in which it is fitted."""
        self._require_fitted()
        found = quantile_interval(self._theta, self.draws_, level)
        ends = zip(found.lower.tolist(), found.upper.tolist())
        return dict(zip(self._names(), ends))

    # Fitting ---------------------------------------------------------------------------------------------

    def _groups(self, curves: Sequence[LossCurve]) -> tuple[list[_Group], dict[str, float]]:
        """What is fitted of every curve, and the progress at which the burn-in of every model ends."""
        paths = [lr_path(curve.schedule, curve.tokens, **self.units_) for curve in curves]
        cuts = {
            model: self.burn_in
            * max(path.progress[-1] for path, curve in zip(paths, curves) if curve.model == model)
            for model in self.models_
        }
        groups = []
        for curve in curves:
            kept = self._kept(curve, cuts[curve.model])
            if kept is not None:
                path = lr_path(kept.schedule, kept.tokens, **self.units_)
                index = self.models_.index(curve.model)
                params = self._sizes[curve.model]
                groups.append(_Group(path, np.log(kept.observed), index, params, self._own_of(index)))
        return groups, cuts

    def _kept(self, curve: LossCurve, cut: float) -> LossCurve | None:
        """The curve beyond the burn-in, thinned; its last evaluation always stays."""
        path = lr_path(curve.schedule, curve.tokens, **self.units_)
        beyond = np.flatnonzero(path.progress >= self._fitted_from(curve, path, cut))
        if len(beyond) == 0:
            return None
        return curve.select(beyond[spread_out(len(beyond), self.max_points)])

    def _fitted_from(self, curve: LossCurve, path: LrPath, cut: float) -> float:
        """Progress from which a curve is fitted.

        A run at a far lower LR never gets beyond the burn-in of the others, however long it is. It has left its
        initialisation behind all the same: its later half counts.
        """
        if path.progress[-1] >= cut:
            return cut
        # at the highest LR it would be beyond the cut
        is_long = curve.tokens[-1] / self.units_["token_unit"] >= cut
        return _LATER_HALF * float(path.progress[-1]) if is_long else np.inf

    def _solve(self, groups: Sequence[_Group], curves: Sequence[LossCurve]) -> Solution:
        family = self._family()
        plateaus = {round(group.path.plateau_lr, 3) for group in groups}
        one_peak = max(plateaus) < _SEVERAL_PEAKS * min(plateaus)
        parameters = [
            fixed(WORTH, 1.0) if one_peak and each.name == WORTH else each for each in family.shared
        ]
        for model in self.models_:
            parameters += family.own(min(float(c.observed.min()) for c in curves if c.model == model))
        self._parameters = parameters
        start = np.array([parameter.start for parameter in parameters])
        starts = []
        for shift in _TIME_STARTS:
            point = start.copy()
            point[0] += shift
            starts.append(self._linear_start(point, groups))
        return solve(
            lambda theta: self._residuals(theta, groups),
            starts,
            jacobian=lambda theta: self._jacobian(theta, groups),
            lower=[parameter.lower for parameter in parameters],
            upper=[parameter.upper for parameter in parameters],
            names=self._names(),
            huber_delta=_NOISE,
            prior_mean=start,
            prior_sd=[parameter.prior_sd for parameter in parameters],
            noise_sd=_NOISE,
        )

    def _linear_start(self, theta: Array, groups: Sequence[_Group]) -> Array:
        """Level, amplitude and gain are linear given the rest: start from their least squares."""
        family, num_shared = self._family(), self._num_shared()
        out, gains = theta.copy(), []
        for index in range(len(self.models_)):
            own = slice(num_shared + _NUM_OWN * index, num_shared + _NUM_OWN * (index + 1))
            unit = np.array([0.0, 0.0, theta[own][2], 0.0])
            shared = np.append(theta[: num_shared - 1], 0.0)
            mine = [group for group in groups if group.model == index]
            columns = []
            for group in mine:
                _, _, by_own = family.value(group.path, shared, unit, 0.0)
                columns.append(np.column_stack([by_own[:, 0], by_own[:, 1], by_own[:, 3]]))
            loss = np.exp(np.concatenate([group.log_loss for group in mine]))
            (level, amplitude, gain), _ = nnls(np.concatenate(columns), loss)
            out[own.start], out[own.start + 1] = level, np.log(max(amplitude, 1e-3))
            gains.append(gain)
        out[num_shared - 1] = np.log(max(float(np.mean(gains)), 1e-2))
        return out

    def _residuals(self, theta: Array, groups: Sequence[_Group]) -> Array:
        parts = []
        for group in groups:
            value, _, _ = self._evaluate(group.path, group.params, group.own, theta)
            parts.append(np.log(np.maximum(value, 1e-3)) - group.log_loss)
        return np.concatenate(parts)

    def _jacobian(self, theta: Array, groups: Sequence[_Group]) -> Array:
        num_shared, blocks = self._num_shared(), []
        for group in groups:
            value, by_shared, by_own = self._evaluate(group.path, group.params, group.own, theta)
            block = np.zeros((len(value), len(theta)))
            first = num_shared + _NUM_OWN * group.model
            block[:, :num_shared] = by_shared
            block[:, first : first + _NUM_OWN] = by_own
            blocks.append(block / np.maximum(value, 1e-3)[:, None])
        return np.concatenate(blocks)

    # Uncertainty -----------------------------------------------------------------------------------------

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

    def _draws(self, solution: Solution, groups: Sequence[_Group]) -> Array:
        clusters = np.concatenate([np.full(len(group.log_loss), index) for index, group in enumerate(groups)])
        if len(groups) == 1:  # stretches of the one curve stand for runs: its evaluations are not independent
            clusters = np.arange(len(clusters)) * _STRETCHES // len(clusters)
        return one_step_draws(
            solution,
            clusters,
            num_draws=self.num_draws,
            seed=self.seed,
            lower=np.array([parameter.lower for parameter in self._parameters]),
            upper=np.array([parameter.upper for parameter in self._parameters]),
            huber_delta=_NOISE,
            noise_sd=_NOISE,
            group_sd=self.run_sd,
        )

    def _run_spread(self, solution: Solution, groups: Sequence[_Group]) -> float:
        """Relative offset of a whole run from the law, at least what seeds and data order do."""
        edges = np.cumsum([len(group.log_loss) for group in groups])[:-1]
        offsets = np.array([np.median(part) for part in np.split(solution.residuals, edges)])
        return float(max(np.sqrt(np.mean(offsets**2)), self.run_sd))

    # State -----------------------------------------------------------------------------------------------

    def _paths(self, X: Sequence[LossCurve]) -> list[tuple[LrPath, LossCurve]]:
        return [(lr_path(curve.schedule, curve.tokens, **self.units_), curve) for curve in X]

    def _num_shared(self) -> int:
        return len(self._family().shared)

    def _names(self) -> list[str]:
        names = [parameter.name for parameter in self._family().shared]
        return names + [f"{model}.{name}" for model in self.models_ for name in PER_MODEL]

    def _log_size(self, params: float | None) -> float:
        known = [value for value in self._sizes.values() if value]
        return 0.0 if not params or not known else float(np.log(params) - np.mean(np.log(known)))

    def _evaluate(
        self, path: LrPath, params: float | None, own: OwnParameters, theta: Array
    ) -> tuple[Array, Array, Array]:
        """Loss and derivatives of a model."""
        num_shared = self._num_shared()
        values = own.value(theta[num_shared:])
        return self._family().value(path, theta[:num_shared], values, self._log_size(params))

    def _value(self, curve: LossCurve, path: LrPath) -> Array:
        return self.predict_path(path, model=curve.model, params=curve.params)

    def _params_of(self, curve: LossCurve) -> float | None:
        return self._sizes.get(curve.model, curve.params)

    def _own_of(self, model: int) -> OwnParameters:
        return of_fitted(model, len(self.models_))

    def _own_parameters(self, model: str, params: float | None) -> OwnParameters:
        if model in self.models_:
            return self._own_of(self.models_.index(model))
        sizes = [size for size in self._sizes.values() if size]
        if params is None or not sizes:
            raise InvalidValueError(
                "model",
                model,
                f"must be one of the fitted models {self.models_}",
                "For another size, give 'params' of this curve and of the fitted ones.",
            )
        off = (self.draws_ - self._theta)[:, self._num_shared() :]
        return at_size(params, sizes, self._theta[self._num_shared() :], off.T @ off / len(off))

    def _early(self, curves: Sequence[LossCurve], model: str, cut: float) -> tuple[Array, Array]:
        """Progress and residuals of a model's evaluations inside the burn-in."""
        progress, residuals = [np.empty(0)], [np.empty(0)]
        for curve in curves:
            if curve.model != model:
                continue
            path = lr_path(curve.schedule, curve.tokens, **self.units_)
            own = self._own_of(self.models_.index(model))
            value, _, _ = self._evaluate(path, self._sizes[model], own, self._theta)
            early = (path.progress < self._fitted_from(curve, path, cut)) & (
                curve.tokens >= warmup_tokens(curve.schedule)
            )
            progress.append(path.progress[early])
            residuals.append((curve.observed - value)[early])
        return np.concatenate(progress), np.concatenate(residuals)

    def _take(self, theta: Array) -> None:
        self._theta = theta
        values = dict(zip(self._names(), theta.tolist()))
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
