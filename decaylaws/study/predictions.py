"""What the law expects of the confirming runs, stored before any of them starts.

Four candidates run with the recommended schedule, at the proxy's scale and at the target's, or at the target's alone
where the proxy is the target: the recommended mixture, the control, the token-proportional mixture and the best mixture
that the sweep had already run. With a stable stage each is a chain of that stage and the decay, and the best mixture
that both stages could share is a fifth. What was predicted of them stays as it was written.
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
from decaylaws.recipe import Recipe
from decaylaws.runs.config import RunConfig
from decaylaws.runs.noise import matched_control
from decaylaws.runs.objective import objective_values
from decaylaws.runs.table import LOSS, MIX, STABLE_MIX, STABLE_TOKENS
from decaylaws.search.stages import ONE_MIXTURE
from decaylaws.settings.study import StudySettings
from decaylaws.study.directory import REMEDY, Study, read_json, write_json
from decaylaws.study.fit import fit_inputs, load_fit
from decaylaws.study.objective import objective
from decaylaws.study.question import CONFIRMING, content_hash
from decaylaws.study.recommend import STAGE, load_recipe, load_recommendation
from decaylaws.study.results import decays, planned_rows
from decaylaws.study.stored import StoredConfirmations

CONFIRM_FORMAT = 2  # of confirm.json
CANDIDATES = ("recommended", "control", "token_proportional", "best_of_sweep")
SCALES = ("proxy", "target")
STAGE_ROLE = "confirm:stable"
"""Role of the stable stages from which confirming decays start."""


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
        """Role and config of every distinct run, in order; the stable stage from which decays start before them."""
        found = {
            entry["run_id"]: (f"confirm:{entry['candidate']}:{entry['scale']}", entry["config"])
            for entry in reversed(self.entries)
        }
        decays = [(role, RunConfig.from_dict(config)) for role, config in reversed(found.values())]
        stages = {config.stable.run_id: config.stable for _, config in decays if config.stable is not None}
        return [*((STAGE_ROLE, config) for config in stages.values()), *decays]


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
    rows = planned_rows(configs, runs, study.corpus().available_tokens)
    chosen = [candidate == "recommended" for candidate, _, _ in labelled]
    predicted = _predictions(study, law, rows, chosen)
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


def find_confirmation(study: Study) -> Confirmation | None:
    """The stored confirmation of the recipe that the study recommends now; None where there is none of it."""
    if not study.recipe_file.is_file():
        return None
    return study.once("confirmation", lambda: _stored(study, load_recipe(study)))


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


def is_confirmed(study: Study, recipe: Recipe) -> bool:
    """Whether the confirming runs of the study are those of this recipe."""
    try:
        return load_recipe(study).sha256 == recipe.sha256 and find_confirmation(study) is not None
    except StudyError:  # the study has no recipe, or has changed since
        return False


def predicted_runs(study: Study) -> list[tuple[str, RunConfig]]:
    """Role and config of every run that was ever to confirm a recipe of the study."""
    found: dict[str, tuple[str, RunConfig]] = {}
    with rebuilding(study.confirm_file, REMEDY):
        for stored in _confirmations(study):
            for role, config in Confirmation(stored["created"], tuple(stored["entries"])).runs():
                found.setdefault(config.run_id, (role, config))
    return list(found.values())


def present_runs(study: Study) -> pd.DataFrame:
    """The runs that belong to the present question, without those that confirmed another recipe.

    Raises:
        StudyError: as :func:`find_confirmation`, or nothing has been run.
    """
    runs, found = study.runs(), find_confirmation(study)
    own = {entry["run_id"] for entry in found.entries} if found else set()
    other = runs["role"].astype(str).str.startswith(CONFIRMING) & ~runs["run_id"].isin(own)
    return runs[~other].reset_index(drop=True)


def scales(settings: StudySettings) -> tuple[str, ...]:
    """At which scales a recipe is confirmed; where the proxy is the target there is one."""
    return SCALES if settings.proxy != settings.target.shape else ("target",)


def candidates(settings: StudySettings) -> tuple[str, ...]:
    """Names of what is compared; with a stable stage also the best mixture that both stages could share."""
    return (*CANDIDATES, ONE_MIXTURE) if settings.design.stable_tokens else CANDIDATES


def candidate_mixtures(study: Study, recipe: Recipe, runs: pd.DataFrame) -> dict[str, Mixture]:
    """The mixtures of the decays that are compared; the last but the recommended are brought inside the caps.

    Args:
        study: the study.
        recipe: its recipe.
        runs: its finished runs, among which the best one is looked for.
    """
    return {name: decay for name, (_, decay) in candidate_stages(study, recipe, runs).items()}


def candidate_stages(
    study: Study, recipe: Recipe, runs: pd.DataFrame
) -> dict[str, tuple[Mixture | None, Mixture]]:
    """Mixtures of the stable stage (None where there is none) and of the decay of all that are compared.

    The control, the token-proportional mixture and the best single one are those of both stages.

    Args:
        study: the study.
        recipe: its recipe.
        runs: its finished runs, among which the best one is looked for.
    """
    planner, decay = study.planner(), recipe.decay
    space, control = planner.space, planner.control_mixture
    proportional = space.project(space.token_proportional(), recipe.tokens)
    stage, best = _best_of_sweep(study, runs, space.names)
    best = planner.space_after(stage).project(best, decay.tokens)
    if not planner.stages:
        return {
            "recommended": (None, decay.mixture),
            "control": (None, control),
            "token_proportional": (None, proportional),
            "best_of_sweep": (None, best),
        }
    one = Mixture(load_recommendation(study)[STAGE]["one_mixture"])
    return {
        "recommended": (recipe.stages[0].mixture, decay.mixture),
        "control": (control, control),
        "token_proportional": (proportional, proportional),
        "best_of_sweep": (stage, best),
        ONE_MIXTURE: (one, one),
    }


def _best_of_sweep(study: Study, runs: pd.DataFrame, names: Sequence[str]) -> tuple[Mixture | None, Mixture]:
    """Mixtures of the run with the lowest objective at the proxy's scale among those that kept the guards."""
    proxy = study.planner().start(study.settings.proxy).config.run_id
    tried = decays(runs)
    tried = tried[(tried["start_run_id"] == proxy) & tried["reached_target"].astype(bool)]
    if tried.empty:
        raise StudyError("No microanneal of the proxy has finished. Run 'decaylaws run' first.")
    kept = tried[sweep_guards_hold(study, tried)]
    best = kept.iloc[int(np.argmin(objective_values(kept, objective(study).weights)))]
    decay = Mixture.from_array(names, [float(best[MIX + name]) for name in names])
    if STABLE_TOKENS not in runs:
        return None, decay
    return Mixture.from_array(names, [float(best[STABLE_MIX + name]) for name in names]), decay


def sweep_guards_hold(study: Study, tried: pd.DataFrame) -> np.ndarray:
    """Whether each run of the sweep kept every guard against the control of its tokens, LR and batch, [runs]."""
    limits = objective(study).guard_limits
    columns = [LOSS + domain for domain in limits]
    # a run without a matched control (the drop-and-hold run) can not be shown to keep a guard
    changes = tried[columns].to_numpy() - matched_control(tried, columns).to_numpy()
    return np.asarray((changes <= list(limits.values())).all(axis=1))


def _configs(study: Study, recipe: Recipe, runs: pd.DataFrame) -> list[tuple[str, str, RunConfig]]:
    planner, decay = study.planner(), recipe.decay
    mixtures = candidate_stages(study, recipe, runs)
    names = {"proxy": study.settings.proxy, "target": study.settings.target.shape}

    def stage(name: str, mixture: Mixture | None) -> RunConfig | None:
        return None if mixture is None else planner.stable(name, mixture, seed=recipe.seed).config

    return [
        (
            candidate,
            scale,
            planner.microanneal(
                "confirm",
                names[scale],
                planner.rescaled(decay.lr, study.settings.target.shape, names[scale]),
                mixtures[candidate][1],
                seed=recipe.seed,
                batch_tokens=decay.batch_tokens,
                stage=stage(names[scale], mixtures[candidate][0]),
            ).config,
        )
        for scale in scales(study.settings)
        for candidate in candidates(study.settings)
    ]


def _predictions(
    study: Study, law: DecayLaw, rows: pd.DataFrame, chosen: Sequence[bool]
) -> list[tuple[dict[str, float], dict[str, dict[str, float]]]]:
    """Per row: mean and 90 % interval of the objective, and of every domain.

    The objective of a mixture that the law chose is expected to be higher than that of one which it only predicts.
    """
    found, weights = law.predict(rows, interval=0.9), objective(study).weights
    either = law.predict_objective(rows, weights, interval=0.9), law.predict_chosen(rows, weights, 0.9)
    weighed = [either[is_chosen] for is_chosen in chosen]
    return [
        (
            _interval(weighed[index].mean[index], weighed[index].lower[index], weighed[index].upper[index]),
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
            (candidate, scale) for candidate in candidates(study.settings) for scale in scales(study.settings)
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
