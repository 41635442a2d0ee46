"""The verb ``recommend``: from a fitted law to a recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import decaylaws
from decaylaws.errors import DataError, StudyError
from decaylaws.io.files import record_content
from decaylaws.io.json import typed
from decaylaws.laws.decay import DecayLaw
from decaylaws.laws.decay.horizon import mixture_distance
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
from decaylaws.recipe.corpus_facts import read_corpus
from decaylaws.search import Choices, Recommendation, StageChoice, decay_recipe, recommend_stages
from decaylaws.search import recommend as search
from decaylaws.study.directory import REMEDY, Study, read_json, write_json
from decaylaws.study.fit import Fit, check_fit, fit_inputs, load_fit, usable_runs
from decaylaws.study.objective import noise_at, objective
from decaylaws.study.plan import proportional_mixture
from decaylaws.study.problem import decay_target, goal, guard_margins
from decaylaws.study.question import content_hash
from decaylaws.study.results import decays
from decaylaws.study.stored import stored_form

STAGE = "stage"
"""Key of the choice of a stable stage in laws/recommendation.json."""
RECOMMENDATION_FORMAT = 8  # of laws/recommendation.json; an older file is searched anew


def recommend(study: Study, *, progress: Progress = silent) -> tuple[Recipe, bool]:
    """Search the best decay of the target on the fitted law and store it as a recipe.

    Returns:
        The recipe, and whether it is new; it is kept while laws, settings and corpus stay as they are.

    Raises:
        StudyError: no law has been fitted, or the target's trunk has not been trained.
        InfeasibleError: no mixture meets caps, bounds and evidence together.
    """
    fit, law = load_fit(study)
    inputs = recommendation_inputs(study)
    stored = study.recommendation_file.is_file() and study.recipe_file.is_file()
    if stored and read_json(study.recommendation_file).get("inputs") == inputs:
        return Recipe.load(study.recipe_file), False
    margins = guard_margins(study, fit)
    found, stage = _search(study, law, margins, progress)
    recipe = _recipe(study, fit, law, found, stage)
    stored_stage = {} if stage is None else {STAGE: stage.to_dict()}
    write_json(study.recommendation_file, {"inputs": inputs, **found.to_dict(), **stored_stage})
    recipe.save(study.recipe_file)
    record_content(study.recipe_file)
    return recipe, True


def recommendation_inputs(study: Study) -> str:
    """Hash of all that decides the recommendation: settings, corpus, and what the law was fitted to.

    Not the law's own content: its file also says how long the fit took.
    """
    fitted = fit_inputs(study)
    return content_hash(RECOMMENDATION_FORMAT, study.decisive_settings(), vars(study.corpus()), fitted)


def load_recipe(study: Study) -> Recipe:
    """The recommended recipe.

    Raises:
        StudyError: nothing has been recommended, or study.yaml, corpus or runs changed since.
    """
    return study.once("recipe", lambda: _load_recipe(study))


def _load_recipe(study: Study) -> Recipe:
    if not study.recipe_file.is_file():
        raise StudyError(f"{study.root} has no recipe yet. Run 'decaylaws recommend {study.root}'.")
    check_fit(study)
    stored = read_json(study.recommendation_file) if study.recommendation_file.is_file() else {}
    if stored.get("inputs") != recommendation_inputs(study):
        raise StudyError(
            f"{study.recipe_file} answers an older question: study.yaml, the corpus or the runs changed since. "
            f"Run 'decaylaws recommend {study.root}'. You can still use the old recipe as a file: "
            f"'decaylaws export {study.recipe_file}'."
        )
    return Recipe.load(study.recipe_file)


def load_recommendation(study: Study) -> dict[str, Any]:
    """Everything that the search found (``Recommendation.to_dict``), as stored beside the recipe.

    Of a study with a stable stage ``stage`` holds the choice of its mixture (``StageChoice.to_dict``).

    Raises:
        StudyError: nothing has been recommended.
    """
    load_recipe(study)
    found: dict[str, Any] = read_json(study.recommendation_file, stored_form(Recommendation))
    sources, domains = study.settings.sources, study.settings.domains
    about = dict.fromkeys(("mixture", "unconstrained", "near_optimal"), tuple(sources))
    about |= dict.fromkeys(("predicted", "control"), domains)
    about["support"] = tuple(name for name in sources if name in found["support"])  # those with a share only
    path = study.recommendation_file
    if study.settings.design.stable_tokens:
        found[STAGE] = typed(found.get(STAGE), stored_form(StageChoice), path, REMEDY)
    for key, names in about.items():
        if set(found[key]) != set(names):
            raise DataError(f"{path} is damaged ({key}: it is not about {', '.join(names)}). {REMEDY}")
    if unknown := set(found["support"]) - set(sources):  # a source without a share has none
        raise DataError(f"{path} is damaged (support: it is about {', '.join(sorted(unknown))}). {REMEDY}")
    if not found["rivals"]:
        raise DataError(f"{path} is damaged (rivals: the control must be one). {REMEDY}")
    return found


def _search(
    study: Study, law: DecayLaw, margins: Mapping[str, float], progress: Progress
) -> tuple[Recommendation, StageChoice | None]:
    settings, planner = study.settings, study.planner()
    peak_lr, factors = planner.handover_lr(settings.target.shape), settings.design.start_lr_factors
    budget = settings.target.max_decay_tokens - settings.design.stable_tokens
    noise = noise_at(study, "target", decays(study.runs()))
    asked: dict[str, Any] = {
        "target": decay_target(study),
        "goal": goal(study, margins),
        "choices": Choices(
            decay_tokens=tuple(tokens for tokens in settings.design.decay_tokens if tokens <= budget),
            start_lr=(peak_lr * min(factors), peak_lr * max(factors)),
            shapes=tuple(shape for shape in settings.design.shapes if shape != "constant"),
            end_lr_factors=tuple(settings.design.end_lr_factors),
            batch_tokens=tuple(settings.design.batch_tokens),
        ),
        "rivals": {"token_proportional": proportional_mixture(study)},
        "trials": settings.search_trials,
        "seed": settings.seed,
        "noise_sd": None if noise is None else noise.sd,
        "progress": progress,
    }
    if not planner.stages:
        return search(law, planner.space, **asked), None
    tokens = settings.design.stable_tokens
    return recommend_stages(law, planner.space, planner.stages, tokens, planner.space_after, **asked)


def _recipe(
    study: Study, fit: Fit, law: DecayLaw, found: Recommendation, stage: StageChoice | None
) -> Recipe:
    settings = study.settings
    return decay_recipe(
        found,
        sources=_sources(study),
        handover=_handover(study),
        seq_len=settings.seq_len,
        batch_tokens=settings.batch_tokens,
        name=f"{settings.name}-decay",
        optimizer=_optimizer(study),
        # an order of the data that no run of the sweep has seen: what confirms the recipe was never fitted
        seed=settings.design.seed + settings.design.num_replicates,
        provenance=_provenance(study, fit, law, found),
        guard_limits=objective(study).guard_limits,
        stage=stage,
    )


def _handover(study: Study) -> HandOver:
    """Where the target's decay starts: the end of its trunk, or the checkpoint that study.yaml names."""
    name = study.settings.target.shape
    start = study.planner().start(name).config
    if start.start is None:
        return HandOver(
            run_id=start.run_id,
            tokens=start.tokens,
            lr=start.schedule.end_lr,
            lr_source=f"constant phase of trunk {start.run_id} at {start.tokens:,} tokens",
            optimizer_state="load",
        )
    return HandOver(
        checkpoint=study.held_paths()[start.start.fingerprint],
        tokens=start.tokens,
        lr=start.start.lr,
        lr_source=study.held()[name].lr_source,
        optimizer_state="load" if start.start.optimizer_state == "load" else "fresh",
    )


def _optimizer(study: Study) -> OptimizerSettings:
    """What the recipe asks of the target: the optimiser of the microanneals, or that of the checkpoint."""
    if study.settings.optimizer.recipe == "as_checkpoint":
        return OptimizerSettings(name="as_checkpoint")
    return OptimizerSettings.of(study.planner().optimizer(study.settings.target.shape).to_dict())


def _sources(study: Study) -> dict[str, Source]:
    """Sources as the proxies saw them: pools are already matched in repetition to the target."""
    settings = study.settings
    if settings.is_declared:
        prints = {name: source.fingerprint for name, source in settings.sources.items()}
    else:
        prints = dict(read_corpus(study.corpus_dir).source_fingerprints)
    return {
        limits.name: Source(
            available_tokens=limits.available_tokens,
            max_epochs=limits.max_epochs,
            path=settings.sources[limits.name].path if settings.is_declared else None,
            fingerprint=prints.get(limits.name),
        )
        for limits in study.planner().space.sources
    }


def _provenance(study: Study, fit: Fit, law: DecayLaw, found: Recommendation) -> Provenance:
    runs, _ = usable_runs(study)
    corpus = None if study.settings.is_declared else read_corpus(study.corpus_dir)
    target = study.planner().shape(study.settings.target.shape)
    own = fit.errors[fit.errors["law"] == f"decay:{fit.member}"]
    size, tokens = float(target.non_embedding_params), float(found.plan.decay_tokens)
    asked = {"size": size, "tokens": tokens, "compute": 6.0 * size * tokens}
    return Provenance(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        study=study.settings.name,
        decaylaws_version=decaylaws.__version__,
        code_fingerprint=code_fingerprint(),
        data_fingerprint=study.corpus().fingerprint,
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
            beyond_horizon=tuple(fit.trust.beyond(asked, mixture_distance(found.mixture.weights, runs))),
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
