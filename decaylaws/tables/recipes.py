"""From a mixture that a table asked for to a recipe that exports and launches."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from decaylaws import __version__
from decaylaws.errors import InvalidValueError
from decaylaws.mixtures import Mixture
from decaylaws.recipe import Evidence, HandOver, LawRecord, Provenance, Recipe, Source
from decaylaws.schedules import Schedule
from decaylaws.search import decay_recipe, mixture_recipe
from decaylaws.settings.mix import MixSettings
from decaylaws.tables.decays import DecayMixed
from decaylaws.tables.mixture import Mixed


def table_recipe(
    found: Mixed,
    schedule: Schedule,
    *,
    settings: MixSettings | None = None,
    batch_tokens: int,
    seq_len: int,
    checkpoint: str | None = None,
    start_tokens: int = 0,
    lr: float | None = None,
    fresh_optimizer: bool = False,
    name: str = "mix",
) -> Recipe:
    """The recipe of a recommended mixture under a schedule of one's own.

    It names the runs and the regression that it rests on, with the error on left-out runs. It predicts no losses: the
    runs had another schedule, and perhaps another size.

    Args:
        found: what :func:`~decaylaws.tables.mix` answered.
        schedule: LR over the tokens of the run.
        settings: the question, for what is known of the sources.
        batch_tokens: tokens of an optimiser step.
        seq_len: tokens of a sequence.
        checkpoint: where the run starts; none starts from random weights.
        start_tokens: tokens that the checkpoint has seen.
        lr: LR of the checkpoint's last step; the schedule's first where not given.
        fresh_optimizer: start the optimiser's moments from zero.
        name: of the recipe.

    Raises:
        InvalidValueError: the mixture differs between phases, the LR jumps at the hand-over, or the sources do not
            hold enough tokens.
    """
    settings = settings or MixSettings()
    phased = [source for source in found.mixture.support if "@" in source]
    if phased and found.phases:
        raise InvalidValueError(
            "recipe", phased[0], "cannot be written for a table of phases",
            "Write a stage for each phase by hand: the shares of a phase are those of its sources over their sum.",
        )  # fmt: skip
    used, sources = _used(found.mixture, settings)
    errors = {
        f"rmse:{row.regression}": float(row.rmse)
        for row in found.held_out.itertuples()
        if row.regression == found.law
    }
    return mixture_recipe(
        replace(found.choice, mixture=Mixture(used)),
        schedule,
        sources=sources,
        handover=HandOver(
            checkpoint=checkpoint,
            tokens=start_tokens,
            lr=schedule.start_lr if lr is None else lr,
            lr_source="stated on the command line" if lr is not None else "first LR of the schedule",
            optimizer_state="fresh" if fresh_optimizer or checkpoint is None else "load",
        ),
        seq_len=seq_len,
        batch_tokens=batch_tokens,
        name=name,
        seed=settings.seed,
        provenance=_provenance(found, LawRecord(name=f"mixture:{found.law}", heldout_error=errors)),
    )


def decay_table_recipe(
    found: DecayMixed,
    *,
    settings: MixSettings | None = None,
    seq_len: int,
    checkpoint: str,
    fresh_optimizer: bool = False,
    name: str = "decay",
) -> Recipe:
    """The recipe of a recommended decay: its mixture and schedule, predicted losses, guards, and what it rests on.

    Args:
        found: what :func:`~decaylaws.tables.mix_decay` answered.
        settings: the question, for what is known of the sources.
        seq_len: tokens of a sequence.
        checkpoint: the one that the runs started from, and from which the decay starts.
        fresh_optimizer: start the optimiser's moments from zero.
        name: of the recipe.

    Raises:
        InvalidValueError: the sequences do not divide a batch, or the sources do not hold enough tokens.
    """
    settings = settings or MixSettings()
    used, sources = _used(found.mixture, settings)
    own, target = found.held_out[found.held_out["law"] == found.law], found.table.target
    errors = {f"mae:{row.held_out}": float(row.mae) for row in own.itertuples()}
    stated = target.handover_lr is not None
    return decay_recipe(
        replace(found.choice, mixture=Mixture(used)),
        sources=sources,
        handover=HandOver(
            checkpoint=checkpoint,
            tokens=target.start_tokens,
            lr=target.handover_lr if target.handover_lr is not None else found.reference_lr,
            lr_source="handover_lr of the table" if stated else "largest start LR of the table",
            optimizer_state="fresh" if fresh_optimizer else "load",
        ),
        seq_len=seq_len,
        batch_tokens=found.batch_tokens,
        name=name,
        seed=settings.seed,
        guard_limits=settings.guards,
        provenance=_provenance(
            found, LawRecord(name=found.law, parameters=found.fitted.params_, heldout_error=errors)
        ),
    )


def _used(mixture: Mixture, settings: MixSettings) -> tuple[dict[str, float], dict[str, Source]]:
    """Shares of the sources that are used, and what is known of these."""
    used = {source: share for source, share in mixture.weights.items() if share > 0}
    return used, {
        source: Source(available_tokens=known.available_tokens, max_epochs=known.max_epochs)
        if (known := settings.sources.get(source)) is not None
        else Source()
        for source in used
    }


def _provenance(found: Mixed | DecayMixed, law: LawRecord) -> Provenance:
    return Provenance(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        decaylaws_version=__version__,
        laws=(law,),
        evidence=Evidence(run_ids=tuple(found.predicted["run"]), notes=(found.verdict, *found.notes)),
    )
