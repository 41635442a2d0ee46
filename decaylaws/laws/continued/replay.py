r"""Continued pre-training on one new corpus with a share of the old one replayed: the two-corpus slice of the family.

With own share :math:`p` (the replay share for an old domain, the rest for the new one) and steps :math:`t`:

==============  ==========================================================================  =====================
form            loss                                                                        source
==============  ==========================================================================  =====================
``log_share``   :math:`L_0 + (a + b \log(p + \epsilon)) [1 - (1 + \kappa t)^{-\beta}] - c t`   forgetting, anchored
``own_tokens``  :math:`E + A (p t + D_0)^{-\beta} - c t`                                     learning
``d_cpt``       :math:`E + B p^\eta t^{-\beta} + C (p + \epsilon)^{-\gamma}`                 Que et al. 2024
``bimix``       :math:`A (p + \epsilon)^{-\alpha} (B t^{-\beta} + C)`                        arXiv 2405.14908
==============  ==========================================================================  =====================

Forgetting is a transient that is linear in the log of the own share; learning is a power law in own tokens that
starts from what the checkpoint already knows (:math:`D_0`). :math:`c` stands for an LR path that the
records do not hold. The last two know no checkpoint and diverge at its start.

Intervals come from the curvature of each domain's fit, scaled to errors on replay shares and on the later half of the
steps that were left out (``decaylaws.laws.kit.holdout``), and beyond the longest run from the errors of fits to the
shorter ones (``decaylaws.laws.kit.horizon``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import approx_fprime, brentq

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.kit.draws import widest_radius
from decaylaws.laws.kit.formulas import OWN_SHARE_FLOOR, bimix, d_cpt
from decaylaws.laws.kit.holdout import Curvature, curvature, left_out, testable
from decaylaws.laws.kit.horizon import ONE_SD, Horizon
from decaylaws.laws.kit.law import Array, Law, Prediction
from decaylaws.laws.kit.numbers import target
from decaylaws.laws.kit.report import FitReport
from decaylaws.laws.kit.rolling import BoolArray, rolled, rolling_origins
from decaylaws.laws.kit.solver import Solution, solve

_LEAST_TIME = 1e-3  # of the longest run: published forms diverge at the checkpoint
_NOISE = 2e-3  # nats, of one evaluated loss
_HUBER = 2 * _NOISE
_TREND, _TREND_SD = 0.01, 0.02
"""Nats over the longest run: a wider prior takes curvature for a trend that goes on."""
_ORIGIN_FITS = 2
_COLUMNS = ("share", "steps", "domain")


@dataclass(frozen=True)
class _Form:
    """One form: parameter names, prior means and standard deviations, and the loss."""

    names: tuple[str, ...]
    mean: Callable[[float, float], list[float]]  # from a typical loss and the longest run in steps
    sd: tuple[float, ...]
    value: Callable[[Array, Array, Array], Array]  # parameters, own share, steps over the longest run


def _log_share(theta: Array, p: Array, t: Array) -> Array:
    start, a, b, log_kappa, log_beta, c = theta
    moved = 1.0 - (1.0 + np.exp(log_kappa) * t) ** (-np.exp(log_beta))
    return start + (a + b * np.log(p + OWN_SHARE_FLOOR)) * moved - c * t


def _own_tokens(theta: Array, p: Array, t: Array) -> Array:
    floor, log_a, log_start, log_beta, c = theta
    return np.exp(floor) + np.exp(log_a) * (p * t + np.exp(log_start)) ** (-np.exp(log_beta)) - c * t


FORMS: Mapping[str, _Form] = {
    "log_share": _Form(
        ("start", "a", "b", "log_kappa", "log_beta", "c"),
        lambda loss, steps: [loss, 0.0, -0.05, np.log(20.0), np.log(0.5), _TREND],
        (1.0, 1.0, 0.5, 1.0, 0.5, _TREND_SD),
        _log_share,
    ),
    "own_tokens": _Form(
        ("floor", "log_A", "log_start", "log_beta", "c"),
        lambda loss, steps: [np.log(0.6 * loss), np.log(0.3 * loss), np.log(0.03), np.log(0.35), _TREND],
        (0.5, 1.5, 2.0, 0.7, _TREND_SD),
        _own_tokens,
    ),
    "d_cpt": _Form(
        ("floor", "log_B", "log_eta", "log_beta", "log_C", "log_gamma"),
        lambda loss, steps: [np.log(0.7 * loss), np.log(0.05 * loss), 0.0, np.log(0.3), np.log(0.2), np.log(0.1)],
        (0.5, 1.5, 0.7, 0.7, 1.5, 0.7),
        lambda theta, p, t: d_cpt(theta, p, np.maximum(t, _LEAST_TIME)),
    ),
    "bimix": _Form(
        ("log_alpha", "log_B", "log_beta", "log_C"),
        lambda loss, steps: [np.log(0.02), np.log(0.1 * loss), np.log(0.3), np.log(0.8 * loss)],
        (1.5, 1.5, 0.7, 0.5),
        lambda theta, p, t: bimix(theta, p, np.maximum(t, _LEAST_TIME)),
    ),
}  # fmt: skip


class ReplayLaw(Law):
    """Loss of every domain over continued pre-training with a replay share.

    Rows have the columns ``share`` (replay share), ``steps`` and ``domain``. Old domains are fitted together first,
    as their weighted mean: its transient is the prior of each single one's.

    Args:
        new_domains: domains of the new corpus, whose own share is one minus the replay share.
        old_form: form of the old domains.
        new_form: form of the new domains.
        base_losses: losses at the checkpoint by domain, where known: they anchor the law at 0 steps.
        weights: weights of the old domains in their mean; equal by default.

    Attributes:
        params_: by domain, fitted parameters by name; the mean of the old domains is ``general``.
        scores_: by domain and kind of hold-out, absolute errors in standard deviations.
        reports_: by domain, the diagnosis of its fit.
        horizon_: errors by distance beyond the longest run, from fits to the shorter ones; intervals there hold them.
    """

    target = "loss"
    reports_: dict[str, FitReport]
    scores_: dict[str, dict[str, Array]]
    horizon_: Horizon
    _curvatures: dict[str, Curvature]

    def __init__(
        self,
        new_domains: Sequence[str],
        old_form: str = "log_share",
        new_form: str = "own_tokens",
        *,
        base_losses: Mapping[str, float] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.new_domains = new_domains
        self.old_form = old_form
        self.new_form = new_form
        self.base_losses = base_losses
        self.weights = weights

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that ``fit`` and ``predict`` need."""
        return _COLUMNS

    def fit(self, X: pd.DataFrame, y: Any = None) -> Self:
        """Fit every domain of ``X`` on the losses ``y`` (nats per token, one by row), else on the column ``loss``.

        Raises:
            InvalidValueError: an unknown form, a share outside [0, 1], a loss that is not positive.
            SchemaError: a column is missing.
        """
        for name in (self.old_form, self.new_form):
            if name not in FORMS:
                raise InvalidValueError("form", name, f"must be one of {', '.join(FORMS)}")
        _check(X)
        losses = target(X, y)
        self._longest = float(X["steps"].max())
        self.params_, self.reports_, self.scores_, self._curvatures = {}, {}, {}, {}
        beyond: list[pd.DataFrame] = []
        rows = X.assign(loss=losses)
        old = rows[~rows["domain"].isin(list(self.new_domains))]
        if len(old):
            self._fit_domain("general", self._mean(old), self.old_form, None)  # no domain of its own
        for domain, part in rows.groupby("domain", sort=False):
            new = domain in self.new_domains
            centre = None if new else self.params_["general"]
            beyond.append(
                self._fit_domain(str(domain), part, self.new_form if new else self.old_form, centre)
            )
        trained = rows[rows["steps"] > 0]
        self.horizon_ = Horizon.measured(
            {"steps": trained["steps"]}, pd.concat(beyond), losses=trained["loss"]
        )
        self.report_ = max(self.reports_.values(), key=lambda report: report.condition)
        return self

    def predict(self, X: pd.DataFrame, interval: float | None = None) -> Any:
        """Losses ``[n]``, nats per token; the domain ``general`` is the weighted mean of the old ones.

        With ``interval`` a ``Prediction`` of that shape.
        """
        self._require_fitted()
        _check(X)
        unknown = sorted(set(X["domain"]) - set(self.params_))
        if unknown:
            raise InvalidValueError("domain", unknown[0], f"must be one of {', '.join(self.params_)}")
        found, half = np.empty(len(X)), np.zeros(len(X))
        for domain, positions in X.reset_index(drop=True).groupby("domain").groups.items():
            rows = np.asarray(positions)
            value = self._value(str(domain), X.iloc[rows])
            theta = np.array(list(self.params_[str(domain)].values()))
            found[rows] = value(theta)
            if interval is not None:
                spread = self._curvatures[str(domain)].spread(np.atleast_2d(approx_fprime(theta, value)))
                half[rows] = widest_radius(self.scores_[str(domain)], interval) * spread
        if interval is None:
            return found
        beyond = {"steps": X["steps"].clip(lower=1e-9)}  # the checkpoint itself is no distance away
        return self.horizon_.widen(Prediction(found, found - half, found + half, interval), beyond)

    def _value(self, domain: str, rows: pd.DataFrame) -> Callable[[Array], Array]:
        own = self._own(rows["share"], domain)
        steps = rows["steps"].to_numpy(dtype=float) / self._longest
        return lambda theta: self._form(domain).value(theta, own, steps)

    def critical_share(self, steps: float, base_loss: float, tolerance: float = 0.0) -> float:
        """Smallest replay share that keeps the general loss within ``tolerance`` of ``base_loss`` after ``steps``.

        The critical mixture ratio of Gu et al. 2024 seen from the old corpus: one minus the largest new share.

        Args:
            steps: steps of continued training.
            base_loss: general loss before them, nats per token.
            tolerance: rise that is allowed, nats per token.

        Returns:
            The share; 0 where even no replay keeps it, NaN where even full replay does not.
        """

        def excess(share: float) -> float:
            row = pd.DataFrame({"share": [share], "steps": [steps], "domain": ["general"]})
            return float(self.predict(row)[0]) - base_loss - tolerance

        if excess(0.0) <= 0:
            return 0.0
        return float(brentq(excess, 0.0, 1.0)) if excess(1.0) <= 0 else float("nan")

    def _fit_domain(
        self, domain: str, rows: pd.DataFrame, form: str, centre: Mapping[str, float] | None
    ) -> pd.DataFrame:
        """Fit a domain; errors of its longer runs by fits to the shorter ones."""
        shape = FORMS[form]
        share, steps, losses = self._anchored(domain, rows)
        mean, sd = np.array(shape.mean(float(np.median(losses)), self._longest)), np.array(shape.sd)
        if centre is not None:
            for index, name in enumerate(shape.names):
                if name in ("log_kappa", "log_beta"):
                    mean[index], sd[index] = centre[name], 0.5
        found = solve(
            lambda theta: shape.value(theta, share, steps) - losses,
            np.vstack([mean, mean + 0.3 * sd, mean - 0.3 * sd]), lower=mean - 8 * sd, upper=mean + 8 * sd,
            names=shape.names, prior_mean=mean, prior_sd=sd, huber_delta=_HUBER, noise_sd=_NOISE,
        )  # fmt: skip
        self.params_[domain] = dict(zip(shape.names, found.theta.tolist()))
        self.reports_[domain] = found.report
        self._curvatures[domain] = curvature(found, huber_delta=_HUBER, noise_sd=_NOISE)
        self.scores_[domain] = {
            kind: np.concatenate([_scores(found, rows) for rows in masks])
            for kind, masks in _hold_outs(share, steps).items()
        }
        origins = rolling_origins({"steps": steps[steps > 0]}, least_steps=2, most=_ORIGIN_FITS)
        trained = np.flatnonzero(steps > 0)

        def predict(fitted: BoolArray, asked: BoolArray) -> Prediction:
            rows = np.zeros(len(steps), dtype=bool)
            rows[trained[~fitted]] = True
            errors, spread = left_out(found, rows, huber_delta=_HUBER, noise_sd=_NOISE)
            chosen = asked[~fitted]
            mean, spread = losses[trained[asked]] + errors[chosen], spread[chosen]
            return Prediction(mean, mean - spread, mean + spread, ONE_SD)

        return rolled(origins, predict, losses[trained])

    def _anchored(self, domain: str, rows: pd.DataFrame) -> tuple[Array, Array, Array]:
        """Own shares, relative steps and losses, with the checkpoint as a point at 0 steps where it is known.

        Only forgetting starts from the checkpoint's loss: what is new falls at once by more than any power of its
        tokens, since a re-warmed LR and a new format are learnt first.
        """
        share = self._own(rows["share"], domain)
        steps, losses = (
            rows["steps"].to_numpy(dtype=float) / self._longest,
            rows["loss"].to_numpy(dtype=float),
        )
        base = (self.base_losses or {}).get(domain)
        if base is None or self._form(domain) is not FORMS["log_share"]:
            return share, steps, losses
        return np.append(share, 0.5), np.append(steps, 0.0), np.append(losses, base)

    def _own(self, share: pd.Series, domain: str) -> Array:
        values = share.to_numpy(dtype=float)
        return 1.0 - values if domain in self.new_domains else values

    def _mean(self, old: pd.DataFrame) -> pd.DataFrame:
        weights = old["domain"].map(self.weights or dict.fromkeys(old["domain"], 1.0)).astype(float)
        if not (weights > 0).all():
            raise InvalidValueError(
                "weights", self.weights, "must hold a positive weight for every old domain"
            )
        parts = old.assign(loss=old["loss"] * weights, weight=weights).groupby(
            ["share", "steps"], as_index=False
        )
        sums = parts[["loss", "weight"]].sum()
        return sums.assign(loss=sums["loss"] / sums["weight"])

    def _form(self, domain: str) -> _Form:
        return FORMS[self.new_form if domain in self.new_domains else self.old_form]

    def _state(self) -> dict[str, Any]:
        reports = {domain: report.to_dict() for domain, report in self.reports_.items()}
        return {
            "params": self.params_, "longest": self._longest, "reports": reports, "scores": self.scores_,
            "horizon": self.horizon_.to_list(),
            "curvatures": {domain: each.to_dict() for domain, each in self._curvatures.items()},
        }  # fmt: skip

    def _restore(self, state: dict[str, Any]) -> None:
        self.params_ = {domain: dict(values) for domain, values in state["params"].items()}
        self._longest = float(state["longest"])
        self.reports_ = {domain: FitReport.from_dict(values) for domain, values in state["reports"].items()}
        self.scores_ = {
            domain: {kind: np.array(values, dtype=float) for kind, values in kinds.items()}
            for domain, kinds in state["scores"].items()
        }
        self._curvatures = {key: Curvature.from_dict(values) for key, values in state["curvatures"].items()}
        self.horizon_ = Horizon.from_list(state.get("horizon", ()))


def _hold_outs(share: Array, steps: Array) -> dict[str, list[NDArray[np.bool_]]]:
    """Measured rows of one domain to leave out together, by kind; the checkpoint itself (0 steps) always stays."""
    measured = steps > 0
    found = {
        "share": [measured & (share == each) for each in np.unique(share[measured])],
        "steps": [steps > np.median(steps[measured])],
    }
    return testable(found)


def _scores(found: Solution, rows: NDArray[np.bool_]) -> Array:
    """Absolute errors on rows that a fit did not see, in standard deviations."""
    errors, spread = left_out(found, rows, huber_delta=_HUBER, noise_sd=_NOISE)
    return np.abs(errors) / spread


def _check(rows: pd.DataFrame) -> None:
    missing = [name for name in _COLUMNS if name not in rows]
    if missing:
        raise SchemaError("rows", missing=missing)
    share, steps = rows["share"].to_numpy(dtype=float), rows["steps"].to_numpy(dtype=float)
    if not ((share >= 0) & (share <= 1)).all():
        raise InvalidValueError("share", share.tolist()[:5], "must lie in [0, 1] in every row")
    if not (np.isfinite(steps) & (steps >= 0)).all():
        raise InvalidValueError("steps", steps.tolist()[:5], "must be finite and not negative")
