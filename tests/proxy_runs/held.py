"""Tiny Hugging Face folders of several families, written by transformers' own classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    Olmo2Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from decaylaws.mixtures import Mixture
from decaylaws.runs.config import RunConfig
from decaylaws.runs.folders import folder_fingerprint, folder_shape
from decaylaws.runs.start import CheckpointStart
from decaylaws.schedules import decay
from proxy_runs.data.shards import TokenStore

MAX_POSITIONS = 64


def config_of(family: str, vocab_size: int, **changes: Any) -> PreTrainedConfig:
    """A model of a few thousand parameters."""
    values: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_POSITIONS,
        "bos_token_id": None,
        "eos_token_id": vocab_size - 1,
        "pad_token_id": None,
    }
    if family == "gpt_neox":
        del values["num_key_value_heads"]
    if family in ("qwen3", "qwen3_moe"):
        values["head_dim"] = 8
    if family == "qwen3_moe":
        values |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    if family == "mixtral":
        values |= {"num_local_experts": 4, "num_experts_per_tok": 2}
    classes = {
        "llama": LlamaConfig,
        "qwen2": Qwen2Config,
        "qwen3": Qwen3Config,
        "olmo2": Olmo2Config,
        "gpt_neox": GPTNeoXConfig,
        "qwen3_moe": Qwen3MoeConfig,
        "mixtral": MixtralConfig,
    }
    return classes[family](**(values | changes))


def held_folder(folder: Path, family: str, vocab_size: int, *, moments: bool = False, **changes: Any) -> Path:
    """Save a model of random weights, and moments as a trainer leaves them where asked for; returns the folder.

    Args:
        folder: to write.
        family: ``model_type``.
        vocab_size: of the tokenizer.
        moments: save ``optimizer.safetensors``, 100 steps old.
        changes: of the config.
    """
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(family, vocab_size, **changes)).float()
    model.save_pretrained(folder)
    if moments:
        state = {"step": torch.tensor(100.0)}
        for name, parameter in model.named_parameters():
            state[f"exp_avg.{name}"] = 1e-4 * torch.randn(parameter.shape, generator=generator)
            state[f"exp_avg_sq.{name}"] = 1e-6 * torch.rand(parameter.shape, generator=generator)
        save_file(state, folder / "optimizer.safetensors")
    return folder


def moved(folder: Path, to: Path, factor: float) -> Path:
    """The model of a folder whose weights are ``factor`` times one draw of noise further."""
    shutil.copytree(folder, to)
    weights = load_file(to / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    noise = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in weights.items()}
    further = {name: tensor + factor * noise[name] for name, tensor in weights.items()}
    save_file(further, to / "model.safetensors", {"format": "pt"})
    return to


def held_run(
    folder: Path,
    store: TokenStore,
    *,
    seq_len: int = 32,
    batch_tokens: int = 128,
    lr: float = 3e-3,
    optimizer_state: str = "fresh",
) -> RunConfig:
    """The run that measures a folder, which has seen 100,000 tokens."""
    start = CheckpointStart(
        fingerprint=folder_fingerprint(folder, optimizer_state=optimizer_state),
        family=json.loads((folder / "config.json").read_text())["model_type"],
        tokens=100_000,
        lr=lr,
        optimizer_state=optimizer_state,
    )
    return RunConfig.held(
        start,
        folder_shape(folder, seq_len=seq_len),
        mixture=Mixture({"general": 1.0}),
        batch_tokens=batch_tokens,
        data_fingerprint=store.fingerprint,
    )


def held_fork(checkpoint: RunConfig, *, maths: float, steps: int, seed: int = 1, **changes: Any) -> RunConfig:
    """A linear decay from a checkpoint, with that share of maths."""
    assert checkpoint.start is not None
    return checkpoint.with_changes(
        **{
            "kind": "decay",
            "schedule": decay(checkpoint.batch_tokens * steps, checkpoint.start.lr),
            "mixture": Mixture({"general": 1 - maths, "maths": maths}),
            "seed": seed,
            "start_run_id": checkpoint.run_id,
            "start_tokens": checkpoint.tokens,
            **changes,
        }
    )
