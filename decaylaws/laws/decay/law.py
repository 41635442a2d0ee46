"""The decay law as an estimator: fitted on the decays of a runs table, asked about planned ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from decaylaws.errors import InvalidValueError
from decaylaws.laws.base import Array, Law, Prediction
from decaylaws.laws.decay.family import Frame, Layout, Member, evaluate
from decaylaws.laws.decay.inputs import DecayInputs, check_columns, decay_inputs, final_losses
from decaylaws.laws.decay.members import MEMBERS
from decaylaws.laws.decay.plan_form import PlanForm, plan_form
from decaylaws.laws.decay.priors import Prior, decay_prior
from decaylaws.laws.solver import Solution, solve
from decaylaws.laws.uncertainty import cluster_weights, conformal_radius
from decaylaws.runs import LOSS, MIX, names_with
from decaylaws.threads import one_blas_thread

_FIRST_NOISE = (
    2e-2  # relative residual before the fit has measured its own: wide, so that no start gets stuck
)
_NOISE_ROUNDS = 2
_ROUGH, _REFIT = 30, 15  # evaluations: from each start; of a warm refit
_HUBER = 1.345  # of the noise: 95 % efficient where the noise is Gaussian


class DecayLaw(Law):
    """Loss of every domain after a decay from a measured checkpoint (module ``family`` has the formula).

    Args:
        trunk_mixture: share of every source in the trunk's data.
        member: name of a member of the family (``decaylaws.laws.decay.members.MEMBERS``).
        domains: domains to predict; by default every ``loss:<domain>`` of the table.
        reference_lr: LR of the trunk at the hand-over; by default the largest start LR of the fit.
        num_draws: refits of the bootstrap over runs, for intervals and for the spread of an optimum.
        num_folds: folds of the cross-validation over mixtures that calibrates the intervals.
        seed: seed of draws and folds.

    Attributes:
        params_: fitted parameters by name.
        domains_, sources_: order of the columns of a prediction, order of the shares.
        noise_: relative noise of one loss by domain, ``[d]``.
        draws_: parameters of the bootstrap refits, ``[num_draws, p]``.
        evidence_: ranges of the fitted rows: shares, tokens, LR, sizes.
    """

    domains_: list[str]
    sources_: list[str]
    draws_: Array
    noise_: Array
    evidence_: dict[str, Any]

    def __init__(
        self,
        trunk_mixture: Mapping[str, float],
        member: str = "effective_gain",
        *,
        domains: Sequence[str] | None = None,
        reference_lr: float | None = None,
        num_draws: int = 32,
        num_folds: int = 8,
        seed: int = 0,
    ) -> None:
        self.trunk_mixture = trunk_mixture
        self.member = member
        self.domains = domains
        self.reference_lr = reference_lr
        self.num_draws = num_draws
        self.num_folds = num_folds
        self.seed = seed

    @one_blas_thread()
    def fit(self, X: pd.DataFrame, y: Any = None) -> Self:
        """Fit on finished decays: a runs table whose rows passed ``decaylaws.runs.fit_ready``.

        Raises:
            InvalidValueError: fewer than four runs, an unknown member, a loss that is missing.
            SchemaError: a column is missing.
        """
        self._prepare(X)
        inputs, observed = self._inputs(X), final_losses(X, self.domains_)
        prior = decay_prior(inputs, self._member(), self.domains_, self.sources_, self._frame.trunk_shares)
        self.noise_ = np.full(len(self.domains_), _FIRST_NOISE)
        rough = solution = self._solve(inputs, observed, prior, prior.starts, max_evaluations=_ROUGH)
        for _ in range(_NOISE_ROUNDS):
            self.noise_ = _noise(solution, self.noise_)
            solution = self._solve(inputs, observed, prior, solution.theta)
        self._theta = solution.theta
        self.report_ = replace(
            solution.report,
            num_starts=rough.report.num_starts,
            agreeing_share=rough.report.agreeing_share,
            seconds=rough.report.seconds + solution.report.seconds,
        )
        self.params_ = dict(zip(self._names(), self._theta.tolist()))
        self._bootstrap(inputs, observed, prior)
        self._calibrate(inputs, observed, prior, mixture_groups(X, self.sources_))
        return self

    def predict(self, X: pd.DataFrame, interval: float | None = None) -> Any:
        """Losses after planned decays, nats per token, ``[n, d]``; with ``interval`` a ``Prediction`` of that shape."""
        self._require_fitted()
        return self._combine(self._inputs(X), np.eye(len(self.domains_)), interval)

    def predict_objective(
        self, runs: pd.DataFrame, weights: Mapping[str, float], interval: float | None = None
    ) -> Any:
        """Weighted mean loss over domains, ``[n]``; with ``interval`` a ``Prediction`` whose errors are the mean's own.

        Args:
            runs: planned decays.
            weights: weight of every domain, not negative; normalised to sum to one.
            interval: probability that the interval is to hold, such as 0.9.
        """
        self._require_fitted()
        found = self._combine(self._inputs(runs), self.weight_vector(weights)[:, None], interval)
        if interval is None:
            return found[:, 0]
        return Prediction(found.mean[:, 0], found.lower[:, 0], found.upper[:, 0], interval)

    def weight_vector(self, weights: Mapping[str, float]) -> Array:
        """Weights in the order of ``domains_``, ``[d]``, summing to one."""
        unknown = [name for name in weights if name not in self.domains_]
        if unknown:
            raise InvalidValueError(
                "weights", unknown[0], f"must be one of the domains {', '.join(self.domains_)}"
            )
        vector = np.array([float(weights.get(name, 0.0)) for name in self.domains_])
        if not (np.isfinite(vector).all() and (vector >= 0).all() and vector.sum() > 0):
            raise InvalidValueError(
                "weights", dict(weights), "must not be negative, and one must be positive"
            )
        return vector / vector.sum()

    def predict_table(self, runs: pd.DataFrame, interval: float = 0.9) -> pd.DataFrame:
        """Predictions in long form: ``run`` (index of the row), ``domain``, ``mean``, ``lower``, ``upper``, nats."""
        found = self.predict(runs, interval)
        labels = pd.MultiIndex.from_product([runs.index, self.domains_], names=["run", "domain"])
        columns = {"mean": found.mean.ravel(), "lower": found.lower.ravel(), "upper": found.upper.ravel()}
        return pd.DataFrame(columns, index=labels).reset_index()

    def forgetting(self, runs: pd.DataFrame, domains: Sequence[str], interval: float = 0.9) -> pd.DataFrame:
        """Rise of the loss of ``domains`` over the decay, long form; negative where a domain still improves."""
        table = self.predict_table(runs, interval)
        table = table[table["domain"].isin(list(domains))].reset_index(drop=True)
        start = self._inputs(runs).start_loss
        columns = {name: index for index, name in enumerate(self.domains_)}
        rows = {label: row for row, label in enumerate(runs.index)}
        before = np.array(
            [start[rows[run], columns[domain]] for run, domain in zip(table["run"], table["domain"])]
        )
        return table.assign(**{name: table[name] - before for name in ("mean", "lower", "upper")})

    def loss(self, inputs: DecayInputs, theta: Array | None = None) -> Array:
        """Losses ``[n, d]`` of ready inputs, at the fit or at one of ``draws_``: the search's inner loop."""
        return evaluate(self._theta if theta is None else theta, inputs, self._frame, slopes=False)[0]

    def inputs(self, runs: pd.DataFrame) -> DecayInputs:
        """Inputs of planned decays, for repeated calls of :meth:`loss`."""
        self._require_fitted()
        return self._inputs(runs)

    def at_plan(self, inputs: DecayInputs, theta: Array | None = None) -> PlanForm:
        """Coefficients of the law as a function of the mixture alone, at the plan of the first of ``inputs``."""
        self._require_fitted()
        return plan_form(self._theta if theta is None else theta, inputs, self._frame)

    def _prepare(self, runs: pd.DataFrame) -> None:
        if self.member not in MEMBERS:
            raise InvalidValueError("member", self.member, f"must be one of {', '.join(MEMBERS)}")
        check_columns(runs)
        if len(runs) < 4:
            raise InvalidValueError(
                "runs", len(runs), "must be at least 4 finished decays", "Run more microanneals."
            )
        self.domains_ = list(self.domains) if self.domains is not None else names_with(runs, LOSS)
        self.sources_ = list(dict.fromkeys([*self.trunk_mixture, *names_with(runs, MIX)]))
        lr = float(runs["start_lr"].max()) if self.reference_lr is None else self.reference_lr
        self._reference = {
            "lr": lr,
            "params": float(np.exp(np.log(runs["non_embedding_params"].to_numpy(dtype=float)).mean())),
            "tokens": float(runs["start_tokens"].to_numpy(dtype=float).mean()),
        }
        self.evidence_ = _evidence(runs, self.sources_)

    @property
    def _frame(self) -> Frame:
        shares = np.array([self.trunk_mixture.get(name, 0.0) for name in self.sources_])
        return Frame(
            self._member(), shares / shares.sum(), self._reference["params"], self._reference["tokens"]
        )

    def _member(self) -> Member:
        return MEMBERS[self.member]

    def _names(self) -> list[str]:
        return Layout(len(self.domains_), len(self.sources_)).names(self.domains_, self.sources_)

    def _inputs(self, runs: pd.DataFrame) -> DecayInputs:
        return decay_inputs(
            runs, sources=self.sources_, domains=self.domains_, reference_lr=self._reference["lr"]
        )

    def _solve(
        self, inputs: DecayInputs, observed: Array, prior: Prior, starts: Array,
        weights: Array | None = None, max_evaluations: int = 80,
    ) -> Solution:  # fmt: skip
        frame, (n, d) = self._frame, observed.shape
        unit = observed * self.noise_

        def residuals(theta: Array) -> Array:
            return ((evaluate(theta, inputs, frame, slopes=False)[0] - observed) / unit).ravel()

        def jacobian(theta: Array) -> Array:
            return (evaluate(theta, inputs, frame)[1] / unit[:, :, None]).reshape(n * d, -1)

        return solve(
            residuals, starts, jacobian=jacobian, lower=prior.lower, upper=prior.upper, huber_delta=_HUBER,
            weights=None if weights is None else np.repeat(weights, d), names=self._names(), prior_mean=prior.mean,
            prior_sd=prior.sd, max_evaluations=max_evaluations, polish=False,
        )  # fmt: skip

    def _bootstrap(self, inputs: DecayInputs, observed: Array, prior: Prior) -> None:
        """Refits under run weights and a prior mean drawn from the prior.

        Without the second, what the runs do not determine (size, with one size in the fit) would look certain.
        """
        rng = np.random.default_rng(self.seed)
        draws = []
        for weights in cluster_weights(np.arange(len(inputs)), self.num_draws, seed=self.seed):
            mean = np.clip(rng.normal(prior.mean, prior.sd), prior.lower, prior.upper)
            refit = self._solve(
                inputs, observed, replace(prior, mean=mean), self._theta, weights, max_evaluations=_REFIT
            )
            draws.append(refit.theta)
        self.draws_ = np.array(draws).reshape(self.num_draws, len(self._theta))

    def _calibrate(self, inputs: DecayInputs, observed: Array, prior: Prior, groups: Array) -> None:
        """Held-out errors beside the predicted spread of the same rows: what turns spreads into intervals.

        Whole mixtures are held out; the trunk's own, to which everything is anchored, stays in every fit.
        """
        trunk = np.abs(inputs.shares - self._frame.trunk_shares).max(axis=1) < 1e-3
        folds = np.full(len(inputs), -1)
        if self.num_folds >= 2 and not trunk.all():
            folds[~trunk] = _folds(groups[~trunk], self.num_folds, self.seed)
        errors = np.full_like(observed, np.nan)
        for fold in np.unique(folds[folds >= 0]):
            kept = (folds != fold).astype(float)
            theta = self._solve(inputs, observed, prior, self._theta, kept, max_evaluations=_REFIT).theta
            errors[folds == fold] = (self.loss(inputs, theta) - observed)[folds == fold]
        scored = folds >= 0
        self._held_out = {
            "errors": errors[scored],
            "covariance": self._covariance(inputs)[scored],
            "noise": (self.noise_ * observed)[scored],
        }

    def _combine(self, inputs: DecayInputs, weights: Array, interval: float | None) -> Any:
        """Weighted losses ``[n, k]`` for weights ``[d, k]``, with an interval calibrated on the same weighting."""
        mean = self.loss(inputs)
        if interval is None:
            return mean @ weights
        held_out = self._held_out
        if not len(held_out["errors"]):
            raise InvalidValueError("num_folds", self.num_folds, "must be at least 2 for intervals")
        scores = np.abs(held_out["errors"] @ weights) / _spread(
            held_out["covariance"], held_out["noise"], weights
        )
        radius = np.array([conformal_radius(column, interval) for column in scores.T])
        half = radius * _spread(self._covariance(inputs), self.noise_ * mean, weights)
        return Prediction(mean @ weights, mean @ weights - half, mean @ weights + half, interval)

    def held_out_scores(self, weights: Mapping[str, float]) -> Array:
        """Held-out errors of a weighted loss, in standard deviations that were predicted for them, ``[n]``."""
        self._require_fitted()
        return self._scores(self.weight_vector(weights)[:, None])[:, 0]

    def _scores(self, weights: Array) -> Array:
        held_out = self._held_out
        if not len(held_out["errors"]):
            raise InvalidValueError("num_folds", self.num_folds, "must be at least 2 for intervals")
        return np.abs(held_out["errors"] @ weights) / _spread(
            held_out["covariance"], held_out["noise"], weights
        )

    def _covariance(self, inputs: DecayInputs) -> Array:
        """Covariance of the domains' predictions over the bootstrap, ``[n, d, d]``."""
        if len(self.draws_) < 2:
            return np.zeros((len(inputs), len(self.domains_), len(self.domains_)))
        draws = np.array([self.loss(inputs, theta) for theta in self.draws_])
        draws = draws - draws.mean(axis=0)
        return np.einsum("bnd,bne->nde", draws, draws) / (len(draws) - 1)

    def _state(self) -> dict[str, Any]:
        return {
            "params": self.params_, "domains": self.domains_, "sources": self.sources_, "reference": self._reference,
            "noise": self.noise_, "draws": self.draws_, "held_out": self._held_out, "evidence": self.evidence_,
        }  # fmt: skip

    def _restore(self, state: dict[str, Any]) -> None:
        self.params_ = dict(state["params"])
        self.domains_, self.sources_ = list(state["domains"]), list(state["sources"])
        self._reference, self.evidence_ = dict(state["reference"]), dict(state["evidence"])
        self._theta = np.array([self.params_[name] for name in self._names()])
        self.noise_ = np.array(state["noise"], dtype=float)
        self.draws_ = np.array(state["draws"], dtype=float).reshape(-1, len(self._theta))
        self._held_out = {name: np.array(values, dtype=float) for name, values in state["held_out"].items()}


def _spread(covariance: Array, noise: Array, weights: Array) -> Array:
    """Standard deviation of a new run's weighted loss, ``[n, k]``: the fit's, and noise that domains do not share."""
    fit = np.einsum("dk,nde,ek->nk", weights, covariance, weights)
    return np.sqrt(np.maximum(fit, 0.0) + noise**2 @ weights**2)


def mixture_groups(runs: pd.DataFrame, sources: Sequence[str]) -> Array:
    """A number for every distinct mixture, ``[n]``: replicates and other lengths of one mixture share it."""
    columns = [MIX + name for name in sources if MIX + name in runs]
    shares = runs[columns].to_numpy(dtype=float).round(6)
    return np.unique(shares, axis=0, return_inverse=True)[1].ravel().astype(float)


def _folds(groups: Array, num_folds: int, seed: int) -> NDArray[np.int64]:
    """A fold for every row; rows of one group share it."""
    labels, index = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    folds: NDArray[np.int64] = (order % max(min(num_folds, len(labels)), 2))[index]
    return folds


def _noise(solution: Solution, noise: Array) -> Array:
    """Relative noise of one loss by domain, ``[d]``, from the residuals of a fit in units of ``noise``.

    The degrees of freedom that the fit used are those that the prior left it; a domain's own estimate is drawn half
    way (in logs) to the median domain's, since it rests on few runs.
    """
    gram = solution.jacobian.T @ solution.jacobian
    used = np.trace(np.linalg.pinv(gram + np.diag(solution.prior_precision)) @ gram)
    count = len(solution.residuals)
    left = max(count - used, 0.25 * count)
    sizes = np.abs(solution.residuals).reshape(-1, len(noise))
    own = 1.4826 * np.maximum(np.median(sizes, axis=0), 1e-3) * np.sqrt(count / left) * noise
    return np.clip(np.sqrt(own * np.median(own)), 2e-4, 5e-2)


def _evidence(runs: pd.DataFrame, sources: Sequence[str]) -> dict[str, Any]:
    """Ranges that the fitted rows span."""
    columns = ("non_embedding_params", "start_tokens", "decay_tokens", "start_lr", "end_lr")
    ranges = {name: [float(runs[name].min()), float(runs[name].max())] for name in columns}
    values = {name: runs[MIX + name].tolist() if MIX + name in runs else [0.0] for name in sources}
    return {
        "num_runs": len(runs),
        "shapes": sorted(set(runs["decay_shape"].astype(str))),
        "shares": {name: [min(seen), max(seen)] for name, seen in values.items()},
        "share_values": values,
        **ranges,
    }
