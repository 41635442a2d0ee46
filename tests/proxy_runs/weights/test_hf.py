"""Members as Hugging Face checkpoints and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig

from decaylaws.errors import DataError
from decaylaws.runs.config import ModelShape
from proxy_runs.engine.model import StackedLlama, init_params, stack_params
from proxy_runs.testing import make_tiny_store
from proxy_runs.weights.hf import from_hf_weights, load_hf, save_hf, shape_of, to_hf_weights


def shape_with(*, tied: bool = True, vocab_size: int = 257) -> ModelShape:
    return ModelShape(
        d_model=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        d_ff=48,
        vocab_size=vocab_size,
        seq_len=16,
        tie_embeddings=tied,
        rope_theta=1000.0,
    )


@pytest.mark.parametrize("tied", [True, False])
def test_weights_survive_the_round_trip(tied: bool) -> None:
    shape = shape_with(tied=tied)
    params = init_params(shape, seed=0)
    again = from_hf_weights(to_hf_weights(params, shape), shape)
    assert again.keys() == params.keys()
    assert all(torch.equal(again[name], params[name]) for name in params)


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_member_is_what_transformers_loads(tmp_path: Path, tied: bool) -> None:
    store = make_tiny_store(tmp_path / "corpus")
    shape = shape_with(tied=tied)
    params = init_params(shape, seed=1)
    save_hf(params, shape, tmp_path / "hf", tokenizer_path=store.tokenizer_path, eos_token_id=store.eos_id)
    tokens = torch.from_numpy(store.heldout("code").tokens[: shape.seq_len])[None]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)(tokens).logits
    ours = StackedLlama(shape).logits(stack_params([params]), tokens[None])[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "hf")) == store.vocab_size
    found_shape, found = load_hf(tmp_path / "hf")
    assert found_shape == shape
    assert all(torch.equal(found[name], params[name]) for name in params)


def test_a_model_that_the_stack_cannot_compute_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="attention_bias=True"):
        shape_of(LlamaConfig(attention_bias=True))
    with pytest.raises(DataError, match="rope_type='linear'"):
        shape_of(LlamaConfig(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}))
    with pytest.raises(DataError, match="head_dim=16"):
        shape_of(LlamaConfig(hidden_size=32, num_attention_heads=4, head_dim=16))
    with pytest.raises(DataError, match="'gpt2' model"):
        shape_of(GPT2Config())
    with pytest.raises(DataError, match=r"There is no config\.json"):
        load_hf(tmp_path)


def test_a_checkpoint_without_weights_is_a_clear_error(tmp_path: Path) -> None:
    save_hf(init_params(shape_with(), seed=0), shape_with(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"
    with pytest.raises(DataError, match="cannot be read"):
        load_hf(tmp_path)
