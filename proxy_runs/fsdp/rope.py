"""Another rotary embedding for a model that is being trained."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import PreTrainedModel

from decaylaws.context import rotary_frequencies
from decaylaws.errors import InvalidValueError
from decaylaws.recipe import RopeSettings

TOLERANCE = 1e-5


def set_rope(lm: PreTrainedModel, rope: RopeSettings, seq_len: int) -> None:
    """Give ``lm`` the rotary embedding of ``rope``, in its config and in its modules.

    Args:
        lm: any Hugging Face causal LM with ``transformers``' own rotary modules; it may be sharded.
        rope: the embedding.
        seq_len: longest sequence that the model must take from now on.

    Raises:
        InvalidValueError: the model has no such modules, or one that depends on the layer's type.
    """
    modules = {
        name: m for name, m in lm.named_modules() if hasattr(m, "inv_freq") and hasattr(m, "rope_type")
    }
    config = lm.config.get_text_config()
    old = getattr(config, "rope_parameters", None) or {}
    if not modules or any(isinstance(value, dict) for value in old.values()):
        reason = "several rotary embeddings by type of layer" if modules else "no rotary embedding"
        raise InvalidValueError(
            "stages.rope", rope.describe(), f"cannot be set: the {config.model_type!r} model has {reason}"
        )
    dimensions = 2 * len(next(iter(modules.values())).inv_freq)
    kept = {name: old[name] for name in ("partial_rotary_factor",) if name in old}
    config.rope_parameters = kept | rope.transformers_parameters(dimensions)
    config.max_position_embeddings = max(config.max_position_embeddings, seq_len)
    for name, module in modules.items():
        renewed = type(module)(config=config).to(module.inv_freq.device)
        _check(renewed, rope, dimensions, config.model_type)
        lm.set_submodule(name, renewed)


def _check(module: Any, rope: RopeSettings, dimensions: int, model_type: str) -> None:
    """A model type may read its config in its own way: what it turns by must be what the recipe says."""
    wanted = rotary_frequencies(rope, dimensions)
    found = module.inv_freq.double().cpu().numpy()
    same = found.shape == wanted.inverse.shape and np.allclose(found, wanted.inverse, rtol=TOLERANCE, atol=0)
    if not same or abs(module.attention_scaling - wanted.attention_factor) > TOLERANCE:
        raise InvalidValueError(
            "stages.rope", rope.describe(), f"is not what the rotary embedding of {model_type!r} makes of it"
        )
