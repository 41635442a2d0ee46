"""What a decision rests on: the runs behind every share, and everything that lies outside of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from decaylaws.laws.decay import DecayLaw
from decaylaws.laws.kit.law import Array
from decaylaws.search.problem import DecayProblem, Target

NEAR = 0.05  # a run informs a share if its own share of the source is at most so far from it
_USED = 1e-3  # a smaller share is none
_HARMLESS = 4.0  # passes that hardly differ from fresh text wherever they were counted (arXiv 2305.16264)


@dataclass(frozen=True)
class ShareEvidence:
    """What one recommended share rests on.

    Attributes:
        source: the source.
        share: its recommended share.
        lower: 5 % quantile of its share in the optima of the law's draws.
        upper: 95 % quantile of the same; wide where the runs do not determine the share.
        runs_near: runs of the fit whose share of the source differs by at most 0.05.
        runs_with: runs of the fit that hold the source at all.
        leverage: of the recommended share in a straight line through the runs' shares of this source: 1/n in
            their middle, above 4/n at their edge, where the law leans on few runs.
    """

    source: str
    share: float
    lower: float
    upper: float
    runs_near: int
    runs_with: int
    leverage: float


def share_evidence(problem: DecayProblem, chosen: Array, optima: Array) -> tuple[ShareEvidence, ...]:
    """Evidence of every share of ``chosen`` ``[m]``, given the optima of the law's draws ``[b, m]``.

    Args:
        problem: the search problem under one plan.
        chosen: the recommended shares [m].
        optima: best shares under each of the law's draws [b, m].
    """
    around = np.vstack([chosen[None], optima])
    lower, upper = np.quantile(around, [0.05, 0.95], axis=0)
    found = []
    for k, name in enumerate(problem.space.names):
        seen = np.asarray(problem.law.evidence_["share_values"].get(name, []), dtype=float)
        found.append(
            ShareEvidence(
                source=name,
                share=float(chosen[k]),
                lower=float(lower[k]),
                upper=float(upper[k]),
                runs_near=int(np.sum(np.abs(seen - chosen[k]) <= NEAR)),
                runs_with=int(np.sum(seen > _USED)),
                leverage=_leverage(seen, float(chosen[k])),
            )
        )
    return tuple(found)


def _leverage(seen: Array, at: float) -> float:
    """Leverage of ``at`` in a line through ``seen`` ``[n]``, at most 1: one run's worth, or none at all."""
    spread = float(np.sum((seen - seen.mean()) ** 2)) if len(seen) else 0.0
    if spread <= 0:
        return 1.0
    return min(1.0 / len(seen) + (at - float(seen.mean())) ** 2 / spread, 1.0)


def beyond_evidence(problem: DecayProblem, shares: Array) -> list[str]:
    """Sentences on everything in which a decision lies outside the rows that the law was fitted on."""
    law, plan, target = problem.law, problem.plan, problem.target
    found = []
    for name, share in zip(problem.space.names, shares):
        low, high = law.evidence_["shares"][name]
        if share > high + 1e-6 or share < low - 1e-6:
            found.append(f"share of {name} is {share:.3f}; the runs span {low:.3f} to {high:.3f}")
    epochs = dict(zip(problem.law.sources_, problem.inputs(np.asarray(shares)[None]).epochs[0].tolist()))
    for name, most in law.evidence_.get("most_epochs", {}).items():
        if 0 < most < epochs[name] * (1 - 1e-6) and epochs[name] > _HARMLESS:
            found.append(
                f"{name} is passed over {epochs[name]:.1f} times; no run passes over it more than {most:.1f}"
            )
    numbers: dict[str, tuple[str, float]] = {
        "decay_tokens": ("decay tokens are", plan.decay_tokens),
        "batch_tokens": ("batch tokens are", problem.batch_tokens),
        "non_embedding_params": ("non-embedding parameters are", target.non_embedding_params),
    }
    ranges = {field: law.evidence_[field] for field in numbers}
    numbers["start_lr"] = ("the hand-over LR is", plan.start_lr)
    ranges["start_lr"] = start_lr_range(law, target)
    for field, (words, value) in numbers.items():
        low, high = ranges[field]
        if not low * (1 - 1e-9) <= value <= high * (1 + 1e-9):
            found.append(f"{words} {value:,.6g}; the runs span {low:,.6g} to {high:,.6g}")
    ends, factor = law.evidence_.get("end_lr_factor"), plan.end_lr / plan.start_lr
    if ends is not None and plan.shape != "constant" and not spans(ends, factor):
        found.append(
            f"the LR ends at {factor:.3g} of its start; the runs span {ends[0]:.3g} to {ends[1]:.3g}"
        )
    if plan.shape not in law.evidence_["shapes"]:
        found.append(
            f"shape {plan.shape} was not run; the runs have {', '.join(law.evidence_['shapes'])}, and intervals allow "
            f"{100 * law.shape_error_:.1f} % of the annealing gain for that"
        )
    return found


def start_lr_range(law: DecayLaw, target: Target) -> tuple[float, float]:
    """Start LRs that the runs span: absolute ones, or where starts differ in LR those of the target that correspond.

    A factor is a quotient, so that its range is taken a hair wider than the runs.
    """
    factors = law.evidence_.get("start_lr_factor")
    if factors is None or target.handover_lr is None:
        low, high = law.evidence_["start_lr"]
        return low, high
    return factors[0] * target.handover_lr * (1 - 1e-9), factors[1] * target.handover_lr * (1 + 1e-9)


def spans(seen: Sequence[float], factor: float) -> bool:
    """Whether a factor of the end LR on the start LR lies in the range of the runs, whose own ones are quotients."""
    low, high = seen
    return low - 1e-6 <= factor <= high + 1e-6


def support(problem: DecayProblem, shares: Array) -> dict[str, int]:
    """Runs of the fit whose share of a source is at least half of the recommended one, by source with any share."""
    found = {}
    for name, share in zip(problem.space.names, shares):
        seen: Sequence[float] = problem.law.evidence_["share_values"].get(name, [])
        if share > _USED:
            found[name] = int(np.sum(np.asarray(seen) >= 0.5 * share))
    return found
