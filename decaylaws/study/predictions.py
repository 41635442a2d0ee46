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
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from decaylaws.errors import StudyError
from decaylaws.io.json import rebuilding
from decaylaws.laws.decay import DecayLaw
from decaylaws.mixtures import Mixture
from decaylaws.runs.config import RunConfig
from decaylaws.runs.noise import matched_control
from decaylaws.runs.objective import objective_values
from decaylaws.runs.table import LOSS, MIX, STABLE_MIX, STABLE_TOKENS
from decaylaws.settings.stages import ONE_MIXTURE
from decaylaws.settings.study import StudySettings
from decaylaws.study.directory import Study
from decaylaws.study.files import REMEDY, read_json, write_json
from decaylaws.study.fit import load_law
from decaylaws.study.question import CONFIRMING, content_hash
from decaylaws.study.recommend import Recommended, read_recommended
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


def predict(study: Study, recommended: Recommended | None = None) -> tuple[Confirmation, bool]:
    """Store what the law expects of the confirming runs before they start, unless it is stored already.

    A confirmation belongs to the law, the objective and the runs that it is about. Those that were stored before stay
    in the file as they were.

    Args:
        study: the study.
        recommended: its recipe with what it rests on, where that has been read already.

    Returns:
        The confirmation, and whether its predictions are new.

    Raises:
        StudyError: nothing has been recommended, or something changed since.
    """
    recommended = recommended or read_recommended(study)
    law, labelled = load_law(study.law_file, recommended.inputs), _configs(recommended)
    confirmations, key = _confirmations(study.confirm_file), _key(recommended, labelled)
    stored = _find(confirmations, key, study.confirm_file, recommended.sweep.settings)
    if stored is not None:
        return stored, False
    runs, planner = recommended.sweep.runs, recommended.sweep.planner
    configs = [config for _, _, config in labelled]
    rows = planned_rows(configs, runs, planner.corpus.available_tokens)
    recommended_runs = {config.run_id for candidate, _, config in labelled if candidate == "recommended"}
    # a rival of the same mixture is the same run, of which the law expects one thing
    chosen = [config.run_id in recommended_runs for _, _, config in labelled]
    predicted = _predictions(law, recommended.objective.weights, rows, chosen)
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
    new = {"key": key, "created": created, "entries": entries}
    write_json(study.confirm_file, {"format": CONFIRM_FORMAT, "confirmations": [*confirmations, new]})
    return Confirmation(created, tuple(entries)), True


def find_confirmation(study: Study) -> Confirmation | None:
    """The stored confirmation of the recipe that the study recommends now; None where there is none of it.

    Raises:
        StudyError: study.yaml, corpus or runs changed since the recipe was made.
    """
    if not study.recipe_file.is_file():
        return None
    return stored_confirmation(study.confirm_file, read_recommended(study))


def predicted_runs(path: Path) -> list[tuple[str, RunConfig]]:
    """Role and config of every run that was ever to confirm a recipe of a study.

    Args:
        path: the study's ``confirm.json``, which need not exist.
    """
    found: dict[str, tuple[str, RunConfig]] = {}
    with rebuilding(path, REMEDY):
        for stored in _confirmations(path):
            for role, config in Confirmation(stored["created"], tuple(stored["entries"])).runs():
                found.setdefault(config.run_id, (role, config))
    return list(found.values())


def without_other_confirmations(runs: pd.DataFrame, confirmation: Confirmation | None) -> pd.DataFrame:
    """The runs of a sweep without those that confirmed another recipe.

    Args:
        runs: the rows that belong to the present question.
        confirmation: of the present recipe, where there is one.
    """
    own = {entry["run_id"] for entry in confirmation.entries} if confirmation else set()
    other = runs["role"].astype(str).str.startswith(CONFIRMING) & ~runs["run_id"].isin(own)
    return runs[~other].reset_index(drop=True)


def scales(settings: StudySettings) -> tuple[str, ...]:
    """At which scales a recipe is confirmed; where the proxy is the target there is one."""
    return SCALES if settings.proxy != settings.target.shape else ("target",)


def candidates(settings: StudySettings) -> tuple[str, ...]:
    """Names of what is compared; with a stable stage also the best mixture that both stages could share."""
    return (*CANDIDATES, ONE_MIXTURE) if settings.design.stable_tokens else CANDIDATES


def candidate_stages(
    recommended: Recommended, runs: pd.DataFrame
) -> dict[str, tuple[Mixture | None, Mixture]]:
    """Mixtures of the stable stage (None where there is none) and of the decay of all that are compared.

    The control, the token-proportional mixture and the best single one are those of both stages. All but the
    recommended are brought inside the caps.

    Args:
        recommended: the recipe with what it rests on.
        runs: its finished runs, among which the best one is looked for.

    Raises:
        StudyError: no microanneal of the proxy has finished.
    """
    planner, recipe, own = recommended.sweep.planner, recommended.recipe, recommended.objective
    space, control, decay = planner.space, planner.control_mixture, recipe.decay
    proxy = planner.start(planner.settings.proxy).config.run_id
    tried = decays(runs)
    tried = tried[(tried["start_run_id"] == proxy) & tried["reached_target"].astype(bool)]
    if tried.empty:
        raise StudyError("No microanneal of the proxy has finished. Run 'decaylaws run' first.")
    kept = tried[sweep_guards_hold(tried, own.guard_limits)]
    best_run = kept.iloc[int(np.argmin(objective_values(kept, own.weights)))]

    def mixture_of(prefix: str) -> Mixture:
        return Mixture.from_array(space.names, [float(best_run[prefix + name]) for name in space.names])

    stage = mixture_of(STABLE_MIX) if STABLE_TOKENS in runs else None
    best = planner.space_after(stage).project(mixture_of(MIX), decay.tokens)
    proportional = space.project(space.token_proportional(), recipe.tokens)
    if recommended.one_mixture is None:
        return {
            "recommended": (None, decay.mixture),
            "control": (None, control),
            "token_proportional": (None, proportional),
            "best_of_sweep": (None, best),
        }
    return {
        "recommended": (recipe.stages[0].mixture, decay.mixture),
        "control": (control, control),
        "token_proportional": (proportional, proportional),
        "best_of_sweep": (stage, best),
        ONE_MIXTURE: (recommended.one_mixture, recommended.one_mixture),
    }


def sweep_guards_hold(tried: pd.DataFrame, limits: Mapping[str, float]) -> np.ndarray:
    """Whether each run of the sweep kept every guard against the control of its tokens, LR and batch, [runs].

    Args:
        tried: decays of one start.
        limits: largest rise of each guarded domain, nats per token.
    """
    columns = [LOSS + domain for domain in limits]
    # a run without a matched control (the drop-and-hold run) can not be shown to keep a guard
    changes = tried[columns].to_numpy() - matched_control(tried, columns).to_numpy()
    return np.asarray((changes <= list(limits.values())).all(axis=1))


def _configs(recommended: Recommended) -> list[tuple[str, str, RunConfig]]:
    planner, settings = recommended.sweep.planner, recommended.sweep.settings
    recipe, decay = recommended.recipe, recommended.recipe.decay
    mixtures = candidate_stages(recommended, recommended.sweep.runs)
    names = {"proxy": settings.proxy, "target": settings.target.shape}

    def stage(name: str, mixture: Mixture | None) -> RunConfig | None:
        return None if mixture is None else planner.stable(name, mixture, seed=recipe.seed).config

    return [
        (
            candidate,
            scale,
            planner.microanneal(
                "confirm",
                names[scale],
                planner.rescaled(decay.lr, settings.target.shape, names[scale]),
                mixtures[candidate][1],
                seed=recipe.seed,
                batch_tokens=decay.batch_tokens,
                stage=stage(names[scale], mixtures[candidate][0]),
            ).config,
        )
        for scale in scales(settings)
        for candidate in candidates(settings)
    ]


def _predictions(
    law: DecayLaw, weights: Mapping[str, float], rows: pd.DataFrame, chosen: Sequence[bool]
) -> list[tuple[dict[str, float], dict[str, dict[str, float]]]]:
    """Per row: mean and 90 % interval of the objective, and of every domain.

    The objective of a mixture that the law chose is expected to be higher than that of one which it only predicts.
    """
    found = law.predict(rows, interval=0.9)
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


def _confirmations(path: Path) -> list[dict[str, Any]]:
    """All that was ever predicted, oldest first; what an earlier version wrote has no key, so that it is only kept."""
    if not path.is_file():
        return []
    stored = read_json(path, StoredConfirmations)
    return list(stored["confirmations"]) if "confirmations" in stored else [{**stored, "key": ""}]


def stored_confirmation(path: Path, recommended: Recommended) -> Confirmation | None:
    """What was predicted for just the runs of this recipe, by the present law, if it was.

    Args:
        path: the study's ``confirm.json``, which need not exist.
        recommended: the recipe with what it rests on.

    Raises:
        DataError: the file is damaged.
        StudyError: seeds explain all that the objective weighs.
    """
    confirmations = _confirmations(path)
    if not confirmations:
        return None
    key = _key(recommended, _configs(recommended))
    return _find(confirmations, key, path, recommended.sweep.settings)


def _find(
    confirmations: Sequence[Mapping[str, Any]], key: str, path: Path, settings: StudySettings
) -> Confirmation | None:
    """The last of the stored confirmations that has this key, checked; None where none has."""
    found = [each for each in confirmations if each.get("key") == key]
    if not found:
        return None
    confirmation = Confirmation(found[-1]["created"], tuple(found[-1]["entries"]))
    with rebuilding(path, REMEDY):
        pairs = [(entry["candidate"], entry["scale"]) for entry in confirmation.entries]
        if sorted(pairs) != sorted(
            (candidate, scale) for candidate in candidates(settings) for scale in scales(settings)
        ):
            raise ValueError("it must hold each candidate at each scale once")
        for entry in confirmation.entries:
            if set(entry["predicted"]) != set(settings.domains):
                raise ValueError(f"{entry['candidate']}: it must hold a prediction for every domain")
            if RunConfig.from_dict(entry["config"]).run_id != entry["run_id"]:
                raise ValueError(f"{entry['candidate']}: its config is not that of run {entry['run_id']}")
    return confirmation


def _key(recommended: Recommended, labelled: Sequence[tuple[str, str, RunConfig]]) -> str:
    """Hash of all that decides the predictions: what the law was fitted to, the objective, and the runs."""
    evaluation, question = recommended.sweep.settings.evaluation, recommended.sweep.question
    return content_hash(
        recommended.inputs.digest,
        recommended.objective.weights,
        evaluation.tokens_per_domain,
        *([question.evaluation_sets] if evaluation.sets else []),
        [(candidate, scale, config.run_id) for candidate, scale, config in labelled],
    )
