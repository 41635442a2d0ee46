"""Any recipe that can be made is exported in whole files that parse, or refused by name."""

from __future__ import annotations

import ast
import json
import math
import shlex
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from decaylaws.errors import DecaylawsError, InvalidValueError, NotRepresentableError
from decaylaws.exporters import EXPORTERS, ExportOptions, check_config, export
from decaylaws.exporters.base import NOTES_FILE, max_error_off_path
from decaylaws.io.yaml import load_yaml
from decaylaws.recipe import Recipe
from tests.exporters.conftest import MAIN_FILES

LRS = st.sampled_from([0.0, 1e-12, 6.1351e-5, 1.0, 1e3]) | st.floats(1e-9, 10.0)
SHAPES = st.sampled_from(["constant", "linear", "cosine", "1-sqrt", "exponential", "megatron-exponential"])
NAMES = st.text(min_size=1, max_size=8) | st.sampled_from(
    ["../../etc", "a b", '"', "{{ 1 }}", "Web", "web", "0"]
)


@st.composite
def _segments(draw: st.DrawFn) -> list[dict[str, Any]]:
    count = draw(st.integers(1, 4))
    lrs = draw(st.lists(LRS, min_size=count + 1, max_size=count + 1))
    parts = []
    for start, end in pairwise(lrs):
        shape = draw(SHAPES)
        end = start if shape == "constant" else end
        parts.append({"tokens": draw(st.integers(1, 400)), "start_lr": start, "end_lr": end, "shape": shape})
    return parts


@st.composite
def _recipes(draw: st.DrawFn) -> Recipe:
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    weights = [draw(st.floats(0.0, 1.0)) for _ in names]
    total = math.fsum(weights)
    assume(total > 1e-6)
    seq_len = draw(st.sampled_from([1, 7, 16]))
    stages = [
        {
            "lr": draw(_segments()),
            "mixture": {name: weight / total for name, weight in zip(names, weights)},
            "batch_tokens": seq_len * 4,
            "seq_len": seq_len,
        }
        for _ in range(draw(st.integers(1, 2)))
    ]
    handover: dict[str, Any] = {
        "lr": draw(LRS),
        "lr_jump": True,
        "tokens": draw(st.sampled_from([0, 28 * 64, 2**62, 12345])),
        "optimizer_state": draw(st.sampled_from(["load", "fresh"])),
    }
    if draw(st.booleans()):
        handover["checkpoint"] = draw(NAMES)
    sources = {name: {"path": draw(NAMES)} if draw(st.booleans()) else {} for name in names}
    values = {"schema": "decaylaws.recipe/2", "handover": handover, "stages": stages, "sources": sources}
    try:
        return Recipe.from_dict(values)
    except InvalidValueError:
        assume(False)
        raise


def _parses(name: str, text: str) -> None:
    if name.endswith(".py"):
        ast.parse(text)
    elif name.endswith(".json"):
        json.loads(text)
    elif name.endswith(".yaml"):
        assert isinstance(load_yaml(text, "text"), dict)
    elif name.endswith(".args"):
        shlex.split(text)
    else:
        assert name.endswith(".md")


@pytest.mark.parametrize("target", sorted(EXPORTERS))
@settings(max_examples=8)
@given(recipe=_recipes(), approximate=st.booleans())
def test_any_recipe(target: str, recipe: Recipe, approximate: bool, tmp_path_factory) -> None:
    options = ExportOptions(on_inexpressible="approximate" if approximate else "refuse")
    try:
        result = export(recipe, target, options)
    except NotRepresentableError:
        return  # by name, as tests/exporters/test_every_target.py looks at
    assert len(result.step_lrs) == recipe.num_steps
    assert np.isfinite(result.step_lrs).all()
    assert result.max_abs_lr_error == np.abs(result.step_lrs - recipe.step_lrs()).max()
    if not result.approximations:
        off = max_error_off_path(result.step_lrs, recipe)
        assert off <= options.tolerance * recipe.step_lrs().max() * (1 + 1e-12)
    assert sum(result.realised_shares.values()) == pytest.approx(1.0)
    for name, text in result.files.items():
        _parses(name, text)
    folder = tmp_path_factory.mktemp("export")
    assert result.write(folder) == [folder / name for name in (*result.files, NOTES_FILE)]
    main = MAIN_FILES[target]
    for path in sorted(folder.rglob(main)):
        part = recipe if main in result.files else Recipe.load(path.with_name("recipe.yaml"))
        try:
            check = check_config(part, target, path)
        except DecaylawsError:
            continue  # absurd figures, such as 2**62 tokens at the hand-over, may be refused when read
        lrs = export(part, target, options).step_lrs
        assert np.abs(check.schedule.step_lrs - lrs).max() <= 1e-6 * lrs.max()
