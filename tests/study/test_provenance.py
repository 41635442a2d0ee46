"""Each setting changed after each verb: no verb mixes an older question into the present one."""

from __future__ import annotations

import copy
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from decaylaws.errors import DecaylawsError
from decaylaws.study import Study
from tests.study.simulated import (
    ANSWERS,
    SETTINGS,
    VERBS,
    Storages,
    digest_of,
    make_sources,
    open_study,
    simulate,
)

pytestmark = pytest.mark.slow

CHANGES: Mapping[str, Any] = {
    # what decides the text
    "sources.web.path": "data/more.txt",
    "sources.maths.text_field": "body",
    "sources.code.max_bytes": 50_000,
    "sources.code.min_document_bytes": 10,
    "sources.code.max_document_bytes": 10_000,
    "sources.code.heldout_fraction": 0.2,
    "sources.code.on_bad": "skip",
    "sources.more": {"format": "text", "path": "data/more.txt"},
    "sources": {name: SETTINGS["sources"][name] for name in ("maths", "web", "code")},
    "tokenizer.vocab_size": 320,
    "tokenizer.path": "data/tokenizer.json",
    "tokenizer.train_bytes_per_source": 1_000_000,
    "seed": 4,
    "decontamination.evaluation_sets": {"exam": {"path": "data/evaluation.jsonl"}},
    "decontamination.heldout_similarity": 0.5,
    # what decides the runs of the sweep
    "sources.maths.max_epochs": 1,
    "sources.maths.lower": 0.1,
    "sources.maths.upper": 0.4,
    "groups": {"text": {"members": ["web", "maths"], "lower": 0.2}},
    "seq_len": 64,
    "batch_tokens": 512,
    "shapes.small.d_model": 24,
    "shapes.small.num_layers": 2,
    "shapes.small.num_heads": 1,
    "shapes.small.num_kv_heads": 1,
    "shapes.small.d_ff": 64,
    "shapes.medium.rope_theta": 20_000.0,
    "shapes.target.tie_embeddings": False,
    "shapes.large": {"d_model": 32, "num_layers": 1, "num_heads": 2, "d_ff": 64},
    "proxy": "medium",
    "optimizer.beta1": 0.8,
    "optimizer.beta2": 0.9,
    "optimizer.eps": 1e-7,
    "optimizer.weight_decay": 0.05,
    "optimizer.clip_norm": 0.5,
    "trunk.tokens": 32768,
    "trunk.warmup_tokens": 4096,
    "trunk.peak_lr": 5e-3,
    "trunk.mixture": {"web": 0.5, "code": 0.5},
    "trunk.seed": 1,
    "design.num_mixtures": 5,
    "design.decay_tokens": [4096],
    "design.start_lr_factors": [1.0, 0.5],
    "design.shapes": ["1-sqrt"],
    "design.batch_tokens": [512],
    "design.num_replicates": 3,
    "design.runs_at_other_sizes": 3,
    "design.read_outs": 1,
    "design.seed": 1,
    "target.shape": "medium",
    "target.repetition_scale": 2.0,
    "evaluation.tokens_per_domain": 1024,
    "evaluation.points": 2,
    "evaluation.domains": {"more": {"path": "data/more.txt"}},
    "evaluation.questions": {"quiz": {"path": "data/quiz.jsonl"}},
    "train.precision": "bfloat16",
    "train.compile": True,
    # what is asked of the runs
    "sources.code.group": "general",
    "objective.weights": {"web": 2, "maths": 1, "code": 1},
    "objective.guard_domains": ["web", "code"],
    "objective.guard_nats": 0.2,
    "objective.guard_bits_per_byte": 0.1,
    "objective.unit": "bits_per_byte",
    "objective.insist": ["web"],
    "objective.kl_strength": 0.5,
    "objective.prior": {"web": 0.5, "maths": 0.25, "code": 0.25},
    "target.max_decay_tokens": 2048,
    "search_trials": 50,
    # what decides nothing
    "design.keep_earlier": True,
    "backend.workers": 2,
    "backend.slots": 4,
    "backend.keep_checkpoints": True,
    "decontamination.ngram": 15,
    "decontamination.on_overlap": "allow",
}  # fmt: skip
"""Fields of study.yaml by their dotted paths, and another value of each."""

IS_WHOLE = "DECAYLAWS_TEST_MATRIX" in os.environ
"""Whether every setting is changed after every verb; else after the last one, when everything there is can be stale."""
AT_EVERY_STAGE = ("sources.code.max_bytes", "trunk.peak_lr", "objective.weights")


def changed(field: str) -> dict[str, Any]:
    """The settings with another value of one field."""
    settings = copy.deepcopy(SETTINGS)
    *parents, last = field.split(".")
    at = settings
    for name in parents:
        at = at.setdefault(name, {})
    at[last] = CHANGES[field]
    return settings


@pytest.fixture(scope="module")
def storages() -> Iterator[Storages]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield simulate(monkeypatch)


@pytest.fixture(scope="module")
def stages(storages: Storages, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A study as every verb left it."""
    root = tmp_path_factory.mktemp("stages")
    study, kept = root / "study", {}
    study.mkdir()
    make_sources(study)
    for verb in VERBS:
        ANSWERS[verb](open_study(study, SETTINGS))
        kept[verb] = root / f"after-{verb}"
        copy_study(study, kept[verb], storages)
    return kept


def copy_study(root: Path, to: Path, storages: Storages) -> None:
    shutil.copytree(root, to)
    storages.copy(root, to)


def fresh_answers(root: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """What each verb answers in a study that never had other settings."""
    root.mkdir()
    make_sources(root)
    return {verb: digest_of(ANSWERS[verb](open_study(root, settings))) for verb in VERBS}


def first_verb(study: Study, verb: str, fresh: str) -> str:
    """The verb that a verb says must be called first; empty where it answers, as a fresh study does."""
    try:
        answer = ANSWERS[verb](study)
    except DecaylawsError as error:
        return re.findall(r"'decaylaws (\w+)|$", str(error))[0] or f"not said in: {error}"
    assert digest_of(answer) == fresh, f"{verb} answers an older question"
    return ""


@pytest.mark.parametrize("field", CHANGES)
def test_no_verb_answers_an_older_question(
    field: str, storages: Storages, stages: Mapping[str, Path], tmp_path: Path
) -> None:
    settings = changed(field)
    fresh = fresh_answers(tmp_path / "fresh", settings)
    for stage in VERBS if field in AT_EVERY_STAGE or IS_WHOLE else VERBS[-1:]:
        root = tmp_path / stage
        copy_study(stages[stage], root, storages)
        study = open_study(root, settings)
        # later verbs first: none may lean on an earlier one that has not been called again
        for verb in reversed(VERBS):
            assert first_verb(study, verb, fresh[verb]) in ("", *VERBS[: VERBS.index(verb)])
        for verb in VERBS:
            assert first_verb(study, verb, fresh[verb]) == ""
