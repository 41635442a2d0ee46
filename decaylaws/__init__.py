"""decaylaws: plan the decay of a language model from small experiments.

The names below are the public interface. ``import decaylaws`` loads none of them: each is imported when it is first
used, so that a schedule does not cost the time that a fit needs::

    import decaylaws

    schedule = decaylaws.parse_schedule("Warmup(3e-4, 2B) -> Constant(3e-4, 98B) -> Linear(3e-5, 10B)")
    law = decaylaws.Chinchilla().fit(runs)

The submodules hold more, and each has a page in the reference: ``schedules``, ``mixtures``, ``runs``, ``laws``,
``search``, ``recipe``, ``exporters`` and ``study``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decaylaws.errors import DecaylawsError
    from decaylaws.exporters import check_config, export
    from decaylaws.laws.annealing import ReducibleMultiPowerLaw
    from decaylaws.laws.continued.joint import JointLaw
    from decaylaws.laws.continued.replay import ReplayLaw
    from decaylaws.laws.decay import DecayLaw
    from decaylaws.laws.downstream import TaskLadder
    from decaylaws.laws.mixing import regression
    from decaylaws.laws.scaling import Chinchilla, Skaling, StepLaw
    from decaylaws.laws.stability import rank_stability
    from decaylaws.mixtures import Mixture, MixtureSpace, SourceLimits
    from decaylaws.recipe import Recipe
    from decaylaws.recipe.doctor import examine
    from decaylaws.runs.config import RunConfig
    from decaylaws.runs.table import read_curves, read_runs
    from decaylaws.schedules import (
        BatchSchedule,
        Schedule,
        Segment,
        decay,
        lint,
        parse_schedule,
        published_schedule,
        warmup_stable_decay,
    )
    from decaylaws.search import Choices, Goal, Target, recommend, recommend_mixture
    from decaylaws.study import Study
    from decaylaws.tables import mix, predict_curve, read_loss_curves, read_run_table

__version__ = "0.1.0"

_NAMES_BY_MODULE = {
    "errors": ("DecaylawsError",),
    "exporters": ("check_config", "export"),
    "laws.annealing": ("ReducibleMultiPowerLaw",),
    "laws.continued.joint": ("JointLaw",),
    "laws.continued.replay": ("ReplayLaw",),
    "laws.decay": ("DecayLaw",),
    "laws.downstream": ("TaskLadder",),
    "laws.mixing": ("regression",),
    "laws.scaling": ("Chinchilla", "Skaling", "StepLaw"),
    "laws.stability": ("rank_stability",),
    "mixtures": ("Mixture", "MixtureSpace", "SourceLimits"),
    "recipe": ("Recipe",),
    "recipe.doctor": ("examine",),
    "runs.config": ("RunConfig",),
    "runs.table": ("read_curves", "read_runs"),
    "schedules": (
        "BatchSchedule",
        "Schedule",
        "Segment",
        "decay",
        "lint",
        "parse_schedule",
        "published_schedule",
        "warmup_stable_decay",
    ),
    "search": ("Choices", "Goal", "Target", "recommend", "recommend_mixture"),
    "study": ("Study",),
    "tables": ("mix", "predict_curve", "read_loss_curves", "read_run_table"),
}
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _NAMES_BY_MODULE.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'decaylaws' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
