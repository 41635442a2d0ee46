"""Parameters of other trainers under Hugging Face's names, for moments that lie in a trainer's own checkpoint."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_BLOCK = re.compile(r"^(?:blocks|layers|decoder\.layers)\.(\d+)\.(.+)$")
_STACK = re.compile(r"^(.*\bdecoder\.layers)\.(?!\d)(.+)$")

# of OLMo-core 3.0, torchtitan 0.3 (Llama 3, Qwen 3) and Megatron-core 0.16, with whose own code the tests compare; what
# stands in several means the same in them
_OUTSIDE = {
    "embeddings.weight": "model.embed_tokens.weight",
    "lm_head.norm.weight": "model.norm.weight",
    "lm_head.w_out.weight": "lm_head.weight",
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "lm_head.weight": "lm_head.weight",
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    "output_layer.weight": "lm_head.weight",
}
_INSIDE = {
    "attention.w_q": "self_attn.q_proj",
    "attention.w_k": "self_attn.k_proj",
    "attention.w_v": "self_attn.v_proj",
    "attention.w_out": "self_attn.o_proj",
    "attention.qkv_linear.wq": "self_attn.q_proj",
    "attention.qkv_linear.wk": "self_attn.k_proj",
    "attention.qkv_linear.wv": "self_attn.v_proj",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "self_attention.linear_q": "self_attn.q_proj",
    "self_attention.linear_k": "self_attn.k_proj",
    "self_attention.linear_v": "self_attn.v_proj",
    "self_attention.linear_proj": "self_attn.o_proj",
    "self_attention.q_layernorm": "self_attn.q_norm",
    "self_attention.k_layernorm": "self_attn.k_norm",
    "mlp.linear_gate": "mlp.gate_proj",
    "mlp.linear_up": "mlp.up_proj",
    "mlp.linear_fc2": "mlp.down_proj",
    "input_layernorm": "input_layernorm",
    "pre_mlp_layernorm": "post_attention_layernorm",
}
# Transformer Engine's layers of Megatron hold the norm before them
_NORMS_WITHIN = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
}
_FUSED = {
    ".wqkv.": (".wq.", ".wk.", ".wv."),
    ".linear_qkv.": (".linear_q.", ".linear_k.", ".linear_v."),
    ".linear_fc1.": (".linear_gate.", ".linear_up."),
}
_NORMS_BEFORE = {
    "attention_norm": "input_layernorm",
    "feed_forward_norm": "post_attention_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
# OLMo 2 and 3 normalise what a sublayer gives, not what it is given
_NORMS_AFTER = {
    "attention_norm": "post_attention_layernorm",
    "feed_forward_norm": "post_feedforward_layernorm",
}


def huggingface_name(name: str, weights: Collection[str]) -> str | None:
    """The weight of a Hugging Face folder that another trainer calls ``name``; ``None`` where no rule is known.

    Args:
        name: as in the trainer's checkpoint; marks of wrappers such as ``module.`` are passed over.
        weights: names of the folder's weights.
    """
    name = _WRAPPERS.sub("", name)
    if name in weights:
        return name
    block = _BLOCK.match(name)
    if block is None:
        return _OUTSIDE.get(name)
    if block[2] in _NORMS_WITHIN:
        return f"model.layers.{block[1]}.{_NORMS_WITHIN[block[2]]}"
    after = any(weight.endswith(".post_feedforward_layernorm.weight") for weight in weights)
    part, _, kind = block[2].rpartition(".")
    found = {**_INSIDE, **(_NORMS_AFTER if after else _NORMS_BEFORE)}.get(part)
    return None if found is None else f"model.layers.{block[1]}.{found}.{kind}"


def unfused_names(name: str) -> tuple[str, ...]:
    """Names of the matrices that a trainer keeps as one: queries, keys, values; gate and up; else ``name`` alone."""
    if name.endswith(".layer_norm_weight"):
        return (name,)
    for fused, parts in _FUSED.items():
        if fused in name:
            return tuple(name.replace(fused, part) for part in parts)
    return (name,)


def numbered_names(name: str, shape: Sequence[int]) -> list[str] | None:
    """Names of the layers' own parameters where a trainer stacks those of all layers, as Megatron does; else ``None``.

    Args:
        name: in the trainer's checkpoint.
        shape: the first dimension of a stack is the layers.
    """
    stack = _STACK.match(name)
    return [f"{stack[1]}.{layer}.{stack[2]}" for layer in range(shape[0])] if stack and shape else None


def pads_vocabulary(name: str) -> bool:
    """Whether a trainer adds rows to this matrix beyond the vocabulary, as Megatron does to divide it among ranks."""
    return _WRAPPERS.sub("", name) in ("embedding.word_embeddings.weight", "output_layer.weight")


def interleaves_rope(name: str, config: Mapping[str, object]) -> bool:
    """Whether rows of a query or key matrix stand in pairs, as torchtitan's Llama has them, and not in halves.

    Args:
        name: in the trainer's checkpoint.
        config: of the Hugging Face model.
    """
    return config.get("model_type") == "llama" and name.endswith((".wq.weight", ".wk.weight"))
