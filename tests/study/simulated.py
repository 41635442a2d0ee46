"""A study whose corpus, runs, laws and launches are simulated, so that a whole study takes a fraction of a second.

What decides a number stays real: settings, plan, queue, tables, and every verb of ``decaylaws.study``. Text, training,
the numerics of laws and the search are replaced by digests of exactly what they are given. Two studies give equal
answers then only if equal inputs reached every computation, and a single foreign row changes all that follows.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest

from decaylaws.exporters import Export
from decaylaws.laws.decay.trust import guard_changes
from decaylaws.mixtures import Mixture
from decaylaws.queue import trial_store
from decaylaws.recipe import Recipe
from decaylaws.runs.columns import (
    AVERAGED_LOSS,
    BPB,
    EVALUATION,
    EVALUATION_SETS,
    FINISHED,
    LOSS,
    START_LOSS,
    config_row,
)
from decaylaws.runs.config import RunConfig
from decaylaws.runs.table import names_with
from decaylaws.search import Estimate, Plan
from decaylaws.settings.evaluation import NO_NUMBERS
from decaylaws.settings.study import parse_settings
from decaylaws.study import Study
from decaylaws.study.checks import record_settings, text_settings
from decaylaws.study.export import export
from decaylaws.study.files import read_json
from decaylaws.study.fit import Fit, fit, load_fit
from decaylaws.study.fit_inputs import FitInputs
from decaylaws.study.launch import launch_settings
from decaylaws.study.plan import current_plan, plan_runs
from decaylaws.study.predictions import predict
from decaylaws.study.question import content_hash
from decaylaws.study.recommend import load_recipe, recommend
from decaylaws.study.run import train
from decaylaws.study.verdict import read_outcome
from proxy_runs.answers.prepared import (
    EvaluationManifest,
    SetEntry,
    read_evaluation_manifest,
    sets_fingerprint,
    write_evaluation_manifest,
)
from proxy_runs.data.manifest import (
    FileEntry,
    Manifest,
    SourceEntry,
    SplitEntry,
    corpus_fingerprint,
    describe_file,
    write_manifest,
)
from proxy_runs.fsdp.settings import TrainSettings
from proxy_runs.sweep import pool
from proxy_runs.sweep.workspace import Workspace, open_queue
from proxy_runs.weights.checkpoint_files import final_checkpoint
from tests.study.tiny import TINY_SETTINGS

MEMBER = "effective_gain"
VERBS = ("prepare", "plan", "run", "fit", "recommend", "confirm", "export", "launch")

DESIGN = {
    "num_mixtures": 4,
    "decay_tokens": [2048, 4096],
    "start_lr_factors": [1.0],
    "shapes": ["linear"],
    "batch_tokens": [256],
    "num_replicates": 2,
    "runs_at_other_sizes": 2,
}
SETTINGS: dict[str, Any] = {**TINY_SETTINGS, "design": DESIGN, "seed": 3, "storage": None}


def fraction(*parts: Any) -> float:
    """A number in [0, 1) that any difference of ``parts`` changes."""
    return int(content_hash(*parts), 16) / 16**16


# Corpus ----------------------------------------------------------------------------------------------------


def make_sources(root: Path) -> None:
    """Files for the sources to name; nothing reads what they hold."""
    (root / "data" / "web").mkdir(parents=True)
    names = (
        "web/a.txt",
        "more.txt",
        "maths.jsonl",
        "code.jsonl",
        "tokenizer.json",
        "evaluation.jsonl",
        "quiz.jsonl",
    )
    for name in names:
        (root / "data" / name).write_text("{}\n", encoding="utf-8")


def prepare(study: Study) -> None:
    """A corpus without text, whose fingerprint and sizes follow from what decides the text."""
    asked = text_settings(study.settings)
    if not study.settings.decontamination.evaluation_sets:
        del asked["decontamination"]
    asked.pop("evaluation", None)  # what runs are measured on is no part of the corpus
    folder = study.corpus_dir / content_hash(asked)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "token_bytes.bin", *study.settings.sources):
        path = folder / name
        path.write_text(json.dumps({"model": {"vocab": {content_hash(asked, name): 0}}}), encoding="utf-8")
    entries = {
        name: SourceEntry(
            kind="text",
            **{split: _split(study, folder / name, asked, split) for split in ("train", "heldout")},
        )
        for name in study.settings.sources
    }
    tokenizer = describe_file(folder / "tokenizer.json", study.corpus_dir)
    manifest = Manifest(
        request=content_hash(asked),
        fingerprint=corpus_fingerprint(tokenizer, entries),
        created="2000-01-01T00:00:00Z",
        dtype="<u2",
        vocab_size=study.settings.tokenizer.vocab_size,
        eos_id=0,
        tokenizer=tokenizer,
        token_bytes=describe_file(folder / "token_bytes.bin", study.corpus_dir),
        sources=entries,
    )
    overlap = {name: dict.fromkeys(study.settings.sources, 0.0) for name in study.settings.sources}
    (folder / "heldout_overlap.json").write_text(json.dumps({"overlap": overlap}), encoding="utf-8")
    write_manifest(manifest, study.corpus_dir)
    _prepare_sets(study, content_hash(asked))
    record_settings(study)


def _prepare_sets(study: Study, corpus: str) -> None:
    """Evaluation domains and question sets, whose content follows from what decides it."""
    evaluation = study.settings.evaluation
    entries = {}
    for name, each in evaluation.sets.items():
        asked = [corpus, each.model_dump(mode="json", exclude=NO_NUMBERS)]
        asked += [evaluation.tokens_per_domain] if name in evaluation.domains else []
        asked.append((study.root / each.path).read_text(encoding="utf-8"))
        file = FileEntry(path=f"{name}.bin", bytes=1, sha256="0" * 64)
        digest = hashlib.sha256(repr(asked).encode()).hexdigest()
        kind = "domain" if name in evaluation.domains else "questions"
        entries[name] = SetEntry(kind=kind, file=file, digest=digest, documents=10, tokens=2000)
    if entries:
        fingerprint = sets_fingerprint(entries)
        manifest = EvaluationManifest(
            request="", fingerprint=fingerprint, tokenizer_sha256="0" * 64, sets=entries
        )
        write_evaluation_manifest(manifest, study.corpus_dir)


def _split(study: Study, path: Path, asked: Any, split: str) -> SplitEntry:
    tokens = 60_000 + int(1000 * fraction(asked, path.name, split))
    entry = describe_file(path, study.corpus_dir)
    return SplitEntry(file=entry, documents=1, text_bytes=tokens, tokens=tokens)


# Runs ------------------------------------------------------------------------------------------------------


class MemoryStorage(optuna.storages.InMemoryStorage):
    """Optuna's storage in memory, with hearts that nobody listens to."""

    def record_heartbeat(self, trial_id: int) -> None:
        """Nothing dies here."""


@dataclass
class Storages:
    """Storages by URL, in place of files and servers."""

    by_url: dict[str, MemoryStorage] = field(default_factory=dict)

    def open(self, url: str, on_stale: object = None) -> MemoryStorage:
        """The storage of a URL, made where it is missing."""
        return self.by_url.setdefault(url, MemoryStorage())

    def copy(self, root: Path, to: Path) -> None:
        """Copy what a study's own storage holds for a copy of the study."""
        for url, storage in list(self.by_url.items()):
            if str(root) in url:
                self.by_url[url.replace(str(root), str(to))] = copy.deepcopy(storage)


def row_of(
    config: RunConfig, role: str, tokens_per_domain: int, sets: EvaluationManifest | None
) -> dict[str, Any]:
    """The row that a worker would record; its numbers follow from the whole config and from what it is measured on."""
    sources = sorted(config.mixture.weights)
    domains = [*sources, *(sets.sets if sets else ())]

    def loss(kind: str, domain: str) -> float:
        return 3.0 + fraction(config.run_id, tokens_per_domain, kind, domain, sets and sets.fingerprint)

    row = {
        **config_row(config, dict.fromkeys(sources, 60_000)),
        "role": role,
        "status": FINISHED,
        "reason": "",
    }
    row |= {"reached_target": True, EVALUATION: tokens_per_domain}
    if sets:
        row[EVALUATION_SETS] = sets.fingerprint
    row |= {START_LOSS + name: loss("start", name) for name in domains}
    row |= {LOSS + name: loss("end", name) for name in domains} | {BPB + name: 1.0 for name in domains}
    if config.kind == "trunk":
        row |= {AVERAGED_LOSS + name: loss("averaged", name) for name in domains}
    return row


def run_pool(workspace: Workspace, **_: Any) -> None:
    """Work the queue off as a worker would: claim what is ready, record it, until nothing is left."""
    runs = open_queue(workspace)
    tokens = workspace.evaluation.tokens_per_domain
    sets = read_evaluation_manifest(workspace.corpus) if workspace.evaluation.sets else None
    measured = {EVALUATION: tokens} | ({EVALUATION_SETS: sets.fingerprint} if sets else {})

    def is_ready(config: RunConfig) -> bool:
        start = config.start_run_id
        return start is None or final_checkpoint(workspace.checkpoints, start).is_file()

    while claims := runs.claim(1000, is_ready):
        for claim in claims:
            row = row_of(claim.config, claim.role, tokens, sets)
            curve = [
                {
                    "run_id": row["run_id"],
                    "tokens": 0,
                    "step": 0,
                    "lr": 0.0,
                    "domain": name,
                    "loss": row[START_LOSS + name],
                }
                | measured
                for name in (*claim.config.mixture.weights, *(sets.sets if sets else ()))
            ]
            if claim.config.kind == "trunk":
                path = final_checkpoint(workspace.checkpoints, claim.config.run_id)
                path.parent.mkdir(exist_ok=True)
                path.touch()
            runs.finish(claim, {"row": row, "curve": curve}, 1.0)


# Laws, search and launch -----------------------------------------------------------------------------------


class DigestLaw:
    """Stands in for the decay law: what it predicts follows from a digest of all that the fit was given."""

    def __init__(self, digest: str, domains: Sequence[str]) -> None:
        self.digest, self.domains_ = digest, tuple(domains)
        self.params_ = {"digest": fraction(digest)}

    def predict(self, rows: pd.DataFrame, interval: float | None = None) -> Any:
        """Losses [rows, domains]."""
        known = [name for name in sorted(rows.columns) if not name.startswith((LOSS, BPB))]
        given = [{name: str(row[name]) for name in known} for row in rows.to_dict("records")]
        mean = np.array([[3.0 + fraction(self.digest, name, row) for name in self.domains_] for row in given])
        return mean if interval is None else SimpleNamespace(mean=mean, lower=mean - 0.1, upper=mean + 0.1)

    def predict_objective(self, rows: pd.DataFrame, weights: Mapping[str, float], interval: float) -> Any:
        """Weighted losses [rows]."""
        columns = [self.domains_.index(name) for name in weights]
        mean = self.predict(rows)[:, columns] @ np.array(list(weights.values()))
        return SimpleNamespace(mean=mean, lower=mean - 0.1, upper=mean + 0.1)

    def predict_chosen(self, rows: pd.DataFrame, weights: Mapping[str, float], interval: float) -> Any:
        """The same for a mixture that the law chose: higher, as a choice by a law is."""
        found = self.predict_objective(rows, weights, interval)
        return SimpleNamespace(**{name: value + 0.01 for name, value in vars(found).items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with one that differs from fit to fit, as the seconds of a real law do."""
        return {"digest": self.digest, "domains": list(self.domains_), "seconds": time.perf_counter()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DigestLaw:
        """Rebuild from ``to_dict``."""
        return cls(values["digest"], values["domains"])


def simulated_fit(inputs: FitInputs, progress: object) -> tuple[Fit, DigestLaw]:
    """A law by digest, and errors and held-out predictions that follow from the same."""
    runs, domains = inputs.usable, names_with(inputs.usable, LOSS)
    rows = runs[sorted(runs.columns)].to_csv(index=False) + inputs.unfinished.to_csv(index=False)
    law = DigestLaw(content_hash(vars(inputs.told), rows), domains)
    cells = [(row["run_id"], name, row[LOSS + name]) for row in runs.to_dict("records") for name in domains]
    held_out = pd.DataFrame(cells, columns=["run_id", "domain", "observed"]).assign(lower=2.0, upper=5.0)
    held_out["predicted"] = [3.0 + fraction(law.digest, run_id, name) for run_id, name, _ in cells]
    error = {"held_out": "mixture", "law": f"decay:{MEMBER}", "mae": fraction(law.digest)}
    errors = pd.DataFrame([{**error, "num_runs": len(runs), "worst": 0.0, "bias": 0.0, "spearman": 0.0}])
    changes = guard_changes(law, runs, held_out)  # type: ignore[arg-type]
    return Fit(MEMBER, errors, held_out, changes, inputs.excluded, (f"digest {law.digest}",)), law


@dataclass
class Found:
    """Stands in for a recommendation: mixture and plan follow from a digest of all that the search was given."""

    digest: str
    mixture: Mixture
    plan: Plan
    predicted: dict[str, Estimate]
    control: dict[str, float]
    guards: dict[str, float]
    guard_nats: float
    guard_margins: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"digest": self.digest}


def search(law: DigestLaw, space: Any, *, goal: Any, choices: Any, progress: object, **given: Any) -> Found:
    """Choose by a digest."""
    digest = content_hash(
        law.digest, repr(space.sources), repr(space.groups), repr(goal), repr(choices), repr(given)
    )
    tokens = choices.decay_tokens[int(fraction(digest) * len(choices.decay_tokens))]
    drawn = {name: fraction(digest, name) for name in space.names}
    mixture = space.project({name: share / sum(drawn.values()) for name, share in drawn.items()}, tokens)
    domains = {name: 3.0 + fraction(digest, "loss", name) for name in law.domains_}
    return Found(
        digest=digest,
        mixture=mixture,
        plan=Plan(
            decay_tokens=tokens,
            start_lr=choices.start_lr[1],
            shape=choices.shapes[0],
            batch_tokens=next(iter(choices.batch_tokens), None),
        ),
        predicted={name: Estimate(value, value - 0.1, value + 0.1) for name, value in domains.items()},
        control=domains,
        guards=dict.fromkeys(goal.guard_domains, goal.guard_nats),
        guard_nats=goal.guard_nats,
        guard_margins=dict(goal.guard_margins),
    )


def launch(settings: TrainSettings) -> dict[str, Any]:
    """What a launch would leave, without the launch."""
    recipe = Recipe.load(settings.recipe)
    corpus = json.loads((settings.corpus / "manifest.json").read_text(encoding="utf-8"))["fingerprint"]
    given = [recipe.stages, settings.start.name, corpus, settings.eval_tokens_per_domain]
    result = {"losses": {name: 3.0 + fraction(repr(given), name) for name in recipe.predictions}}
    settings.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(
        result | {"recipe_sha256": recipe.sha256, "steps": recipe.num_steps, "tokens": recipe.tokens}
    )
    (settings.output / "result.json").write_text(text, encoding="utf-8")
    return result


def module_of(verb: str) -> ModuleType:
    """The module of a verb; ``decaylaws.study.VERB`` is its function."""
    return import_module(f"decaylaws.study.{verb}")


def simulate(monkeypatch: pytest.MonkeyPatch) -> Storages:
    """Replace text, training, laws and search by digests for as long as ``monkeypatch`` lasts."""
    storages = Storages()
    speed = SimpleNamespace(workers=1, matmul_flops=1.0, slots=lambda shape: 1)
    monkeypatch.setattr(trial_store, "open_storage", storages.open)
    monkeypatch.setattr(pool, "run_pool", run_pool)
    monkeypatch.setattr(module_of("run"), "calibrate", lambda *_, **__: speed)
    monkeypatch.setattr(module_of("fit"), "_fit", simulated_fit)
    monkeypatch.setattr(module_of("fit"), "DecayLaw", DigestLaw)
    monkeypatch.setattr(module_of("recommend"), "search", search)
    return storages


# The verbs, and what each answers --------------------------------------------------------------------------


def open_study(root: Path, settings: Mapping[str, Any]) -> Study:
    """The study with these settings, which are also in its study.yaml."""
    (root / "study.yaml").write_text(json.dumps(settings), encoding="utf-8")
    return Study(root, parse_settings(settings))


def _run(study: Study) -> Any:
    design = current_plan(study)
    runs = [(item.role, item.config) for item in design]
    train(study, study.planner(), runs, serves=study.plan_inputs(), workers=1)
    runs = study.runs()
    return runs[runs["run_id"].isin(study.planned().question.planned)].to_csv(index=False)


def _confirm(study: Study) -> Any:
    confirmation, _ = predict(study)
    train(study, study.planner(), confirmation.runs(), workers=1, serves=confirmation.serves)
    outcome = read_outcome(study)
    lines = [line for line in outcome.verdict if "earlier recipe" not in line]
    return outcome.candidates.to_csv(), outcome.domains.to_csv(), lines


def _export(study: Study) -> Any:
    outcomes = export(study, ["huggingface"])
    (exported,) = outcomes.values()
    assert isinstance(exported, Export)
    return {name: _undated(text) for name, text in exported.files.items()}


def _recipe(study: Study) -> Any:
    recommend(study)
    values = load_recipe(study).to_dict()
    values["provenance"].pop("created")
    return values, read_json(study.recommendation_file)["digest"]


def _undated(text: str) -> str:
    return "\n".join(
        line for line in text.splitlines() if "recommended at" not in line and "sha256" not in line.lower()
    )


def _prepare(study: Study) -> Any:
    prepare(study)
    return study.corpus().fingerprint


def _fit(study: Study) -> Any:
    found, _ = fit(study)
    errors = found.errors[sorted(found.errors.columns)].to_csv()  # a stored table has an order of its own
    return load_fit(study)[1].digest, errors, found.guard_changes.to_csv(), found.notes


ANSWERS: Mapping[str, Callable[[Study], Any]] = {
    "prepare": _prepare,
    "plan": lambda study: [(run.role, run.config.run_id) for run in plan_runs(study)[0]],
    "run": _run,
    "fit": _fit,
    "recommend": _recipe,
    "confirm": _confirm,
    "export": _export,
    "launch": lambda study: launch(launch_settings(study, {})),
}
"""Every verb with what it answers, as values that two studies may be compared by."""


def digest_of(answer: Any) -> str:
    """Hash of an answer."""
    return hashlib.sha256(repr(answer).encode()).hexdigest()
