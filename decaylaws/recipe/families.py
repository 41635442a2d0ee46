"""Which models 'decaylaws launch' can train, told by their config.json before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TOWERS = ("vision_config", "audio_config", "video_config")
_ACTIVE_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def num_experts(config: Mapping[str, Any]) -> int:
    """Experts of a layer; 0 for a dense model."""
    counts = (config.get(name) for name in _EXPERTS)
    return max((count for count in counts if isinstance(count, int)), default=0)


def active_experts(config: Mapping[str, Any]) -> int | None:
    """Experts of a layer to which a token is routed; ``None`` where the config does not say."""
    counts = (config.get(name) for name in _ACTIVE_EXPERTS)
    return next((count for count in counts if isinstance(count, int)), None)


def why_not_trainable(config: Mapping[str, Any]) -> str | None:
    """Why the trainer cannot take a model with this ``config.json``, and what to do; ``None`` where it can."""
    family = config.get("model_type")
    towers = [name.removesuffix("_config") for name in _TOWERS if isinstance(config.get(name), Mapping)]
    if towers:
        return (
            f"The {family!r} model has a {towers[0]} tower, and only text can be trained. Save its language model "
            "alone (in transformers: model.language_model), or train it with its own trainer."
        )
    if config.get("is_encoder_decoder"):
        return f"The {family!r} model has an encoder; only causal language models can be trained."
    if config.get("quantization_config"):
        return "Its weights are quantised. Start from the weights that they were quantised from."
    return None
