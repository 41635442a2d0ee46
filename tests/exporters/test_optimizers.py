"""An export never leaves an optimiser out that the recipe asks for."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from decaylaws.errors import NotRepresentableError
from decaylaws.exporters import EXPORTERS, ExportOptions, export
from decaylaws.recipe import OptimizerSettings
from tests.exporters.recipes import RECIPES
from tests.exporters.trainers import import_trainer

OPTIONS = ExportOptions(seen_steps=10, seen_samples=10)


@pytest.mark.parametrize("target", sorted(EXPORTERS))
@pytest.mark.parametrize(
    ("optimizer", "named"),
    [
        (OptimizerSettings(name="muon"), "the optimiser is muon"),
        (OptimizerSettings(name="as_checkpoint"), "the optimiser is as_checkpoint"),
        (OptimizerSettings(hidden_lr_factor=0.5), "0.5 times the LR"),
        (OptimizerSettings(hidden_weight_decay_factor=2.0), "2 times the weight decay"),
    ],
)
def test_an_optimiser_that_an_export_would_leave_out_is_refused_by_name(
    target: str, optimizer: OptimizerSettings, named: str
) -> None:
    recipe = next(iter(RECIPES.values())).model_copy(update={"optimizer": optimizer})
    if (
        target == "huggingface" and optimizer.name == "as_checkpoint"
    ):  # which writes it, where there is a state
        fresh = recipe.handover.model_copy(update={"optimizer_state": "fresh"})
        recipe = recipe.model_copy(update={"handover": fresh})
    with pytest.raises(NotRepresentableError, match=named):
        export(recipe, target, OPTIONS)


def test_muon_has_settings_of_its_own() -> None:
    assert OptimizerSettings(name="muon").muon is not None
    with pytest.raises(ValueError, match="muon needs name: muon"):
        OptimizerSettings(muon={})


def test_the_groups_of_the_checkpoint_keep_their_settings_and_their_lr_is_scaled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exported script's own optimiser and scheduler, step by step."""
    import_trainer("datasets")
    recipe = next(recipe for recipe in RECIPES.values() if recipe.handover.optimizer_state == "load")
    recipe = recipe.model_copy(update={"optimizer": OptimizerSettings(name="as_checkpoint")})
    result = export(recipe, "huggingface")
    assert result.step_lrs == pytest.approx(recipe.step_lrs())
    result.write(tmp_path)
    script = next(tmp_path.rglob("train.py"))
    spec = importlib.util.spec_from_file_location("exported", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def groups() -> list[dict[str, Any]]:
        return [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in (1e-3, 5e-5)]

    saved = torch.optim.AdamW(groups(), betas=(0.8, 0.9), weight_decay=0.3)
    for group in saved.param_groups:
        group["initial_lr"] = 7.0  # of the schedule that the checkpoint had
    torch.save(saved.state_dict(), tmp_path / "optimizer.pt")

    monkeypatch.setattr(transformers.Trainer, "create_optimizer", lambda self: torch.optim.AdamW(groups()))
    trainer = object.__new__(module.RecipeTrainer)
    trainer.optimizer_state, trainer.lr_scheduler = str(tmp_path / "optimizer.pt"), None
    optimizer = trainer.create_optimizer()
    scheduler = trainer.create_scheduler(len(result.step_lrs), optimizer)
    for lr in result.step_lrs:
        found = [group["lr"] for group in optimizer.param_groups]
        assert found == pytest.approx([each * lr / recipe.handover.lr for each in (1e-3, 5e-5)])
        optimizer.step()
        scheduler.step()
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.9)}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.3}
