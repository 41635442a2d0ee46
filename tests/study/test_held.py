"""Checkpoints in study.yaml: what is refused before anything is trained, and what decides the identity of runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from decaylaws import study as verbs
from decaylaws.errors import DataError, InvalidValueError
from decaylaws.settings.study import parse_settings
from decaylaws.study import Study
from decaylaws.study.plan import plan_runs
from tests.proxy_runs.held import held_folder
from tests.study.held import VOCAB_SIZE, make_held_study

MODEL = {"family": "llama", "tokens": 1_000_000, "lr": 1e-2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study on one Llama with moments, prepared once."""
    root = tmp_path_factory.mktemp("held")
    make_held_study(root, {"one": MODEL}, target="one", moments=True)
    verbs.prepare(Study.open(root))
    return root


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(prepared, tmp_path / "study"))


def edit(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change study.yaml."""
    settings = yaml.safe_load((root / "study.yaml").read_text(encoding="utf-8"))
    change(settings)
    (root / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def write_trainer_state(folder: Path, lr: float, **state: object) -> None:
    """As the Trainer leaves it at step 100."""
    log = [{"learning_rate": lr, "step": 100, "loss": 3.0}]
    content = {"global_step": 100, "log_history": log, **state}
    (folder / "trainer_state.json").write_text(json.dumps(content), encoding="utf-8")


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def with_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def with_moments_of_others(folder: Path) -> None:
    state = load_file(folder / "optimizer.safetensors")
    name = next(name for name, tensor in state.items() if tensor.dim() == 2)
    save_file({**state, name: torch.zeros(3, 3)}, folder / "optimizer.safetensors")


def without_moments(folder: Path) -> None:
    (folder / "optimizer.safetensors").unlink()


def ended_at_another_lr(folder: Path) -> None:
    write_trainer_state(folder, 9.9e-3)


def with_other_tokens(folder: Path) -> None:
    write_trainer_state(folder, 1e-2, num_input_tokens_seen=1_100_000)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "There is no config.json in .*models/one"),
        (without_weights, "There are no weights in .*models/one"),
        (with_code, "needs code of its own"),
        (without_moments, "has no optimizer.safetensors"),
        (with_moments_of_others, "belongs to another model"),
        (ended_at_another_lr, r"'checkpoints\.models\.one\.lr' must be the LR .* trainer state, 0\.0099"),
        (with_other_tokens, r"'checkpoints\.models\.one\.tokens' must be the 1,100,000 tokens"),
    ],
)
def test_a_checkpoint_that_cannot_be_the_start_is_refused_before_text_is_read(
    root: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(root / "models" / "one")
    (root / "checkpoints.json").unlink()
    shutil.rmtree(root / "data")  # reading it would fail in other words
    with pytest.raises((DataError, InvalidValueError), match=message):
        verbs.prepare(Study.open(root))


def test_a_tokenizer_of_other_ids_is_refused_by_plan(root: Path) -> None:
    path = root / "models" / "one" / "tokenizer.json"
    shutil.copy(path, root / "own.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    words = content["model"]["vocab"]
    first, second = list(words)[-2:]
    words[first], words[second] = words[second], words[first]
    path.write_text(json.dumps(content), encoding="utf-8")
    edit(root, lambda settings: settings.update(tokenizer={"path": "own.json"}))
    verbs.prepare(Study.open(root))
    with pytest.raises(DataError, match=r"tokenizer in .*models/one .* gives tokens other ids"):
        plan_runs(Study.open(root))


def test_a_vocabulary_smaller_than_the_corpus_is_refused_by_plan(root: Path) -> None:
    folder = root / "models" / "one"
    (folder / "tokenizer.json").rename(root / "own.json")
    held_folder(folder, "llama", VOCAB_SIZE - 20, moments=True)
    edit(root, lambda settings: settings.update(tokenizer={"path": "own.json"}))
    verbs.prepare(Study.open(root))
    with pytest.raises(DataError, match=f"ids up to {VOCAB_SIZE - 1}, .* has {VOCAB_SIZE - 20} rows"):
        plan_runs(Study.open(root))
    assert not (root / "plan.json").exists()


def test_the_lr_is_read_from_the_trainers_state_or_asked_for(root: Path) -> None:
    edit(root, lambda settings: settings["checkpoints"]["models"]["one"].pop("lr"))
    with pytest.raises(InvalidValueError, match=r"checkpoints\.models\.one\.lr' is required"):
        Study.open(root).held()
    write_trainer_state(root / "models" / "one", 7e-3)
    found = Study.open(root).held()["one"]
    assert (found.start.lr, found.lr_source) == (7e-3, "trainer state of models/one")
    write_trainer_state(root / "models" / "one", 0.0)
    with pytest.raises(InvalidValueError, match="must be a checkpoint before its decay"):
        Study.open(root).held()


def test_the_content_of_a_folder_decides_the_plan_and_its_place_does_not(root: Path) -> None:
    planned, _ = plan_runs(Study.open(root))
    (root / "models" / "one").rename(root / "elsewhere")
    edit(root, lambda settings: settings["checkpoints"]["models"]["one"].update(path="elsewhere"))
    edit(root, lambda settings: settings.update(tokenizer={"path": "models/one/tokenizer.json"}))
    moved = Study.open(root)
    assert [run.config.run_id for run in moved.planner().sweep()] == [run.config.run_id for run in planned]
    weights = root / "elsewhere" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor + 1e-3 for name, tensor in tensors.items()}, weights, {"format": "pt"})
    changed = {run.config.run_id for run in Study.open(root).planner().sweep()}
    assert not changed & {run.config.run_id for run in planned}


def test_results_can_be_read_when_the_folder_is_gone(root: Path) -> None:
    planned, _ = plan_runs(Study.open(root))
    shutil.rmtree(root / "models")
    assert Study.open(root).planner().sweep() == planned


def test_moments_that_are_loaded_are_part_of_the_identity(root: Path) -> None:
    loaded = Study.open(root).planner().start("one").config
    edit(root, lambda settings: settings["checkpoints"].update(optimizer_state="fresh"))
    fresh = Study.open(root).planner().start("one").config
    assert loaded.start is not None
    assert fresh.start is not None
    assert (loaded.start.optimizer_state, fresh.start.optimizer_state) == ("load", "fresh")
    assert loaded.start.fingerprint != fresh.start.fingerprint


SHAPES = {"a": {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32}}
TRUNK = {"tokens": 4096, "warmup_tokens": 256, "peak_lr": 1e-2, "mixture": {"web": 1.0}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": {"vocab_size": 400}}, r"tokenizer\.vocab_size' cannot be chosen beside checkpoints"),
        ({"shapes": SHAPES}, r"'trunk' is required to train the shapes"),
        ({"checkpoints": None, "shapes": SHAPES}, r"'trunk' is required"),
        (
            {"shapes": {"one": SHAPES["a"]}, "trunk": TRUNK},
            r"checkpoints\.models\.one' is also the name of a shape",
        ),
        ({"shapes": SHAPES, "trunk": {**TRUNK, "mixture": {"code": 1.0}}}, r"must be trunk\.mixture"),
        ({"proxy": "two"}, r"'proxy' must be one of the shapes and checkpoints one"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    prepared: Path, change: dict[str, Any], message: str
) -> None:
    settings = yaml.safe_load((prepared / "study.yaml").read_text(encoding="utf-8"))
    with pytest.raises(InvalidValueError, match=message):
        parse_settings({**settings, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup_tokens": 1024}, r"warmup_tokens' must be below the shortest"),
        ({"mixture": {"web": 0.9}}, r"checkpoints\.mixture' must sum to one"),
        ({"mixture": {"law": 1.0}}, r"checkpoints\.mixture' names an unknown source"),
        ({"models": {}}, r"checkpoints\.models"),
    ],
)
def test_wrong_checkpoints_are_refused(prepared: Path, change: dict[str, Any], message: str) -> None:
    settings = yaml.safe_load((prepared / "study.yaml").read_text(encoding="utf-8"))
    with pytest.raises(InvalidValueError, match=message):
        parse_settings({**settings, "checkpoints": {**settings["checkpoints"], **change}})


def test_a_checkpoint_may_stand_beside_trunks(prepared: Path) -> None:
    settings = yaml.safe_load((prepared / "study.yaml").read_text(encoding="utf-8"))
    both = parse_settings({**settings, "shapes": SHAPES, "trunk": TRUNK})
    assert both.starts == ("a", "one")
    study = Study(prepared, both)
    roles = {run.role for run in study.planner().sweep()}
    assert {"trunk", "checkpoint", "size"} <= roles


def test_several_moments_of_one_run_are_anchors_of_their_own(root: Path) -> None:
    held_folder(root / "models" / "early", "llama", VOCAB_SIZE, moments=True, initializer_range=0.05)
    early = {"path": "models/early", "tokens": 400_000, "lr": 1e-2}
    edit(root, lambda settings: settings["checkpoints"]["models"].update(early=early))
    study = Study.open(root)
    starts = {run.config.run_id: run.config for run in study.planner().sweep() if run.role == "checkpoint"}
    forks = [run for run in study.planner().sweep() if run.config.kind == "decay"]
    assert {starts[str(run.config.start_run_id)].tokens for run in forks} == {400_000, 1_000_000}
    for run in forks:
        assert run.config.start_tokens == starts[str(run.config.start_run_id)].tokens
    anchored = {run.role for run in forks if run.config.start_tokens == 400_000}
    assert anchored == {"control", "size"}


def with_earlier(root: Path, **changes: Any) -> None:
    """Write an earlier checkpoint of the same model, and name it in study.yaml."""
    held_folder(root / "models" / "before", "llama", VOCAB_SIZE, initializer_range=0.05, **changes)
    earlier = [{"path": "models/before", "tokens": 900_000}]
    edit(root, lambda settings: settings["checkpoints"]["models"]["one"].update(earlier=earlier))


def test_earlier_checkpoints_add_one_measurement_and_change_no_other_run(root: Path) -> None:
    before = [run.config.run_id for run in Study.open(root).planner().sweep()]
    with_earlier(root)
    study = Study.open(root)
    sweep = {run.config.run_id: run for run in study.planner().sweep()}
    (added,) = (run for run_id, run in sweep.items() if run_id not in before)
    assert set(before) < set(sweep)
    assert (added.role, added.config.kind, added.config.is_trained) == ("average", "average", False)
    assert added.config.start_run_id == study.planner().start("one").config.run_id
    start = added.config.start
    assert start is not None
    assert start.averaged_tokens == 100_000
    places = study.held_folders()
    found = [places[fingerprint].name for fingerprint in (*start.averaged, start.fingerprint)]
    assert found == ["before", "one"]
    shutil.rmtree(root / "models")  # what was read is kept
    assert {run.config.run_id for run in Study.open(root).planner().sweep()} == set(sweep)


def test_an_earlier_checkpoint_must_be_of_the_same_model_and_stand_before_it(root: Path) -> None:
    with_earlier(root, hidden_size=16)
    with pytest.raises(InvalidValueError, match=r"earlier\.0\.path' must be the model of models/one"):
        Study.open(root).held()
    edit(
        root, lambda settings: settings["checkpoints"]["models"]["one"]["earlier"][0].update(tokens=1_000_000)
    )
    with pytest.raises(InvalidValueError, match="must ascend in tokens and end before"):
        Study.open(root)
