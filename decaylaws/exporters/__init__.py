"""A recipe as the configuration of another trainer, with the LR that this trainer will really use.

::

    from decaylaws.exporters import ExportOptions, export

    result = export(recipe, "torchtitan", ExportOptions(data_parallel_ranks=64))
    result.max_abs_lr_error    # against the recipe, over all steps
    result.write("export/")

Each exporter replays the target's own LR rule step by step. A recipe that the target cannot express is
refused by name (:class:`~decaylaws.errors.NotRepresentableError`), or approximated with the error stated if the
options ask for it. :func:`check_config` goes the other way: it reads a configuration that exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from decaylaws.errors import InvalidValueError, NotRepresentableError
from decaylaws.exporters.base import Export, ExportOptions
from decaylaws.exporters.check import ConfigCheck, check_config
from decaylaws.exporters.huggingface import export_huggingface
from decaylaws.exporters.levanter import export_levanter
from decaylaws.exporters.llm_foundry import export_llm_foundry
from decaylaws.exporters.megatron import export_megatron
from decaylaws.exporters.megatron_bridge import export_megatron_bridge
from decaylaws.exporters.nanotron import export_nanotron
from decaylaws.exporters.notes import to_do
from decaylaws.exporters.olmo_core import export_olmo_core
from decaylaws.exporters.torchtitan import export_torchtitan
from decaylaws.recipe import Recipe

__all__ = [
    "EXPORTERS",
    "ConfigCheck",
    "Export",
    "ExportOptions",
    "check_config",
    "export",
    "export_all",
    "export_remarks",
    "export_table",
]

Exporter = Callable[[Recipe, ExportOptions | None], Export]
EXPORTERS: Mapping[str, Exporter] = MappingProxyType(
    {
        "torchtitan": export_torchtitan,
        "huggingface": export_huggingface,
        "olmo-core": export_olmo_core,
        "megatron": export_megatron,
        "megatron-bridge": export_megatron_bridge,
        "nanotron": export_nanotron,
        "llm-foundry": export_llm_foundry,
        "levanter": export_levanter,
    }
)


def export(recipe: Recipe, target: str, options: ExportOptions | None = None) -> Export:
    """Export ``recipe`` to ``target``, one of :data:`EXPORTERS`.

    Args:
        recipe: the recipe to write.
        target: name of the trainer, one of :data:`EXPORTERS`.
        options: ranks, LR rule and the like; defaults if ``None``.

    Raises:
        InvalidValueError: there is no such target.
        NotRepresentableError: the target cannot express the recipe.
    """
    if target not in EXPORTERS:
        raise InvalidValueError("target", target, f"must be one of {', '.join(EXPORTERS)}")
    return EXPORTERS[target](recipe, options)


def export_all(
    recipe: Recipe,
    directory: str | Path,
    targets: Sequence[str] | None = None,
    options: ExportOptions | None = None,
) -> dict[str, Export | NotRepresentableError]:
    """Write the recipe for several targets, a folder each.

    Args:
        recipe: the recipe.
        directory: the folders of the targets go here.
        targets: names of exporters; ``None`` writes for all that can express the recipe.
        options: for every target.

    Returns:
        By target, the export that was written, or the error that says why none was.

    Raises:
        NotRepresentableError: a target that was asked for by name cannot express the recipe.
    """
    outcomes: dict[str, Export | NotRepresentableError] = {}
    for target in targets or sorted(EXPORTERS):
        try:
            exported = export(recipe, target, options)
        except NotRepresentableError as error:
            if targets:
                raise
            outcomes[target] = error
            continue
        exported.write(Path(directory) / target)
        outcomes[target] = exported
    return outcomes


def export_table(outcomes: Mapping[str, Export | NotRepresentableError]) -> pd.DataFrame:
    """What :func:`export_all` wrote.

    Returns:
        One row per target that was written: ``target``, ``version``, ``files``, ``largest LR error`` with its
        share of the peak LR.
    """
    written = [exported for exported in outcomes.values() if isinstance(exported, Export)]
    return pd.DataFrame(
        [
            {
                "target": exported.target,
                "version": exported.target_version,
                "files": ", ".join(sorted(exported.files)),
                "largest LR error": f"{error:.1e} ({error / (exported.step_lrs.max() or 1.0):.2%} of the peak)",
            }
            for exported in written
            for error in [exported.max_abs_lr_error]
        ]
    )


def export_remarks(recipe: Recipe, outcomes: Mapping[str, Export | NotRepresentableError]) -> list[str]:
    """What needs a person after :func:`export_all`: gaps, approximations, assumptions, and what is to be filled in."""
    lines = []
    for target, outcome in outcomes.items():
        if isinstance(outcome, Export):
            lines += [f"{target}, approximated: {told}" for told in outcome.approximations]
            lines += [f"{target}, assumed: {told}" for told in outcome.assumptions]
        else:
            lines.append(f"{target}: not written. {outcome}")
    return [*lines, *(to_do(recipe) if any(isinstance(o, Export) for o in outcomes.values()) else ())]
