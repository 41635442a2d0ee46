"""From a table of finished decays to a mixture and a schedule, by the decay law."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from decaylaws.errors import InvalidValueError
from decaylaws.io.values import AS_JSON
from decaylaws.laws.decay import (
    MEMBERS,
    DecayLaw,
    chosen_member,
    decay_predictors,
    held_out_fits,
    held_out_table,
)
from decaylaws.laws.decay.heldout import member_votes
from decaylaws.laws.decay.horizon import measured_trust
from decaylaws.laws.decay.trust import (
    choice_notes,
    coverage_doubts,
    guard_changes,
    held_out_predictions,
    margin_near,
)
from decaylaws.laws.kit.expected import expected_notes, finished_rows, loss_errors
from decaylaws.mixtures import Mixture, MixtureSpace
from decaylaws.progress import Progress, silent
from decaylaws.runs.objective import normalised
from decaylaws.runs.table import LOSS, MIX, values_by
from decaylaws.schedules import Schedule, decay
from decaylaws.search import Goal, Recommendation, recommend
from decaylaws.settings.mix import MixSettings
from decaylaws.tables.answers import (
    AVAILABLE,
    BEST_RUN,
    MEAN_RUN,
    TableAnswer,
    beyond_runs,
    guard_table,
    mixture_of,
    named_control,
    named_prior,
    require_tokens,
    rival_table,
    share_table,
)
from decaylaws.tables.cells import excluded_table
from decaylaws.tables.decay_reading import DecayTable, differs_in_decay, lacking, read_decays
from decaylaws.tables.mixture import Mixed, mix, without_diverged
from decaylaws.tables.run_reading import RunTable

DECAY = "decay"
"""The name of the decay law among the laws of the settings."""
TRUNK_MIXTURE = "trunk's mixture"

_PREDICTION_COLUMNS = ["held_out", "run_id", "domain", "predicted", "lower", "upper", "observed"]
_UNLIMITED = 10**18  # tokens of sources of which nothing is known: no run repeats them


@dataclass(frozen=True, kw_only=True)
class DecayMixed(TableAnswer):
    """The answer of the decay law: a mixture and a schedule.

    ``rivals`` are mixtures under the same schedule, the control first; the best run was observed under its own. Of the
    ``targets`` the ``start`` is the loss at the checkpoint.

    Attributes:
        schedule: LR over the tokens of the decay, of length ``decay_tokens``.
        decay_tokens: tokens of the decay.
        start_lr: LR at the hand-over.
        end_lr: LR after the last token.
        decay_shape: shape of the decay.
        batch_tokens: tokens of an optimiser step.
        start_tokens: tokens that the checkpoint has seen, from which the decay is planned.
        schedules: a row for each length, shape, end LR and batch size at its own best mixture and LR, the best first.
        reference_lr: the largest start LR of the runs, which stands for that of the checkpoint.
        choice: the whole answer of :func:`decaylaws.search.recommend`.
        table: the runs of the fit, the checkpoint and the choices.
        fitted: the law.
    """

    schedule: Schedule = field(metadata={AS_JSON: str})
    decay_tokens: int
    start_lr: float
    end_lr: float
    decay_shape: str
    batch_tokens: int
    start_tokens: int
    schedules: pd.DataFrame
    reference_lr: float = field(repr=False, metadata={AS_JSON: None})
    choice: Recommendation = field(repr=False, metadata={AS_JSON: None})
    table: DecayTable = field(repr=False, metadata={AS_JSON: None})
    fitted: DecayLaw = field(repr=False, metadata={AS_JSON: None})

    @property
    def schedules_to_show(self) -> pd.DataFrame:
        """``schedules`` with LRs as text of three digits: four decimals would round them away."""
        lrs = {name: self.schedules[name].map("{:.3g}".format) for name in ("start_lr", "end_lr")}
        return self.schedules.assign(**lrs)


def mix_or_decay(
    table: RunTable, settings: MixSettings | None = None, *, progress: Progress = silent
) -> Mixed | DecayMixed:
    """A mixture, and a schedule where the runs differ in length or LR and state what the decay law needs.

    ``settings.law`` decides where it is set: ``decay`` asks for the decay law, every other name for that regression.

    Args:
        table: what :func:`~decaylaws.tables.read_run_table` read.
        settings: the question; the same that the table was read by.
        progress: told of every fit and of the search.

    Raises:
        InvalidValueError: the decay law is asked for (by its name, a trunk or constants) and the table lacks what it
            needs; or whatever :func:`mix` and :func:`mix_decay` refuse.
        InfeasibleError: no mixture meets the limits.
    """
    settings = settings or MixSettings()
    answer = mix_decay if is_decay(table, settings) else mix
    return answer(table, settings, progress=progress)


def is_decay(table: RunTable, settings: MixSettings) -> bool:
    """Whether :func:`mix_or_decay` takes the decay law.

    Raises:
        InvalidValueError: a trunk or constants beside the name of a regression, which reads neither.
    """
    told = [name for name in ("trunk", "constants") if getattr(settings, name)]
    if settings.law != DECAY and "law" in settings.model_fields_set:
        if told:
            value = getattr(settings, told[0])
            raise InvalidValueError(told[0], value, f"belongs to the decay law, not to '{settings.law}'")
        return False
    return settings.law == DECAY or bool(told) or (differs_in_decay(table) and not lacking(table, settings))


def mix_decay(
    table: RunTable, settings: MixSettings | None = None, *, progress: Progress = silent
) -> DecayMixed:
    """Recommend a mixture and a schedule from finished decays, by the decay law.

    Args:
        table: what :func:`~decaylaws.tables.read_run_table` read.
        settings: the objective, limits, guards and budget; the same that the table was read by.
        progress: told of every fit and of the search.

    Raises:
        InvalidValueError: the table lacks what the decay law needs, too few runs, or an unknown source, target or run.
        InfeasibleError: no mixture meets the limits.
    """
    settings = settings or MixSettings()
    missing = lacking(table, settings)
    if missing:
        raise InvalidValueError(
            "law", DECAY, f"needs {', '.join(missing)}",
            "Map the columns (--map start_lr=COLUMN), or say what holds for every run (--constant batch_tokens=4M) and "
            "the mixture before the decays (--trunk SOURCE=SHARE).",
        )  # fmt: skip
    weights = normalised(settings.weights or dict.fromkeys(table.targets, 1.0))
    keep, left_out = without_diverged(table, weights)
    read = read_decays(table, settings)
    read = replace(read, runs=read.runs[keep].reset_index(drop=True))
    runs = finished_rows(read.runs).reset_index(drop=True)
    space = _space(settings, table, read)
    law, held_out, predictions, notes = _fit(read, settings, progress)
    observed = values_by(runs, LOSS, law.domains_) @ law.weight_vector(weights)
    best = int(observed.argmin())
    shares = runs[[MIX + name for name in table.sources]].set_axis(list(table.sources), axis=1).astype(float)
    known = {BEST_RUN: mixture_of(shares.iloc[best]), MEAN_RUN: mixture_of(shares.mean())}
    if settings.knows_tokens:
        known[AVAILABLE] = space.token_proportional()
    require_tokens(settings)
    control, name = (
        named_control(settings, known, space, shares, runs["run_id"].tolist())
        if "control" in settings.model_fields_set
        else (read.trunk, TRUNK_MIXTURE)
    )
    margins = {} if not settings.guards else _margins(law, runs, predictions, settings.guards)
    found = recommend(
        law,
        space,
        target=read.target,
        goal=Goal(
            weights=weights,
            control=control,
            guard_domains=tuple(settings.guards),
            guard_limits=dict(settings.guards),
            guard_margins=margins,
            prior=named_prior(settings, known, space),
            kl_strength=settings.kl_strength,
        ),
        choices=read.choices,
        rivals=known,
        seed=settings.seed,
        progress=progress,
    )
    plan = found.plan
    notes += beyond_runs(found.mixture, shares)
    notes += _more_notes(settings, space, known, plan.decay_tokens)
    return DecayMixed(
        mixture=found.mixture,
        schedule=decay(
            plan.decay_tokens, plan.start_lr, plan.end_lr, plan.shape, warmup_tokens=plan.warmup_tokens
        ),
        decay_tokens=plan.decay_tokens,
        start_lr=plan.start_lr,
        end_lr=plan.end_lr,
        decay_shape=plan.shape,
        batch_tokens=plan.batch_tokens or read.target.batch_tokens,
        start_tokens=read.target.start_tokens,
        objective=found.objective,
        rivals=rival_table(found.rivals, str(runs["run_id"][best]), float(observed[best]), name),
        supported=found.rivals[0].beaten,
        verdict=f"{found.verdict} The control is the {name}.",
        shares=share_table(
            found.mixture,
            {each.source: (each.lower, each.upper) for each in found.evidence},
            {"best_run": known[BEST_RUN], "mean_of_runs": known[MEAN_RUN], "trunk": read.trunk},
            found.support,
            {use.name: use.binds for use in space.use(found.mixture, plan.decay_tokens)},
            shares,
        ),
        targets=_targets(found, read, weights),
        guards=guard_table(settings.guards, found.guards, margins),
        schedules=found.by_plan.drop(columns="warmup_tokens"),
        expected_regret=found.expected_regret,
        regret_upper=found.regret_upper,
        held_out=held_out,
        law=f"{DECAY}:{law.member}",
        num_runs=len(runs),
        divergence=found.divergence,
        excluded=excluded_table([*table.excluded.itertuples(index=False, name=None), *left_out]),
        notes=tuple(dict.fromkeys([*table.notes, *read.notes, *notes])),
        reference_lr=float(runs["start_lr"].max()),
        choice=found,
        table=read,
        fitted=law,
        predicted=_objective_left_out(runs, predictions, law, weights, observed),
    )


def _fit(
    read: DecayTable, settings: MixSettings, progress: Progress
) -> tuple[DecayLaw, pd.DataFrame, pd.DataFrame, list[str]]:
    """The member that does best on held-out runs; errors beside baselines, held-out predictions and sentences."""
    trunk, runs = read.trunk.to_dict(), finished_rows(read.runs).reset_index(drop=True)
    batch = read.target.batch_tokens
    every = decay_predictors(trunk, tuple(MEMBERS), reference_batch_tokens=batch)
    fits = held_out_fits(every, runs, seed=settings.seed, progress=progress)
    errors = held_out_table(fits, runs)
    votes = member_votes(fits, runs, seed=settings.seed)
    member = chosen_member(errors, votes)
    law = DecayLaw(trunk, member, reference_batch_tokens=batch, seed=settings.seed).fit(
        read.runs, progress=progress
    )
    own = [each for each in fits if each.law == f"{DECAY}:{member}"]
    parts, notes = [pd.DataFrame(columns=_PREDICTION_COLUMNS)], list(choice_notes(member, votes))
    unchecked = []
    for each in own:
        try:
            parts += [held_out_predictions([each], runs, progress=progress)] if each.fitted else []
        except InvalidValueError:  # too few mixtures are left for the intervals of a fit without these runs
            unchecked.append(each.kind)
    predictions = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
    notes += [
        f"The intervals were not checked on held-out {kind}: too few mixtures are left." for kind in unchecked
    ]
    on_their_way = read.runs[~read.runs["run_id"].isin(runs["run_id"])]
    notes += expected_notes(loss_errors(on_their_way, law.domains_))
    notes += [onset.sentence for onset in law.onsets_]
    others = {f"{DECAY}:{name}" for name in MEMBERS if name != member}
    errors = errors[~errors["law"].isin(others)].reset_index(drop=True)
    law.doubts_ = (*law.doubts_, *coverage_doubts(predictions), *_worse_than_none(errors))
    trust = measured_trust(
        every[f"{DECAY}:{member}"],
        runs,
        predictions[predictions["held_out"] == "mixture"],
        noise=float(np.mean(law.noise_)),
        progress=progress,
    )
    law.horizon_, law.shape_error_ = trust.horizon, trust.shapes.share
    notes += trust.sentences(without=("size",) if runs["non_embedding_params"].nunique() == 1 else ())
    for kind, rows in errors.groupby("held_out", sort=False):
        if not str(rows["law"].iloc[0]).startswith(DECAY):
            notes.append(f"On held-out {kind}, '{rows['law'].iloc[0]}' predicts better than the decay law.")
    return law, errors.drop(columns="seconds"), predictions, notes


def _worse_than_none(errors: pd.DataFrame) -> list[str]:
    """Where the law errs no less than the mean change of all runs does."""
    found = []
    for kind, rows in errors.groupby("held_out", sort=False):
        mae = rows.set_index("law")["mae"]
        own = float(mae[mae.index.str.startswith(DECAY)].iloc[0])
        if "constant" in mae and not own < float(mae["constant"]):
            found.append(
                f"On held-out {kind} the decay law errs no less than the mean change of the runs does."
            )
    return found


def _space(settings: MixSettings, table: RunTable, read: DecayTable) -> MixtureSpace:
    """The mixtures that may be recommended; sources of unknown size are never repeated."""
    longest = max(read.choices.decay_tokens)
    given = settings if settings.decay_tokens else settings.model_copy(update={"decay_tokens": longest})
    space = given.space(table.shares.mean().to_dict(), table.blocks)
    if settings.knows_tokens:
        return space
    means = table.shares.mean()
    sources = tuple(
        replace(each, available_tokens=max(round(_UNLIMITED * float(means[each.name])), 1))
        for each in space.sources
    )
    return replace(space, sources=sources)


def _margins(
    law: DecayLaw, runs: pd.DataFrame, predictions: pd.DataFrame, guards: Mapping[str, float]
) -> dict[str, float]:
    """By how much the prediction of each guard must stay clear of its limit: what held-out runs would have needed.

    Changes against the matched control are what a guard limits. Where no run has one, the errors of the losses count.
    """
    held = predictions[predictions["held_out"] == "mixture"].drop(columns="held_out")
    changes = guard_changes(law, runs, held)
    found = {}
    for domain, limit in guards.items():
        own = changes[changes["domain"] == domain]
        if own.empty:
            own = held[held["domain"] == domain]
            own = own.assign(observed=own["observed"] - own["predicted"], predicted=0.0)
        found[domain] = margin_near(own, limit)
    return found


def _targets(found: Recommendation, read: DecayTable, weights: Mapping[str, float]) -> pd.DataFrame:
    return pd.DataFrame([
        {
            "target": domain,
            "weight": weights.get(domain, 0.0),
            "start": read.target.start_loss[domain],
            "predicted": estimate.mean,
            "lower": estimate.lower,
            "upper": estimate.upper,
            "control": found.control[domain],
        }
        for domain, estimate in found.predicted.items()
    ])  # fmt: skip


def _more_notes(
    settings: MixSettings, space: MixtureSpace, known: Mapping[str, Mixture], decay_tokens: int
) -> list[str]:
    """What else a reader should know before acting."""
    said = []
    if not settings.knows_tokens:
        said.append(
            "Nothing is known of how many tokens the sources hold, so no share is capped for repetition. "
            "Give available_tokens and max_epochs for that."
        )
    if not space.contains(known[BEST_RUN], decay_tokens):
        said.append("The mixture of the best observed run does not keep the limits.")
    said.append(
        "Lengths, LRs and shapes stay within those of the table, and no share is above the largest of any run unless a "
        "lower bound asks for it. The regret bound covers what the runs leave open and errors of the law as large as "
        "on held-out mixtures. Confirm the decay with a run beside the control all the same."
    )
    return said


def _objective_left_out(
    runs: pd.DataFrame,
    predictions: pd.DataFrame,
    law: DecayLaw,
    weights: Mapping[str, float],
    observed: np.ndarray,
) -> pd.DataFrame:
    """Objective of every run by fits without its mixture (NaN where it was never held out), and observed."""
    held = predictions[predictions["held_out"] == "mixture"]
    wide = held.pivot_table(index="run_id", columns="domain", values="predicted").reindex(
        columns=law.domains_
    )
    objective = pd.Series(wide.to_numpy(dtype=float) @ law.weight_vector(weights), index=wide.index)
    names = runs["run_id"].tolist()
    return pd.DataFrame(
        {"run": names, "predicted": objective.reindex(names).to_numpy(), "observed": observed}
    )
