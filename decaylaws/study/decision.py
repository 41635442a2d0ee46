"""The verbs ``recommend`` and ``export``: from a fitted law to a recipe, and to files that others can run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

import decaylaws
from decaylaws.errors import DataError, NotRepresentableError, StudyError
from decaylaws.exporters import Export, ExportOptions, export_all
from decaylaws.io.files import record_content
from decaylaws.laws.decay import DecayLaw
from decaylaws.mixtures import Mixture
from decaylaws.progress import Progress, silent
from decaylaws.recipe import (
    Evidence,
    HandOver,
    LawRecord,
    OptimizerSettings,
    Provenance,
    Recipe,
    Source,
)
from decaylaws.recipe.corpus_facts import read_corpus
from decaylaws.runs.table import AVERAGED_START_LOSS, START_LOSS
from decaylaws.schedules import decay
from decaylaws.search import Choices, Goal, Recommendation, Target, decay_recipe
from decaylaws.search import recommend as search
from decaylaws.study.directory import REMEDY, Study, read_json, write_json
from decaylaws.study.evidence import Fit, check_fit, fit_inputs, load_fit, noise_at, usable_runs
from decaylaws.study.question import content_hash
from decaylaws.study.results import decays, start_losses
from decaylaws.study.stored import stored_form
from decaylaws.study.sweep import proportional_mixture

RECOMMENDATION_FORMAT = 6  # of laws/recommendation.json; an older file is searched anew
EXPORTED = "exported.json"
GUARD_CONFIDENCE = 0.95
GUARD_RUNS = 20  # held-out runs nearest the limit; fewer than 19 cannot certify 95 %


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
    found = _search(study, law, margins, progress)
    recipe = _recipe(study, fit, law, found)
    write_json(study.recommendation_file, {"inputs": inputs, **found.to_dict()})
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
            f"Run 'decaylaws recommend {study.root}'. The old recipe can still be used as a file of its own: "
            f"'decaylaws export {study.recipe_file}'."
        )
    return Recipe.load(study.recipe_file)


def load_recommendation(study: Study) -> dict[str, Any]:
    """Everything that the search found (``Recommendation.to_dict``), as stored beside the recipe.

    Raises:
        StudyError: nothing has been recommended.
    """
    load_recipe(study)
    found: dict[str, Any] = read_json(study.recommendation_file, stored_form(Recommendation))
    names, path = set(study.settings.sources), study.recommendation_file
    for key in ("mixture", "unconstrained", "near_optimal", "support", "predicted", "control"):
        if set(found[key]) != names:
            raise DataError(f"{path} is damaged ({key}: it is not about {', '.join(names)}). {REMEDY}")
    if not found["rivals"]:
        raise DataError(f"{path} is damaged (rivals: the control must be one). {REMEDY}")
    return found


def export(
    study: Study, targets: Sequence[str] | None = None, options: ExportOptions | None = None
) -> dict[str, Export | NotRepresentableError]:
    """Write the study's recipe for other trainers, see :func:`decaylaws.exporters.export_all`.

    Raises:
        StudyError: nothing has been recommended, or something changed since.
        NotRepresentableError: a target that was asked for by name cannot express the recipe.
    """
    recipe = load_recipe(study)
    outcomes = export_all(recipe, study.export_dir, targets, options)
    written = {target: recipe.sha256 for target, outcome in outcomes.items() if isinstance(outcome, Export)}
    write_json(study.export_dir / EXPORTED, {**read_exported(study), **written})
    return outcomes


def read_exported(study: Study) -> dict[str, str]:
    """Digest of the recipe that each target's folder was written for."""
    path = study.export_dir / EXPORTED
    return dict(read_json(path, dict[str, str])) if path.is_file() else {}


def guard_margins(study: Study, fit: Fit) -> dict[str, float]:
    """Nats by which a guard's prediction must stay clear of its limit: what held-out runs would have needed.

    The errors are of the change against the matched control, the very thing that a guard limits: a law that is
    right about losses can still be optimistic about their differences.
    """
    objective = study.settings.objective
    return {
        domain: margin_near(fit.guard_changes[fit.guard_changes["domain"] == domain], objective.guard_nats)
        for domain in objective.guard_domains
    }


def margin_near(changes: pd.DataFrame, limit: float) -> float:
    """The 95 % quantile of observed minus predicted change, over the rows predicted nearest ``limit``, at least 0.

    Rows far from the limit say little about a mixture that lies on it: the error grows with the change.

    Args:
        changes: of one domain, with ``predicted`` and ``observed``, nats per token.
        limit: of the guard.
    """
    distance = (changes["predicted"] - limit).abs()
    nearest = changes.loc[distance.sort_values(kind="stable").index[:GUARD_RUNS]]
    return max(_quantile((nearest["observed"] - nearest["predicted"]).tolist(), GUARD_CONFIDENCE), 0.0)


def _quantile(errors: Sequence[float], confidence: float) -> float:
    """Conformal quantile: the next error lies below it with probability ``confidence``, as far as few can say."""
    if not errors:
        return 0.0
    rank = min(math.ceil(confidence * (len(errors) + 1)), len(errors))
    return sorted(errors)[rank - 1]


def decay_target(study: Study) -> Target:
    """The checkpoint from which the target's decay is to start.

    Raises:
        StudyError: the target's trunk has not been trained.
    """
    settings, planner = study.settings, study.planner()
    trunk = planner.trunk(settings.target.shape).config
    # a fork of no matter what schedule starts from the same measured losses
    fork = planner.microanneal(
        "start",
        settings.target.shape,
        decay(max(settings.design.decay_tokens), settings.trunk.peak_lr),
        planner.control_mixture,
        seed=settings.seed,
    ).config
    measured = start_losses(fork, study.runs())
    return Target(
        non_embedding_params=trunk.shape.non_embedding_params,
        start_tokens=trunk.tokens,
        batch_tokens=trunk.batch_tokens,
        start_loss=_by_domain(measured, START_LOSS),
        averaged_start_loss=_by_domain(measured, AVERAGED_START_LOSS),
    )


def _by_domain(row: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}


def _search(study: Study, law: DecayLaw, margins: Mapping[str, float], progress: Progress) -> Recommendation:
    settings, planner = study.settings, study.planner()
    peak_lr, factors = settings.trunk.peak_lr, settings.design.start_lr_factors
    budget = settings.target.max_decay_tokens
    noise = noise_at(study, "target", decays(study.runs()))
    return search(
        law,
        planner.space,
        target=decay_target(study),
        goal=Goal(
            weights=settings.objective_weights,
            control=planner.control_mixture,
            guard_domains=settings.objective.guard_domains,
            guard_nats=settings.objective.guard_nats,
            guard_margins=margins,
            general_domains=settings.general_sources,
            prior=_prior(study),
            kl_strength=settings.objective.kl_strength,
        ),
        choices=Choices(
            decay_tokens=tuple(tokens for tokens in settings.design.decay_tokens if tokens <= budget),
            start_lr=(peak_lr * min(factors), peak_lr * max(factors)),
            shapes=tuple(shape for shape in settings.design.shapes if shape != "constant"),
            batch_tokens=tuple(settings.design.batch_tokens),
        ),
        rivals={"token_proportional": proportional_mixture(study)},
        trials=settings.search_trials,
        seed=settings.seed,
        noise_sd=None if noise is None else noise.sd,
        progress=progress,
    )


def _prior(study: Study) -> Mixture:
    """The mixture that the objective's KL divergence is measured from."""
    stated, space = study.settings.objective.prior, study.planner().space
    return space.token_proportional() if stated is None else Mixture(stated)


def _recipe(study: Study, fit: Fit, law: DecayLaw, found: Recommendation) -> Recipe:
    settings = study.settings
    trunk = study.planner().trunk(settings.target.shape).config
    return decay_recipe(
        found,
        sources=_sources(study),
        handover=HandOver(
            run_id=trunk.run_id,
            tokens=trunk.tokens,
            lr=settings.trunk.peak_lr,
            lr_source=f"constant phase of trunk {trunk.run_id} at {trunk.tokens:,} tokens",
            optimizer_state="load",
        ),
        seq_len=settings.seq_len,
        batch_tokens=settings.batch_tokens,
        name=f"{settings.name}-decay",
        optimizer=OptimizerSettings(**settings.optimizer.model_dump()),
        # an order of the data that no run of the sweep has seen: what confirms the recipe was never fitted
        seed=settings.design.seed + settings.design.num_replicates,
        provenance=_provenance(study, fit, law),
    )


def _sources(study: Study) -> dict[str, Source]:
    """Sources as the proxies saw them: pools are already matched in repetition to the target."""
    prints = read_corpus(study.corpus_dir).source_fingerprints
    return {
        limits.name: Source(
            available_tokens=limits.available_tokens,
            max_epochs=limits.max_epochs,
            fingerprint=prints.get(limits.name),
        )
        for limits in study.planner().space.sources
    }


def _provenance(study: Study, fit: Fit, law: DecayLaw) -> Provenance:
    runs, _ = usable_runs(study)
    corpus = read_corpus(study.corpus_dir)
    target = study.planner().shape(study.settings.target.shape)
    own = fit.errors[fit.errors["law"] == f"decay:{fit.member}"]
    return Provenance(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        study=study.settings.name,
        decaylaws_version=decaylaws.__version__,
        code_fingerprint=code_fingerprint(),
        data_fingerprint=corpus.fingerprint,
        tokenizer_fingerprint=corpus.tokenizer_fingerprint,
        vocab_size=corpus.vocab_size,
        non_embedding_params=target.non_embedding_params,
        laws=(
            LawRecord(
                name=f"decay:{fit.member}",
                parameters=law.params_,
                heldout_error={f"mae:{row.held_out}": float(row.mae) for row in own.itertuples()},
            ),
        ),
        evidence=Evidence(run_ids=tuple(sorted(runs["run_id"])), notes=fit.notes),
    )


def code_fingerprint() -> str:
    """SHA-256 over the library's own source files: two versions of one number are told apart."""
    root = Path(decaylaws.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"sha256:{digest.hexdigest()}"
