"""Every kind of file that a study reads, damaged: one sentence with its name, never another result or a traceback.

The ordinary run takes a few damages of each kind; ``pytest -m manual`` takes 100 flips and 1,000 mutations of each.
"""

from __future__ import annotations

import random
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from decaylaws.errors import DecaylawsError
from decaylaws.io.files import record_of, write_text
from decaylaws.io.json import to_json
from decaylaws.study import Study
from decaylaws.study.checks import check_prepared
from decaylaws.study.export import read_exported
from decaylaws.study.files import read_json
from decaylaws.study.fit import load_fit
from decaylaws.study.fit_inputs import read_fit_inputs
from decaylaws.study.objective import objective
from decaylaws.study.overlap import check_overlap, heldout_overlap
from decaylaws.study.plan import detectable_effect, plan_runs
from decaylaws.study.problem import decay_target, guard_margins
from decaylaws.study.recommend import load_recipe, load_recommendation
from decaylaws.study.stored import StoredCalibration, StoredResult
from decaylaws.study.verdict import read_outcome
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine.run import MemberState  # noqa: F401  (the engine comes first: its modules know each other)
from proxy_runs.weights.checkpoints import load_checkpoint
from tests.study.damage import MUTATORS, flips

pytestmark = pytest.mark.slow

Read = Callable[[Study], object]


def _fit(study: Study) -> None:
    inputs = read_fit_inputs(study)
    guard_margins(load_fit(study)[0], objective(study.settings, inputs.usable).guard_limits)


def _confirmation(study: Study) -> None:
    read_outcome(study).predictions.runs()


def _runs(study: Study) -> None:
    inputs = read_fit_inputs(study)
    detectable_effect(study.settings, inputs.sweep.runs)


def _prepared(study: Study) -> None:
    check_prepared(study)
    study.heldout_tokens()
    check_overlap(study)
    heldout_overlap(study)
    study.source_counts()
    TokenStore.open(study.corpus_dir, verify=False)


def _settings(study: Study) -> None:
    study.planner().sweep()
    decay_target(study.planner(), study.runs())


READERS: dict[str, Read] = {
    "plan.json": plan_runs,
    "runs.csv": _runs,
    "curves.csv": Study.curves,
    "laws/decay.json": _fit,
    "laws/fit.json": _fit,
    "laws/recommendation.json": load_recommendation,
    "confirm.json": _confirmation,
    "arithmetic.json": Study.arithmetic,
    "calibration.json": lambda study: read_json(study.calibration_file, StoredCalibration),
    "exports/exported.json": lambda study: read_exported(study.export_dir),
    "launch/result.json": lambda study: read_json(study.launch_dir / "result.json", StoredResult),
    "corpus/manifest.json": _prepared,
    "corpus/data-*/heldout_overlap.json": _prepared,
    "corpus/data-*/settings.json": _prepared,
    "study.yaml": _settings,
    "recipe.yaml": load_recipe,
}
"""By file, what verbs make of it."""
EDITED = ("study.yaml", "recipe.yaml")
"""Files that people edit: a change is said, and used."""
BINARY: dict[str, Read] = {
    "corpus/data-*/web.train.bin": lambda study: TokenStore.open(study.corpus_dir),
    "corpus/data-*/web.heldout.bin": lambda study: TokenStore.open(study.corpus_dir),
    "corpus/data-*/token_bytes.bin": lambda study: TokenStore.open(study.corpus_dir),
    "corpus/data-*/tokenizer.json": lambda study: TokenStore.open(study.corpus_dir),
    "checkpoints/*.safetensors": lambda study: load_checkpoint(
        min(study.checkpoint_dir.glob("*.safetensors"))
    ),
}


@pytest.fixture(scope="module")
def root(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("damaged") / "study"
    shutil.copytree(study.root, copy, ignore=shutil.ignore_patterns("logs", "*.sqlite3"))
    losses = dict.fromkeys(study.settings.sources, 2.5)
    result = {"recipe_sha256": load_recipe(study).sha256, "losses": losses, "steps": 16, "tokens": 4096}
    write_text(
        Study.open(copy).launch_dir / "result.json", to_json(result), recorded=True
    )  # as the trainer does
    return copy


@pytest.fixture
def file(root: Path, name: str) -> Iterator[Path]:
    """The file that a test damages, put back as it was."""
    path = min(root.glob(name))
    kept = {each: each.read_bytes() for each in (path, record_of(path)) if each.is_file()}
    yield path
    for each, content in kept.items():
        each.write_bytes(content)


@pytest.mark.parametrize("name", [*READERS, *BINARY])
@pytest.mark.parametrize("count", [2, pytest.param(100, marks=pytest.mark.manual)])
def test_a_flipped_bit_is_one_sentence_with_the_files_name(
    root: Path, file: Path, name: str, count: int
) -> None:
    read, whole = {**READERS, **BINARY}[name], file.read_bytes()
    read(Study.open(root))
    for damaged in flips(whole, count, random.Random(name)):
        file.write_bytes(damaged)
        if name in EDITED:
            assert _is_said(root, file)
        else:
            with pytest.raises(DecaylawsError, match=file.name):
                read(Study.open(root))


def _is_said(root: Path, file: Path) -> bool:
    try:
        return any(str(file) in sentence for sentence in Study.open(root).edited())
    except DecaylawsError:
        return True


def _complaint(read: Read, root: Path) -> str:
    try:
        read(Study.open(root))
    except DecaylawsError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("count", [4, pytest.param(1000, marks=pytest.mark.manual)])
def test_any_other_structure_is_read_or_refused_in_one_sentence(
    root: Path, file: Path, name: str, count: int
) -> None:
    rng, text = random.Random(name), file.read_bytes().decode()
    most = resource.getrusage(
        resource.RUSAGE_SELF
    ).ru_maxrss  # of this process so far, with what other tests loaded
    record_of(file).unlink(missing_ok=True)  # a study of an older version, or a user who accepts the change
    for _ in range(count):
        file.write_bytes(MUTATORS[file.suffix](text, rng))
        started = time.process_time()
        said = _complaint(READERS[name], root)
        assert "\n" not in said
        assert len(said) < 2000
        assert time.process_time() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < most + 2**18  # KiB
