"""The decay law as an estimator: fitted on the decays of a runs table, asked about planned ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Self

import numpy as np
import pandas as pd

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.decay.form import PlanForm, evaluate, plan_form
from decaylaws.laws.decay.inputs import (
    DecayInputs,
    decay_inputs,
    doubts_of,
    evidence_of,
    final_losses,
    finished_rows,
    has_measured_gains,
    mixture_groups,
    reference_tokens,
    stable_tokens,
)
from decaylaws.laws.decay.intervals import (
    FittedRange,
    HeldOut,
    Misfit,
    covariance_of,
    hold_outs,
    noise_of,
    order_noise_of,
    radii,
    spread,
    token_slopes,
    with_misfit,
)
from decaylaws.laws.decay.optimism import Optimism
from decaylaws.laws.decay.parameters import (
    MEMBERS,
    Frame,
    ParameterLayout,
    Prior,
    decay_prior,
    hierarchical,
    reference_start_tokens,
    staged_start,
)
from decaylaws.laws.decay.repetition import repeated_sources, repetition_prior, repetition_starts
from decaylaws.laws.decay.slices import DecaySlices
from decaylaws.laws.kit.draws import cluster_weights, draw_scale, normal_radius
from decaylaws.laws.kit.horizon import Horizon
from decaylaws.laws.kit.law import Array, Prediction
from decaylaws.laws.kit.normal_matrix import ArrowCovariance, ArrowSlopes
from decaylaws.laws.kit.repetition import FORM_SD, LEAST_EVIDENCE, ONSET_LEVEL, Onset
from decaylaws.laws.kit.solver import Solution, evaluated_together, solve
from decaylaws.laws.kit.threads import one_blas_thread
from decaylaws.mixtures import Mixture
from decaylaws.progress import Progress, silent
from decaylaws.runs.objective import normalised
from decaylaws.runs.table import DECAY_COLUMNS, LOSS, MIX, STABLE_TOKENS, names_with, require_decays

_FIRST_NOISE = (
    2e-2  # relative residual before the fit has measured its own: wide, so that no start gets stuck
)
_FIT_STAGE = "law"
_SCALE_ROUNDS = 2  # of noise and hierarchical deviations, each from the fit before
_FIT_STEPS = 3 + _SCALE_ROUNDS  # of many domains each takes seconds
_ROUGH, _REFIT = 30, 15  # evaluations: from each start; of a warm refit
_HUBER = 1.345  # of the noise: 95 % efficient where the noise is Gaussian


class DecayLaw(DecaySlices):
    """Loss of every domain after a decay from a measured checkpoint (module ``form`` has the formula).

    Args:
        trunk_mixture: share of every source in the trunk's data.
        member: name of a member of the family (``decaylaws.laws.decay.parameters.MEMBERS``).
        domains: domains to predict; by default every ``loss:<domain>`` of the table.
        reference_lr: LR of the trunk at the hand-over; by default the largest start LR of the fit.
        reference_batch_tokens: tokens of a step of the trunk; by default the most common batch of the fit.
        num_draws: refits of the bootstrap over runs, for the spread of an optimum; intervals do without.
        num_folds: folds over mixtures of the hold-outs that calibrate the intervals.
        seed: seed of draws and folds.

    Attributes:
        params_: fitted parameters by name.
        domains_, sources_: order of the columns of a prediction, order of the shares.
        noise_: relative noise of one loss by domain, ``[d]``, in one order of the data.
        order_noise_: relative noise by domain that the order of the data adds, ``[d]``: runs of one seed share what
            their order does to their losses, and residuals do not show it. Zero where no plan was run under two seeds.
        draws_: parameters of the bootstrap refits, ``[num_draws, p]``.
        evidence_: ranges of the fitted rows: shares, tokens, LR, sizes.
        misfit_: how far the form of the law is off away from the fitted runs, as held-out runs show.
        doubts_: sentences on why no preference by this law is to be believed, such as runs that are too few; who holds
            runs out adds what that shows. Empty where nothing speaks against it.
        onsets_: from how many passes on repeating a source raises losses; empty where no run shows that it does.
        horizon_: errors by distance beyond the fitted sizes and lengths; who makes rolling origins sets it
            (``decaylaws.laws.decay.horizon``), and intervals there are at least as wide.
        has_stages_: whether decays of the fit start after a stable stage of another mixture (``stable_tokens``).
        is_measured_: whether every checkpoint of the fit has a measured annealing gain; predictions then need it too.
    """

    draws_: Array
    noise_: Array
    order_noise_: Array
    evidence_: dict[str, Any]
    doubts_: tuple[str, ...]
    onsets_: tuple[Onset, ...]
    horizon_: Horizon
    misfit_: Misfit
    _held_out: dict[str, HeldOut]
    _repeated: tuple[int, ...]
    _reference_start_tokens: float | None
    _fitted_seed: int | None
    has_stages_: bool
    _parameter_covariance: ArrowCovariance
    _fitted_on: tuple[DecayInputs, Array, Prior, Solution, Array] | None

    def __init__(
        self,
        trunk_mixture: Mapping[str, float],
        member: str = "effective_gain",
        *,
        domains: Sequence[str] | None = None,
        reference_lr: float | None = None,
        reference_batch_tokens: int | None = None,
        num_draws: int = 32,
        num_folds: int = 8,
        seed: int = 0,
    ) -> None:
        self.trunk_mixture = trunk_mixture
        self.member = member
        self.domains = domains
        self.reference_lr = reference_lr
        self.reference_batch_tokens = reference_batch_tokens
        self.num_draws = num_draws
        self.num_folds = num_folds
        self.seed = seed

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that ``fit`` and ``predict`` need."""
        return DECAY_COLUMNS

    @one_blas_thread()
    def fit(self, X: pd.DataFrame, y: Any = None, *, progress: Progress = silent) -> Self:
        """Fit on finished decays: a runs table whose rows passed ``decaylaws.runs.table.fit_ready``.

        Unfinished decays may stand beside them, with the final losses that their curves lead to expect and the
        standard errors of these (``loss_error:<domain>``). They count by the inverse of their variance and show
        neither noise nor the width of intervals.

        Args:
            X: the decays, of which at least four have finished.
            y: nothing; for scikit-learn.
            progress: told of every refit of the bootstrap and of the hold-outs.

        Raises:
            InvalidValueError: fewer than four runs, an unknown member, a loss that is missing.
            SchemaError: a column is missing.
        """
        self._prepare(X)
        inputs, observed = self._inputs(X), final_losses(X, self.domains_)
        self.noise_ = np.full(len(self.domains_), _FIRST_NOISE)
        prior = decay_prior(inputs, self._frame, self.domains_, self.sources_)
        progress(_FIT_STAGE, 0, _FIT_STEPS, "start")
        starts = np.vstack([prior.starts, self._staged(inputs, observed, prior)])
        solution, prior = self._descended(inputs, observed, starts, progress)
        solution, prior = self._with_harm(inputs, observed, solution, prior, progress)
        self.order_noise_ = order_noise_of(X, self.domains_, self.noise_)
        self._theta, self._sd, self.report_ = solution.theta, prior.sd, solution.report
        self._parameter_covariance = covariance_of(solution, prior, np.ones(len(X)))
        self.params_ = dict(zip(self._parameter_names, self._theta.tolist()))
        self._bootstrap(inputs, observed, prior, _names_of(X, inputs, observed), progress)
        self._fitted_on = (inputs, observed, prior, solution, mixture_groups(X, self.sources_))
        self._calibrate(*self._fitted_on, progress)
        self.onsets_ = self._onsets(inputs)
        self.horizon_ = Horizon()
        return self

    def _descended(
        self, inputs: DecayInputs, observed: Array, starts: Array, progress: Progress
    ) -> tuple[Solution, Prior]:
        """The fit from the best of the starts, and the prior with the variances that it found; sets ``noise_``."""
        first = prior = decay_prior(inputs, self._frame, self.domains_, self.sources_)
        progress(_FIT_STAGE, 1, _FIT_STEPS, f"{len(starts)} starts")
        rough = solution = self._solve(inputs, observed, prior, starts, max_evaluations=_ROUGH)
        for done in range(_SCALE_ROUNDS):
            progress(_FIT_STAGE, 2 + done, _FIT_STEPS, "noise and spread of domains")
            self.noise_ = noise_of(solution, self.noise_, inputs.is_finished)
            solution = self._solve(inputs, observed, prior, solution.theta)
            covariance = covariance_of(solution, prior, np.ones(len(inputs)))
            prior = hierarchical(first, solution.theta, covariance, self._layout)
        progress(_FIT_STAGE, 2 + _SCALE_ROUNDS, _FIT_STEPS, "last descent")
        solution = self._solve(inputs, observed, prior, solution.theta)
        progress(_FIT_STAGE, _FIT_STEPS, _FIT_STEPS)
        report = replace(
            solution.report,
            num_starts=rough.report.num_starts,
            agreeing_share=rough.report.agreeing_share,
            seconds=rough.report.seconds + solution.report.seconds,
        )
        return replace(solution, report=report), prior

    def _with_harm(
        self, inputs: DecayInputs, observed: Array, plain: Solution, plain_prior: Prior, progress: Progress
    ) -> tuple[Solution, Prior]:
        """The fit with terms for the sources whose repetition raises losses; the plain one where none does."""
        noise, self._repeated = self.noise_, repeated_sources(inputs)
        while self._repeated:
            rows = repetition_prior(inputs, self._repeated)
            harms = repetition_starts(rows, len(self._repeated))
            starts = np.hstack([np.tile(plain.theta, (len(harms), 1)), harms])
            self.noise_ = noise
            solution, prior = self._descended(inputs, observed, starts, progress)
            evidence = [
                2.0
                * (self._without_harm(inputs, observed, prior, solution, number) - solution.report.objective)
                for number in range(len(self._repeated))
            ]
            if min(evidence) > LEAST_EVIDENCE:
                return solution, prior
            weakest = int(np.argmin(evidence))
            self._repeated = tuple(np.delete(self._repeated, weakest).tolist())
        self.noise_ = noise
        return plain, plain_prior

    def _without_harm(
        self, inputs: DecayInputs, observed: Array, prior: Prior, solution: Solution, number: int
    ) -> float:
        """The objective of a fit in which one of the repeated sources does no harm."""
        columns = np.arange(self._layout.size)[self._layout.columns("harm")][number :: len(self._repeated)]
        upper, start = prior.upper.copy(), solution.theta.copy()
        upper[columns] = start[columns] = 0.0
        return self._solve(inputs, observed, replace(prior, upper=upper), start).report.objective

    def _onsets(self, inputs: DecayInputs) -> tuple[Onset, ...]:
        """Onset of every source whose repetition raises losses, with an interval as wide as held-out mixtures ask."""
        if not self._repeated:
            return ()
        repetition = self._layout.repetition(self._theta)
        columns = np.searchsorted(self._layout.shared_columns, self._layout.columns("repetition").start)
        sds = np.sqrt(np.diag(self._parameter_covariance.shared))[columns:]
        most = inputs.epochs[:, list(self._repeated)].max(axis=0)
        other_mixtures = {"ratio": np.array([True])}
        radius = radii(self._held_out, other_mixtures, np.eye(len(self.domains_)), ONSET_LEVEL)[0]
        costs, found = repetition.most_costs(most), []
        for source, log_onset, sd, top, cost in zip(self._repeated, repetition.log_onsets, sds, most, costs):
            half = radius * np.hypot(sd, FORM_SD)
            ends = np.exp(np.clip([log_onset - half, log_onset, log_onset + half], 0.0, np.log(top)))
            lower, epochs, upper = ends.tolist()
            by_domain = dict(zip(self.domains_, cost.tolist()))
            found.append(Onset(self.sources_[source], epochs, lower, upper, float(top), by_domain))
        return tuple(found)

    @one_blas_thread()
    def with_intervals(self, num_folds: int) -> Self:
        """The same fit with ``num_folds``, for a law that was fitted without: only the hold-outs are fitted.

        Raises:
            InvalidValueError: the law comes out of a file, which does not hold the rows that it was fitted on.
        """
        self._require_fitted()
        if self._fitted_on is None:
            raise InvalidValueError("law", "read from a file", "must have been fitted here", "Fit it again.")
        law = copy(self).set_params(num_folds=num_folds)
        law._calibrate(*self._fitted_on)
        return law

    def predict(self, X: pd.DataFrame, interval: float | None = None) -> Any:
        """Losses after planned decays, nats per token, ``[n, d]``; with ``interval`` a ``Prediction`` of that shape."""
        self._require_fitted()
        return self._combine(X, np.eye(len(self.domains_)), interval)

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
        found = self._combine(runs, self.weight_vector(weights)[:, None], interval)
        if interval is None:
            return found[:, 0]
        return Prediction(found.mean[:, 0], found.lower[:, 0], found.upper[:, 0], interval)

    def predict_chosen(self, runs: pd.DataFrame, weights: Mapping[str, float], interval: float) -> Prediction:
        """As :meth:`predict_objective`, for mixtures that were chosen by it: higher by what the choice costs, ``[n]``.

        What that is held-out runs say (:mod:`decaylaws.laws.decay.optimism`). The interval is at least as wide as draws
        of the law with errors of its form lie apart there, by which the regret is measured too. Other predictions are
        not changed by a choice.

        Args:
            runs: planned decays on mixtures that this law chose.
            weights: of the objective that they were chosen for.
            interval: probability that the interval is to hold.
        """
        found = self.predict_objective(runs, weights, interval)
        if "ratio" not in self._held_out:
            return found
        inputs, vector, radius = self._inputs(runs), self.weight_vector(weights), normal_radius(interval)
        optimism, changes = self.optimism(weights), self.changes(inputs) @ vector
        drawn = np.array([self.loss(inputs, theta) @ vector for theta in self.draws_])
        apart = np.std(drawn, axis=0, ddof=1) if len(drawn) > 1 else np.zeros(len(runs))
        apart = np.hypot(self.draw_scale(weights) * apart, self.form_error(weights))
        half = np.maximum(found.upper - found.mean, radius * apart)
        half = np.hypot(half, radius * optimism.lost_sd(changes))
        mean = found.mean + optimism.lost(changes)
        return Prediction(mean, mean - half, mean + half, interval)

    def weight_vector(self, weights: Mapping[str, float]) -> Array:
        """Weights in the order of ``domains_``, ``[d]``, summing to one."""
        unknown = [name for name in weights if name not in self.domains_]
        if unknown:
            raise InvalidValueError(
                "weights", unknown[0], f"must be one of the domains {', '.join(self.domains_)}"
            )
        shares = normalised(weights)
        return np.array([shares.get(name, 0.0) for name in self.domains_])

    def loss(self, inputs: DecayInputs, theta: Array | None = None) -> Array:
        """Losses ``[n, d]`` of ready inputs, at the fit or at one of ``draws_``: the search's inner loop."""
        return evaluate(self._theta if theta is None else theta, inputs, self._frame, slopes=False)[0]

    def changes(self, inputs: DecayInputs, theta: Array | None = None) -> Array:
        """Losses less those of the trunk's mixture decayed in the same way, ``[n, d]``."""
        on_trunk = inputs.on_mixture(self._frame.trunk_shares)
        return self.loss(inputs, theta) - self.loss(on_trunk, theta)

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
        if len(finished_rows(runs)) < 4:
            raise InvalidValueError(
                "runs",
                len(finished_rows(runs)),
                "must be at least 4 finished decays",
                "Run more microanneals.",
            )
        self.domains_ = list(self.domains) if self.domains is not None else names_with(runs, LOSS)
        if not self.domains_:
            raise SchemaError("runs table", missing=[f"{LOSS}<domain>"], remedy="It holds no loss to fit.")
        require_decays(runs, self.domains_)
        runs = finished_rows(runs)
        try:
            Mixture(self.trunk_mixture)
        except InvalidValueError as error:
            raise InvalidValueError(
                "trunk_mixture", dict(self.trunk_mixture), error.constraint, error.remedy
            ) from None
        self.sources_ = list(dict.fromkeys([*self.trunk_mixture, *names_with(runs, MIX)]))
        lr = float(runs["start_lr"].max()) if self.reference_lr is None else self.reference_lr
        common = int(runs["batch_tokens"].mode().iloc[0])
        self._reference = {
            "lr": lr,
            "batch_tokens": common if self.reference_batch_tokens is None else self.reference_batch_tokens,
            "params": float(np.exp(np.log(runs["non_embedding_params"].to_numpy(dtype=float)).mean())),
            "tokens": reference_tokens(runs),
        }
        self.is_measured_ = has_measured_gains(runs, self.domains_)
        self.has_stages_ = bool(stable_tokens(runs).any())
        inputs = self._inputs(runs)
        self._fitted_range, self._repeated = FittedRange.by(inputs), ()
        self._reference_start_tokens = reference_start_tokens(inputs)
        seeds = runs["seed"].dropna().mode() if "seed" in runs else pd.Series()
        self._fitted_seed = None if seeds.empty else int(seeds.iloc[0])
        if self.has_stages_ and MEMBERS[self.member].relaxing != "shares":
            raise InvalidValueError(
                "member",
                self.member,
                "knows no stable stage before a decay (stable_tokens)",
                "Take effective_gain.",
            )
        self.evidence_ = evidence_of(runs, self.sources_)
        self.doubts_ = doubts_of(runs, self.sources_, self._frame.trunk_shares)

    @property
    def _frame(self) -> Frame:
        shares = np.array([self.trunk_mixture.get(name, 0.0) for name in self.sources_])
        return Frame(
            MEMBERS[self.member], shares / shares.sum(), self._reference["params"], self._reference["tokens"],
            self._fitted_range.checkpoints, self._repeated, self._reference_start_tokens, self.has_stages_,
        )  # fmt: skip

    @property
    def _layout(self) -> ParameterLayout:
        return self._frame.layout(len(self.domains_))

    @property
    def _parameter_names(self) -> list[str]:
        repeated = [self.sources_[place] for place in self._repeated]
        return self._layout.names(self.domains_, self.sources_, repeated)

    def _inputs(self, runs: pd.DataFrame) -> DecayInputs:
        if stable_tokens(runs).any() and not self.has_stages_:
            constraint = "must be 0: no decay of the fit starts after a stable stage of another mixture"
            raise InvalidValueError(STABLE_TOKENS, float(stable_tokens(runs).max()), constraint)
        return decay_inputs(
            runs, sources=self.sources_, domains=self.domains_, reference_lr=self._reference["lr"],
            reference_batch_tokens=int(self._reference["batch_tokens"]), measured=self.is_measured_,
        )  # fmt: skip

    def _solve(
        self, inputs: DecayInputs, observed: Array, prior: Prior, starts: Array,
        weights: Array | None = None, max_evaluations: int = 80,
    ) -> Solution:  # fmt: skip
        frame, d = self._frame, observed.shape[1]
        unit = np.hypot(observed * self.noise_, inputs.loss_error)

        def looked(theta: Array) -> tuple[Array, ArrowSlopes]:
            losses, slopes = evaluate(theta, inputs, frame)
            return ((losses - observed) / unit).ravel(), slopes.rows_scaled(1 / unit.ravel())

        residuals, jacobian = evaluated_together(looked)
        return solve(
            residuals, starts, jacobian=jacobian, lower=prior.lower, upper=prior.upper, huber_delta=_HUBER,
            weights=None if weights is None else np.repeat(weights, d),
            names=self._parameter_names, prior_mean=prior.mean, prior_sd=prior.sd,
            max_evaluations=max_evaluations, polish=False, normal_equations=True,
        )  # fmt: skip

    def _bootstrap(
        self, inputs: DecayInputs, observed: Array, prior: Prior, names: Sequence[str], progress: Progress
    ) -> None:
        """Refits under run weights and a prior mean drawn from the prior.

        Without the second, what the runs do not determine (size, with one size in the fit) would look certain.
        """
        rng = np.random.default_rng(self.seed)
        draws = []
        for weights in cluster_weights(names, self.num_draws, seed=self.seed):
            mean = np.clip(rng.normal(prior.mean, prior.sd), prior.lower, prior.upper)
            refit = self._solve(
                inputs, observed, replace(prior, mean=mean), self._theta, weights, max_evaluations=_REFIT
            )
            draws.append(refit.theta)
            progress("bootstrap", len(draws), self.num_draws)
        self.draws_ = np.array(draws).reshape(self.num_draws, len(self._theta))
        self._draw_covariance = self._over_draws(inputs)

    def _over_draws(self, inputs: DecayInputs) -> Array:
        """Covariance of the domains' predictions over ``draws_``, the mean of the rows, ``[d, d]``."""
        if len(self.draws_) < 2:
            return np.zeros((len(self.domains_), len(self.domains_)))
        drawn = np.array([self.loss(inputs, theta) for theta in self.draws_])
        drawn = drawn - drawn.mean(axis=0)
        return np.einsum("bnd,bne->de", drawn, drawn) / ((len(drawn) - 1) * len(inputs))

    def _staged(self, inputs: DecayInputs, observed: Array, prior: Prior) -> Array:
        def solve_stage(held: Prior, start: Array, weights: Array) -> Array:
            return self._solve(inputs, observed, held, start, weights, max_evaluations=_REFIT).theta

        return staged_start(inputs, self._frame, self._layout, prior, solve_stage)

    def _calibrate(
        self,
        inputs: DecayInputs,
        observed: Array,
        prior: Prior,
        solution: Solution,
        groups: Array,
        progress: Progress = silent,
    ) -> None:
        """Held-out errors beside the spread that the fit without those rows predicts for them, and the misfit."""
        self._held_out, self.misfit_ = {}, Misfit()
        if self.num_folds < 2:
            return
        folds = hold_outs(inputs, groups, self._frame.trunk_shares, num_folds=self.num_folds, seed=self.seed)
        finished = inputs.is_finished
        masks = {kind: [rows for rows in each if rows[finished].any()] for kind, each in folds.items()}
        slopes, found = evaluate(self._theta, inputs, self._frame)[1], {}
        count, total = 0, sum(len(each) for each in masks.values())
        for kind in (kind for kind, each in masks.items() if each):
            errors, spreads, changes = [], [], []
            for rows in masks[kind]:
                kept = (~rows).astype(float)
                theta = self._solve(inputs, observed, prior, self._theta, kept, max_evaluations=_REFIT).theta
                tested = rows & finished
                errors.append((self.loss(inputs, theta) - observed)[tested])
                changes.append(self.changes(inputs, theta)[tested])
                count += 1
                progress("intervals", count, total)
                spreads.append(covariance_of(solution, prior, kept).of(slopes.of_runs(tested)))
            noise = np.vstack([(self.noise_ * observed)[rows & finished] for rows in masks[kind]])
            num_groups = len(np.unique(np.concatenate([groups[rows & finished] for rows in masks[kind]])))
            found[kind] = HeldOut(
                np.vstack(errors), np.concatenate(spreads), noise, np.zeros_like(noise), np.vstack(changes),
                num_groups if kind == "ratio" else len(masks[kind]),
            )  # fmt: skip
        ended = inputs.rows(finished)
        self.misfit_, self._held_out = with_misfit(
            found,
            {kind: [rows[finished] for rows in each] for kind, each in masks.items()},
            token_slopes(self._theta, ended, self._frame),
            self._fitted_range.distances(ended),
        )

    @property
    def slice_scores_(self) -> dict[str, dict[str, float]]:
        """What each of the three slices is worth on the fitted runs, held out by its own question.

        By method (``predict_ratio``, ``predict_tokens``, ``predict_size``): ``num_runs``, ``mae``, ``bias`` and
        ``worst``, nats per token; a slice that the runs cannot test (one size only, say) is missing.
        """
        self._require_fitted()
        return {f"predict_{kind}": held_out.summary() for kind, held_out in self._held_out.items()}

    def _combine(self, runs: pd.DataFrame, weights: Array, interval: float | None) -> Any:
        """Weighted losses ``[n, k]`` for weights ``[d, k]``, with an interval calibrated on the same weighting."""
        inputs = self._inputs(runs)
        losses = self.loss(inputs)
        mean = losses @ weights
        if interval is None:
            return mean
        if self.num_folds < 2:
            raise InvalidValueError("num_folds", self.num_folds, "must be at least 2 for intervals")
        misfit = self.misfit_.of(
            token_slopes(self._theta, inputs, self._frame), self._fitted_range.distances(inputs)
        )
        own = np.hypot(self.noise_ * losses, misfit)
        radius = radii(self._held_out, self._fitted_range.outside(inputs), weights, interval)
        half = radius[:, None] * spread(self._covariance(inputs), own, weights)
        # the radius is that of held-out runs of the fitted order; a new order comes on top, and with it the fitted one,
        # whose effect the fit has taken for the law's
        if "seed" not in runs:
            is_new = np.ones(len(runs), dtype=bool)
        else:
            is_new = runs["seed"].to_numpy() != self._fitted_seed
        order = np.sqrt(2 * (self.order_noise_ * losses) ** 2 @ weights**2) * is_new[:, None]
        half = np.hypot(half, normal_radius(interval) * order)
        found = Prediction(mean, mean - half, mean + half, interval)
        return self.horizon_.widen(found, {"size": inputs.params, "tokens": inputs.decay_tokens})

    def held_out_scores(self, weights: Mapping[str, float]) -> Array:
        """Errors of a weighted loss on held-out mixtures, in standard deviations of fit and noise, ``[n]``."""
        self._require_fitted()
        return self._held_out_mixtures().scores(self.weight_vector(weights)[:, None], with_misfit=False)[:, 0]

    def form_error(self, weights: Mapping[str, float]) -> float:
        """Standard deviation of what the form gets wrong of a weighted loss on held-out mixtures, nats per token.

        Half of the variance of the fit's own noise is taken for that of the seeds, as ``draw_scale`` does.
        """
        self._require_fitted()
        vector, held_out = self.weight_vector(weights), self._held_out_mixtures()
        own = np.mean(np.sum((held_out.noise * vector) ** 2, axis=1))
        return float(np.sqrt(max(np.mean((held_out.errors @ vector) ** 2) - 0.5 * own, 0.0)))

    def optimism(self, weights: Mapping[str, float]) -> Optimism:
        """How much of a weighted loss's predicted gain held-out mixtures do not confirm; none if none was held out."""
        self._require_fitted()
        if "ratio" not in self._held_out:
            return Optimism()
        vector, held_out = self.weight_vector(weights), self._held_out["ratio"]
        return Optimism.of(held_out.changes @ vector, held_out.errors @ vector)

    def draw_scale(self, weights: Mapping[str, float]) -> float:
        """How many times farther from the fit than ``draws_`` the truth of a weighted loss is to be sought."""
        self._require_fitted()
        vector, held_out = self.weight_vector(weights), self._held_out_mixtures()
        return draw_scale(
            held_out.errors @ vector,
            np.sum((held_out.noise * vector) ** 2, axis=1),
            float(vector @ self._draw_covariance @ vector),
        )

    def _held_out_mixtures(self) -> HeldOut:
        if "ratio" not in self._held_out:
            raise InvalidValueError(
                "num_folds", self.num_folds, "must be at least 2, with two mixtures beside the trunk's"
            )
        return self._held_out["ratio"]

    def _covariance(self, inputs: DecayInputs) -> Array:
        """Covariance of the domains' predictions ``[n, d, d]``, with the offset of an unseen checkpoint."""
        slopes = evaluate(self._theta, inputs, self._frame)[1]
        unknown = self._frame.checkpoint_of(inputs).sum(axis=1) == 0
        offset_sd = self._sd[self._layout.columns("offsets")][: len(self.domains_)]
        return self._parameter_covariance.of(slopes) + unknown[:, None, None] * np.diag(offset_sd**2)[None]

    def _state(self) -> dict[str, Any]:
        return {
            "params": self.params_, "domains": self.domains_, "sources": self.sources_, "reference": self._reference,
            "noise": self.noise_, "order_noise": self.order_noise_, "fitted_seed": self._fitted_seed,
            "draws": self.draws_, "evidence": self.evidence_, "seen": vars(self._fitted_range),
            "misfit": vars(self.misfit_), "horizon": self.horizon_.to_list(),
            "is_measured": self.is_measured_,
            "doubts": self.doubts_,
            "repeated": self._repeated,
            "reference_start_tokens": self._reference_start_tokens,
            **({"has_stages": True} if self.has_stages_ else {}),
            "onsets": [vars(each) for each in self.onsets_],
            "covariance": self._parameter_covariance.to_dict(), "sd": self._sd,
            "draw_covariance": self._draw_covariance,
            "held_out": {kind: held_out.to_dict() for kind, held_out in self._held_out.items()},
        }  # fmt: skip

    def _restore(self, state: dict[str, Any]) -> None:
        self._fitted_on = None
        self.params_ = dict(state["params"])
        self.domains_, self.sources_ = list(state["domains"]), list(state["sources"])
        self._reference, self.evidence_ = dict(state["reference"]), dict(state["evidence"])
        self._fitted_range = FittedRange(
            **{name: np.array(values, dtype=float) for name, values in state["seen"].items()}
        )
        self.misfit_ = Misfit(**state["misfit"])
        self.horizon_ = Horizon.from_list(state.get("horizon", ()))
        self.is_measured_, self.doubts_ = bool(state["is_measured"]), tuple(state["doubts"])
        self._repeated = tuple(int(place) for place in state.get("repeated", ()))
        self._reference_start_tokens = state.get("reference_start_tokens")
        self.has_stages_ = bool(state.get("has_stages", False))
        self.onsets_ = tuple(Onset(**each) for each in state.get("onsets", ()))
        self._theta = np.array(list(self.params_.values()))
        self._sd = np.array(state["sd"])
        self._parameter_covariance = ArrowCovariance.from_dict(state["covariance"])
        self.noise_ = np.array(state["noise"], dtype=float)
        self.order_noise_ = np.array(state.get("order_noise", np.zeros_like(self.noise_)), dtype=float)
        self._fitted_seed = state.get("fitted_seed")
        self._draw_covariance = np.array(state["draw_covariance"], dtype=float)
        self.draws_ = np.array(state["draws"], dtype=float).reshape(-1, len(self._theta))
        self._held_out = {kind: HeldOut.from_dict(values) for kind, values in state["held_out"].items()}


def _names_of(runs: pd.DataFrame, inputs: DecayInputs, observed: Array) -> list[str]:
    """What a run is known by whatever its row: its id, or where the table has none its content."""
    if "run_id" in runs.columns:
        return [str(name) for name in runs["run_id"]]
    content = np.column_stack([inputs.shares, inputs.decay_tokens, inputs.params, observed])
    return [row.tobytes().hex() for row in content]
