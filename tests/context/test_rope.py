from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from decaylaws.context import rotary_frequencies
from decaylaws.errors import InvalidValueError
from decaylaws.recipe import RopeSettings

LENGTH = 256


def llama(head_dim: int, rope_parameters: dict[str, Any], length: int = LENGTH) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=length,
        rope_parameters=rope_parameters,
    )


METHODS = {
    "none": {},
    "abf": {"theta": 5e6},
    "position_interpolation": {"factor": 4.0},
    "ntk": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_seq_len": LENGTH},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_frequencies_are_those_of_transformers(method: str, head_dim: int) -> None:
    rope = RopeSettings(method=method, **METHODS[method])
    config = llama(head_dim, rope.transformers_parameters(head_dim), 4 * LENGTH)
    theirs = LlamaRotaryEmbedding(config)
    ours = rotary_frequencies(rope, head_dim)
    np.testing.assert_allclose(theirs.inv_freq.numpy(), ours.inverse, rtol=1e-6)
    assert theirs.attention_scaling == pytest.approx(ours.attention_factor, abs=1e-6)
    assert LlamaConfig.from_dict(config.to_dict()).rope_parameters == config.rope_parameters


@pytest.mark.parametrize("factor", [2.0, 4.0, 32.0])
def test_ntk_is_what_dynamic_scaling_reaches_at_the_full_length(factor: float) -> None:
    config = llama(64, {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 1.0})
    theirs, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, seq_len=int(factor * LENGTH))
    ours = rotary_frequencies(RopeSettings(method="ntk", factor=factor), 64)
    np.testing.assert_allclose(theirs.numpy(), ours.inverse, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.integers(4, 64),
    theta=st.floats(1e3, 1e8),
    factor=st.floats(1.01, 64),
    length=st.integers(128, 2**17),
    attention_factor=st.none() | st.floats(0.5, 2),
    beta_fast=st.none() | st.floats(8, 64),
)
def test_yarn_is_transformers_yarn(
    pairs: int,
    theta: float,
    factor: float,
    length: int,
    attention_factor: float | None,
    beta_fast: float | None,
) -> None:
    rope = RopeSettings(
        method="yarn",
        theta=theta,
        factor=factor,
        original_seq_len=length,
        attention_factor=attention_factor,
        beta_fast=beta_fast,
    )
    config = llama(2 * pairs, rope.transformers_parameters(2 * pairs), length)
    theirs, scaling = ROPE_INIT_FUNCTIONS["yarn"](config)
    ours = rotary_frequencies(rope, 2 * pairs)
    # float32 keeps 7 digits of each frequency; the blend of two can lose a few more of the smaller one
    np.testing.assert_allclose(theirs.numpy(), ours.inverse, rtol=1e-6, atol=1e-6 * ours.inverse[-1])
    assert scaling == pytest.approx(ours.attention_factor, rel=1e-6)


def test_each_method_slows_what_it_should() -> None:
    plain = rotary_frequencies(RopeSettings(), 64)
    interpolated = rotary_frequencies(RopeSettings(method="position_interpolation", factor=4), 64)
    np.testing.assert_allclose(interpolated.wavelengths, 4 * plain.wavelengths)
    ntk = rotary_frequencies(RopeSettings(method="ntk", factor=4), 64)
    assert ntk.inverse[0] == plain.inverse[0]
    assert ntk.wavelengths[-1] == pytest.approx(4 * plain.wavelengths[-1])
    yarn = rotary_frequencies(RopeSettings(method="yarn", factor=4, original_seq_len=LENGTH), 64)
    turns = LENGTH / plain.wavelengths
    assert np.allclose(yarn.inverse[turns > 40], plain.inverse[turns > 40])
    assert np.allclose(yarn.inverse[turns < 0.5], plain.inverse[turns < 0.5] / 4)
    assert yarn.attention_factor == pytest.approx(1 + 0.1 * np.log(4))


def test_heads_that_have_no_pairs_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="head_dim"):
        rotary_frequencies(RopeSettings(), 7)


def test_frequencies_survive_the_dtype_of_a_model() -> None:
    config = llama(
        64, RopeSettings(method="yarn", factor=4.0, original_seq_len=LENGTH).transformers_parameters(64)
    )
    cos, _ = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(4 * LENGTH)[None])
    ours = rotary_frequencies(RopeSettings(method="yarn", factor=4.0, original_seq_len=LENGTH), 64)
    angles = np.outer(np.arange(4 * LENGTH), np.tile(ours.inverse, 2))
    # an angle of a thousand radians in float32 is good to 1e-4
    np.testing.assert_allclose(cos[0].numpy(), np.cos(angles) * ours.attention_factor, atol=2e-4)
