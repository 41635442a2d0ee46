"""What a Hugging Face folder holds, as a start of runs: its model's size and its content, without loading torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.io.digest import content_digest
from decaylaws.recipe.checkpoints import read_facts, safetensors_shapes, tensor_shapes
from decaylaws.recipe.checkpoints.facts import embedding_rows, is_beside_embeddings, non_embedding_params
from decaylaws.recipe.families import active_experts, num_experts, why_not_trainable
from decaylaws.runs.config import ModelShape
from decaylaws.runs.start import OPTIMIZER_FILE, CheckpointShape

WEIGHTS = ("config.json", "model*.safetensors", "model.safetensors.index.json")
_LLAMA_ONLY = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0}
"""What ``LlamaForCausalLM`` can do otherwise, and the stacked trainer cannot."""


def folder_fingerprint(folder: Path, *, optimizer_state: str) -> str:
    """First 16 hex digits of the SHA-256 over config and weights, and over the moments where they are loaded.

    Args:
        folder: a Hugging Face folder.
        optimizer_state: ``load`` or ``fresh``.

    Raises:
        DataError: there is no such folder.
    """
    moments = (OPTIMIZER_FILE,) if optimizer_state == "load" else ()
    return content_digest(folder, WEIGHTS + moments)[:16]


def require_moments(folder: Path) -> None:
    """Refuse a folder whose ``optimizer.safetensors`` is missing or is not about the folder's own weights.

    Raises:
        DataError: as said; only headers are read.
    """
    file = folder / OPTIMIZER_FILE
    if not file.is_file():
        raise DataError(
            f"The optimiser's state is to be loaded, but {folder} has no {OPTIMIZER_FILE}. Put it beside the weights, "
            "or start the optimiser afresh (optimizer_state: fresh)."
        )
    found = safetensors_shapes(file)
    if "step" not in found:
        raise DataError(f"{file} does not say its step. Save it again, with a tensor 'step'.")
    weights, matched = tensor_shapes(folder, pattern="model*.safetensors"), 0
    for name, shape in found.items():
        kind, _, parameter = name.partition(".")
        if kind in ("exp_avg", "exp_avg_sq", "momentum_buffer") and parameter in weights:
            matched += 1
            if shape != weights[parameter]:
                raise DataError(
                    f"{file} belongs to another model: {name} has the shape {shape}, the weight {weights[parameter]}. "
                    "Give the state that was saved with these weights, or start the optimiser afresh."
                )
    if not matched:
        raise DataError(
            f"{file} has no moments of the weights beside it. Name its tensors exp_avg.<weight> and "
            "exp_avg_sq.<weight>, or start the optimiser afresh."
        )


def folder_shape(folder: Path, *, seq_len: int) -> ModelShape | CheckpointShape:
    """The model in a Hugging Face folder: a ``ModelShape`` if the stacked trainer computes it, else its size.

    Args:
        folder: with ``config.json`` and the weights as safetensors; nothing in it is executed.
        seq_len: tokens of a training sequence.

    Raises:
        DataError: the folder holds no causal LM that can be trained without code of its own, or no weights.
        InvalidValueError: the model is not made for sequences of ``seq_len``.
    """
    config = _text_config(folder)
    longest = config.get("max_position_embeddings")
    if isinstance(longest, int) and seq_len > longest:
        raise InvalidValueError(
            "seq_len", seq_len, f"must be at most {longest}, the max_position_embeddings of {folder}"
        )
    shapes = tensor_shapes(folder, pattern="model*.safetensors")
    if not shapes:
        raise DataError(
            f"There are no weights in {folder} (model.safetensors). Download the whole checkpoint; save one that "
            "holds pytorch_model.bin again with safe_serialization."
        )
    beside = non_embedding_params(shapes)
    vocab_size = embedding_rows(shapes)
    if beside is None or vocab_size is None:
        raise DataError(
            f"The weights in {folder} have no token embedding; it is not a causal language model."
        )
    llama = _as_llama(config, seq_len)
    if llama is not None and llama.non_embedding_params == beside:
        return llama
    return CheckpointShape(
        family=str(config["model_type"]),
        d_model=_count(folder, config, ("hidden_size", "n_embd", "d_model")),
        num_layers=_count(folder, config, ("num_hidden_layers", "n_layer", "num_layers")),
        vocab_size=vocab_size,
        seq_len=seq_len,
        non_embedding_params=beside - _idle_params(shapes, config),
        total_params=sum(math.prod(shape) for shape in shapes.values()),
    )


def _text_config(folder: Path) -> Mapping[str, Any]:
    """The config, which must be that of a model which can be trained as it is.

    Raises:
        DataError: it is not.
    """
    if not (folder / "config.json").is_file():
        raise DataError(
            f"There is no config.json in {folder}. Give the folder of a Hugging Face checkpoint. 'decaylaws to-hf' "
            "makes one of a study's own checkpoint."
        )
    config = read_facts(folder).config or {}
    if config.get("auto_map"):
        raise DataError(
            f"The model in {folder} needs code of its own (auto_map in config.json), and no code of a checkpoint is "
            "run. Use a checkpoint whose model_type is part of transformers."
        )
    if not isinstance(config.get("model_type"), str):
        raise DataError(f"The config.json in {folder} does not say its model_type.")
    reason = why_not_trainable(config)
    if reason is not None:
        raise DataError(f"The checkpoint in {folder} cannot be trained here: {reason}")
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, Mapping) else config


def _count(folder: Path, config: Mapping[str, Any], names: Sequence[str]) -> int:
    for name in names:
        if isinstance(config.get(name), int):
            return int(config[name])
    raise DataError(f"The config.json in {folder} does not say {names[0]}.")


def _as_llama(config: Mapping[str, Any], seq_len: int) -> ModelShape | None:
    """The shape of a Llama that the stacked trainer computes; missing keys have transformers' defaults."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    plain_rope = rope.get("rope_type", rope.get("type", "default")) == "default"
    if config["model_type"] != "llama" or not plain_rope:
        return None
    if any(config.get(name, value) != value for name, value in _LLAMA_ONLY.items()):
        return None
    heads, width = config["num_attention_heads"], config["hidden_size"]
    if (config.get("head_dim") or width // heads) * heads != width:
        return None
    return ModelShape(
        d_model=width,
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        d_ff=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        seq_len=seq_len,
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
    )


def _idle_params(shapes: Mapping[str, Sequence[int]], config: Mapping[str, Any]) -> int:
    """Parameters of the experts that a token is not routed to. Experts that see every token are never idle."""
    experts, active = num_experts(config), active_experts(config)
    if experts < 2 or active is None:
        return 0
    routed = sum(
        math.prod(shape)
        for name, shape in shapes.items()
        if ".experts." in name and is_beside_embeddings(name)
    )
    return routed * (experts - active) // experts
