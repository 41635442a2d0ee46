"""What a run starts from: weights and, if the recipe says so, the optimiser's moments.

No rank has to hold all of them: the model is sharded before it has any weights, and each rank reads its own parts.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from decaylaws.errors import DataError
from decaylaws.recipe.checkpoints import tensor_shapes
from decaylaws.recipe.families import why_not_trainable
from proxy_runs.fsdp.checkpoint import read_checkpoint
from proxy_runs.fsdp.shards import fill
from proxy_runs.weights.causal_lm import Shard, empty_causal_lm, load_causal_lm, load_config
from proxy_runs.weights.checkpoint_files import STATE_FILE
from proxy_runs.weights.checkpoints import open_checkpoint
from proxy_runs.weights.hf import hf_weights, llama_config
from proxy_runs.weights.moments import MOMENTS, MOMENTUM, stored_moments
from proxy_runs.weights.stored import StoredTensor


@dataclass(frozen=True)
class Start:
    """A model and the state of its optimiser.

    Attributes:
        model: float32 weights; its dropout is off.
        moments: by ``exp_avg.<parameter>`` and ``exp_avg_sq.<parameter>``, under Hugging Face's names: in a file, or in
            memory and sharded as the parameter is; ``None`` for a fresh optimiser.
        optimizer_step: steps that the moments have seen: what the bias correction counts.
        folder: Hugging Face folder whose tokenizer and settings of generation belong to the model, if it has one.
        dtype: number format of the stored weights, which those of the result get too.
        dropout: rates of the config that are off while training, by name.
    """

    model: PreTrainedModel
    moments: Mapping[str, Tensor | StoredTensor] | None
    optimizer_step: int
    folder: Path | None = None
    dtype: torch.dtype = torch.float32
    dropout: Mapping[str, float] = field(default_factory=dict)


def load_start(
    path: Path, *, with_optimizer: bool, eos_token_id: int | None = None, shard: Shard | None = None
) -> Start:
    """Read the checkpoint that a recipe starts from. Nothing in it is executed.

    Args:
        path: a member checkpoint (``.safetensors``), a checkpoint of a launched run (``checkpoints/step-...``), or a
            Hugging Face folder, with moments where :mod:`decaylaws.recipe.checkpoints.moments` looks for them.
        with_optimizer: take the moments as well.
        eos_token_id: id of the token that ends a document, for a member checkpoint, which does not know its text.
        shard: shards the model, which then has no weights yet; without it the model is whole and on the CPU.

    Raises:
        DataError: the checkpoint is missing, damaged, of a model that cannot be trained here, or lacks the moments that
            the recipe asks for.
    """
    if path.is_file():
        start = _from_member(path, eos_token_id, shard, with_optimizer)
    elif (path / STATE_FILE).is_file():
        start = _from_launched(path, shard, with_optimizer)
    else:
        start = _from_folder(path, shard, with_optimizer)
    if not with_optimizer:
        return replace(start, moments=None, optimizer_step=0)
    return start


def _from_member(path: Path, eos_token_id: int | None, shard: Shard | None, with_optimizer: bool) -> Start:
    stored = open_checkpoint(path)
    model = _empty(llama_config(stored.shape, eos_token_id=eos_token_id), shard)
    kinds: dict[str, dict[str, Tensor]] = {"param": dict(model.named_parameters())}
    if with_optimizer:
        weights = kinds["param"].items()
        kinds |= {kind: {name: torch.zeros_like(t.detach()) for name, t in weights} for kind in MOMENTS}
    for kind, tensors in kinds.items():
        for name, whole in hf_weights(stored.of_kind(kind), stored.shape):
            fill(tensors[name], whole)
    moments = {f"{kind}.{name}": t for kind in MOMENTS for name, t in kinds.get(kind, {}).items()}
    return Start(model, moments or None, stored.step)


def _from_folder(path: Path, shard: Shard | None, with_optimizer: bool) -> Start:
    if not (path / "config.json").is_file():
        raise DataError(
            f"{path} is neither a member checkpoint nor a Hugging Face folder with a config.json."
        )
    config = load_config(path)
    reason = why_not_trainable(config.to_dict())
    if reason is not None:
        raise DataError(f"The checkpoint in {path} cannot be trained here: {reason}")
    dtype = _stored_dtype(config)
    dropout = _turn_dropout_off(config)
    model = load_causal_lm(path, config=config, shard=shard)
    step, moments = stored_moments(path, model) if with_optimizer else (0, None)
    return Start(model, moments, step, folder=path, dtype=dtype, dropout=dropout)


def _from_launched(path: Path, shard: Shard | None, with_optimizer: bool) -> Start:
    config = load_config(path)
    dtype, dropout = _stored_dtype(config), _turn_dropout_off(config)
    model = _empty(config, shard)
    parameters, own = dict(model.named_parameters()), model.state_dict()
    tensors = {f"param.{name}": parameter.data for name, parameter in parameters.items()}
    tensors |= {f"buffer.{name}": own[name] for name, _ in model.named_buffers() if name in own}
    stored = tensor_shapes(path) if with_optimizer else {}
    moments = {
        f"{kind}.{name}": torch.zeros_like(parameter.data)
        for kind in (*MOMENTS, MOMENTUM)
        for name, parameter in parameters.items()
        if f"{kind}.{name}" in stored
    }
    state = read_checkpoint(path, tensors | moments)
    return Start(model, moments, int(state["optimizer_step"]), dtype=dtype, dropout=dropout)


def _empty(config: Any, shard: Shard | None) -> PreTrainedModel:
    if shard is None:
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return empty_causal_lm(config, shard=shard)


def _stored_dtype(config: Any) -> torch.dtype:
    dtype = getattr(config, "dtype", None)
    dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    return dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else torch.float32


def stored_config(start: Start) -> Any:
    """The config of the result: that of the model, with the number format and the dropout of the start."""
    config = copy.deepcopy(start.model.config)
    for name, rate in start.dropout.items():
        setattr(config, name, rate)
    config.dtype = str(start.dtype).removeprefix("torch.")
    return config


def _turn_dropout_off(config: Any) -> dict[str, float]:
    """Train without dropout, whose draws would differ between ranks and after a resumption; returns its rates."""
    rates = {
        name: float(value)
        for name, value in vars(config).items()
        if ("drop" in name or "jitter" in name) and isinstance(value, int | float) and value > 0
    }
    for name in rates:
        setattr(config, name, 0.0)
    return rates
