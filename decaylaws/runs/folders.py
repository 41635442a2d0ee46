"""What a Hugging Face folder holds, as a start of runs: its model's size and its content, without loading torch."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.io.digest import content_digest
from decaylaws.recipe.checkpoints import read_facts, safetensors_shapes, tensor_shapes
from decaylaws.recipe.checkpoints.facts import (
    BUFFERS,
    embedding_rows,
    idle_params,
    non_embedding_params,
)
from decaylaws.recipe.checkpoints.moments import (
    OPTIMIZER_FILE,
    SAVE_READABLY,
    StoredMoments,
    find_moments,
    foreign_moments_digest,
)
from decaylaws.recipe.checkpoints.parameter_names import huggingface_name, pads_vocabulary, unfused_names
from decaylaws.recipe.families import why_not_trainable
from decaylaws.runs.config import ModelShape
from decaylaws.runs.start import CheckpointShape

WEIGHTS = ("config.json", "model*.safetensors", "model.safetensors.index.json")
LLAMA_ONLY = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0}
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
    digest = content_digest(folder, WEIGHTS + moments)
    foreign = foreign_moments_digest(folder) if optimizer_state == "load" else None
    if foreign is not None:
        digest = hashlib.sha256(f"{digest} {foreign}".encode()).hexdigest()
    return digest[:16]


def require_moments(folder: Path) -> StoredMoments:
    """The moments in a folder, which must be about the folder's own weights; only headers are read.

    Raises:
        DataError: there are none, they cannot be read here, or they belong to another model or another optimiser.
    """
    stored = find_moments(folder)
    if stored.layout == "safetensors" and "step" not in safetensors_shapes(stored.path):
        raise DataError(f"{stored.path} does not say its step. Save it again, with a tensor 'step'.")
    weights = _trained_weights(folder)
    found = [(kind, name, shape) for kind, of in stored.shapes.items() for name, shape in of.items()]
    if not found:
        raise DataError(
            f"{stored.path} has no moments of AdamW (exp_avg, exp_avg_sq) or Muon (momentum_buffer). Give the state of "
            "such an optimiser, or start it afresh (optimizer_state: fresh)."
        )
    # transformers joins the experts of a layer: the parameters have other names and shapes than the stored weights
    routed = any(".experts." in name for name in weights)
    if any(isinstance(name, int) for _, name, _ in found):
        _require_same_shapes(stored, weights, in_sum=routed)
        return stored
    matched = set()
    for kind, number_or_name, shape in found:
        name = str(number_or_name)
        parts = [huggingface_name(part, weights) for part in unfused_names(name)]
        shapes = [weights[part] for part in parts if part in weights]
        if len(shapes) == len(parts):
            matched.update(parts)
            expected = (sum(rows for rows, *_ in shapes), *shapes[0][1:]) if len(parts) > 1 else shapes[0]
            if stored.layout == "megatron" and len(shape) != len(expected):
                raise DataError(
                    f"{stored.path} is a checkpoint of Megatron whose moments are flattened in pieces of ranks, as the "
                    f"older layout fully_sharded_model_space has them: {kind}.{name} has the shape {list(shape)}, the "
                    f"weight {list(expected)}. {SAVE_READABLY}"
                )
            if pads_vocabulary(name) and shape[0] > expected[0]:
                shape = (expected[0], *shape[1:])
            if shape != expected:
                raise DataError(
                    f"{stored.path} belongs to another model: {kind}.{name} has the shape {list(shape)}, the weight "
                    f"{list(expected)}. Give the state that was saved with these weights, or start the optimiser "
                    "afresh."
                )
        elif stored.layout == "megatron" or (stored.layout != "safetensors" and not routed):
            raise DataError(
                f"{stored.path} has moments of '{name}', and {folder} has no weight that this name is known to mean. "
                "Give the state that was saved with these weights, or start the optimiser afresh."
            )
    if not matched:
        raise DataError(
            f"{stored.path} has no moments of the weights beside it. Name its tensors exp_avg.<weight> and "
            "exp_avg_sq.<weight>, or start the optimiser afresh."
        )
    without = sorted(weights.keys() - matched)
    if without and not routed:
        raise DataError(
            f"{stored.path} has no moments of {without[0]} ({len(without)} of {len(weights)} weights have none). Give "
            "the state that was saved with these weights, or start the optimiser afresh."
        )
    return stored


def _trained_weights(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights in a folder that an optimiser has moments of: no buffers, a tied head once."""
    tied = bool((read_facts(folder).config or {}).get("tie_word_embeddings", False))
    return {
        name: tuple(shape)
        for name, shape in tensor_shapes(folder, pattern="model*.safetensors").items()
        if not name.endswith(BUFFERS) and not (tied and name == "lm_head.weight")
    }


def _require_same_shapes(
    stored: StoredMoments, weights: Mapping[str, tuple[int, ...]], *, in_sum: bool
) -> None:
    """Moments of numbered parameters: as many of each shape as there are weights, or as many numbers ``in_sum``."""
    expected = Counter(weights.values())
    for kind, of in stored.shapes.items():
        found = Counter(of.values())
        if in_sum:
            numbers = [sum(math.prod(shape) * n for shape, n in each.items()) for each in (found, expected)]
            wrong = [] if numbers[0] == numbers[1] else [f"{numbers[0]:,} {kind} for {numbers[1]:,} weights"]
        else:
            wrong = [
                f"{n} {kind} of the shape {list(shape)} too many" for shape, n in (found - expected).items()
            ]
            wrong += [
                f"{n} {kind} of the shape {list(shape)} too few" for shape, n in (expected - found).items()
            ]
        if wrong:
            raise DataError(
                f"{stored.path} belongs to another model or to a part of it: it has {wrong[0]}. Give the state that "
                "was saved with these weights, or start the optimiser afresh."
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
        non_embedding_params=beside - idle_params(shapes, config),
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
    if any(config.get(name, value) != value for name, value in LLAMA_ONLY.items()):
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
