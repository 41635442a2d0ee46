"""What a search answers: a mixture and a plan, and everything that they rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from decaylaws.io.values import json_value
from decaylaws.mixtures import Mixture
from decaylaws.search.certainty import Candidate
from decaylaws.search.evidence import ShareEvidence
from decaylaws.search.problem import Plan


@dataclass(frozen=True)
class Estimate:
    """A number with its 90 % interval, nats per token."""

    mean: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Rival:
    """A mixture that the recommendation is measured against, under the same plan.

    Attributes:
        name: who it is.
        mixture: its shares.
        objective: its predicted objective.
        gain: what the recommendation gains over it; not certain where the interval holds 0.
        guards_hold: whether it keeps the guards as the recommendation has to.
        doubts: why the law's word on the gain is not to be believed; empty where nothing speaks against it.
    """

    name: str
    mixture: Mixture
    objective: float
    gain: Estimate
    guards_hold: bool = True
    doubts: tuple[str, ...] = ()

    @property
    def passed_over(self) -> bool:
        """Whether it is predicted to be better and not recommended for its guards alone."""
        return self.gain.mean < 0 and not self.guards_hold

    @property
    def beaten(self) -> bool:
        """Whether the whole interval of the gain is positive, and to be believed."""
        return self.gain.lower > 0 and not self.doubts

    def to_dict(self) -> dict[str, Any]:
        """Its fields, and whether it is beaten."""
        return vars(self) | {"beaten": self.beaten}


@dataclass(frozen=True)
class Recommendation:
    """A decision with everything that it rests on.

    Attributes:
        mixture: recommended shares.
        plan: recommended length and LR path.
        predicted: loss of every domain after the decay.
        control: the same for the control under the same plan, point predictions.
        objective: weighted loss of the recommendation, with what its choice costs.
        rivals: the control first, then whoever else was named.
        guards: by guard domain, nats left before it breaks (negative: broken).
        guard_nats: tolerance of the guards, nats per token.
        guard_margins: by guard domain, nats by which a prediction was to stay clear of the limit.
        feasible: whether all guards hold by the law, with the goal's margin for its uncertainty.
        forgetting: by guard domain, change of the loss against the checkpoint.
        binding: sources and groups whose limit the mixture touches.
        near_optimal: by source, lowest and highest share of the feasible mixtures that the law's point prediction
            puts within the tolerance of the optimum: what may be chosen at no cost that a run could show.
        near_optimal_nats: that tolerance: one standard deviation of the objective between seeds, or where that was not
            measured the scatter of single runs about the law.
        optimum_tv: mean total-variation distance of the bootstrap's optima from the recommendation.
        expected_regret: what the recommendation gives away on average over the bootstrap, nats.
        regret_upper: 90 % quantile of that.
        unconstrained: the optimum under the same plan without caps, bounds and guards (within the evidence).
        unconstrained_objective: its predicted objective.
        support: by source, runs of the fit with at least half of the recommended share.
        evidence: what every recommended share rests on, in the order of the sources.
        candidates: the mixtures to confirm, the recommendation first; ``candidates[k - 1]`` holds regret@k.
        front: general against specialised loss: see ``decaylaws.search.front``; empty without general domains.
        divergence: KL divergence of the mixture from the goal's prior, nats; 0 without a prior.
        beyond_evidence: sentences on everything that was extrapolated.
        verdict: in words; may be that there is not enough evidence.
        by_plan: every kind of plan (length, shape, end LR, batch size) at its own best mixture and LR, the best first:
            ``objective``, ``aim`` (with what the goal adds for risk and divergence, which decides) and ``feasible``.
        trials: every candidate of the outer search.
        lost_by_choice: nats by which the law's own prediction is lower than ``objective``: a mixture is chosen where
            the law errs low. Gains are lower by as much. Other predictions of this class are the law's own.
    """

    mixture: Mixture
    plan: Plan
    predicted: Mapping[str, Estimate]
    control: Mapping[str, float]
    objective: Estimate
    rivals: tuple[Rival, ...]
    guards: Mapping[str, float]
    guard_nats: float
    guard_margins: Mapping[str, float]
    feasible: bool
    forgetting: Mapping[str, float]
    binding: tuple[str, ...]
    near_optimal: Mapping[str, tuple[float, float]]
    near_optimal_nats: float
    optimum_tv: float
    expected_regret: float
    regret_upper: float
    unconstrained: Mixture
    unconstrained_objective: float
    support: Mapping[str, int]
    evidence: tuple[ShareEvidence, ...]
    candidates: tuple[Candidate, ...]
    front: pd.DataFrame
    divergence: float
    beyond_evidence: tuple[str, ...]
    verdict: str
    by_plan: pd.DataFrame
    trials: pd.DataFrame
    lost_by_choice: float = 0.0

    @property
    def gain(self) -> Estimate:
        """What the recommendation gains over the control."""
        return self.rivals[0].gain

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the trials without their shares."""
        values: dict[str, Any] = json_value(vars(self) | {"trials": self.trials.drop(columns="shares")})
        return values


def preferences(rivals: Sequence[Rival]) -> str:
    """Which rivals the recommendation is better than, and for which the evidence does not say."""
    sure = [rival.name for rival in rivals if rival.beaten]
    passed_over = [rival.name for rival in rivals if rival.passed_over]
    unsure = [rival.name for rival in rivals if not rival.beaten and not rival.passed_over]
    words = [f"It is better than {', '.join(sure)} with 90 % confidence."] if sure else []
    words += [f"There is not enough evidence to prefer it over {', '.join(unsure)}."] if unsure else []
    words += dict.fromkeys(doubt for rival in rivals for doubt in rival.doubts)
    if passed_over:
        words.append(
            f"{', '.join(passed_over)} {'is' if len(passed_over) == 1 else 'are'} predicted to be better, but may "
            "break a guard. The search could choose such a mixture with a larger guard_nats."
        )
    return " ".join(words)
