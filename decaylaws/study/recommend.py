"""The verb ``recommend``: from a fitted law to a recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import decaylaws
from decaylaws.designs.planner import Planner
from decaylaws.errors import DataError, StudyError
from decaylaws.io.files import record_content
from decaylaws.io.json import typed
from decaylaws.laws.decay import DecayLaw
from decaylaws.laws.decay.horizon import mixture_distance
from decaylaws.mixtures import Mixture
from decaylaws.progress import Progress, silent
from decaylaws.recipe import (
    Evidence,
    HandOver,
    HorizonRecord,
    LawRecord,
    OptimizerSettings,
    Provenance,
    Recipe,
    Source,
)
from decaylaws.recipe.corpus_facts import PreparedCorpus, read_corpus
from decaylaws.search import Choices, Recommendation, StageChoice, decay_recipe, recommend_stages
from decaylaws.search import recommend as search
from decaylaws.settings.study import StudySettings
from decaylaws.study import held
from decaylaws.study.directory import Study
from decaylaws.study.files import REMEDY, read_json, write_json
from decaylaws.study.fit import Fit, check_fit, load_law, restored
from decaylaws.study.fit_inputs import FitInputs
from decaylaws.study.identity import decisive
from decaylaws.study.objective import Objective, noise_at, objective
from decaylaws.study.plan import proportional_mixture
from decaylaws.study.problem import decay_target, goal, guard_margins
from decaylaws.study.question import content_hash
from decaylaws.study.results import decays
from decaylaws.study.stored import StoredFit, stored_form
from decaylaws.study.sweep import MeasuredSweep

STAGE = "stage"
"""Key of the choice of a stable stage in laws/recommendation.json."""
RECOMMENDATION_FORMAT = 11  # of laws/recommendation.json; an older file is searched anew


def recommend(study: Study, *, progress: Progress = silent) -> tuple[Recipe, bool]:
    """Search the best decay of the target on the fitted law and store it as a recipe.

    Returns:
        The recipe, and whether it is new; it is kept while laws, settings and corpus stay as they are.

    Raises:
        StudyError: no law has been fitted, or the target's trunk has not been trained.
        InfeasibleError: no mixture meets caps, bounds and evidence together.
    """
    stored, inputs = check_fit(study)
    fit, law = restored(stored), load_law(study.law_file, inputs)
    wanted = _recommendation_inputs(inputs)
    exists = study.recommendation_file.is_file() and study.recipe_file.is_file()
    if exists and read_json(study.recommendation_file).get("inputs") == wanted:
        return Recipe.load(study.recipe_file), False
    sweep = inputs.sweep
    own = objective(sweep.settings, inputs.usable)
    found, stage = _search(sweep, law, own, guard_margins(fit, own.guard_limits), progress)
    settings, planner = sweep.settings, sweep.planner
    corpus = None if settings.is_declared else read_corpus(study.corpus_dir)
    recipe = decay_recipe(
        found,
        sources=_sources(planner, corpus),
        handover=_handover(planner, study.root),
        seq_len=settings.seq_len,
        batch_tokens=settings.batch_tokens,
        name=f"{settings.name}-decay",
        # the optimiser of the microanneals, or that of the checkpoint
        optimizer=OptimizerSettings(name="as_checkpoint")
        if settings.optimizer.recipe == "as_checkpoint"
        else OptimizerSettings.of(planner.optimizer(settings.target.shape).to_dict()),
        # an order of the data that no run of the sweep has seen: what confirms the recipe was never fitted
        seed=max(settings.design.seed + settings.design.num_replicates, int(inputs.usable["seed"].max()) + 1),
        provenance=_provenance(inputs, corpus, fit, law, found),
        guard_limits=own.guard_limits,
        stage=stage,
    )
    stored_stage = {} if stage is None else {STAGE: stage.to_dict()}
    write_json(study.recommendation_file, {"inputs": wanted, **found.to_dict(), **stored_stage})
    recipe.save(study.recipe_file)
    record_content(study.recipe_file)
    return recipe, True


def _recommendation_inputs(inputs: FitInputs) -> str:
    """Hash of all that decides the recommendation: settings, corpus, and what the law was fitted to.

    Not the law's own content: its file also says how long the fit took.
    """
    planner = inputs.sweep.planner
    settings = decisive(planner.settings, planner.arithmetic, planner.held)
    return content_hash(RECOMMENDATION_FORMAT, settings, vars(planner.corpus), inputs.digest)


@dataclass(frozen=True)
class Recommended:
    """The recommended recipe with what it rests on.

    Attributes:
        recipe: the recipe.
        inputs: what its law was fitted to.
        stored_fit: content of the fit's file.
        one_mixture: the best mixture that a stable stage and the decay could share; None without such a stage.
    """

    recipe: Recipe
    inputs: FitInputs
    stored_fit: StoredFit
    one_mixture: Mixture | None

    @cached_property
    def fit(self) -> Fit:
        """The fit."""
        return restored(self.stored_fit)

    @property
    def sweep(self) -> MeasuredSweep:
        """What the study asks, and every run that belongs to it."""
        return self.inputs.sweep

    @cached_property
    def objective(self) -> Objective:
        """The objective that the runs allow.

        Raises:
            StudyError: seeds explain all that counts.
        """
        return objective(self.sweep.settings, self.inputs.usable)


def read_recommended(study: Study, inputs: FitInputs | None = None) -> Recommended:
    """The recommended recipe with what it rests on.

    Args:
        study: the study.
        inputs: what a fit is given now, where it has been read already.

    Raises:
        StudyError: nothing has been recommended, or study.yaml, corpus or runs changed since.
    """
    if not study.recipe_file.is_file():
        raise StudyError(f"{study.root} has no recipe yet. Run 'decaylaws recommend {study.root}'.")
    stored_fit, inputs = check_fit(study, inputs)
    stored = read_json(study.recommendation_file) if study.recommendation_file.is_file() else {}
    if stored.get("inputs") != _recommendation_inputs(inputs):
        raise StudyError(
            f"{study.recipe_file} answers an older question: study.yaml, the corpus or the runs changed since. "
            f"Run 'decaylaws recommend {study.root}'. You can still use the old recipe as a file: "
            f"'decaylaws export {study.recipe_file}'."
        )
    one = None
    if inputs.sweep.settings.design.stable_tokens:
        stage = typed(stored.get(STAGE), stored_form(StageChoice), study.recommendation_file, REMEDY)
        one = Mixture(stage["one_mixture"])
    return Recommended(Recipe.load(study.recipe_file), inputs, stored_fit, one)


def load_recipe(study: Study) -> Recipe:
    """The recommended recipe.

    Raises:
        StudyError: nothing has been recommended, or study.yaml, corpus or runs changed since.
    """
    return read_recommended(study).recipe


def load_recommendation(study: Study) -> dict[str, Any]:
    """Everything that the search found (``Recommendation.to_dict``), as stored beside the recipe.

    Of a study with a stable stage ``stage`` holds the choice of its mixture (``StageChoice.to_dict``).

    Raises:
        StudyError: nothing has been recommended.
    """
    return read_recommendation(study.recommendation_file, read_recommended(study).sweep.settings)


def read_recommendation(path: Path, settings: StudySettings) -> dict[str, Any]:
    """As :func:`load_recommendation`, of a recommendation that is known to be the present one.

    Args:
        path: its file.
        settings: of the study.

    Raises:
        DataError: the file is damaged.
    """
    found: dict[str, Any] = read_json(path, stored_form(Recommendation))
    sources, domains = settings.sources, settings.domains
    about = dict.fromkeys(("mixture", "unconstrained", "near_optimal"), tuple(sources))
    about |= dict.fromkeys(("predicted", "control"), domains)
    about["support"] = tuple(name for name in sources if name in found["support"])  # those with a share only
    if settings.design.stable_tokens:
        found[STAGE] = typed(found.get(STAGE), stored_form(StageChoice), path, REMEDY)
    for key, names in about.items():
        if set(found[key]) != set(names):
            raise DataError(f"{path} is damaged ({key}: it is not about {', '.join(names)}). {REMEDY}")
    if unknown := set(found["support"]) - set(sources):  # a source without a share has none
        raise DataError(f"{path} is damaged (support: it is about {', '.join(sorted(unknown))}). {REMEDY}")
    if not found["rivals"]:
        raise DataError(f"{path} is damaged (rivals: the control must be one). {REMEDY}")
    return found


def objective_words(found: Mapping[str, Any]) -> str:
    """The predicted objective of a stored recommendation, and why it is not the mean of the predicted domains."""
    own, lost = found["objective"], found.get("lost_by_choice", 0.0)
    said = (
        f"The objective is predicted as {own['mean']:.4f} [{own['lower']:.4f}, {own['upper']:.4f}] nats "
        "(90 % interval of one run)."
    )
    if lost < 5e-5:
        return said
    return (
        f"{said} This counts {lost:.4f} nats for the choice. The losses predicted for the domains come to "
        f"{own['mean'] - lost:.4f}, but the search goes where the law errs low, and held-out runs show by how much."
    )


def _search(
    sweep: MeasuredSweep, law: DecayLaw, own: Objective, margins: Mapping[str, float], progress: Progress
) -> tuple[Recommendation, StageChoice | None]:
    settings, planner = sweep.settings, sweep.planner
    peak_lr, factors = planner.handover_lr(settings.target.shape), settings.design.start_lr_factors
    budget = settings.target.max_decay_tokens - settings.design.stable_tokens
    noise = noise_at(planner, own.weights, "target", decays(sweep.runs))
    asked: dict[str, Any] = {
        "target": decay_target(planner, sweep.runs),
        "goal": goal(planner, own, margins),
        "choices": Choices(
            decay_tokens=tuple(tokens for tokens in settings.design.decay_tokens if tokens <= budget),
            start_lr=(peak_lr * min(factors), peak_lr * max(factors)),
            shapes=tuple(shape for shape in settings.design.shapes if shape != "constant"),
            end_lr_factors=tuple(settings.design.end_lr_factors),
            batch_tokens=tuple(settings.design.batch_tokens),
        ),
        "rivals": {"token_proportional": proportional_mixture(planner)},
        "trials": settings.search_trials,
        "seed": settings.seed,
        "noise_sd": None if noise is None else noise.sd,
        "progress": progress,
    }
    if not planner.stages:
        return search(law, planner.space, **asked), None
    tokens = settings.design.stable_tokens
    return recommend_stages(law, planner.space, planner.stages, tokens, planner.space_after, **asked)


def _handover(planner: Planner, root: Path) -> HandOver:
    """Where the target's decay starts: the end of its trunk, or the checkpoint that study.yaml names."""
    name = planner.settings.target.shape
    start = planner.start(name).config
    if start.start is None:
        return HandOver(
            run_id=start.run_id,
            tokens=start.tokens,
            lr=start.schedule.end_lr,
            lr_source=f"constant phase of trunk {start.run_id} at {start.tokens:,} tokens",
            optimizer_state="load",
        )
    return HandOver(
        checkpoint=held.paths(planner.settings.checkpoints, root, planner.held)[start.start.fingerprint],
        tokens=start.tokens,
        lr=start.start.lr,
        lr_source=planner.held[name].lr_source,
        optimizer_state="load" if start.start.optimizer_state == "load" else "fresh",
    )


def _sources(planner: Planner, corpus: PreparedCorpus | None) -> dict[str, Source]:
    """Sources as the proxies saw them: pools are already matched in repetition to the target."""
    declared = planner.settings.sources
    prints = (
        {name: source.fingerprint for name, source in declared.items()}
        if corpus is None
        else corpus.source_fingerprints
    )
    return {
        limits.name: Source(
            available_tokens=limits.available_tokens,
            max_epochs=limits.max_epochs,
            path=declared[limits.name].path if corpus is None else None,
            fingerprint=prints.get(limits.name),
        )
        for limits in planner.space.sources
    }


def _provenance(
    inputs: FitInputs, corpus: PreparedCorpus | None, fit: Fit, law: DecayLaw, found: Recommendation
) -> Provenance:
    planner, runs = inputs.sweep.planner, inputs.usable
    target = planner.shape(planner.settings.target.shape)
    own = fit.errors[fit.errors["law"] == f"decay:{fit.member}"]
    size, tokens = float(target.non_embedding_params), float(found.plan.decay_tokens)
    asked = {"size": size, "tokens": tokens, "compute": 6.0 * size * tokens}
    return Provenance(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        study=planner.settings.name,
        decaylaws_version=decaylaws.__version__,
        code_fingerprint=code_fingerprint(),
        data_fingerprint=planner.corpus.fingerprint,
        tokenizer_fingerprint=corpus and corpus.tokenizer_fingerprint,
        vocab_size=corpus and corpus.vocab_size,
        non_embedding_params=target.non_embedding_params,
        laws=(
            LawRecord(
                name=f"decay:{fit.member}",
                parameters=law.params_,
                heldout_error={f"mae:{row.held_out}": float(row.mae) for row in own.itertuples()},
                horizon=_horizon(fit, asked),
            ),
        ),
        evidence=Evidence(
            run_ids=tuple(sorted(runs["run_id"])),
            notes=fit.notes,
            beyond_horizon=tuple(
                fit.trust.beyond(asked, mixture_distance(found.mixture.weights, runs), found.plan.shape)
            ),
        ),
    )


def _horizon(fit: Fit, asked: Mapping[str, float]) -> tuple[HorizonRecord, ...]:
    return tuple(
        HorizonRecord(
            axis=each.axis,
            fitted_to=each.high,
            tested_to=each.trusted if each.origins else None,
            error=each.error if each.origins else None,
            bias=each.bias if each.origins else None,
            asked=asked[each.axis],
        )
        for each in fit.trust.horizon.reaches
    )


def code_fingerprint() -> str:
    """SHA-256 over the library's own source files: two versions of one number are told apart."""
    root = Path(decaylaws.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"sha256:{digest.hexdigest()}"
