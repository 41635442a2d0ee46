"""What every exporter returns, what it may be told, and what all of them work out first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from decaylaws.errors import InvalidValueError, NotRepresentableError
from decaylaws.exporters.notes import mixing_note
from decaylaws.io.files import write_text
from decaylaws.mixtures import Mixture
from decaylaws.recipe import Recipe, Stage

NOTES_FILE = "NOTES.md"
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
        on_inexpressible: ``refuse`` raises where the target has no means for an LR path or for a mixture that
            changes; ``approximate`` takes the nearest path that it has, and the mean mixture, and says in
            ``Export.approximations`` how far off they are.
        data_parallel_ranks: ranks among which the global batch is divided.
        local_batch_size: sequences of one rank in one forward pass.
        model: the target's own name of the model (a config function, a Hugging Face folder...).
        output: folder for the target's checkpoints.
    """

    lr_rule: LrRule = "auto"
    tolerance: float = 0.01
    on_inexpressible: Literal["refuse", "approximate"] = "refuse"
    data_parallel_ranks: int = 1
    local_batch_size: int = 1
    model: str | None = None
    output: str = "outputs"

    def __post_init__(self) -> None:
        if self.lr_rule not in ("auto", "native", "exact"):
            raise InvalidValueError("lr_rule", self.lr_rule, "must be auto, native or exact")
        if self.on_inexpressible not in ("refuse", "approximate"):
            raise InvalidValueError(
                "on_inexpressible", self.on_inexpressible, "must be refuse or approximate"
            )
        if not 0.0 <= self.tolerance <= 1.0:
            raise InvalidValueError("tolerance", self.tolerance, "must be between 0 and 1")
        for name in ("data_parallel_ranks", "local_batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InvalidValueError(name, value, "must be a whole number of at least 1")


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
        approximations: what differs from the recipe because the target cannot express it, and by how much.
        notes: what a person must know before launching.
    """

    target: str
    target_version: str
    files: Mapping[str, str]
    step_lrs: Floats
    max_abs_lr_error: float
    realised_shares: Mapping[str, float]
    approximations: tuple[str, ...]
    notes: tuple[str, ...]

    def write(self, directory: str | Path) -> list[Path]:
        """Write the files below ``directory``, and what to know of them as ``NOTES.md``; returns their paths."""
        root = Path(directory)
        texts = {**self.files, NOTES_FILE: self.notes_text()}
        for name, text in texts.items():
            write_text(root / name, text)
        return [root / name for name in texts]

    def notes_text(self) -> str:
        """What a person must know before launching, as Markdown."""
        head = (
            f"# Before launching with {self.target}\n\n"
            f"Written for {self.target} {self.target_version}. The LR that it will use is at most "
            f"{self.max_abs_lr_error:.3g} off the recipe's at any step.\n"
        )
        told = [*(f"Approximated: {text}" for text in self.approximations), *self.notes]
        return head + "\n" + "".join(f"- {text}\n" for text in told)


@dataclass(frozen=True)
class Job:
    """A recipe on its way to one target: what every exporter needs, checked and at hand.

    Attributes:
        recipe: the recipe.
        options: the user's wishes.
        target: name of the target.
        target_version: version that the exporter was checked against.
        stage: the stage whose mixture, batch and sequence length the whole run has.
        sequences: sequences of a global batch.
        paths: path of every source with a share above zero, sorted by name.
        approximations: what was given up so far.
    """

    recipe: Recipe
    options: ExportOptions
    target: str
    target_version: str
    stage: Stage
    sequences: int
    paths: Mapping[str, str]
    approximations: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        options: ExportOptions | None,
        target: str,
        target_version: str,
        *,
        mixture_stages: bool = False,
    ) -> Job:
        """Check what one run of any target holds fixed.

        Args:
            recipe: the recipe.
            options: the defaults if left out.
            target: name of the target.
            target_version: version that the exporter was checked against.
            mixture_stages: whether the target can change the mixture within a run.

        Raises:
            NotRepresentableError: naming what changes between stages, or that the batch cannot be divided.
        """
        options = options or ExportOptions()
        lost = () if mixture_stages else _mixture_changes(recipe)
        _refuse_changes(recipe, target, options, lost)
        first = recipe.stages[0]
        return cls(
            recipe,
            options,
            target,
            target_version,
            stage=first.model_copy(update={"mixture": Mixture(recipe.shares())}) if lost else first,
            sequences=_global_batch_sequences(first, options, target),
            paths=_source_paths(recipe),
            approximations=lost,
        )

    @property
    def shares(self) -> dict[str, float]:
        """Share of each source that has one, sorted by name: those of ``stage``, for the whole run."""
        return {name: self.stage.mixture.share(name) for name in self.paths}

    @property
    def accumulation(self) -> int:
        """Forward passes of one rank per optimiser step."""
        return self.sequences // (self.options.data_parallel_ranks * self.options.local_batch_size)

    def refuse(self, gap: str) -> NotRepresentableError:
        """The error that names ``gap``."""
        return NotRepresentableError(self.target, [gap])

    def export(
        self,
        files: Mapping[str, str],
        step_lrs: Floats,
        notes: tuple[str, ...],
        *,
        realised_shares: Mapping[str, float] | None = None,
        approximations: tuple[str, ...] = (),
    ) -> Export:
        """The result; shares are the recipe's and sources are drawn at random unless said otherwise."""
        drawn = mixing_note(self.recipe) if realised_shares is None else ()
        return Export(
            target=self.target,
            target_version=self.target_version,
            files=files,
            step_lrs=step_lrs,
            max_abs_lr_error=max_abs_error(step_lrs, self.recipe),
            realised_shares=self.shares if realised_shares is None else realised_shares,
            approximations=(*self.approximations, *approximations),
            notes=(*notes, *drawn),
        )


def _mixture_changes(recipe: Recipe) -> tuple[str, ...]:
    """What is lost if the mean mixture is used throughout; nothing where the mixture never changes."""
    mean = recipe.shares()
    if all(stage.mixture == recipe.stages[0].mixture for stage in recipe.stages):
        return ()
    worst = max(abs(stage.mixture.share(name) - mean[name]) for stage in recipe.stages for name in mean)
    return (
        f"The mixture stays at its mean over all stages; within a stage a share is off by up to {worst:.1%}.",
    )


def _refuse_changes(recipe: Recipe, target: str, options: ExportOptions, lost: tuple[str, ...]) -> None:
    first = recipe.stages[0]
    gaps = []
    if lost and options.on_inexpressible == "refuse":
        gaps.append("the mixture changes between stages (export each stage as its own run)")
    if any(stage.batch_tokens != first.batch_tokens for stage in recipe.stages):
        gaps.append("batch_tokens changes between stages")
    if any(stage.seq_len != first.seq_len for stage in recipe.stages):
        gaps.append("seq_len changes between stages")
    if any(stage.rope is not None for stage in recipe.stages):
        gaps.append("a stage sets RoPE parameters, which belong in the checkpoint's model config there")
    if gaps:
        raise NotRepresentableError(target, gaps)


def _source_paths(recipe: Recipe) -> dict[str, str]:
    """A source without a path is looked for in ``data/<name>``, below the folder in which the target starts.

    :func:`decaylaws.exporters.notes.open_ends` says so to the user.
    """
    used = sorted(name for name, share in recipe.shares().items() if share > 0)
    return {name: recipe.sources[name].path or f"data/{name}" for name in used}


def _global_batch_sequences(stage: Stage, options: ExportOptions, target: str) -> int:
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
