"""What every exporter returns, what it may be told, and how its LR error is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from decaylaws.errors import InvalidValueError, NotRepresentableError
from decaylaws.files import write_text
from decaylaws.recipe import Recipe, Stage

LrRule = Literal["auto", "native", "exact"]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What the recipe does not say and a target needs.

    Attributes:
        lr_rule: ``native`` uses the target's own scheduler and refuses a path that it misses by more than
            ``tolerance``; ``exact`` ships the LR of every step; ``auto`` takes native where it is close
            enough, exact where the target allows it, and refuses otherwise.
        tolerance: largest LR error that a native scheduler may have, as a fraction of the peak LR.
        data_parallel_ranks: ranks among which the global batch is divided.
        local_batch_size: sequences of one rank in one forward pass.
        model: the target's own name of the model (a config function, a Hugging Face folder...).
        output: folder for the target's checkpoints.
    """

    lr_rule: LrRule = "auto"
    tolerance: float = 0.01
    data_parallel_ranks: int = 1
    local_batch_size: int = 1
    model: str | None = None
    output: str = "outputs"

    def __post_init__(self) -> None:
        if self.lr_rule not in ("auto", "native", "exact"):
            raise InvalidValueError("lr_rule", self.lr_rule, "must be auto, native or exact")
        if not 0.0 <= self.tolerance <= 1.0:
            raise InvalidValueError("tolerance", self.tolerance, "must be between 0 and 1")
        for name in ("data_parallel_ranks", "local_batch_size"):
            if getattr(self, name) < 1:
                raise InvalidValueError(name, getattr(self, name), "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Export:
    """Files for a target trainer, and what they will do there.

    Attributes:
        target: name of the target.
        target_version: version of the target that the exporter was checked against.
        files: text by relative path.
        step_lrs: LR that the target will use at every optimiser step, [num_steps].
        max_abs_lr_error: largest distance of ``step_lrs`` from the recipe's own LR at that step.
        realised_shares: expected share of each source in the tokens that the target trains on.
        notes: what a person must know before launching.
    """

    target: str
    target_version: str
    files: Mapping[str, str]
    step_lrs: Floats
    max_abs_lr_error: float
    realised_shares: Mapping[str, float]
    notes: tuple[str, ...]

    def write(self, directory: str | Path) -> list[Path]:
        """Write the files below ``directory``; returns their paths."""
        root = Path(directory)
        for name, text in self.files.items():
            write_text(root / name, text)
        return [root / name for name in self.files]


def single_stage(recipe: Recipe, target: str) -> Stage:
    """The one stage of a recipe, for targets that hold mixture, batch and sequence length fixed.

    Raises:
        NotRepresentableError: naming what changes between stages.
    """
    first = recipe.stages[0]
    gaps = []
    if any(stage.mixture != first.mixture for stage in recipe.stages):
        gaps.append("the mixture changes between stages (export each stage as its own run)")
    if any(stage.batch_tokens != first.batch_tokens for stage in recipe.stages):
        gaps.append("batch_tokens changes between stages")
    if any(stage.seq_len != first.seq_len for stage in recipe.stages):
        gaps.append("seq_len changes between stages")
    if any(stage.rope is not None for stage in recipe.stages):
        gaps.append("a stage sets RoPE parameters, which belong in the checkpoint's model config there")
    if gaps:
        raise NotRepresentableError(target, gaps)
    return first


def source_paths(recipe: Recipe) -> dict[str, str]:
    """Path of every source with a share above zero, sorted by name.

    A source without one is looked for in ``data/<name>``, below the folder in which the target is started;
    :func:`decaylaws.exporters.notes.open_ends` says so to the user.
    """
    used = sorted(name for name, share in recipe.shares().items() if share > 0)
    return {name: recipe.sources[name].path or f"data/{name}" for name in used}


def global_batch_sequences(stage: Stage, options: ExportOptions, target: str) -> int:
    """Sequences of a global batch.

    Raises:
        NotRepresentableError: the ranks and their local batches do not divide it.
    """
    sequences = stage.batch_tokens // stage.seq_len
    chunk = options.data_parallel_ranks * options.local_batch_size
    if sequences % chunk:
        raise NotRepresentableError(
            target,
            [
                f"{sequences} sequences per batch cannot be divided among {options.data_parallel_ranks} ranks"
                f" with {options.local_batch_size} sequences each"
            ],
        )
    return sequences


def max_abs_error(step_lrs: Floats, recipe: Recipe) -> float:
    """Largest absolute difference from the LR that the recipe asks for, over all steps."""
    return float(np.abs(step_lrs - recipe.step_lrs()).max())


def chosen_lrs(
    recipe: Recipe, native: Floats | None, options: ExportOptions, target: str, *, table: bool = True
) -> Floats:
    """LR of every step as it will be shipped: ``native`` itself, or the recipe's own for a table.

    Args:
        recipe: the recipe.
        native: the target's own LR at every step, [num_steps]; ``None`` if it has no such shape.
        options: the user's wish and tolerance.
        target: for the message.
        table: whether the target can be given the LR of every step.

    Raises:
        NotRepresentableError: neither will do.
    """
    if options.lr_rule == "exact":
        if not table:
            raise NotRepresentableError(target, ["it takes no LR table, so lr_rule='exact' is not possible"])
        return recipe.step_lrs()
    peak = float(recipe.step_lrs().max())
    error = np.inf if native is None else max_abs_error(native, recipe)
    if native is not None and error <= options.tolerance * peak:
        return native
    if options.lr_rule == "auto" and table:
        return recipe.step_lrs()
    if native is None:
        gap = f"its schedulers have no LR path of the form {describe_path(recipe)}"
    else:
        gap = (
            f"its scheduler misses the LR path by up to {error:.3g} ({error / peak:.2%} of the peak), "
            f"more than the tolerance of {options.tolerance:.2%}"
        )
    raise NotRepresentableError(target, [gap])


def describe_path(recipe: Recipe) -> str:
    """The LR path in short: ``linear 0 -> 0.001, constant 0.001 -> 0.001``."""
    segments = [segment for stage in recipe.stages for segment in stage.lr.segments]
    return ", ".join(f"{part.shape} {part.start_lr:g} -> {part.end_lr:g}" for part in segments)
