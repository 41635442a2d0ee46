"""The decay law as an estimator: fitted on the decays of a runs table, asked about planned ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.decay.descent import (
    DecayFit,
    FittedDecays,
    bootstrap,
    covariance_over,
    fit_decays,
    order_noise_of,
)
from decaylaws.laws.decay.evidence import doubts_of, evidence_of, reference_tokens
from decaylaws.laws.decay.form import changes, evaluate, plan_form
from decaylaws.laws.decay.inputs import (
    LR_MEMORY,
    DecayInputs,
    decay_inputs,
    final_losses,
    has_measured_gains,
    mixture_groups,
    stable_tokens,
)
from decaylaws.laws.decay.intervals import FittedRange, HeldOut, calibrated, onsets_of, radii, spread
from decaylaws.laws.decay.misfit import USUAL_SHAPE_ERROR, Misfit, token_slopes
from decaylaws.laws.decay.optimism import Optimism
from decaylaws.laws.decay.parameters import MEMBERS, Frame, reference_start_tokens
from decaylaws.laws.decay.plan_form import PlanForm
from decaylaws.laws.decay.slices import DecaySlices
from decaylaws.laws.kit.arrow_matrix import ArrowCovariance
from decaylaws.laws.kit.draws import normal_radius
from decaylaws.laws.kit.expected import finished_rows
from decaylaws.laws.kit.horizon import Horizon
from decaylaws.laws.kit.law import Array, Prediction
from decaylaws.laws.kit.repetition import Onset
from decaylaws.laws.kit.threads import one_blas_thread
from decaylaws.mixtures import Mixture
from decaylaws.progress import Progress, silent
from decaylaws.runs.objective import normalised
from decaylaws.runs.table import DECAY_COLUMNS, LOSS, MIX, STABLE_TOKENS, names_with, require_decays


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
        shape_error_: standard deviation of the error at a shape of the decay that no run has, as a share of the
            annealing gain; who holds shapes out sets it (``decaylaws.laws.decay.shapes``).
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
    shape_error_: float
    has_stages_: bool
    _frame: Frame
    _fitted_range: FittedRange
    _fitted_seed: int | None
    _fit: tuple[DecayFit, Array] | None
    _parameter_covariance: ArrowCovariance
    _held_out: dict[str, HeldOut]

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
        fit = fit_decays(FittedDecays(inputs, observed, self._frame, self.domains_, self.sources_), progress)
        self._frame, self.noise_ = fit.decays.frame, fit.decays.noise
        self.order_noise_ = order_noise_of(X, self.domains_, self.noise_)
        self._theta, self._sd, self.report_ = fit.theta, fit.prior.sd, fit.solution.report
        self._parameter_covariance = fit.covariance()
        self.params_ = dict(zip(fit.decays.parameter_names, self._theta.tolist()))
        self.draws_ = bootstrap(fit, _names_of(X, inputs, observed), self.num_draws, self.seed, progress)
        self._draw_covariance = covariance_over(self.draws_, fit.decays)
        self._fit = fit, mixture_groups(X, self.sources_)
        self._calibrate(progress)
        self.onsets_ = onsets_of(fit, self._held_out)
        self.horizon_, self.shape_error_ = Horizon(), USUAL_SHAPE_ERROR
        return self

    @one_blas_thread()
    def with_intervals(self, num_folds: int) -> Self:
        """The same fit with ``num_folds``, for a law that was fitted without: only the hold-outs are fitted.

        Raises:
            InvalidValueError: the law comes out of a file, which does not hold the rows that it was fitted on.
        """
        self._require_fitted()
        if self._fit is None:
            raise InvalidValueError("law", "read from a file", "must have been fitted here", "Fit it again.")
        law = copy(self).set_params(num_folds=num_folds)
        law._calibrate()
        return law

    def _calibrate(self, progress: Progress = silent) -> None:
        assert self._fit is not None
        fit, mixtures = self._fit
        self.misfit_, self._held_out = calibrated(
            fit, mixtures, self._fitted_range, num_folds=self.num_folds, seed=self.seed, progress=progress
        )

    def predict(self, X: pd.DataFrame, interval: float | None = None) -> Any:
        """Losses after planned decays, nats per token, ``[n, d]``; with ``interval`` a ``Prediction`` of that shape."""
        inputs, every = self.inputs(X), np.eye(len(self.domains_))
        if interval is None:
            return self.loss(inputs)
        return self._interval(inputs, self._unseen(X), every, interval)

    def predict_objective(
        self, runs: pd.DataFrame, weights: Mapping[str, float], interval: float | None = None
    ) -> Any:
        """Weighted mean loss over domains, ``[n]``; with ``interval`` a ``Prediction`` whose errors are the mean's own.

        Args:
            runs: planned decays.
            weights: weight of every domain, not negative; normalised to sum to one.
            interval: probability that the interval is to hold, such as 0.9.
        """
        inputs, vector = self.inputs(runs), self.weight_vector(weights)
        if interval is None:
            return self.loss(inputs) @ vector
        found = self._interval(inputs, self._unseen(runs), vector[:, None], interval)
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
        inputs, vector, radius = self.inputs(runs), self.weight_vector(weights), normal_radius(interval)
        unseen, columns = self._unseen(runs), vector[:, None]
        found = self._interval(inputs, unseen, columns, interval)
        mean, half = found.mean[:, 0], (found.upper - found.mean)[:, 0]
        if "ratio" in self._held_out:
            optimism, gained = self.optimism(weights), self.changes(inputs) @ vector
            drawn = np.array([self.loss(inputs, theta) @ vector for theta in self.draws_])
            apart = np.std(drawn, axis=0, ddof=1) if len(drawn) > 1 else np.zeros(len(runs))
            apart = np.hypot(self.draw_scale(weights) * apart, self.form_error(weights))
            apart = np.hypot(apart, self._shape_sd(inputs, unseen, columns)[:, 0])
            half = np.hypot(np.maximum(half, radius * apart), radius * optimism.lost_sd(gained))
            mean = mean + optimism.lost(gained)
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
        return changes(self._theta if theta is None else theta, inputs, self._frame)

    def annealing_gain(self, inputs: DecayInputs) -> Array:
        """What the fall of the LR lowers every loss by, ``[n, d]``."""
        no_time_to_answer = replace(inputs, ages=np.zeros_like(inputs.ages))
        return self.loss(no_time_to_answer) - self.loss(inputs)

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
        self._fitted_range = FittedRange.by(inputs)
        self._frame = self._framed((), reference_start_tokens(inputs))
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

    def _framed(self, repeated: tuple[int, ...], start_tokens: float | None) -> Frame:
        """The constants that the law is evaluated in, with harm by the ``repeated`` sources."""
        shares = np.array([self.trunk_mixture.get(name, 0.0) for name in self.sources_])
        return Frame(
            MEMBERS[self.member], shares / shares.sum(), self._reference["params"], self._reference["tokens"],
            self._fitted_range.checkpoints, repeated, start_tokens, self.has_stages_,
        )  # fmt: skip

    def _inputs(self, runs: pd.DataFrame) -> DecayInputs:
        if stable_tokens(runs).any() and not self.has_stages_:
            constraint = "must be 0: no decay of the fit starts after a stable stage of another mixture"
            raise InvalidValueError(STABLE_TOKENS, float(stable_tokens(runs).max()), constraint)
        return decay_inputs(
            runs, sources=self.sources_, domains=self.domains_, reference_lr=self._reference["lr"],
            reference_batch_tokens=int(self._reference["batch_tokens"]), measured=self.is_measured_,
        )  # fmt: skip

    @property
    def slice_scores_(self) -> dict[str, dict[str, float]]:
        """What each of the three slices is worth on the fitted runs, held out by its own question.

        By method (``predict_ratio``, ``predict_tokens``, ``predict_size``): ``num_runs``, ``mae``, ``bias`` and
        ``worst``, nats per token; a slice that the runs cannot test (one size only, say) is missing.
        """
        self._require_fitted()
        return {f"predict_{kind}": held_out.summary() for kind, held_out in self._held_out.items()}

    def held_out_scores(self, weights: Mapping[str, float]) -> Array:
        """Errors of a weighted loss on held-out mixtures, in standard deviations of fit and noise, ``[n]``."""
        held_out = self._held_out_mixtures()
        return held_out.scores(self.weight_vector(weights)[:, None], with_misfit=False)[:, 0]

    def form_error(self, weights: Mapping[str, float]) -> float:
        """Standard deviation of what the form gets wrong of a weighted loss on held-out mixtures, nats per token."""
        return self._held_out_mixtures().form_error(self.weight_vector(weights))

    def optimism(self, weights: Mapping[str, float]) -> Optimism:
        """How much of a weighted loss's predicted gain held-out mixtures do not confirm; none if none was held out."""
        self._require_fitted()
        if "ratio" not in self._held_out:
            return Optimism()
        return self._held_out["ratio"].optimism(self.weight_vector(weights))

    def draw_scale(self, weights: Mapping[str, float]) -> float:
        """How many times farther from the fit than ``draws_`` the truth of a weighted loss is to be sought."""
        held_out, vector = self._held_out_mixtures(), self.weight_vector(weights)
        return held_out.draw_scale(vector, float(vector @ self._draw_covariance @ vector))

    def _held_out_mixtures(self) -> HeldOut:
        self._require_fitted()
        if "ratio" not in self._held_out:
            raise InvalidValueError(
                "num_folds", self.num_folds, "must be at least 2, with two mixtures beside the trunk's"
            )
        return self._held_out["ratio"]

    def _interval(self, inputs: DecayInputs, unseen: _Unseen, weights: Array, level: float) -> Prediction:
        """Weighted losses ``[n, k]`` for weights ``[d, k]``, with an interval calibrated on the same weighting."""
        if self.num_folds < 2:
            raise InvalidValueError("num_folds", self.num_folds, "must be at least 2 for intervals")
        losses, slopes = evaluate(self._theta, inputs, self._frame)
        distances = self._fitted_range.distances(inputs)
        misfit = self.misfit_.of(token_slopes(self._theta, inputs, self._frame), distances)
        is_unknown = self._frame.checkpoint_of(inputs).sum(axis=1) == 0
        layout = self._frame.layout(len(self.domains_))
        offset_sd = self._sd[layout.columns("offsets")][: len(self.domains_)]
        covariance = self._parameter_covariance.of(slopes) + is_unknown[:, None, None] * np.diag(offset_sd**2)
        radius = radii(self._held_out, self._fitted_range.outside(inputs, distances), weights, level)
        half = radius[:, None] * spread(covariance, np.hypot(self.noise_ * losses, misfit), weights)
        # the radius is that of held-out runs of the fitted order; a new order comes on top, and with it the fitted one,
        # whose effect the fit has taken for the law's
        order = 2 * (self.order_noise_ * losses) ** 2 @ weights**2 * unseen.order[:, None]
        more = order + self._shape_sd(inputs, unseen, weights) ** 2
        half, mean = np.hypot(half, normal_radius(level) * np.sqrt(more)), losses @ weights
        found = Prediction(mean, mean - half, mean + half, level)
        return self.horizon_.widen(found, {"size": inputs.params, "tokens": inputs.decay_tokens})

    def _shape_sd(self, inputs: DecayInputs, unseen: _Unseen, weights: Array) -> Array:
        """What an unseen shape adds to the spread of weighted losses ``[n, k]``: all domains share its error."""
        if not unseen.shape.any():
            return np.zeros((len(inputs), weights.shape[1]))
        return self.shape_error_ * np.abs(self.annealing_gain(inputs) @ weights) * unseen.shape[:, None]

    def _unseen(self, runs: pd.DataFrame) -> _Unseen:
        """In what each row differs from all fitted ones; without a seed it has another order of the data."""
        new_order = np.ones(len(runs), dtype=bool)
        if "seed" in runs:
            new_order = runs["seed"].to_numpy() != self._fitted_seed
        return _Unseen(new_order, ~runs["decay_shape"].astype(str).isin(self.evidence_["shapes"]).to_numpy())

    def _state(self) -> dict[str, Any]:
        return {
            "params": self.params_, "domains": self.domains_, "sources": self.sources_, "reference": self._reference,
            "noise": self.noise_, "order_noise": self.order_noise_, "fitted_seed": self._fitted_seed,
            "draws": self.draws_, "evidence": self.evidence_, "seen": vars(self._fitted_range),
            "misfit": vars(self.misfit_), "horizon": self.horizon_.to_list(),
            "shape_error": self.shape_error_,
            "is_measured": self.is_measured_,
            "doubts": self.doubts_,
            "lr_memory": LR_MEMORY,
            "repeated": self._frame.repeated,
            "reference_start_tokens": self._frame.reference_start_tokens,
            **({"has_stages": True} if self.has_stages_ else {}),
            "onsets": [vars(each) for each in self.onsets_],
            "covariance": self._parameter_covariance.to_dict(), "sd": self._sd,
            "draw_covariance": self._draw_covariance,
            "held_out": {kind: held_out.to_dict() for kind, held_out in self._held_out.items()},
        }  # fmt: skip

    def _restore(self, state: dict[str, Any]) -> None:
        if state.get("lr_memory", 0.0) != LR_MEMORY:  # the fitted memory counts steps in another way
            remedy = "An earlier version wrote this law. Fit it again."
            raise InvalidValueError("lr_memory", state.get("lr_memory", 0.0), f"must be {LR_MEMORY}", remedy)
        self._fit = None
        self.params_ = dict(state["params"])
        self.domains_, self.sources_ = list(state["domains"]), list(state["sources"])
        self._reference, self.evidence_ = dict(state["reference"]), dict(state["evidence"])
        self._fitted_range = FittedRange(
            **{name: np.array(values, dtype=float) for name, values in state["seen"].items()}
        )
        self.misfit_ = Misfit(**state["misfit"])
        self.horizon_ = Horizon.from_list(state.get("horizon", ()))
        self.shape_error_ = float(state.get("shape_error", USUAL_SHAPE_ERROR))
        self.is_measured_, self.doubts_ = bool(state["is_measured"]), tuple(state["doubts"])
        self.has_stages_ = bool(state.get("has_stages", False))
        repeated = tuple(int(place) for place in state.get("repeated", ()))
        self._frame = self._framed(repeated, state.get("reference_start_tokens"))
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


@dataclass(frozen=True)
class _Unseen:
    """Which of the asked rows ``[n]`` have an order of the data, or a shape of the decay, that no fitted row has."""

    order: NDArray[np.bool_]
    shape: NDArray[np.bool_]


def _names_of(runs: pd.DataFrame, inputs: DecayInputs, observed: Array) -> list[str]:
    """What a run is known by whatever its row: its id, or where the table has none its content."""
    if "run_id" in runs.columns:
        return [str(name) for name in runs["run_id"]]
    content = np.column_stack([inputs.shares, inputs.decay_tokens, inputs.params, observed])
    return [row.tobytes().hex() for row in content]
