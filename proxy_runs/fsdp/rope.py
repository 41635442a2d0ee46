"""Another rotary embedding for a model that is being trained."""

from __future__ import annotations

import copy
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
        InvalidValueError: see :func:`check_rope`.
    """
    renewed = _renewed(lm, rope)
    config = lm.config.get_text_config()
    for name, module in renewed.items():
        config.rope_parameters = module.config.rope_parameters
        lm.set_submodule(name, module)
    config.max_position_embeddings = max(config.max_position_embeddings, seq_len)


def check_rope(lm: PreTrainedModel, rope: RopeSettings) -> None:
    """Whether ``lm`` can be given the rotary embedding, before anything is trained.

    Raises:
        InvalidValueError: the model has no such modules, several that depend on the layer's type, or reads its
            config in a way of its own.
    """
    _renewed(lm, rope)


def _renewed(lm: PreTrainedModel, rope: RopeSettings) -> dict[str, Any]:
    """The rotary modules of ``lm`` as ``rope`` wants them, by name."""
    modules = {
        name: m for name, m in lm.named_modules() if hasattr(m, "inv_freq") and hasattr(m, "rope_type")
    }
    config = copy.deepcopy(lm.config.get_text_config())
    old = getattr(config, "rope_parameters", None) or {}
    if not modules or any(isinstance(value, dict) for value in old.values()):
        reason = "several rotary embeddings by type of layer" if modules else "no rotary embedding"
        raise InvalidValueError(
            "stages.rope", rope.describe(), f"cannot be set: the {config.model_type!r} model has {reason}"
        )
    kept = {name: old[name] for name in ("partial_rotary_factor",) if name in old}
    renewed = {}
    for name, module in modules.items():
        dimensions = 2 * len(module.inv_freq)
        config.rope_parameters = kept | rope.transformers_parameters(dimensions)
        renewed[name] = type(module)(config=config).to(module.inv_freq.device)
        _check(renewed[name], rope, dimensions, config.model_type)
    return renewed


def _check(module: Any, rope: RopeSettings, dimensions: int, model_type: str) -> None:
    """A model type may read its config in its own way: what it turns by must be what the recipe says."""
    wanted = rotary_frequencies(rope, dimensions)
    found = module.inv_freq.double().cpu().numpy()
    same = found.shape == wanted.inverse.shape and np.allclose(found, wanted.inverse, rtol=TOLERANCE, atol=0)
    if not same or abs(module.attention_scaling - wanted.attention_factor) > TOLERANCE:
        raise InvalidValueError(
            "stages.rope",
            rope.describe(),
            f"does not give the frequencies that the rotary embedding of {model_type!r} computes",
        )
