"""Rotary settings of a stage: what is refused, what migrates, and what transformers makes of them."""

from __future__ import annotations

from typing import Any

import pytest

from decaylaws.errors import InvalidValueError
from decaylaws.recipe import Recipe, RopeSettings, diff_recipes, show_recipe

YARN = {"method": "yarn", "theta": 10_000.0, "factor": 4.0, "original_seq_len": 2048}


def _with_rope(values: dict[str, Any], **rope: Any) -> Recipe:
    values["stages"][0]["rope"] = rope
    return Recipe.from_dict(values)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"method": "dynamic"}, r"stages\.0\.rope\.method"),
        ({"method": "ntk"}, "needs a factor above 1"),
        ({"method": "abf", "factor": 2.0}, "takes no factor"),
        ({"method": "yarn", "factor": 4.0}, "needs original_seq_len"),
        ({"method": "abf", "attention_factor": 1.1}, "attention_factor belongs to method yarn"),
        ({"theta": 0.0}, r"stages\.0\.rope\.theta"),
        (YARN | {"factor": 2.0}, "longer than the 4096 tokens"),
    ],
)
def test_what_is_refused(recipe_values: dict[str, Any], rope: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        _with_rope(recipe_values, **rope)


def test_show_and_diff_name_it(recipe_values: dict[str, Any]) -> None:
    plain = Recipe.from_dict(recipe_values)
    extended = _with_rope(recipe_values, **YARN)
    assert "RoPE  yarn, base 10,000, 4 times 2048" in show_recipe(extended)
    changed = {change.path for change in diff_recipes(plain, extended)}
    assert changed == {f"stages.0.rope.{name}" for name in YARN}
    assert Recipe.from_dict(extended.to_dict()) == extended


def test_format_1_migrates(recipe_values: dict[str, Any]) -> None:
    recipe_values["schema"] = "decaylaws.recipe/1"
    assert _with_rope(recipe_values, theta=5e5).stages[0].rope == RopeSettings(method="abf", theta=5e5)
    old = {name: value for name, value in YARN.items() if name != "method"} | {"kind": "yarn"}
    assert _with_rope(recipe_values, **old).stages[0].rope == RopeSettings(**YARN)
    with pytest.raises(InvalidValueError, match=r"'stages\.0\.rope\.kind' must be one of"):
        _with_rope(recipe_values, kind="dynamic", factor=4.0)
    for broken in ([None], "no", None, [{"rope": "no"}]):
        with pytest.raises(InvalidValueError):
            Recipe.from_dict(recipe_values | {"stages": broken})


@pytest.mark.parametrize(
    "settings",
    [
        RopeSettings(),
        RopeSettings(method="abf", theta=5e5),
        RopeSettings(method="position_interpolation", factor=4.0, original_seq_len=2048),
        RopeSettings(method="ntk", factor=4.0, original_seq_len=2048),
        RopeSettings(**YARN),
        RopeSettings(**YARN, attention_factor=1.2, beta_fast=16.0, beta_slow=2.0),
    ],
)
def test_transformers_accepts_the_parameters(settings: RopeSettings) -> None:
    transformers = pytest.importorskip("transformers")
    rotary = pytest.importorskip("transformers.models.llama.modeling_llama").LlamaRotaryEmbedding
    config = transformers.LlamaConfig(
        hidden_size=128,
        num_attention_heads=4,
        max_position_embeddings=8192,
        rope_parameters=settings.transformers_parameters(head_dim=32),
    )
    frequencies = rotary(config)
    assert frequencies.inv_freq[0] == 1.0 / (4.0 if settings.method == "position_interpolation" else 1.0)
    slowest = settings.base(32) ** (-30 / 32)
    if settings.method in ("position_interpolation", "yarn"):
        slowest /= settings.factor
    assert float(frequencies.inv_freq[-1]) == pytest.approx(slowest, rel=1e-6)
    if settings.method == "ntk":  # its point: the slowest dimension is interpolated in full
        assert slowest == pytest.approx(10_000.0 ** (-30 / 32) / 4.0)
    if settings.method == "yarn" and settings.attention_factor is None:
        assert frequencies.attention_scaling == pytest.approx(1.1386294361)
