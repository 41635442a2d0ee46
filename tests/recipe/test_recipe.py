from __future__ import annotations

import contextlib
import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.io.yaml import load_yaml
from decaylaws.recipe import Recipe, diff_recipes, files, show_recipe


def test_round_trip_is_byte_stable(recipe_values: dict[str, Any], tmp_path) -> None:
    recipe = Recipe.from_dict(recipe_values)
    for suffix in ("yaml", "json"):
        first = recipe.save(tmp_path / f"a.{suffix}")
        loaded = Recipe.load(first)
        assert loaded == recipe
        assert loaded.save(tmp_path / f"b.{suffix}").read_bytes() == first.read_bytes()


@given(
    lr=st.floats(min_value=1e-300, max_value=1e300),
    share=st.floats(min_value=0.0, max_value=1.0),
    name=st.text(min_size=1, max_size=20),
)
def test_any_float_and_name_survives_yaml(lr: float, share: float, name: str) -> None:
    data = {
        "lr": lr,
        "shares": {"a": share},
        "name": name,
        "likely": ["1e5", "0x1", "yes", "null", "1_0", ""],
    }
    loaded = load_yaml(files.to_yaml(data), "text")
    assert loaded == data
    assert [type(value) for value in loaded.values()] == [type(value) for value in data.values()]


# https://yaml.org/type/float.html, base 10: a dot is needed, and a sign in the exponent
YAML_11_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*)?\.[0-9.]*([eE][-+][0-9]+)?")


@given(st.floats(allow_nan=False, allow_infinity=False))
@example(1e-8)
@example(3e-5)
@example(1e16)
@example(5e-324)
def test_readers_of_yaml_1_1_take_any_float_for_a_float(value: float) -> None:
    text = files.to_yaml({"x": value, "list": [value]})
    for read in (yaml.safe_load(text), load_yaml(text, "text")):
        assert read == {"x": value, "list": [value]}
        assert type(read["x"]) is float
    assert YAML_11_FLOAT.fullmatch(text.splitlines()[0].removeprefix("x: "))


def test_a_recipe_file_is_read_by_yaml_1_1(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    recipe = Recipe.from_dict(recipe_values)
    path = recipe.save(tmp_path / "recipe.yaml")
    assert "eps: 1.0e-08" in path.read_text()
    assert yaml.safe_load(path.read_text()) == recipe.to_dict()


def test_step_lrs_sum_to_the_integral(recipe_values: dict[str, Any]) -> None:
    recipe = Recipe.from_dict(recipe_values)
    stage = recipe.stages[0]
    lrs = recipe.step_lrs()
    assert len(lrs) == recipe.num_steps == 24
    sizes = np.full(24, stage.batch_tokens)
    sizes[-1] = stage.tokens - 23 * stage.batch_tokens
    assert float(lrs @ sizes) == pytest.approx(0.5 * 6.1351e-5 * stage.tokens, rel=1e-12)


def test_epochs_are_filled_in_and_checked(recipe_values: dict[str, Any]) -> None:
    recipe = Recipe.from_dict(recipe_values)
    assert recipe.sources["math"].epochs == pytest.approx(3.0)
    assert recipe.sources["code"].epochs is None
    recipe_values["sources"]["math"]["epochs"] = 2.0
    with pytest.raises(
        InvalidValueError, match=r"'sources\.math\.epochs' must be the 3 that the stages make; got 2\.0"
    ):
        Recipe.from_dict(recipe_values)


def _set(path: str, value: object):
    def change(values: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for parent in parents:
            values = values[int(parent)] if parent.isdigit() else values[parent]
        values[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("schema", "decaylaws.recipe/9"), "'schema' must be one of"),
        (_set("stages.0.batch_tokens", -1), "'stages.0.batch_tokens'"),
        (
            _set("stages.0.batch_tokens", 8193),
            r"^'stages\.0\.batch_tokens' must be a multiple of seq_len=8192; got 8193\.$",
        ),
        (_set("stages.0.mixture", {"web": 0.5, "math": 0.4}), "'stages.0.mixture'.*sum"),
        (
            _set("stages.0.mixture", {"web": 0.5, "other": 0.5}),
            r"^'stages\.0\.mixture' must give shares to .* 'sources' lists only; got 'other'\. Add the source",
        ),
        (
            _set("stages.0.mixture", {"web": "half"}),
            r"^'stages\.0\.mixture\.web' must be a number; got 'half'\.$",
        ),
        (_set("stages.0.seq_len", "8K"), r"^'stages\.0\.seq_len' is not valid: .*; got '8K'\.$"),
        (_set("stages.0.lr", []), "'stages.0.lr"),
        (_set("stages.0.lr.0.start_lr", -1e-3), "'stages.0.lr.start_lr'"),
        (_set("stages.0.lr.0.shape", "wavy"), "'stages.0.lr.shape'.*wavy"),
        (_set("stages", []), "'stages'"),
        (
            _set("handover.lr", 3e-4),
            r"^'stages\.0\.lr' must start at handover\.lr=0\.0003; got 6\.1351e-05\. Start at",
        ),
        (_set("handover.lr", float("nan")), "'handover.lr'"),
        (_set("handover.optimizer_state", "keep"), "'handover.optimizer_state'"),
        (
            _set("sources.math.max_epochs", 2.5),
            r"^'sources\.math\.max_epochs' is less than the 3 passes .*; got 2\.5\.",
        ),
        (_set("optimizer.beta2", 1.0), "'optimizer.beta2'"),
        (_set("optimizer.betas", [0.9, 0.95]), "'optimizer.betas' is not a key"),
        (_set("predictions.web.lower", 9.0), "lower <= mean <= upper"),
        (
            _set("guards.poetry", {"limit": 0.1, "predicted": 0.0, "holds": True}),
            r"^'guards' must guard .*; got 'poetry'\. Remove",
        ),
        (_set("typo", 1), "'typo' is not a key of a recipe"),
        (
            lambda values: values["stages"][0].update(batch_token=values["stages"][0].pop("batch_tokens")),
            r"^'stages\.0\.batch_token' is not a key",
        ),
        (
            _set("stages.0.lr.0.start_lr", -0.01),
            r"^'stages\.0\.lr\.start_lr' must not be negative; got -0\.01",
        ),
        (_set("stages.0.mixture", {"web": 1.5}), r"^'stages\.0\.mixture' must sum to 1; got 1\.5"),
    ],
)
def test_bad_values_name_their_field(recipe_values: dict[str, Any], change, message: str) -> None:
    change(recipe_values)
    with pytest.raises(InvalidValueError, match=message):
        Recipe.from_dict(recipe_values)


def test_parameters_of_a_law_come_back_as_they_were(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    given = {
        "scale": np.float64(2.0),
        "slopes": np.array([[1.0, 2.0]]),
        "pair": (1, "a"),
        "by": {"web": np.int64(3)},
    }
    recipe_values["provenance"] = {"laws": [{"name": "law", "parameters": given}]}
    read = Recipe.load(Recipe.from_dict(recipe_values).save(tmp_path / "recipe.yaml")).provenance.laws[0]
    assert read.parameters == {"scale": 2.0, "slopes": [[1.0, 2.0]], "pair": [1, "a"], "by": {"web": 3}}


@pytest.mark.parametrize("value", [float("nan"), np.array([np.inf]), {1, 2}])
def test_parameters_that_no_file_holds_are_refused(recipe_values: dict[str, Any], value: object) -> None:
    recipe_values["provenance"] = {"laws": [{"name": "law", "parameters": {"scale": value}}]}
    with pytest.raises(InvalidValueError, match=r"provenance\.laws\.0\.parameters'.*must hold"):
        Recipe.from_dict(recipe_values)


@pytest.mark.parametrize("data", [None, [], "recipe"])
def test_what_is_no_mapping_is_no_recipe(data: Any) -> None:
    with pytest.raises(InvalidValueError, match="must be a mapping"):
        Recipe.from_dict(data)


def test_a_jump_can_be_meant(recipe_values: dict[str, Any]) -> None:
    recipe_values["handover"] |= {"lr": 3e-4, "lr_jump": True}
    assert Recipe.from_dict(recipe_values).handover.lr_jump


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.yaml", b"a: &x [1]\nb: *x\n", "aliases are not allowed"),
        ("r.yaml", b"schema: 1\nschema: 2\n", "'schema' twice"),
        ("r.yaml", b"a: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("r.yaml", b"[" * 5000, "not valid YAML"),
        ("r.yaml", b"\xff\xfe\x00", "not UTF-8"),
        ("r.yaml", b"a: {", "not valid YAML"),
        ("r.json", b'{"schema": NaN}', "NaN is not a number"),
        ("r.json", b'{"a": 1, "a": 2}', "'a' twice"),
        ("r.json", b"{", "not valid JSON"),
    ],
)
def test_damaged_files(tmp_path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        Recipe.load(path)


def test_missing_file_suffix_and_list(tmp_path) -> None:
    with pytest.raises(DataError, match="Cannot read"):
        Recipe.load(tmp_path / "none.yaml")
    for name, content in (("r.toml", "a = 1"), ("r.yaml", "- 1")):
        (tmp_path / name).write_text(content)
        with pytest.raises(InvalidValueError):
            Recipe.load(tmp_path / name)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=3), st.data())
def test_fuzzed_values_never_leave_a_traceback(junk: object, data: st.DataObject) -> None:
    values = {
        "schema": "decaylaws.recipe/2",
        "handover": {"lr": 1e-3},
        "stages": [
            {
                "lr": [{"tokens": 10, "start_lr": 1e-3, "end_lr": 0.0, "shape": "linear"}],
                "mixture": {"web": 1.0},
                "batch_tokens": 2,
                "seq_len": 1,
            }
        ],
        "sources": {"web": {}},
    }
    Recipe.from_dict(copy.deepcopy(values))
    holders: list[Any] = [values, values["handover"], values["stages"][0], values["stages"][0]["lr"][0]]
    holder = data.draw(st.sampled_from(holders))
    holder[data.draw(st.sampled_from(sorted(holder)))] = junk
    with contextlib.suppress(InvalidValueError):
        Recipe.from_dict(values)


def test_draft_schema_migrates() -> None:
    draft = {
        "schema": "decaylaws.recipe/0",
        "seq_len": 8192,
        "global_batch_tokens": 2_097_152,
        "handover": {"checkpoint": "c", "lr": 6.135e-5, "lr_source": "log", "optimizer_state": True},
        "stages": [
            {
                "name": "anneal",
                "tokens": 50_000_000_000,
                "lr": {"start": 6.135e-5, "end": 0.0, "shape": "linear"},
                "mixture": {"web": 0.7, "math": 0.3},
                "max_epochs": {"math": 4.0},
            }
        ],
        "sources": {"web": {"tokens": 7.5e11}, "math": {"tokens": 1e10}},
    }
    recipe = Recipe.from_dict(draft)
    assert recipe.stages[0].tokens == 50_000_000_000
    assert recipe.sources["math"].max_epochs == 4.0
    del draft["handover"]
    with pytest.raises(InvalidValueError, match="recipe/0"):
        Recipe.from_dict(draft)


def test_json_schema_accepts_what_recipe_accepts(recipe_values: dict[str, Any]) -> None:
    schema = Recipe.json_schema()
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    written = json.loads(json.dumps(Recipe.from_dict(recipe_values).to_dict()))
    validator.validate(written)
    written["typo"] = 1
    assert not validator.is_valid(written)


def test_show_and_diff(recipe_values: dict[str, Any]) -> None:
    before = Recipe.from_dict(recipe_values)
    page = show_recipe(before)
    for part in ("50M tokens", "6.1351e-05", "3 epochs of at most 4", "guard +0.0100 of +0.0200: holds"):
        assert part in page
    recipe_values["seed"] = 8
    recipe_values["stages"][0]["mixture"] = {"web": 0.6, "math": 0.2, "code": 0.2}
    changes = diff_recipes(before, Recipe.from_dict(recipe_values))
    assert [change.path for change in changes] == [
        "stages.0.mixture.web",
        "stages.0.mixture.math",
        "sources.web.epochs",
        "sources.math.epochs",
        "seed",
    ]
    assert diff_recipes(before, before) == []


@pytest.mark.parametrize(
    ("predicted", "upper", "holds", "words"),
    [
        (0.01, 0.018, True, "guard +0.0100 (at most +0.0180) of +0.0200: holds"),
        (0.01, 0.03, False, "guard +0.0100 (at most +0.0300) of +0.0200: NOT SURE"),
        (0.03, 0.05, False, "guard +0.0300 (at most +0.0500) of +0.0200: BROKEN"),
    ],
)
def test_a_guard_tells_a_limit_at_risk_from_a_broken_one(
    recipe_values: dict[str, Any], predicted: float, upper: float, holds: bool, words: str
) -> None:
    recipe_values["guards"]["web"] = {"limit": 0.02, "predicted": predicted, "upper": upper, "holds": holds}
    assert words in show_recipe(Recipe.from_dict(recipe_values))
