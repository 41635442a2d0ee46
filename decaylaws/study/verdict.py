"""What the confirming runs came to: predicted beside observed, who won, and whether seed noise could explain it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from decaylaws.errors import StudyError
from decaylaws.runs.noise import Noise, told_apart
from decaylaws.runs.objective import objective_value
from decaylaws.runs.table import BPB, LOSS
from decaylaws.study.directory import Study
from decaylaws.study.objective import Objective, noise_at
from decaylaws.study.predictions import (
    Confirmation,
    scales,
    stored_confirmation,
    without_other_confirmations,
)
from decaylaws.study.recommend import Recommended, read_recommended
from decaylaws.study.sweep import MeasuredSweep


@dataclass(frozen=True)
class Outcome:
    """What the confirming runs of a recipe came to.

    Attributes:
        predictions: what was stored before the runs started.
        candidates: predicted beside observed, one row per candidate and scale (:func:`confirmation_table`).
        domains: the same of every domain (:func:`domain_table`).
        costs: what the recommendation gains and costs by domain (:func:`cost_table`).
        verdict: who won at each scale, whether the noise of seeds could explain it, and how often intervals held.
    """

    predictions: Confirmation
    candidates: pd.DataFrame
    domains: pd.DataFrame
    costs: pd.DataFrame
    verdict: tuple[str, ...]

    @classmethod
    def of(cls, predictions: Confirmation, sweep: MeasuredSweep, own: Objective) -> Outcome:
        """Compare what was predicted with the runs that have finished.

        Args:
            predictions: of the recipe.
            sweep: holds the runs.
            own: the objective that they allow.
        """
        candidates = confirmation_table(predictions, sweep.runs, own)
        domains = domain_table(predictions, sweep.runs)
        costs = cost_table(predictions, sweep.runs, own.stated, sweep.settings.domains)
        runs = without_other_confirmations(sweep.runs, predictions)
        noise = {scale: noise_at(sweep.planner, own.weights, scale, runs) for scale in scales(sweep.settings)}
        lines = _lines(predictions, candidates, domains, noise, _elsewhere(costs, own))
        return cls(predictions, candidates, domains, costs, tuple(lines))


def find_outcome(study: Study, recommended: Recommended) -> Outcome | None:
    """What the confirming runs of the recipe came to; None where nothing has been predicted for it.

    Args:
        study: the study.
        recommended: its recipe, with what it rests on.
    """
    found = stored_confirmation(study.confirm_file, recommended)
    return None if found is None else Outcome.of(found, recommended.sweep, recommended.objective)


def read_outcome(study: Study) -> Outcome:
    """What the confirming runs of the study's recipe came to.

    Raises:
        StudyError: nothing has been predicted for the recipe yet, or something changed since.
    """
    found = find_outcome(study, read_recommended(study)) if study.recipe_file.is_file() else None
    if found is None:
        raise StudyError(
            f"The recipe of {study.root} has no confirmation yet. Run 'decaylaws confirm {study.root}'."
        )
    return found


def _lines(
    predictions: Confirmation,
    candidates: pd.DataFrame,
    domains: pd.DataFrame,
    noise: Mapping[str, Noise | None],
    elsewhere: Sequence[str],
) -> list[str]:
    """The verdict."""
    lines = [
        line
        for scale, rows in candidates.groupby("scale", sort=False)
        for line in scale_words(scale, rows, noise[str(scale)])
    ]
    for scale in noise:
        missed, total = outside_intervals(domains, scale)
        if len(missed):
            lines.append(f"{scale} scale: {outside_words(missed, total)}.")
    lines += elsewhere
    held, total = share_held(domains)
    lines.append(f"90 % intervals held {100 * held:.0f} % of {total} losses of the confirming runs.")
    known = sum(bool(entry.get("recorded_before")) for entry in predictions.entries)
    if known:
        lines.append(
            f"{known} of {len(predictions.entries)} of these runs had finished for an earlier recipe before the "
            "predictions were stored. No law was fitted to them."
        )
    return lines


def scale_words(scale: str, rows: pd.DataFrame, noise: Noise | None) -> list[str]:
    """Who won at a scale, who broke a guard, and what the recommendation gained.

    Args:
        scale: ``proxy`` or ``target``.
        rows: of :func:`confirmation_table`, of this scale.
        noise: of seeds, where it was measured.
    """
    kept = rows[rows["guards_hold"]].sort_values("observed")
    broken = rows[~rows["guards_hold"]]
    if kept.empty:
        return [f"{scale} scale: no winner, since the control has no finished run."]
    best = kept.iloc[0]
    rest = kept[kept["run_id"] != best["run_id"]]
    lines = [f"{scale} scale: '{best['candidate']}' won with {best['observed']:.4f} nats per token."]
    if len(rest):
        # the question is the recommendation: a winner is measured against it, and it against the next best
        asked = rest[rest["candidate"] == "recommended"]
        rival = asked.iloc[0] if len(asked) else rest.iloc[0]
        words = "the recommendation" if len(asked) else f"'{rival['candidate']}'"
        margin = rival["observed"] - best["observed"]
        lines[0] += f" It is {margin:.4f} ahead of {words}; {seeds_explain(margin, noise)}."
    if len(broken):
        lines.append(f"{scale} scale: {', '.join(broken['candidate'])} broke a guard and cannot win.")
    recommended = rows[rows["candidate"] == "recommended"].iloc[0]
    lines.append(
        f"{scale} scale: the recommendation gains {recommended['gain_observed']:+.4f} nats on the control, "
        f"where {recommended['gain_predicted']:+.4f} was predicted."
    )
    return lines


def _elsewhere(costs: pd.DataFrame, own: Objective) -> list[str]:
    """The objective in its own unit where that is bits per byte, and where the recommendation is worse than rivals."""
    lines = []
    for scale, rows in costs.groupby("scale", sort=False):
        weights = rows["weight"].to_numpy()
        if own.unit == "bits_per_byte":
            means = {
                name: float(rows[name] @ weights) for name in ("recommended", "control", "token_proportional")
            }
            words = ", ".join(f"{name.replace('_', '-')} {value:.4f}" for name, value in means.items())
            lines.append(f"{scale} scale: the objective in bits per byte: {words}.")
        others = rows[weights == 0]
        worst = others.loc[others["against_proportional"].idxmax()] if len(others) else None
        if worst is not None and worst["against_proportional"] > 0:
            lines.append(
                f"{scale} scale: outside the objective the recommendation costs most on '{worst['domain']}': "
                f"{worst['against_proportional']:+.4f} against the token-proportional mixture and "
                f"{worst['against_control']:+.4f} against the control."
            )
    return lines


def confirmation_table(predictions: Confirmation, runs: pd.DataFrame, own: Objective) -> pd.DataFrame:
    """Predicted beside observed, one row per candidate and scale.

    Columns: ``scale``, ``candidate``, ``run_id``, ``predicted``, ``lower``, ``upper`` and ``observed``
    (weighted objective, nats per token), ``inside`` (whether the interval holds the observation),
    ``gain_predicted`` and ``gain_observed`` (control minus candidate), ``guards_hold`` (whether no guarded
    domain lost more than the tolerance against the control), ``won`` (lowest of its scale among those whose
    guards hold).

    Args:
        predictions: of the recipe.
        runs: the rows that belong to the present question.
        own: the objective that they allow.
    """
    runs = runs.set_index("run_id")
    rows = []
    for entry in predictions.entries:
        expected = entry["objective"]
        row = {name: entry[name] for name in ("scale", "candidate", "run_id")}
        row |= {"predicted": expected["mean"], "lower": expected["lower"], "upper": expected["upper"]}
        row["observed"] = (
            objective_value(runs.loc[entry["run_id"]], own.weights)
            if entry["run_id"] in runs.index
            else np.nan
        )
        rows.append(row)
    table = pd.DataFrame(rows)
    table["guards_hold"] = _guards_hold(table, runs, own.guard_limits)
    return _with_gains(table)


def _guards_hold(table: pd.DataFrame, runs: pd.DataFrame, limits: Mapping[str, float]) -> list[bool]:
    """Whether each candidate keeps every guard against the control of its scale, as observed."""
    columns, most = [LOSS + domain for domain in limits], list(limits.values())
    controls = table[table["candidate"] == "control"].set_index("scale")["run_id"]
    pairs = [(row.run_id, controls[row.scale]) for row in table.itertuples()]
    return [
        run in runs.index
        and control in runs.index
        and bool((runs.loc[run, columns] - runs.loc[control, columns] <= most).all())
        for run, control in pairs
    ]


def _with_gains(table: pd.DataFrame) -> pd.DataFrame:
    control = table[table["candidate"] == "control"].set_index("scale")
    table["inside"] = table["observed"].between(table["lower"], table["upper"])
    for name, column in (("gain_predicted", "predicted"), ("gain_observed", "observed")):
        table[name] = table["scale"].map(control[column]) - table[column]
    eligible = table["observed"].where(table["guards_hold"])
    table["won"] = eligible == eligible.groupby(table["scale"]).transform("min")
    return table


def domain_table(predictions: Confirmation, runs: pd.DataFrame) -> pd.DataFrame:
    """Predicted and observed loss of every domain: one row per candidate, scale and domain.

    Args:
        predictions: of the recipe.
        runs: the rows that belong to the present question.
    """
    runs = runs.set_index("run_id")
    rows = []
    for entry in predictions.entries:
        for domain, expected in entry["predicted"].items():
            if entry["run_id"] not in runs.index:
                continue
            observed = float(runs.loc[entry["run_id"], LOSS + domain])
            rows.append(
                {name: entry[name] for name in ("scale", "candidate", "run_id")}
                | {"domain": domain, **expected, "observed": observed}
                | {"inside": expected["lower"] <= observed <= expected["upper"]}
            )
    columns = ["scale", "candidate", "run_id", "domain", "mean", "lower", "upper", "observed", "inside"]
    return pd.DataFrame(rows, columns=columns)


def cost_table(
    predictions: Confirmation, runs: pd.DataFrame, stated: Mapping[str, float], domains: Sequence[str]
) -> pd.DataFrame:
    """What the recommendation gains and costs by domain, as observed: one row per scale and domain.

    Columns: ``scale``, ``domain``, ``weight`` (share of the stated objective), ``recommended``, ``control`` and
    ``token_proportional`` in ``unit`` (bits per byte, or nats per token where the runs do not say bytes),
    ``against_control`` and ``against_proportional`` (recommended minus the other; positive is worse). Empty where a run
    is missing.

    Args:
        predictions: of the recipe.
        runs: the rows that belong to the present question.
        stated: weights of the objective as study.yaml states them, by domain.
        domains: all that runs are evaluated on.
    """
    runs = runs.set_index("run_id")
    prefix = BPB if all(BPB + name in runs for name in domains) else LOSS
    known = ("scale", "candidate", "run_id")
    entries = pd.DataFrame([{key: each[key] for key in known} for each in predictions.entries])
    asked = ["recommended", "control", "token_proportional"]
    rows = []
    for scale, own in entries.groupby("scale", sort=False):
        ids = own.set_index("candidate")["run_id"].reindex(asked)
        if not ids.isin(runs.index).all():
            continue
        for name in domains:
            values = {candidate: float(runs.loc[run_id, prefix + name]) for candidate, run_id in ids.items()}
            rows.append({"scale": scale, "domain": name, "weight": stated.get(name, 0.0), **values})
    table = pd.DataFrame(rows, columns=["scale", "domain", "weight", *asked])
    return table.assign(
        unit="bits per byte" if prefix == BPB else "nats per token",
        against_control=table["recommended"] - table["control"],
        against_proportional=table["recommended"] - table["token_proportional"],
    )


def share_held(domains: pd.DataFrame) -> tuple[float, int]:
    """Share of the confirming losses inside their 90 % intervals, and how many there are.

    A run that stands for two candidates, since their mixtures are one, counts once.

    Args:
        domains: of :func:`domain_table`.
    """
    once = domains.drop_duplicates(["run_id", "domain"])
    return float(once["inside"].mean()), len(once)


def outside_intervals(domains: pd.DataFrame, scale: str) -> tuple[pd.DataFrame, int]:
    """Losses of the recommendation outside their 90 % intervals at a scale, and how many losses it has there.

    Args:
        domains: of :func:`domain_table`.
        scale: ``proxy`` or ``target``.
    """
    own = domains[(domains["candidate"] == "recommended") & (domains["scale"] == scale)]
    return own[~own["inside"].astype(bool)], len(own)


def outside_words(missed: pd.DataFrame, total: int) -> str:
    """Which losses were not what the law predicted, with both figures."""
    named = [
        f"{row.domain} (predicted {row.mean:.2f}, observed {row.observed:.2f})" for row in missed.itertuples()
    ]
    lie = (
        "domains lies outside its 90 % interval"
        if len(named) == 1
        else "domains lie outside their 90 % intervals"
    )
    return f"{len(named)} of the recommendation's {total} {lie}: {', '.join(named)}"


def seeds_explain(margin: float, noise: Noise | None) -> str:
    """Whether two runs may differ by ``margin`` nats for their seeds alone, and which runs measured their noise."""
    if noise is None:
        return "no plan was run with two seeds, so it is unknown whether seed noise alone explains that"
    explains = "does not explain" if told_apart(margin, noise.sd) else "alone could explain"
    return f"seed noise {explains} that ({noise_words(noise)})"


def noise_words(noise: Noise) -> str:
    """The noise with the runs that measured it, as it stands in a sentence."""
    at = f" at {' and '.join(f'{size:,}' for size in noise.sizes)} parameters" if noise.sizes else ""
    return (
        f"standard deviation between seeds {noise.sd:.4f}, measured{at} with {noise.degrees} "
        f"degree{'s' if noise.degrees > 1 else ''} of freedom"
    )
