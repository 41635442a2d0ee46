"""What a decay gains, from size and tokens, before any decay of that size has been run.

A decay of a constant-LR run from ``D0`` to ``D1`` tokens lowers the loss in two ways::

    gain = progress + annealing
    progress  = B N^pi (D0^-beta - D1^-beta)     what the undecayed run would have gained over the same tokens
    annealing = G N^gamma D0^delta               what the lower learning rate adds at equal tokens

The parts scale differently: progress fades with tokens and grows with size, annealing shrinks with size and
grows a little with tokens. A power law of the whole gain has to average the two, and errs where it
extrapolates. Progress is read off the undecayed curves, whose many points determine it far better than the
difference of two evaluations; every run's asymptote is a linear parameter of its own and is projected out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.kit.draws import DrawnLaw, quantile_interval
from decaylaws.laws.kit.horizon import ONE_SD, Horizon
from decaylaws.laws.kit.law import Array, Prediction
from decaylaws.laws.kit.numbers import positive, target
from decaylaws.laws.kit.rolling import BoolArray, rolled, rolling_origins
from decaylaws.laws.kit.solver import Solution, solve
from decaylaws.laws.scaling.tables import LEAST_OFF_LINE, columns, off_line

_GAIN_HUBER = 0.03  # of log gains: the difference of two noisy evaluations scatters by some per cent
_LOSS_HUBER = 2e-3  # of the undecayed losses, nats
# of size and tokens around 0: sizes that hardly differ do not say how a gain grows with size
_EXPONENT_SD = 0.2
_TRANSIENT = 0.5  # undecayed points before this share of the earliest decay's tokens still feel the warm-up
_HELD_SHARE = 0.25  # of the rows, by compute, in the extrapolation test
_PROGRESS_NAMES = ("log_B", "pi", "log_beta")
_PROGRESS_LOWER, _PROGRESS_UPPER = (-12.0, -1.0, -3.0), (6.0, 1.0, 1.0)
_ORIGIN_FITS = 2  # refits of each axis for the horizon
_COLUMNS = ("params", "tokens_begin", "tokens_end")
_POWER_NAMES = ("log_G", "gamma", "delta")


@dataclass(frozen=True)
class _Pairs:
    """Decays: centred logs of N and D0, tokens over the centre at both ends, each ``[n]``."""

    log_params: Array
    log_tokens: Array
    begin: Array
    end: Array

    @property
    def design(self) -> Array:
        """Columns of a power law in N and D0, ``[n, 3]``."""
        return np.stack([np.ones_like(self.log_params), self.log_params, self.log_tokens], axis=1)

    def take(self, rows: NDArray[np.bool_]) -> _Pairs:
        return _Pairs(self.log_params[rows], self.log_tokens[rows], self.begin[rows], self.end[rows])


class DecayGain(DrawnLaw):
    """Gain of decaying to zero, nats per token, as progress plus annealing.

    ``X`` has the columns ``params``, ``tokens_begin`` and ``tokens_end``; ``gain`` (or ``y``) is the loss
    before the decay minus the loss after it, and ``lr_only_gain``, where there is one, the loss of the
    undecayed run at ``tokens_end`` minus the loss after the decay. The length and shape of the decays must be
    those of the fit: the law knows of the length only through progress.

    Args:
        num_draws: draws of the parameters behind every interval.
        seed: seed of the draws.

    Attributes:
        params_: ``G, gamma, delta, B, pi, beta`` at ``reference_params`` and ``reference_tokens``: N and D in
            the formulas are multiples of these.
        report_: diagnosis of the annealing part's fit.
        extrapolation_error_: mean absolute log error on the quarter of the decays with the most compute,
            predicted from the others; None where those are too few.
        horizon_: errors by distance beyond the fitted sizes and tokens, from rolling origins; intervals hold them.
    """

    target = "gain"
    progress_: Array
    horizon_: Horizon
    center_: tuple[float, float]

    def __init__(self, *, num_draws: int = 200, seed: int = 0) -> None:
        self.num_draws = num_draws
        self.seed = seed

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that ``fit`` and ``predict`` need."""
        return _COLUMNS

    def fit(self, X: pd.DataFrame, y: ArrayLike | None = None, curves: pd.DataFrame | None = None) -> Self:
        """Fit to decays and, for the progress, to undecayed curves.

        Args:
            X: one row per decay.
            y: gains; the column ``gain`` without it.
            curves: points of undecayed runs: ``run``, ``params``, ``tokens``, ``loss``. Without them there is
                no progress term, and the law is the power law of the whole gain.

        Raises:
            SchemaError: a column is missing.
            InvalidValueError: a value is not finite and positive, or there are fewer decays than parameters.
        """
        gain = target(X, y, "gain")
        params, begin, _ = columns(X, _COLUMNS, what="decays")
        if len(gain) < len(_POWER_NAMES):
            raise InvalidValueError(
                "gain", len(gain), f"must be known of at least {len(_POWER_NAMES)} decays"
            )
        self.center_ = (float(np.exp(np.log(params).mean())), float(np.exp(np.log(begin).mean())))
        pairs = self._pairs(X)
        if off_line(params, begin) < LEAST_OFF_LINE:
            raise InvalidValueError(
                "params, tokens_begin",
                (float(params[0]), float(begin[0])),
                "must each take at least two values, not in step with one another",
                "Add decays of another size and from another checkpoint.",
            )
        self.progress_ = self._fit_progress(curves, _TRANSIENT * float(begin.min()))
        annealing = _annealing(X, gain, _progress(self.progress_, pairs))
        solution = _fit_power(pairs, annealing)
        self.theta_, self.report_ = solution.theta, solution.report
        self.residuals_ = np.log(self._value(self.theta_, pairs) / gain)
        self.extrapolation_error_ = self._extrapolation_error(pairs, annealing, gain)
        rng = np.random.default_rng(self.seed)
        covariance = solution.covariance()
        self.draws_ = rng.multivariate_normal(self.theta_, covariance, size=self.num_draws, method="eigh")
        self.params_ = self._public()
        self.horizon_ = self._measured_horizon(pairs, annealing, gain)
        return self

    def predict(self, X: pd.DataFrame, interval: float | None = None) -> Any:
        """Gain of every decay, nats per token; with ``interval`` the range of a measured gain."""
        self._require_fitted()
        pairs = self._pairs(X)
        mean = self._value(self.theta_, pairs)
        if interval is None:
            return mean
        return self.horizon_.widen(self._interval(pairs, mean, interval), self._axes(pairs))

    def _pairs(self, X: pd.DataFrame) -> _Pairs:
        params, begin, end = columns(X, _COLUMNS, what="decays")
        params, begin, end = params / self.center_[0], begin / self.center_[1], end / self.center_[1]
        if (end <= begin).any():
            row = int(np.flatnonzero(end <= begin)[0])
            raise InvalidValueError(
                f"tokens_end[{row}]", end[row] * self.center_[1], "must exceed tokens_begin"
            )
        return _Pairs(np.log(params), np.log(begin), begin, end)

    def _value(self, theta: Array, pairs: _Pairs) -> Array:
        return _progress(self.progress_, pairs) + np.exp(pairs.design @ theta)

    def _interval(self, pairs: _Pairs, mean: Array, level: float) -> Prediction:
        """Spread of the annealing part's parameters and scatter of measured gains."""
        gains = np.array([self._value(theta, pairs) for theta in self.draws_]).reshape(-1, len(mean))
        return quantile_interval(mean, gains * np.exp(-self._scatter(gains.shape)), level)

    def _measured_horizon(self, pairs: _Pairs, annealing: Array, gain: Array) -> Horizon:
        """Errors on larger sizes and later decays of fits without them; progress is that of all curves."""
        axes = self._axes(pairs)

        def predict(fitted: BoolArray, asked: BoolArray) -> Prediction:
            solution, beyond = _fit_power(pairs.take(fitted), annealing[fitted]), pairs.take(asked)
            mean, power = self._value(solution.theta, beyond), np.exp(beyond.design @ solution.theta)
            spread = np.einsum("np,pq,nq->n", beyond.design, solution.covariance(), beyond.design)
            half = np.sqrt(spread.clip(min=0.0)) * power / mean
            return Prediction(mean, mean * np.exp(-half), mean * np.exp(half), ONE_SD)

        origins = rolling_origins(
            axes, least_rows=len(_POWER_NAMES), least_steps=2, most=_ORIGIN_FITS, alone=True
        )
        noise = float(np.sqrt(np.mean(self.residuals_**2)))
        return Horizon.measured(axes, rolled(origins, predict, gain), noise=noise, losses=gain)

    def _axes(self, pairs: _Pairs) -> dict[str, Array]:
        return {
            "size": np.exp(pairs.log_params) * self.center_[0],
            "tokens": np.exp(pairs.log_tokens) * self.center_[1],
        }

    def _extrapolation_error(self, pairs: _Pairs, annealing: Array, gain: Array) -> float | None:
        compute = pairs.log_params + pairs.log_tokens
        held = compute > np.quantile(compute, 1 - _HELD_SHARE)
        rest = pairs.take(~held)
        if np.linalg.matrix_rank(rest.design) < len(_POWER_NAMES) or not held.any():
            return None
        theta = _fit_power(rest, annealing[~held]).theta
        return float(np.mean(np.abs(np.log(self._value(theta, pairs) / gain)[held])))

    def _fit_progress(self, curves: pd.DataFrame | None, least_tokens: float) -> Array:
        """Parameters of the undecayed curves' power law; minus infinity for log B where there are none."""
        none = np.array([-np.inf, 0.0, 0.0])
        if curves is None:
            return none
        if "run" not in curves:
            raise SchemaError("curves", missing=["run"])
        columns(curves, ("params", "tokens", "loss"), what="curves")
        late = curves[curves["tokens"] >= least_tokens]
        if len(late) < 2 * late["run"].nunique() + len(_PROGRESS_NAMES):
            return none
        log_params = np.log(positive("params", late["params"]) / self.center_[0])
        log_tokens = np.log(positive("tokens", late["tokens"]) / self.center_[1])
        runs = np.unique(late["run"], return_inverse=True)[1]
        return _fit_curves(log_params, log_tokens, positive("loss", late["loss"]), runs)

    def _public(self) -> dict[str, float]:
        log_g, gamma, delta = (float(value) for value in self.theta_)
        log_b, pi, log_beta = (float(value) for value in self.progress_)
        return {
            "G": float(np.exp(log_g)),
            "gamma": gamma,
            "delta": delta,
            "B": float(np.exp(log_b)),
            "pi": pi,
            "beta": float(np.exp(log_beta)),
            "reference_params": self.center_[0],
            "reference_tokens": self.center_[1],
        }

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "center": self.center_, "horizon": self.horizon_.to_list()}

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        p = self.params_
        log_b = np.log(p["B"]) if p["B"] > 0 else -np.inf
        self.progress_ = np.array([log_b, p["pi"], np.log(p["beta"])])
        self.center_ = (float(state["center"][0]), float(state["center"][1]))
        self.horizon_ = Horizon.from_list(state.get("horizon", ()))


def _progress(progress: Array, pairs: _Pairs) -> Array:
    """``B n^pi (d0^-beta - d1^-beta)``, ``[n]``."""
    log_b, pi, log_beta = progress
    beta = np.exp(log_beta)
    return np.exp(log_b + pi * pairs.log_params) * (pairs.begin**-beta - pairs.end**-beta)


def _annealing(X: pd.DataFrame, gain: Array, progress: Array) -> Array:
    """The annealing part as measured: gain less progress, averaged with the gain at equal tokens where known.

    Both hold the noise of the decayed loss and each that of another undecayed one; the mean halves the
    latter.
    """
    estimate = gain - progress
    if "lr_only_gain" in X:
        estimate = 0.5 * (estimate + np.asarray(X["lr_only_gain"], dtype=float))
    wrong = ~(np.isfinite(estimate) & (estimate > 0))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InvalidValueError(
            f"gain[{row}]", float(gain[row]), "must exceed what the undecayed run would have gained",
            "Drop the row: such a decay raised the loss.",
        )  # fmt: skip
    return estimate


def _fit_power(pairs: _Pairs, annealing: Array) -> Solution:
    """Huber regression of log annealing on log N and log D0."""
    design, target = pairs.design, np.log(annealing)
    start = np.linalg.lstsq(design, target, rcond=None)[0]
    return solve(
        lambda theta: design @ theta - target,
        start,
        jacobian=lambda theta: design,
        huber_delta=_GAIN_HUBER,
        names=_POWER_NAMES,
        prior_mean=np.zeros(len(_POWER_NAMES)),
        prior_sd=np.array([10.0, _EXPONENT_SD, _EXPONENT_SD]),
        noise_sd=_GAIN_HUBER,
    )


def _fit_curves(log_params: Array, log_tokens: Array, loss: Array, runs: NDArray[np.intp]) -> Array:
    """``loss = floor[run] + B n^pi d^-beta`` with the floors projected out."""
    counts = np.bincount(runs).astype(float)

    def centred(values: Array) -> Array:
        return values - (np.bincount(runs, weights=values) / counts)[runs]

    def residuals(theta: Array) -> Array:
        return centred(np.exp(theta[0] + theta[1] * log_params - np.exp(theta[2]) * log_tokens) - loss)

    def jacobian(theta: Array) -> Array:
        beta = np.exp(theta[2])
        value = np.exp(theta[0] + theta[1] * log_params - beta * log_tokens)
        return np.stack([centred(value * c) for c in (1.0, log_params, -beta * log_tokens)], axis=1)

    starts = [[np.log(0.2), 0.0, np.log(beta)] for beta in (0.3, 0.7)]
    return solve(
        residuals,
        starts,
        jacobian=jacobian,
        lower=_PROGRESS_LOWER,
        upper=_PROGRESS_UPPER,
        huber_delta=_LOSS_HUBER,
        names=_PROGRESS_NAMES,
        prior_mean=np.array([0.0, 0.0, np.log(0.4)]),
        prior_sd=np.array([10.0, _EXPONENT_SD, 10.0]),
        noise_sd=_LOSS_HUBER,
    ).theta
