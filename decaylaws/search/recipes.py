"""From what a search found to a recipe, with or without a study: schedule, mixture, predictions, guards and sources.

::

    found = recommend(law, space, target=target, goal=goal, choices=choices)
    recipe = decay_recipe(found, sources=space, handover=HandOver(checkpoint="run/step-1000", lr=1e-3), seq_len=4096,
                          batch_tokens=target.batch_tokens)
    recipe.save("recipe.yaml")
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pydantic import ValidationError

from decaylaws.errors import InvalidValueError
from decaylaws.mixtures import MixtureSpace
from decaylaws.recipe import (
    Guard,
    HandOver,
    OptimizerSettings,
    Prediction,
    Provenance,
    Recipe,
    Source,
    Stage,
)
from decaylaws.recipe.model import GUARD_TOLERANCE, HANDOVER_TOLERANCE, as_invalid_value
from decaylaws.schedules import Schedule, Segment, decay
from decaylaws.search.recommendation import Recommendation
from decaylaws.search.regression import MixtureChoice
from decaylaws.search.stages import StageChoice

Sources = MixtureSpace | Mapping[str, Source]


def decay_recipe(
    found: Recommendation,
    *,
    sources: Sources,
    handover: HandOver,
    seq_len: int,
    batch_tokens: int | None = None,
    name: str = "decay",
    optimizer: OptimizerSettings | None = None,
    seed: int = 0,
    provenance: Provenance | None = None,
    guard_limits: Mapping[str, float] | None = None,
    stage: StageChoice | None = None,
) -> Recipe:
    """The recipe of a recommended decay, and of the stable stage before it where there is one.

    Args:
        found: what :func:`decaylaws.search.recommend` answered.
        sources: the space that was searched, or what is known of every source.
        handover: the checkpoint, its LR and what is taken over from it. A first LR other than ``handover.lr`` is the
            search's decision, so the recipe marks it as meant (``lr_jump``).
        seq_len: tokens of a sequence.
        batch_tokens: tokens of an optimiser step where the recommendation names none; the trunk's.
        name: of the recipe.
        optimizer: AdamW settings; the recipe's defaults where not given.
        seed: of the order of the data.
        provenance: where the recipe comes from.
        guard_limits: tolerances of single guards in the place of the common one, nats per token.
        stage: the chosen stable stage (:func:`decaylaws.search.recommend_stages`); it runs at ``handover.lr`` and needs
            ``batch_tokens``.

    Raises:
        InvalidValueError: no batch size is known, or the sources do not allow the mixture.
    """
    plan = found.plan
    batch = plan.batch_tokens or batch_tokens
    if batch is None:
        raise InvalidValueError(
            "batch_tokens",
            None,
            "must be given where the recommendation names no batch size",
            "Give the trunk's.",
        )
    schedule = decay(
        plan.decay_tokens, plan.start_lr, plan.end_lr, plan.shape, warmup_tokens=plan.warmup_tokens
    )
    stages = [Stage(name="decay", lr=schedule, mixture=found.mixture, batch_tokens=batch, seq_len=seq_len)]
    if stage is not None:
        held = Schedule((Segment(stage.tokens, handover.lr, handover.lr),))
        own = batch_tokens or batch  # the batch of a decay may be its own
        stages.insert(
            0, Stage(name="stable", lr=held, mixture=stage.mixture, batch_tokens=own, seq_len=seq_len)
        )
    first = stages[0].lr.start_lr
    jumps = abs(first - handover.lr) > HANDOVER_TOLERANCE * max(first, handover.lr)
    with _named_errors():
        return Recipe(
            name=name,
            handover=handover.model_copy(update={"lr_jump": handover.lr_jump or jumps}),
            stages=tuple(stages),
            sources=_sources(sources),
            optimizer=optimizer or OptimizerSettings(),
            seed=seed,
            predictions={
                domain: Prediction(
                    mean=estimate.mean,
                    lower=estimate.lower,
                    upper=estimate.upper,
                    control=found.control[domain],
                )
                for domain, estimate in found.predicted.items()
            },
            guards={
                domain: _guard(found, domain, slack, (guard_limits or {}).get(domain, found.guard_nats))
                for domain, slack in found.guards.items()
            },
            provenance=provenance or Provenance(),
        )


def mixture_recipe(
    found: MixtureChoice,
    schedule: Schedule,
    *,
    sources: Sources,
    handover: HandOver,
    seq_len: int,
    batch_tokens: int,
    name: str = "decay",
    optimizer: OptimizerSettings | None = None,
    seed: int = 0,
    provenance: Provenance | None = None,
) -> Recipe:
    """The recipe of a mixture that a regression chose, under a schedule of one's own.

    It holds no predicted losses: the regression knows the runs' schedule and size, not the recipe's.

    Args:
        found: what :func:`decaylaws.search.recommend_mixture` answered.
        schedule: LR over the tokens of the decay.
        sources: the space that was searched, or what is known of every source.
        handover: the checkpoint, its LR and what is taken over from it.
        seq_len: tokens of a sequence.
        batch_tokens: tokens of an optimiser step.
        name: of the recipe.
        optimizer: AdamW settings; the recipe's defaults where not given.
        seed: of the order of the data.
        provenance: where the recipe comes from.

    Raises:
        InvalidValueError: the schedule starts away from ``handover.lr`` without ``lr_jump``, or the sources do not
            allow the mixture over so many tokens.
    """
    with _named_errors():
        return Recipe(
            name=name,
            handover=handover,
            stages=(
                Stage(
                    name="decay",
                    lr=schedule,
                    mixture=found.mixture,
                    batch_tokens=batch_tokens,
                    seq_len=seq_len,
                ),
            ),
            sources=_sources(sources),
            optimizer=optimizer or OptimizerSettings(),
            seed=seed,
            provenance=provenance or Provenance(),
        )


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise as_invalid_value(error) from error


def _sources(sources: Sources) -> dict[str, Source]:
    if not isinstance(sources, MixtureSpace):
        return dict(sources)
    return {
        limits.name: Source(available_tokens=int(limits.available_tokens), max_epochs=limits.max_epochs)
        for limits in sources.sources
    }


def _guard(found: Recommendation, domain: str, slack: float, limit: float) -> Guard:
    """A guard with the margin that its prediction has to keep."""
    change, margin = limit - slack, found.guard_margins.get(domain, 0.0)
    return Guard(
        limit=limit,
        predicted=change,
        upper=change + margin,
        holds=slack - margin >= -GUARD_TOLERANCE,
    )
