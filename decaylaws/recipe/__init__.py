"""The recommended run, as a value and as a file.

A :class:`Recipe` holds everything that a big run needs to repeat what was recommended: LR path, mixture,
batch size and sequence length by stage, the checkpoint it starts from with its hand-over LR, the optimiser
and what happens to its state, caps on repetition, and what was predicted, under which guards, from which
evidence. Exporters and the launcher read nothing else::

    from decaylaws.recipe import Recipe

    recipe = Recipe.load("recipe.yaml")
    recipe.step_lrs()            # LR of every optimiser step, whatever trains it
    recipe.save("recipe.json")   # same content, same bytes whenever it is saved

A recipe is checked when it is made: an invalid one cannot exist.
"""

from decaylaws.recipe.model import (
    Evidence,
    Guard,
    HandOver,
    HorizonRecord,
    LawRecord,
    MuonSettings,
    OptimizerSettings,
    Prediction,
    Provenance,
    Recipe,
    Source,
    Stage,
)
from decaylaws.recipe.rope import RopeSettings
from decaylaws.recipe.show import diff_recipes, show_recipe

__all__ = [
    "Evidence",
    "Guard",
    "HandOver",
    "HorizonRecord",
    "LawRecord",
    "MuonSettings",
    "OptimizerSettings",
    "Prediction",
    "Provenance",
    "Recipe",
    "RopeSettings",
    "Source",
    "Stage",
    "diff_recipes",
    "show_recipe",
]
