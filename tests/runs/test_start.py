"""Checkpoints that exist as starts: which model a folder holds, what makes it another one, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from decaylaws.errors import DataError, DecaylawsError, InvalidValueError
from decaylaws.mixtures import Mixture
from decaylaws.runs.config import ModelShape, RunConfig
from decaylaws.runs.folders import folder_fingerprint, folder_shape
from decaylaws.runs.start import CheckpointShape, CheckpointStart
from decaylaws.runs.table import config_row
from decaylaws.schedules import decay
from proxy_runs.weights.hf import load_hf
from tests.proxy_runs.held import held_folder

START = CheckpointStart(fingerprint="f", family="qwen3", tokens=10_000, lr=1e-3)
SHAPE = CheckpointShape(
    family="qwen3",
    d_model=32,
    num_layers=2,
    vocab_size=300,
    seq_len=32,
    non_embedding_params=24_800,
    total_params=44_000,
)


def held(start: CheckpointStart = START) -> RunConfig:
    mixture = Mixture({"web": 1.0})
    return RunConfig.held(start, SHAPE, mixture=mixture, batch_tokens=64, data_fingerprint="d")


def fork(checkpoint: RunConfig) -> RunConfig:
    return checkpoint.with_changes(
        kind="decay",
        schedule=decay(640, 1e-3),
        start_run_id=checkpoint.run_id,
        start_tokens=checkpoint.tokens,
    )


@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2", "gpt_neox", "qwen3_moe", "mixtral"])
def test_the_size_of_a_folder_is_that_of_its_model(tmp_path: Path, family: str) -> None:
    folder = held_folder(tmp_path, family, 257)
    shape = folder_shape(folder, seq_len=16)
    parameters = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    counts = {name: parameter.numel() for name, parameter in parameters.items()}
    beside = sum(count for name, count in counts.items() if "embed" not in name and "lm_head" not in name)
    experts = sum(count for name, count in counts.items() if ".experts." in name)
    assert shape.non_embedding_params == beside - experts // 2  # two experts of four
    assert shape.total_params == sum(counts.values())
    assert isinstance(shape, ModelShape) == (family == "llama")


def test_the_shape_of_a_llama_is_what_the_stacked_trainer_loads(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 5e4}
    folder = held_folder(tmp_path, "llama", 257, tie_word_embeddings=True, rope_parameters=rope)
    loaded, _ = load_hf(folder)
    assert folder_shape(folder, seq_len=loaded.seq_len) == loaded


def test_what_the_stacked_trainer_does_not_compute_is_held_as_another_shape(tmp_path: Path) -> None:
    folder = held_folder(tmp_path, "llama", 257, attention_bias=True)
    assert isinstance(folder_shape(folder, seq_len=16), CheckpointShape)


def test_weights_and_loaded_moments_make_the_start(tmp_path: Path) -> None:
    folder = held_folder(tmp_path, "llama", 257, moments=True)
    fresh, loaded = (folder_fingerprint(folder, optimizer_state=state) for state in ("fresh", "load"))
    moments = folder / "optimizer.safetensors"
    moments.write_bytes(moments.read_bytes() + b" ")
    assert folder_fingerprint(folder, optimizer_state="fresh") == fresh
    assert folder_fingerprint(folder, optimizer_state="load") != loaded
    held_folder(folder, "llama", 257, hidden_size=16)
    assert folder_fingerprint(folder, optimizer_state="fresh") != fresh


def test_a_decay_from_a_checkpoint_survives_json_and_is_another_run_than_from_another_one() -> None:
    run = fork(held())
    assert RunConfig.from_dict(json.loads(json.dumps(run.to_dict()))) == run
    other = fork(held(CheckpointStart(fingerprint="g", family="qwen3", tokens=10_000, lr=1e-3)))
    loaded = fork(
        held(CheckpointStart(fingerprint="f", family="qwen3", tokens=10_000, lr=1e-3, optimizer_state="load"))
    )
    assert len({run.run_id, other.run_id, loaded.run_id}) == 3


def test_a_checkpoint_stands_in_the_table_as_a_trunk_that_cost_nothing() -> None:
    row = config_row(held())
    assert (row["kind"], row["decay_tokens"], row["start_lr"], row["end_lr"]) == (
        "checkpoint",
        10_000,
        1e-3,
        1e-3,
    )
    assert (row["train_flops"], row["non_embedding_params"], row["start_run_id"]) == (0, 24_800, None)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"start": None}, "run.start"),
        ({"kind": "trunk"}, "run.start"),
        ({"kind": "decay", "start_run_id": "x", "start_tokens": 5}, "run.start_tokens"),
        ({"kind": "decay", "start_run_id": "x", "start": None}, "run.shape"),
    ],
)
def test_a_config_that_contradicts_its_start_is_refused(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidValueError, match=field):
        held().with_changes(**change)


def test_a_folder_that_cannot_be_a_start_is_refused_in_one_sentence(tmp_path: Path) -> None:
    def refused(change: dict[str, object], pattern: str, *, seq_len: int = 16) -> None:
        folder = held_folder(tmp_path / pattern[:4], "llama", 257)
        config = json.loads((folder / "config.json").read_text()) | change
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(DecaylawsError, match=pattern):
            folder_shape(folder, seq_len=seq_len)

    refused({"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}, "code of its own")
    refused({"vision_config": {}}, "vision tower")
    refused({}, "max_position_embeddings", seq_len=128)
    empty = held_folder(tmp_path / "empty", "llama", 257)
    (empty / "model.safetensors").unlink()
    with pytest.raises(DataError, match="no weights"):
        folder_shape(empty, seq_len=16)
    with pytest.raises(DataError, match=r"no config\.json"):
        folder_shape(tmp_path, seq_len=16)
