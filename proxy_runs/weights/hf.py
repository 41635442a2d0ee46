"""Members as Hugging Face checkpoints, and small Hugging Face Llamas as members.

The weights map one to one: this package stores matrices as ``[in, out]`` and fuses query, key and value, and
gate and up; ``transformers.LlamaForCausalLM`` stores them apart as ``[out, in]``. Both use the half-rotation
layout of the rotary embedding, so nothing is permuted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from decaylaws.errors import DataError
from decaylaws.runs.config import ModelShape
from decaylaws.runs.folders import LLAMA_ONLY
from proxy_runs.weights.causal_lm import load_causal_lm, load_config
from proxy_runs.weights.params import Params


def llama_config(shape: ModelShape, *, eos_token_id: int | None = None) -> LlamaConfig:
    """The ``transformers`` config of a model shape."""
    return LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_ff,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=shape.seq_len,
        rms_norm_eps=shape.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=shape.tie_embeddings,
        bos_token_id=None,
        eos_token_id=eos_token_id,
    )


def shape_of(config: LlamaConfig, *, where: str = "the model") -> ModelShape:
    """The model shape of a ``transformers`` config.

    Raises:
        DataError: the config is no Llama, or asks for something that the stack does not compute.
    """
    if config.model_type != "llama":
        raise DataError(f"{where} is a {config.model_type!r} model; only 'llama' can be a member.")
    unsupported = [
        f"{key}={getattr(config, key)!r}" for key, v in LLAMA_ONLY.items() if getattr(config, key) != v
    ]
    if config.rope_parameters["rope_type"] != "default":
        unsupported.append(f"rope_type={config.rope_parameters['rope_type']!r}")
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        unsupported.append(f"head_dim={config.head_dim}")
    if unsupported:
        raise DataError(f"{where} uses {', '.join(unsupported)}, which a proxy does not support.")
    return ModelShape(
        d_model=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        d_ff=config.intermediate_size,
        vocab_size=config.vocab_size,
        seq_len=config.max_position_embeddings,
        rope_theta=float(config.rope_parameters["rope_theta"]),
        tie_embeddings=config.tie_word_embeddings,
        norm_eps=config.rms_norm_eps,
    )


def hf_weights(params: Mapping[str, Tensor], shape: ModelShape) -> Iterator[tuple[str, Tensor]]:
    """One member's parameters under Hugging Face's names and layouts, one after the other; a tied head is left out."""
    d, kv = shape.d_model, shape.num_kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", params["embed"]
    for layer in range(shape.num_layers):
        ours, theirs = f"layers.{layer}.", f"model.layers.{layer}."
        yield theirs + "input_layernorm.weight", params[ours + "attn_norm"]
        for name, part in zip("qkv", params[ours + "qkv"].T.split([d, kv, kv])):
            yield f"{theirs}self_attn.{name}_proj.weight", part
        yield theirs + "self_attn.o_proj.weight", params[ours + "attn_out"].T
        yield theirs + "post_attention_layernorm.weight", params[ours + "mlp_norm"]
        for name, part in zip(("gate", "up"), params[ours + "gate_up"].T.split(shape.d_ff)):
            yield f"{theirs}mlp.{name}_proj.weight", part
        yield theirs + "mlp.down_proj.weight", params[ours + "down"].T
    yield "model.norm.weight", params["final_norm"]
    if not shape.tie_embeddings:
        yield "lm_head.weight", params["head"]


def to_hf_weights(params: Mapping[str, Tensor], shape: ModelShape) -> dict[str, Tensor]:
    """Copies of :func:`hf_weights`, by name."""
    return {name: weight.detach().contiguous().clone() for name, weight in hf_weights(params, shape)}


def from_hf_weights(weights: Mapping[str, Tensor], shape: ModelShape) -> Params:
    """The inverse of ``to_hf_weights``: float32 parameters of one member."""
    params = {"embed": weights["model.embed_tokens.weight"], "final_norm": weights["model.norm.weight"]}
    if not shape.tie_embeddings:
        params["head"] = weights["lm_head.weight"]
    for layer in range(shape.num_layers):
        ours, theirs = f"layers.{layer}.", f"model.layers.{layer}."

        def joined(*names: str, prefix: str = theirs) -> Tensor:
            return torch.cat([weights[f"{prefix}{name}_proj.weight"] for name in names]).T

        params |= {
            ours + "attn_norm": weights[theirs + "input_layernorm.weight"],
            ours + "qkv": joined("self_attn.q", "self_attn.k", "self_attn.v"),
            ours + "attn_out": joined("self_attn.o"),
            ours + "mlp_norm": weights[theirs + "post_attention_layernorm.weight"],
            ours + "gate_up": joined("mlp.gate", "mlp.up"),
            ours + "down": joined("mlp.down"),
        }
    return {name: weight.detach().float().contiguous().clone() for name, weight in params.items()}


def to_hf_model(params: Mapping[str, Tensor], shape: ModelShape, **config: Any) -> LlamaForCausalLM:
    """One member as a ``LlamaForCausalLM`` in float32; ``config`` goes to ``llama_config``."""
    model = LlamaForCausalLM(llama_config(shape, **config))
    weights = to_hf_weights(params, shape)
    if shape.tie_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    return model


def save_hf(
    params: Mapping[str, Tensor],
    shape: ModelShape,
    directory: Path,
    *,
    tokenizer_path: Path | None = None,
    eos_token_id: int | None = None,
) -> None:
    """Save one member as a Hugging Face checkpoint folder (``config.json``, ``model.safetensors``).

    Args:
        params: the member's parameters, without the member axis.
        shape: its shape.
        directory: the folder, created when absent.
        tokenizer_path: a ``tokenizer.json`` to save beside the weights as a fast tokenizer.
        eos_token_id: id of the token that ends a document.
    """
    to_hf_model(params, shape, eos_token_id=eos_token_id).save_pretrained(directory)
    if tokenizer_path is None:
        return
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    eos_token = None if eos_token_id is None else tokenizer.id_to_token(eos_token_id)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos_token, model_max_length=shape.seq_len
    ).save_pretrained(directory)


def load_hf(directory: Path) -> tuple[ModelShape, Params]:
    """Read a Hugging Face Llama checkpoint folder as one member.

    Raises:
        DataError: the folder holds no model, one that the stack does not compute, or not the weights of its config.
    """
    config = load_config(directory)
    shape = shape_of(config, where=str(directory))
    return shape, from_hf_weights(load_causal_lm(directory, config=config).state_dict(), shape)
