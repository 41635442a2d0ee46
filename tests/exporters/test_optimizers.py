"""An export never leaves an optimiser out that the recipe asks for."""

from __future__ import annotations

import pytest

from decaylaws.errors import NotRepresentableError
from decaylaws.exporters import EXPORTERS, ExportOptions, export
from decaylaws.recipe import OptimizerSettings
from tests.exporters.recipes import RECIPES

OPTIONS = ExportOptions(model="model", seen_steps=10, seen_samples=10)


@pytest.mark.parametrize("target", sorted(EXPORTERS))
@pytest.mark.parametrize(
    ("optimizer", "named"),
    [
        (OptimizerSettings(name="muon"), "the optimiser is muon"),
        (OptimizerSettings(hidden_lr_factor=0.5), "0.5 times the LR"),
        (OptimizerSettings(hidden_weight_decay_factor=2.0), "2 times the weight decay"),
    ],
)
def test_an_optimiser_that_an_export_would_leave_out_is_refused_by_name(
    target: str, optimizer: OptimizerSettings, named: str
) -> None:
    recipe = next(iter(RECIPES.values())).model_copy(update={"optimizer": optimizer})
    with pytest.raises(NotRepresentableError, match=named):
        export(recipe, target, OPTIONS)


def test_muon_has_settings_of_its_own() -> None:
    assert OptimizerSettings(name="muon").muon is not None
    with pytest.raises(ValueError, match="muon needs name: muon"):
        OptimizerSettings(muon={})
