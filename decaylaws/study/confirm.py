"""The verb ``confirm``: predict, store the predictions, run, and say who won.

Four candidates run with the recommended schedule, at the proxy's scale and at the target's, or at the target's alone
where the proxy is the target: the recommended mixture, the control, the token-proportional mixture and the best mixture
that the sweep had already run. What the law expects of each is written down before any of them starts, and stays as it
was written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd

from decaylaws.errors import StudyError
from decaylaws.io.json import rebuilding
from decaylaws.laws.decay import DecayLaw
from decaylaws.mixtures import Mixture
from decaylaws.progress import Progress, silent
from decaylaws.recipe import Recipe
from decaylaws.runs.config import RunConfig
from decaylaws.runs.noise import Noise, matched_control, told_apart
from decaylaws.runs.objective import objective_value, objective_values
from decaylaws.runs.table import BPB, LOSS, MIX
from decaylaws.settings.study import StudySettings
from decaylaws.study.directory import REMEDY, Study, read_json, write_json
from decaylaws.study.fit import fit_inputs, load_fit
from decaylaws.study.objective import Objective, noise_at, objective
from decaylaws.study.question import CONFIRMING, content_hash
from decaylaws.study.recommend import load_recipe
from decaylaws.study.results import decays, planned_rows
from decaylaws.study.run import PoolDisplay, train
from decaylaws.study.stored import StoredConfirmations
from decaylaws.study.trainer import how_to_go_on

CONFIRM_FORMAT = 2  # of confirm.json
CANDIDATES = ("recommended", "control", "token_proportional", "best_of_sweep")
SCALES = ("proxy", "target")


@dataclass(frozen=True)
class Confirmation:
    """The confirming runs of a recipe and what was expected of them.

    Attributes:
        created: UTC, ISO 8601: when the predictions were stored.
        entries: one per run, as stored: ``candidate``, ``scale``, ``run_id``, ``config``, ``recorded_before`` (whether
            the run had finished for an earlier recipe when it was predicted), ``objective`` (``{mean, lower, upper}``)
            and ``predicted`` (the same by domain).
    """

    created: str
    entries: tuple[Mapping[str, Any], ...]

    @property
    def serves(self) -> str:
        """What the runs are wanted for, so that a queue leaves those of other confirmations alone."""
        return content_hash("confirm", sorted(entry["run_id"] for entry in self.entries))

    def runs(self) -> list[tuple[str, RunConfig]]:
        """Role and config of every distinct run, in order."""
        found = {
            entry["run_id"]: (f"confirm:{entry['candidate']}:{entry['scale']}", entry["config"])
            for entry in reversed(self.entries)
        }
        return [(role, RunConfig.from_dict(config)) for role, config in reversed(found.values())]


@dataclass(frozen=True)
class Confirmed:
    """What the confirming runs have come to.

    Attributes:
        predictions: what was stored before the runs started.
        table: predicted beside observed, one row per candidate and scale (:func:`confirmation_table`).
        verdict: who won, in sentences.
    """

    predictions: Confirmation
    table: pd.DataFrame
    verdict: tuple[str, ...]


def confirm(
    study: Study,
    *,
    workers: int | None = None,
    progress: Progress = silent,
    display: PoolDisplay | None = None,
) -> Confirmed:
    """Store predictions for the recipe and its rivals, run them at the proxy's and the target's scale, and say who won.

    Args:
        study: the study.
        workers: processes; None takes the study's setting.
        progress: hears of every stage.
        display: shows what the workers are doing.

    Raises:
        StudyError: nothing has been recommended, something changed since, or runs failed for good. Or an external
            trainer does the runs and some have no result yet; the predictions are stored then.
    """
    stored, is_new = predict(study)
    when = (
        f"{'stored' if is_new else 'were stored'} at {stored.created}, before the runs: {study.confirm_file}"
    )
    progress("predictions", len(stored.entries), len(stored.entries), when)
    if study.settings.trainer == "external":
        _check_recorded(study, stored)
    else:
        train(study, stored.runs(), workers=workers, serves=stored.serves, progress=progress, display=display)
    return Confirmed(stored, confirmation_table(study), verdict(study))


def _check_recorded(study: Study, stored: Confirmation) -> None:
    recorded = set(study.runs()["run_id"])
    missing = [config.run_id for _, config in stored.runs() if config.run_id not in recorded]
    if missing:
        raise StudyError(
            f"The predictions are stored in {study.confirm_file}. {len(missing)} of the {len(stored.runs())} "
            f"confirming runs have no result yet. {how_to_go_on(study)} "
            f"Then run 'decaylaws confirm {study.root}' again."
        )


def predict(study: Study) -> tuple[Confirmation, bool]:
    """Store what the law expects of the confirming runs before they start, unless it is stored already.

    A confirmation belongs to the law, the objective and the runs that it is about. Those that were stored before stay
    in the file as they were.

    Returns:
        The confirmation, and whether its predictions are new.

    Raises:
        StudyError: nothing has been recommended, or something changed since.
    """
    recipe = load_recipe(study)
    _, law = load_fit(study)
    stored = _stored(study, recipe)
    if stored is not None:
        return stored, False
    runs = study.runs()
    labelled = _configs(study, recipe, runs)
    configs = [config for _, _, config in labelled]
    predicted = _predictions(study, law, planned_rows(configs, runs, study.corpus().available_tokens))
    entries = [
        {
            "candidate": candidate,
            "scale": scale,
            "run_id": config.run_id,
            "config": config.to_dict(),
            "recorded_before": config.run_id in set(runs["run_id"]),
            "objective": objective,
            "predicted": by_domain,
        }
        for (candidate, scale, config), (objective, by_domain) in zip(labelled, predicted)
    ]
    created = datetime.now(UTC).isoformat(timespec="seconds")
    new = {"key": _key(study, labelled), "created": created, "entries": entries}
    write_json(study.confirm_file, {"format": CONFIRM_FORMAT, "confirmations": [*_confirmations(study), new]})
    return Confirmation(created, tuple(entries)), True


def _confirmations(study: Study) -> list[dict[str, Any]]:
    """All that was ever predicted, oldest first; what an earlier version wrote has no key, so that it is only kept."""
    if not study.confirm_file.is_file():
        return []
    stored = read_json(study.confirm_file, StoredConfirmations)
    return list(stored["confirmations"]) if "confirmations" in stored else [{**stored, "key": ""}]


def _stored(study: Study, recipe: Recipe) -> Confirmation | None:
    """What was predicted for just the runs of this recipe, by the present law, if it was."""
    confirmations = _confirmations(study)
    if not confirmations:
        return None
    key = _key(study, _configs(study, recipe, study.runs()))
    found = [each for each in confirmations if each.get("key") == key]
    if not found:
        return None
    confirmation = Confirmation(found[-1]["created"], tuple(found[-1]["entries"]))
    with rebuilding(study.confirm_file, REMEDY):
        pairs = [(entry["candidate"], entry["scale"]) for entry in confirmation.entries]
        if sorted(pairs) != sorted(
            (candidate, scale) for candidate in CANDIDATES for scale in scales(study.settings)
        ):
            raise ValueError("it must hold each candidate at each scale once")
        for entry in confirmation.entries:
            if set(entry["predicted"]) != set(study.settings.domains):
                raise ValueError(f"{entry['candidate']}: it must hold a prediction for every domain")
            if RunConfig.from_dict(entry["config"]).run_id != entry["run_id"]:
                raise ValueError(f"{entry['candidate']}: its config is not that of run {entry['run_id']}")
    return confirmation


def _key(study: Study, labelled: Sequence[tuple[str, str, RunConfig]]) -> str:
    """Hash of all that decides the predictions: what the law was fitted to, the objective, and the runs."""
    return content_hash(
        fit_inputs(study),
        objective(study).weights,
        study.settings.evaluation.tokens_per_domain,
        *([study.evaluation_sets] if study.settings.evaluation.sets else []),
        [(candidate, scale, config.run_id) for candidate, scale, config in labelled],
    )


def predicted_runs(study: Study) -> list[tuple[str, RunConfig]]:
    """Role and config of every run that was ever to confirm a recipe of the study."""
    found: dict[str, tuple[str, RunConfig]] = {}
    with rebuilding(study.confirm_file, REMEDY):
        for stored in _confirmations(study):
            for role, config in Confirmation(stored["created"], tuple(stored["entries"])).runs():
                found.setdefault(config.run_id, (role, config))
    return list(found.values())


def find_confirmation(study: Study) -> Confirmation | None:
    """The stored confirmation of the recipe that the study recommends now; None where there is none of it."""
    if not study.recipe_file.is_file():
        return None
    return study.once("confirmation", lambda: _stored(study, load_recipe(study)))


def present_runs(study: Study) -> pd.DataFrame:
    """The runs that belong to the present question, without those that confirmed another recipe.

    Raises:
        StudyError: as :func:`find_confirmation`, or nothing has been run.
    """
    runs, found = study.runs(), find_confirmation(study)
    own = {entry["run_id"] for entry in found.entries} if found else set()
    other = runs["role"].astype(str).str.startswith(CONFIRMING) & ~runs["run_id"].isin(own)
    return runs[~other].reset_index(drop=True)


def load_confirmation(study: Study) -> Confirmation:
    """As :func:`find_confirmation`.

    Raises:
        StudyError: nothing has been predicted for the recipe yet.
    """
    found = find_confirmation(study)
    if found is None:
        raise StudyError(
            f"The recipe of {study.root} has no confirmation yet. Run 'decaylaws confirm {study.root}'."
        )
    return found


def confirmation_table(study: Study) -> pd.DataFrame:
    """Predicted beside observed, one row per candidate and scale.

    Columns: ``scale``, ``candidate``, ``run_id``, ``predicted``, ``lower``, ``upper`` and ``observed``
    (weighted objective, nats per token), ``inside`` (whether the interval holds the observation),
    ``gain_predicted`` and ``gain_observed`` (control minus candidate), ``guards_hold`` (whether no guarded
    domain lost more than the tolerance against the control), ``won`` (lowest of its scale among those whose
    guards hold).
    """
    runs = study.runs().set_index("run_id")
    weights = objective(study).weights
    rows = []
    for entry in load_confirmation(study).entries:
        expected = entry["objective"]
        row = {name: entry[name] for name in ("scale", "candidate", "run_id")}
        row |= {"predicted": expected["mean"], "lower": expected["lower"], "upper": expected["upper"]}
        row["observed"] = (
            objective_value(runs.loc[entry["run_id"]], weights) if entry["run_id"] in runs.index else np.nan
        )
        rows.append(row)
    table = pd.DataFrame(rows)
    table["guards_hold"] = _guards_hold(study, table, runs)
    return _with_gains(table)


def _guards_hold(study: Study, table: pd.DataFrame, runs: pd.DataFrame) -> list[bool]:
    """Whether each candidate keeps every guard against the control of its scale, as observed."""
    limits = objective(study).guard_limits
    columns, most = [LOSS + domain for domain in limits], list(limits.values())
    controls = table[table["candidate"] == "control"].set_index("scale")["run_id"]
    pairs = [(row.run_id, controls[row.scale]) for row in table.itertuples()]
    return [
        run in runs.index
        and control in runs.index
        and bool((runs.loc[run, columns] - runs.loc[control, columns] <= most).all())
        for run, control in pairs
    ]


def domain_table(study: Study) -> pd.DataFrame:
    """Predicted and observed loss of every domain: one row per candidate, scale and domain."""
    runs = study.runs().set_index("run_id")
    rows = []
    for entry in load_confirmation(study).entries:
        for domain, expected in entry["predicted"].items():
            if entry["run_id"] not in runs.index:
                continue
            observed = float(runs.loc[entry["run_id"], LOSS + domain])
            rows.append(
                {name: entry[name] for name in ("scale", "candidate")}
                | {"domain": domain, **expected, "observed": observed}
                | {"inside": expected["lower"] <= observed <= expected["upper"]}
            )
    columns = ["scale", "candidate", "domain", "mean", "lower", "upper", "observed", "inside"]
    return pd.DataFrame(rows, columns=columns)


def verdict(study: Study) -> tuple[str, ...]:
    """Who won at each scale, whether the noise of seeds could explain it, and how often intervals held."""
    table, domains = confirmation_table(study), domain_table(study)
    runs = present_runs(study)
    lines = [
        line
        for scale, rows in table.groupby("scale", sort=False)
        for line in _verdict(scale, rows, noise_at(study, scale, runs))
    ]
    for scale in scales(study.settings):
        missed, total = outside_intervals(domains, scale)
        if len(missed):
            lines.append(f"{scale} scale: {outside_words(missed, total)}.")
    lines += _elsewhere(cost_table(study), objective(study))
    held = 100 * domains["inside"].mean()
    lines.append(f"90 % intervals held {held:.0f} % of {len(domains)} losses of the confirming runs.")
    entries = load_confirmation(study).entries
    known = sum(bool(entry.get("recorded_before")) for entry in entries)
    if known:
        lines.append(
            f"{known} of {len(entries)} of these runs had finished for an earlier recipe before the predictions were "
            "stored. No law was fitted to them."
        )
    return tuple(lines)


def cost_table(study: Study) -> pd.DataFrame:
    """What the recommendation gains and costs by domain, as observed: one row per scale and domain.

    Columns: ``scale``, ``domain``, ``weight`` (share of the stated objective), ``recommended``, ``control`` and
    ``token_proportional`` in ``unit`` (bits per byte, or nats per token where the runs do not say bytes),
    ``against_control`` and ``against_proportional`` (recommended minus the other; positive is worse). Empty where a run
    is missing.
    """
    runs, stated = study.runs().set_index("run_id"), objective(study).stated
    domains = study.settings.domains
    prefix = BPB if all(BPB + name in runs for name in domains) else LOSS
    entries = pd.DataFrame([{key: each[key] for key in ("scale", "candidate", "run_id")} for each in
                            load_confirmation(study).entries])  # fmt: skip
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


def _verdict(scale: str, rows: pd.DataFrame, noise: Noise | None) -> list[str]:
    kept = rows[rows["guards_hold"]].sort_values("observed")
    broken = rows[~rows["guards_hold"]]
    if kept.empty:
        return [f"{scale} scale: no winner, since the control has no finished run."]
    best, rest = kept.iloc[0], kept.iloc[1:]
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


def _with_gains(table: pd.DataFrame) -> pd.DataFrame:
    control = table[table["candidate"] == "control"].set_index("scale")
    table["inside"] = table["observed"].between(table["lower"], table["upper"])
    for name, column in (("gain_predicted", "predicted"), ("gain_observed", "observed")):
        table[name] = table["scale"].map(control[column]) - table[column]
    eligible = table["observed"].where(table["guards_hold"])
    table["won"] = eligible == eligible.groupby(table["scale"]).transform("min")
    return table


def _configs(study: Study, recipe: Recipe, runs: pd.DataFrame) -> list[tuple[str, str, RunConfig]]:
    planner, stage = study.planner(), recipe.stages[0]
    mixtures = candidate_mixtures(study, recipe, runs)
    names = {"proxy": study.settings.proxy, "target": study.settings.target.shape}
    return [
        (
            candidate,
            scale,
            planner.microanneal(
                "confirm",
                names[scale],
                planner.rescaled(stage.lr, study.settings.target.shape, names[scale]),
                mixtures[candidate],
                seed=recipe.seed,
                batch_tokens=stage.batch_tokens,
            ).config,
        )
        for scale in scales(study.settings)
        for candidate in CANDIDATES
    ]


def scales(settings: StudySettings) -> tuple[str, ...]:
    """At which scales a recipe is confirmed; where the proxy is the target there is one."""
    return SCALES if settings.proxy != settings.target.shape else ("target",)


def candidate_mixtures(study: Study, recipe: Recipe, runs: pd.DataFrame) -> dict[str, Mixture]:
    """The four mixtures that are compared; the last two are brought inside the caps where they are not.

    Args:
        study: the study.
        recipe: its recipe.
        runs: its finished runs, among which the best one is looked for.
    """
    planner, stage = study.planner(), recipe.stages[0]
    space = planner.space
    return {
        "recommended": stage.mixture,
        "control": planner.control_mixture,
        "token_proportional": space.project(space.token_proportional(), stage.tokens),
        "best_of_sweep": space.project(_best_of_sweep(study, runs, space.names), stage.tokens),
    }


def _best_of_sweep(study: Study, runs: pd.DataFrame, names: Sequence[str]) -> Mixture:
    """Mixture of the run with the lowest objective at the proxy's scale among those that kept the guards."""
    proxy = study.planner().start(study.settings.proxy).config.run_id
    tried = decays(runs)
    tried = tried[(tried["start_run_id"] == proxy) & tried["reached_target"].astype(bool)]
    if tried.empty:
        raise StudyError("No microanneal of the proxy has finished. Run 'decaylaws run' first.")
    kept = tried[sweep_guards_hold(study, tried)]
    best = kept.iloc[int(np.argmin(objective_values(kept, objective(study).weights)))]
    return Mixture.from_array(names, [float(best[MIX + name]) for name in names])


def sweep_guards_hold(study: Study, tried: pd.DataFrame) -> np.ndarray:
    """Whether each run of the sweep kept every guard against the control of its tokens, LR and batch, [runs]."""
    limits = objective(study).guard_limits
    columns = [LOSS + domain for domain in limits]
    # a run without a matched control (the drop-and-hold run) can not be shown to keep a guard
    changes = tried[columns].to_numpy() - matched_control(tried, columns).to_numpy()
    return np.asarray((changes <= list(limits.values())).all(axis=1))


def _predictions(
    study: Study, law: DecayLaw, rows: pd.DataFrame
) -> list[tuple[dict[str, float], dict[str, dict[str, float]]]]:
    """Per row: mean and 90 % interval of the objective, and of every domain."""
    found = law.predict(rows, interval=0.9)
    weighed = law.predict_objective(rows, objective(study).weights, interval=0.9)
    return [
        (
            _interval(weighed.mean[index], weighed.lower[index], weighed.upper[index]),
            {
                domain: _interval(
                    found.mean[index, column], found.lower[index, column], found.upper[index, column]
                )
                for column, domain in enumerate(law.domains_)
            },
        )
        for index in range(len(rows))
    ]


def _interval(mean: float, lower: float, upper: float) -> dict[str, float]:
    return {"mean": float(mean), "lower": float(lower), "upper": float(upper)}


def is_confirmed(study: Study, recipe: Recipe) -> bool:
    """Whether the confirming runs of the study are those of this recipe."""
    try:
        return load_recipe(study).sha256 == recipe.sha256 and find_confirmation(study) is not None
    except StudyError:  # the study has no recipe, or has changed since
        return False
