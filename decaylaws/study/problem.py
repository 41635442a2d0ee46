"""The search problem of a study: goal, guards with their margins, and the checkpoint of the target's decay."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from decaylaws.designs.planner import Planner
from decaylaws.laws.decay.trust import margin_near
from decaylaws.mixtures import Mixture
from decaylaws.runs.table import AVERAGED_START_LOSS, AVERAGED_START_TOKENS, HANDOVER_LR, START_LOSS
from decaylaws.schedules import decay
from decaylaws.search import Goal, Target
from decaylaws.study.fit import Fit
from decaylaws.study.objective import Objective
from decaylaws.study.results import start_losses


def goal(planner: Planner, own: Objective, guard_margins: Mapping[str, float]) -> Goal:
    """What the search lowers and what it must keep, as study.yaml says it.

    Args:
        planner: of the study.
        own: the objective that its runs allow.
        guard_margins: nats by which the prediction of each guard must stay clear of its limit.
    """
    asked = planner.settings.objective
    prior = planner.space.token_proportional() if asked.prior is None else Mixture(asked.prior)
    return Goal(
        weights=own.weights,
        control=planner.control_mixture,
        guard_domains=asked.guard_domains,
        guard_nats=asked.guard_nats,
        guard_limits=own.guard_limits,
        guard_margins=guard_margins,
        general_domains=planner.settings.general_domains,
        prior=prior,
        kl_strength=asked.kl_strength,
    )


def guard_margins(fit: Fit, limits: Mapping[str, float]) -> dict[str, float]:
    """Nats by which a guard's prediction must stay clear of its limit: what held-out runs would have needed.

    The errors are of the change against the matched control, the very thing that a guard limits: a law that is
    right about losses can still be optimistic about their differences.

    Args:
        fit: what held-out runs came to.
        limits: largest rise of each guarded domain, nats per token.
    """
    changes = fit.guard_changes
    return {
        domain: margin_near(changes[changes["domain"] == domain], limit) for domain, limit in limits.items()
    }


def decay_target(planner: Planner, runs: pd.DataFrame) -> Target:
    """The checkpoint from which the target's decay is to start.

    Args:
        planner: of the study.
        runs: the rows that belong to its question.

    Raises:
        StudyError: the target's trunk has not been trained, or its checkpoint not been measured.
    """
    settings = planner.settings
    start = planner.start(settings.target.shape).config
    # a fork of no matter what schedule starts from the same measured losses
    fork = planner.microanneal(
        "start",
        settings.target.shape,
        decay(max(settings.design.decay_tokens), start.schedule.end_lr),
        planner.control_mixture,
        seed=settings.seed,
    ).config
    measured = start_losses(fork, runs)
    return Target(
        non_embedding_params=start.shape.non_embedding_params,
        start_tokens=start.tokens,
        batch_tokens=start.batch_tokens,
        start_loss=_by_domain(measured, START_LOSS),
        averaged_start_loss=_by_domain(measured, AVERAGED_START_LOSS),
        averaged_start_tokens=measured.get(AVERAGED_START_TOKENS),
        handover_lr=measured[HANDOVER_LR],
        warmup_tokens=planner.warmup_tokens(settings.target.shape),
    )


def _by_domain(row: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}
