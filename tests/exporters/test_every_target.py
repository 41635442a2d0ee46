"""What holds for every target: each form and horizon, refused by name or within the error that is stated."""

from __future__ import annotations

import numpy as np
import pytest

from decaylaws.errors import NotRepresentableError
from decaylaws.exporters import EXPORTERS, ExportOptions, export, export_all, export_remarks, export_table
from decaylaws.schedules import warmup
from tests.exporters.conftest import BATCH_TOKENS, CLEAN_SOURCES
from tests.exporters.recipes import RECIPES

FORMS = ("linear", "cosine", "1-sqrt", "wsd", "wsd-linear", "three-stage")
TABLES = {"torchtitan", "huggingface"}
SEGMENTS = {"olmo-core"}
NO_1_SQRT = {"llm-foundry", "levanter"}
NO_WARMUP_ON_STATE = {"megatron", "megatron-bridge", "levanter"}


def _recipe(make_recipe, target: str, form: str, steps: int):
    recipe = make_recipe(form, steps, sources=CLEAN_SOURCES)
    if target in NO_WARMUP_ON_STATE and form in ("wsd", "wsd-linear", "three-stage"):
        handover = recipe.handover.model_dump(exclude_none=True) | {"optimizer_state": "fresh"}
        return make_recipe(form, steps, sources=CLEAN_SOURCES, handover=handover)
    return recipe


def _expressible(target: str, form: str) -> bool:
    if target in TABLES | SEGMENTS:
        return True
    if form == "three-stage":
        return False
    return target not in NO_1_SQRT or form in ("linear", "cosine", "wsd-linear")


@pytest.mark.parametrize("steps", [10, 1000, 24_000])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("target", sorted(EXPORTERS))
def test_refused_by_name_or_approximated_with_the_stated_error(make_recipe, target, form, steps) -> None:
    recipe = _recipe(make_recipe, target, form, steps)
    peak = recipe.step_lrs().max()
    # at ten steps half a step of shift is 5 % of a linear decay, 31 % of a 1-sqrt one
    options = ExportOptions(tolerance=0.35 if steps == 10 else 0.03)
    if not _expressible(target, form):
        with pytest.raises(
            NotRepresentableError, match=f"^{target} cannot express this recipe: its schedulers"
        ):
            export(recipe, target, options)
        options = ExportOptions(tolerance=options.tolerance, on_inexpressible="approximate")
    result = export(recipe, target, options)
    error = np.abs(result.step_lrs - recipe.step_lrs()).max()
    assert len(result.step_lrs) == steps
    assert result.max_abs_lr_error == error
    if _expressible(target, form):
        assert error <= options.tolerance * peak
        assert result.approximations == ()
    else:
        (told,) = result.approximations
        assert f"off by up to {error:.3g}" in told
        assert error <= 0.55 * peak
    assert sum(result.realised_shares.values()) == pytest.approx(1.0)


def test_the_nearest_path_beats_naive_ones(make_recipe) -> None:
    """1-sqrt in a trainer without it: better than the linear decay of the same length."""
    recipe = make_recipe("1-sqrt", 1000, sources=CLEAN_SOURCES)
    linear = make_recipe("linear", 1000, sources=CLEAN_SOURCES).step_lrs()
    found = export(recipe, "llm-foundry", ExportOptions(on_inexpressible="approximate"))
    assert found.max_abs_lr_error <= np.abs(linear - recipe.step_lrs()).max() + 1e-9


def test_megatron_refuses_a_run_that_only_warms_up(make_recipe) -> None:
    tokens = 1000 * BATCH_TOKENS
    recipe = make_recipe("linear", 1000, handover={"lr": 0.0})
    rise = recipe.stages[0].model_copy(update={"lr": warmup(tokens, 1e-3)})
    with pytest.raises(NotRepresentableError, match="no LR path"):
        export(recipe.model_copy(update={"stages": (rise,)}), "megatron")


def test_what_was_written_and_what_needs_doing(make_recipe, tmp_path) -> None:
    handover = make_recipe("three-stage", 1000).handover.model_dump(exclude_none=True)
    handover.pop("checkpoint", None)
    recipe = make_recipe(
        "three-stage",
        1000,
        sources=CLEAN_SOURCES | {"web": {}},
        handover=handover | {"run_id": "ab12"},
    )
    outcomes = export_all(recipe, tmp_path)
    table, remarks = export_table(outcomes), export_remarks(recipe, outcomes)
    assert {"torchtitan", "olmo-core"} <= set(table["target"]) < set(EXPORTERS)
    assert len(table) + sum("not written" in line for line in remarks) == len(EXPORTERS)
    assert [line for line in remarks if "not written" not in line] == [
        "The recipe names no folder for web: put their data into data/NAME where the trainer starts, in the format "
        "that NOTES.md names.",
        "Put the checkpoint of run ab12 into 'start' beside them.",
    ]
    for target in table["target"]:
        notes = (tmp_path / target / "NOTES.md").read_text(encoding="utf-8")
        assert all(note in notes for note in outcomes[target].notes)


@pytest.mark.parametrize("target", ["huggingface", "torchtitan"])
def test_a_warmup_of_one_step_is_kept_by_a_table_and_lost_by_a_scheduler(target: str) -> None:
    recipe = RECIPES["warm-up of one step, to a tenth"]
    assert export(recipe, target).max_abs_lr_error == 0.0
    with pytest.raises(NotRepresentableError, match="the warm-up lasts a single step"):
        export(recipe, target, ExportOptions(lr_rule="native"))
