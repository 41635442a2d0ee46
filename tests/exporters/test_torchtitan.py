from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

from decaylaws.errors import InvalidValueError, NotRepresentableError
from decaylaws.exporters import EXPORTERS, ExportOptions, export
from decaylaws.io.yaml import load_yaml

FORMS = ("linear", "cosine", "1-sqrt", "exponential", "wsd", "three-stage")


@pytest.mark.parametrize("steps", [10, 1000, 24_000])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("target", ["torchtitan", "huggingface"])
def test_stated_error_is_the_error(make_recipe, target: str, form: str, steps: int) -> None:
    recipe = make_recipe(form, steps)
    result = export(recipe, target)
    assert len(result.step_lrs) == steps
    error = np.abs(result.step_lrs - recipe.step_lrs()).max()
    assert result.max_abs_lr_error == error <= 0.01 * recipe.step_lrs().max()
    assert dict(result.realised_shares) == {"web": 0.7, "math": 0.3}
    assert all(note.endswith(".") for note in result.notes)


@pytest.mark.parametrize("form", ["linear", "cosine"])
def test_native_is_taken_where_it_is_close(make_recipe, form: str) -> None:
    native = export(make_recipe(form, 1000), "torchtitan")
    assert "LRSchedulersContainer.Config(" in native.files["midtrain_torchtitan.py"]
    assert "LR_FACTORS = (" not in native.files["midtrain_torchtitan.py"]
    assert 0 < native.max_abs_lr_error < 0.002 * 6.2e-5
    short = export(make_recipe(form, 10), "torchtitan")
    assert "LR_FACTORS = (" in short.files["midtrain_torchtitan.py"]
    assert short.max_abs_lr_error == 0.0


def test_refusals_name_what_is_missing(make_recipe) -> None:
    with pytest.raises(NotRepresentableError, match="no LR path of the form exponential"):
        export(make_recipe("exponential", 1000), "torchtitan", ExportOptions(lr_rule="native"))
    recipe = make_recipe()
    with pytest.raises(
        NotRepresentableError, match="256 sequences per batch cannot be divided among 3 ranks"
    ):
        export(recipe, "torchtitan", ExportOptions(data_parallel_ranks=3))
    clash = make_recipe(
        sources={name: {"path": "/w"} for name in ("web", "math", "unused", "Web")},
        stages=[recipe.to_dict()["stages"][0] | {"mixture": {"web": 0.5, "Web": 0.5}}],
    )
    with pytest.raises(NotRepresentableError, match="lower-cases"):
        export(clash, "torchtitan")


@pytest.mark.parametrize("target", sorted(EXPORTERS))
def test_open_ends_are_named(make_recipe, target: str) -> None:
    """A recipe of a study knows no folders yet."""
    recipe = make_recipe(
        sources={"web": {"path": "/w"}, "math": {}, "unused": {}}, handover={"lr": 6.1351e-5, "run_id": "abc"}
    )
    result = export(recipe, target)
    assert any("data/math." in note for note in result.notes)
    assert any("run abc, which the export expects in 'start'" in note for note in result.notes)
    assert any("data/math" in text for text in result.files.values())
    assert any("start" in text for text in result.files.values())
    assert not any("data/unused" in text for text in result.files.values())


def test_bad_options_name_their_field(make_recipe) -> None:
    recipe = make_recipe()
    with pytest.raises(InvalidValueError, match="'target' must be one of torchtitan"):
        export(recipe, "excel")
    for field, value in (("lr_rule", "guess"), ("tolerance", 2.0), ("data_parallel_ranks", 0)):
        with pytest.raises(InvalidValueError, match=field):
            ExportOptions(**{field: value})
    with pytest.raises(InvalidValueError, match=r"module\.path:function"):
        export(recipe, "torchtitan", ExportOptions(model="os:system('true') #"))


@pytest.mark.parametrize(
    "target", sorted(set(EXPORTERS) - {"megatron", "megatron-bridge"})
)  # they refuse blanks
def test_hostile_names_stay_data(make_recipe, target: str, tmp_path: Path) -> None:
    hostile = '"); import os; os.abort(); ("{{ 7*7 }}'
    base = make_recipe()
    stage = base.to_dict()["stages"][0] | {"mixture": {hostile: 1.0}}
    recipe = make_recipe(name=hostile, stages=[stage], sources={hostile: {"path": hostile}})
    result = export(recipe, target, ExportOptions(output=hostile))
    for name, text in result.files.items():
        if name.endswith(".py"):
            strings = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
            assert hostile in strings
        elif name.endswith(".yaml"):
            assert any(hostile in str(value) for value in _leaves(load_yaml(text, "text")))
    assert [path.read_text() for path in result.write(tmp_path)] == [
        *result.files.values(),
        result.notes_text(),
    ]


def _leaves(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in (key, *_leaves(item))]
    if isinstance(value, list):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]
