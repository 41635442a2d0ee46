"""The objective of a study as its runs allow it: in which unit, without what seeds explain, and the guards' limits.

study.yaml says what counts. What can count is seen in the runs: the bytes behind the tokens of each domain, and whether
mixtures differ in it by more than seeds do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from decaylaws.designs.planner import Planner
from decaylaws.errors import StudyError
from decaylaws.runs.columns import Unit
from decaylaws.runs.noise import Noise, Signal, signals
from decaylaws.runs.objective import COLUMN_OF, normalised
from decaylaws.runs.table import BPB, LOSS, values_by
from decaylaws.settings.capabilities import objective_weights
from decaylaws.settings.study import StudySettings
from decaylaws.study.results import decays

SIGNAL_COLUMNS = ("name", "kind", "seed_sd", "mixture_sd", "signal", "p_value", "counts")
_DIGITS = 9  # of a factor between units, which each row states to the last digit of its own rounding


@dataclass(frozen=True)
class Objective:
    """What the search minimises and keeps.

    Attributes:
        weights: by domain, of losses in nats per token, as laws and the search take them.
        stated: by domain, of what study.yaml weighs (``unit``), summing to one.
        unit: what the stated weights weigh.
        per_nat: what one nat per token of the weighted loss is in that unit; 1 where it is the unit.
        guard_limits: largest rise of each guarded domain, nats per token.
        left_out: domains of a weighted ability that do not count, since seeds explain their differences.
        notes: sentences about it.
        signals: by domain, how much of what mixtures differ by is signal; None where no plan finished under two seeds.
    """

    weights: Mapping[str, float]
    stated: Mapping[str, float]
    unit: Unit
    per_nat: float
    guard_limits: Mapping[str, float]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    signals: Mapping[str, Signal] | None


def objective(settings: StudySettings, runs: pd.DataFrame) -> Objective:
    """The objective that the runs of a sweep allow.

    Args:
        settings: of the study.
        runs: the decays that a fit may use.

    Raises:
        StudyError: a domain is weighed in bits per byte, and the runs do not say them; or seeds explain all that
            counts.
    """
    asked, unit = settings.objective, settings.objective_unit
    found = _signals(settings, runs)
    members = _members(settings)
    insisted = set(asked.insist)
    left_out = tuple(
        name for name in members if found is not None and found[name].is_noise and name not in insisted
    )
    notes = [
        f"'{name}' ({members[name].replace('_', ' ')}) is left out of the objective: {_figure(found[name])}. "
        f"To count it all the same, name it in objective.insist."
        for name in left_out
        if found is not None
    ]
    notes += [
        f"'{name}' counts in the objective, although {_figure(found[name])}."
        for name, weight in settings.objective_weights.items()
        if found is not None and weight > 0 and name not in left_out and found[name].is_noise
    ]
    if found is None and members:
        notes.append(
            "No plan finished under two seeds, so nothing is known of what seeds explain, and all of an ability counts."
        )
    weights = _without(settings, left_out)
    factors = _bits_per_nat(runs, settings.domains)
    limits = dict.fromkeys(asked.guard_domains, asked.guard_nats)
    if asked.guard_bits_per_byte is not None:
        _require(factors, limits, "objective.guard_bits_per_byte")
        limits = {name: asked.guard_bits_per_byte / factors[name] for name in limits}
    stated = normalised(weights, "objective.weights")
    if unit == "nats_per_token":
        return Objective(weights, stated, unit, 1.0, limits, left_out, tuple(notes), found)
    _require(factors, [name for name, weight in stated.items() if weight > 0], "objective.unit")
    scaled = {name: weight * factors.get(name, 0.0) for name, weight in stated.items()}
    per_nat = sum(scaled.values())
    notes.append(
        f"The objective weighs bits per byte. Its losses are shown in nats per token of the weighted domains, of which "
        f"one is {per_nat:.4g} bits per byte."
    )
    return Objective(normalised(scaled), stated, unit, per_nat, limits, left_out, tuple(notes), found)


def signal_table(settings: StudySettings, runs: pd.DataFrame, own: Objective) -> pd.DataFrame:
    """How much of the variance between mixtures is signal: by domain, by weighted ability, and of the objective.

    Columns: ``name``; ``kind`` (``source``, ``domain``, ``questions``, ``ability`` or ``objective``); ``seed_sd`` and
    ``mixture_sd`` (standard deviations between seeds and between mixtures, in the objective's unit); ``signal`` (share
    of the variance between mixtures that seeds do not explain); ``p_value`` (chance that seeds alone make mixtures
    differ so much); ``counts`` (whether the objective weighs it). Empty where no plan finished under two seeds.

    Args:
        settings: of the study.
        runs: the decays that a fit may use.
        own: the objective that they allow.
    """
    found = own.signals
    if found is None:
        return pd.DataFrame(columns=list(SIGNAL_COLUMNS))
    rows = [
        (name, _kind(settings, name), found[name], own.stated.get(name, 0.0) > 0) for name in settings.domains
    ]
    groups = {
        f"ability: {group.replace('_', ' ')}": [
            name for name, each in _members(settings).items() if each == group
        ]
        for group in settings.objective.capabilities
    }
    weighed = {name: dict.fromkeys(members, 1.0) for name, members in groups.items()} | {
        "objective": own.stated
    }
    for name, weights in weighed.items():
        found_of_it = signals(runs, _values(settings, runs, weights)[:, None]) or ()
        counts = any(own.stated.get(member, 0.0) > 0 for member in weights)
        rows += [(name, name.split(":")[0], signal, counts) for signal in found_of_it]
    return pd.DataFrame(
        [
            (name, kind, each.seed_sd, each.mixture_sd, each.share, each.p_value, counts)
            for name, kind, each, counts in rows
        ],
        columns=list(SIGNAL_COLUMNS),
    )


def noise_at(planner: Planner, weights: Mapping[str, float], scale: str, runs: pd.DataFrame) -> Noise | None:
    """Seed noise of the objective at a scale, from decays of the sweep that differ in their seed alone.

    Runs that confirm a recipe do not count: the noise that decided the recommendation stays that of the report.

    Args:
        planner: of the study.
        weights: of the objective by domain, of losses in nats per token.
        scale: ``proxy`` or ``target``. Where that size has no replicates the noise of the others is taken, and the
            answer's ``sizes`` say so.
        runs: the runs table.

    Returns:
        None where no plan was run under two seeds.
    """
    settings = planner.settings
    name = settings.proxy if scale == "proxy" else settings.target.shape
    return Noise.at_size(decays(runs), weights, planner.shape(name).non_embedding_params)


def _figure(signal: Signal) -> str:
    return (
        f"seeds explain its differences between mixtures (signal {100 * signal.share:.0f} % of the variance, "
        f"p = {signal.p_value:.2g})"
    )


def _kind(settings: StudySettings, name: str) -> str:
    evaluation = settings.evaluation
    return (
        "questions" if name in evaluation.questions else "domain" if name in evaluation.domains else "source"
    )


def _members(settings: StudySettings) -> dict[str, str]:
    """Ability of every domain that counts by its ability alone."""
    weighed = settings.objective.capabilities
    return {
        name: capability
        for name, capability in settings.capabilities.items()
        if capability is not None and weighed.get(capability, 0.0) > 0
    }


def _without(settings: StudySettings, left_out: Sequence[str]) -> dict[str, float]:
    """Weights without some members of abilities, whose weight the others of the ability share."""
    if not left_out:
        return settings.objective_weights
    capabilities = {
        name: None if name in left_out else capability for name, capability in settings.capabilities.items()
    }
    held = {
        group: weight
        for group, weight in settings.objective.capabilities.items()
        if group in capabilities.values()
    }
    if not sum((*held.values(), *settings.objective.weights.values())) > 0:
        raise StudyError(
            f"Seeds explain how mixtures differ in all that the objective weighs ({', '.join(left_out)}), so that no "
            "mixture can be told to be better. Give the sets more questions, or run more mixtures and longer decays. "
            "To go on all the same, name them in objective.insist."
        )
    return objective_weights(held, capabilities, settings.objective.weights)


def _bits_per_nat(runs: pd.DataFrame, domains: Sequence[str]) -> dict[str, float]:
    """Bits per byte of one nat per token, by domain, as far as the runs say it."""
    found = {}
    for name in domains:
        if BPB + name not in runs:
            continue
        ratios = (runs[BPB + name].astype(float) / runs[LOSS + name]).to_numpy()
        ratios = ratios[np.isfinite(ratios)]
        if len(ratios):
            found[name] = float(f"{np.median(ratios):.{_DIGITS}g}")
    return found


def _require(factors: Mapping[str, float], names: Sequence[str] | Mapping[str, float], field: str) -> None:
    missing = [name for name in names if name not in factors]
    if missing:
        raise StudyError(
            f"The runs do not say bits per byte of '{missing[0]}' (column {BPB}{missing[0]}), which {field} asks for. "
            "Record them, or state the objective in nats per token (objective.unit: nats_per_token, guard_nats)."
        )


def _values(settings: StudySettings, runs: pd.DataFrame, weights: Mapping[str, float]) -> np.ndarray:
    """A weighted mean of domains in the objective's unit, by run."""
    shares = {name: weight for name, weight in normalised(weights).items() if weight > 0}
    columns = values_by(runs, COLUMN_OF[settings.objective_unit], list(shares))
    return np.asarray(columns @ np.array(list(shares.values())))


def _signals(settings: StudySettings, runs: pd.DataFrame) -> dict[str, Signal] | None:
    """Signal of every domain, in the objective's unit where the runs say it."""
    prefix, names = COLUMN_OF[settings.objective_unit], settings.domains
    columns = [prefix + name if prefix + name in runs else LOSS + name for name in names]
    found = signals(runs, runs[columns].to_numpy(dtype=float))
    return None if found is None else dict(zip(names, found))
