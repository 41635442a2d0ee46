"""Folders whose weights are not those of their config: one error, in launch and in evaluate."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from decaylaws.errors import DataError
from proxy_runs.evaluation.checkpoint import Checkpoint
from proxy_runs.fsdp.start import load_start
from proxy_runs.weights.causal_lm import load_causal_lm

SMALL: dict[str, Any] = {
    "vocab_size": 257,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    for name, tied in (("plain", False), ("tied", True)):
        config = LlamaConfig(**SMALL, tie_word_embeddings=tied)
        AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
    return root


def broken(
    folders: Path, target: Path, *, base: str, weights: Callable[[Weights], Weights], **config: Any
) -> Path:
    shutil.copytree(folders / base, target)
    file, settings = target / "model.safetensors", target / "config.json"
    save_file(weights(load_file(file)), file, metadata={"format": "pt"})
    settings.write_text(json.dumps(json.loads(settings.read_text()) | config))
    return target


def same(weights: Weights) -> Weights:
    return weights


UP = "model.layers.1.mlp.up_proj.weight"
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "wrapped": (
        {"base": "plain", "weights": lambda w: {f"module.{name}": tensor for name, tensor in w.items()}},
        r"lm_head.weight, model.embed_tokens.weight, model.layers.0.input_layernorm.weight and 18 more are missing, "
        r"and module.lm_head.weight, .* and 18 more are unexpected\. The names begin with 'module\.'",
    ),
    "one weight less": (
        {"base": "plain", "weights": lambda w: {name: tensor for name, tensor in w.items() if name != UP}},
        rf"{UP} is missing\.",
    ),
    "one layer more in the config": (
        {"base": "plain", "weights": same, "num_hidden_layers": 3},
        r"model.layers.2.input_layernorm.weight, .* and 6 more are missing",
    ),
    "one layer less in the config": (
        {"base": "plain", "weights": same, "num_hidden_layers": 1},
        r"model.layers.1.input_layernorm.weight, .* and 6 more are unexpected",
    ),
    "a head that is tied in fact": (
        {"base": "tied", "weights": same, "tie_word_embeddings": False},
        r"lm_head.weight is missing\. If the head is the embedding, set tie_word_embeddings: true",
    ),
    "another width": (
        {"base": "plain", "weights": same, "intermediate_size": 48},
        r"model.layers.0.mlp.down_proj.weight, .* and 3 more are of another shape",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_weights_that_are_not_the_configs_are_named(folders: Path, tmp_path: Path, name: str) -> None:
    changes, message = BROKEN[name]
    folder = broken(folders, tmp_path / "checkpoint", **changes)
    with pytest.raises(DataError, match=message) as in_launch:
        load_start(folder, with_optimizer=False)
    with pytest.raises(DataError) as in_evaluate:
        Checkpoint.load(folder)
    assert str(in_launch.value) == str(in_evaluate.value)
    assert "(llama)" in str(in_launch.value)


def test_whole_folders_load(folders: Path) -> None:
    for name in ("plain", "tied"):
        model = load_causal_lm(folders / name)
        assert model.dtype is torch.float32
        assert model.get_output_embeddings().weight.shape == (257, 16)


def test_damaged_files_are_an_error(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "plain", tmp_path / "short")
    file = tmp_path / "short" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    for load in (load_causal_lm, Checkpoint.load):
        with pytest.raises(DataError, match="cannot be read"):
            load(tmp_path / "short")
    (tmp_path / "short" / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(DataError, match=r"config in .* cannot be used"):
        load_causal_lm(tmp_path / "short")
