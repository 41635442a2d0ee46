"""``Job``: a recipe on its way to one target, with what every exporter checks and computes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from decaylaws.errors import NotRepresentableError
from decaylaws.exporters.base import Export, ExportOptions, Floats, max_abs_error
from decaylaws.exporters.notes import last_steps, mixing_note
from decaylaws.recipe import Recipe, Stage


@dataclass(frozen=True)
class Counters:
    """Where a target's own counters stand.

    Attributes:
        steps: optimiser steps.
        samples: sequences.
    """

    steps: int = 0
    samples: int = 0


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
    """

    recipe: Recipe
    options: ExportOptions
    target: str
    target_version: str
    stage: Stage
    sequences: int
    paths: Mapping[str, str]

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        options: ExportOptions,
        target: str,
        target_version: str,
        *,
        mixture_stages: bool = False,
        optimizers: Collection[str] = ("adamw",),
    ) -> Job:
        """Check what one run of any target holds fixed; :mod:`decaylaws.exporters.chain` splits recipes into such runs.

        Args:
            recipe: the recipe.
            options: the user's wishes.
            target: name of the target.
            target_version: version that the exporter was checked against.
            mixture_stages: whether the target can change the mixture within a run.
            optimizers: names of the optimisers that the exporter writes.

        Raises:
            NotRepresentableError: naming what changes between stages, or that the batch cannot be divided.
        """
        _refuse_changes(recipe, target, mixture_stages)
        _refuse_optimizer(recipe, target, optimizers)
        first = recipe.stages[0]
        return cls(
            recipe,
            options,
            target,
            target_version,
            stage=first,
            sequences=_global_batch_sequences(first, options, target),
            paths=_source_paths(recipe),
        )

    @property
    def shares(self) -> dict[str, float]:
        """Share of each source that has one, sorted by name, in the tokens of the whole run."""
        if all(stage.mixture == self.stage.mixture for stage in self.recipe.stages):
            return {name: self.stage.mixture.share(name) for name in self.paths}
        mean = self.recipe.shares()
        return {name: mean[name] for name in self.paths}

    @property
    def accumulation(self) -> int:
        """Forward passes of one rank per optimiser step."""
        return self.sequences // (self.options.data_parallel_ranks * self.options.local_batch_size)

    @property
    def save_interval(self) -> int:
        """Steps between two checkpoints."""
        return max(1, self.recipe.num_steps // self.options.saves)

    @property
    def torchrun(self) -> str:
        """The start of a command that launches a process for each rank."""
        return f"torchrun --nproc-per-node={self.options.data_parallel_ranks}"

    def rope_theta(self) -> float | None:
        """Base of the rotary embedding that the run sets; ``None`` where it leaves the checkpoint's.

        Raises:
            NotRepresentableError: the recipe does more than change the base.
        """
        rope = self.stage.rope
        if rope is not None and rope.method not in ("none", "abf"):
            raise self.refuse(
                f"stage {self.stage.name!r} sets RoPE ({rope.describe()}); only a change of its base can be written "
                "there"
            )
        return None if rope is None else rope.theta

    def refuse(self, gap: str) -> NotRepresentableError:
        """The error that names ``gap``."""
        return NotRepresentableError(self.target, [gap])

    def export(
        self,
        files: Mapping[str, str],
        step_lrs: Floats,
        notes: tuple[str, ...],
        *,
        restart: str,
        last_checkpoint: str,
        launch: str,
        realised_shares: Mapping[str, float] | None = None,
        approximations: tuple[str, ...] = (),
        assumptions: tuple[str, ...] = (),
        counts_from: Counters = Counters(),
    ) -> Export:
        """The result; shares are the recipe's and sources are drawn at random unless said otherwise.

        ``counts_from`` is where the target's own counters begin: zero, unless it takes over the checkpoint's.

        Args:
            files: text of every file by its name.
            step_lrs: LR of every step as the target computes it [steps].
            notes: sentences for ``NOTES.md``.
            restart: how a stopped run is continued.
            last_checkpoint: where the last checkpoint lies.
            launch: a shell command, see :class:`Export`.
            realised_shares: shares that the target draws; the recipe's if ``None``.
            approximations: sentences about what the target cannot express exactly.
            assumptions: sentences about what the export had to assume.
            counts_from: where the target's counters begin: zero, unless it takes over the checkpoint's.
        """
        drawn = mixing_note(self.recipe) if realised_shares is None else ()
        return Export(
            target=self.target,
            target_version=self.target_version,
            files=files,
            step_lrs=step_lrs,
            max_abs_lr_error=max_abs_error(step_lrs, self.recipe),
            realised_shares=self.shares if realised_shares is None else realised_shares,
            approximations=approximations,
            assumptions=assumptions,
            notes=(*notes, *drawn, *last_steps(self.recipe)),
            restart=restart,
            last_checkpoint=last_checkpoint,
            last_step=counts_from.steps + self.recipe.num_steps,
            last_sample=counts_from.samples + self.recipe.num_steps * self.sequences,
            launch=launch,
        )


def _refuse_optimizer(recipe: Recipe, target: str, written: Collection[str]) -> None:
    """Refuse an optimiser, or an LR of its own for the hidden matrices, that the exporter would leave out."""
    optimizer, gaps = recipe.optimizer, []
    if optimizer.name not in written:
        gaps.append(
            f"the optimiser is {optimizer.name}, and its export writes {' or '.join(written)}; set optimizer.name in "
            "the recipe, or train with 'decaylaws launch'"
        )
    factors = (optimizer.hidden_lr_factor or 1.0, optimizer.hidden_weight_decay_factor or 1.0)
    if factors != (1.0, 1.0):
        gaps.append(
            f"the hidden matrices have {factors[0]:g} times the LR and {factors[1]:g} times the weight decay of the "
            "rest, and its export writes one LR for all; train with 'decaylaws launch'"
        )
    if gaps:
        raise NotRepresentableError(target, gaps)


def _refuse_changes(recipe: Recipe, target: str, mixture_stages: bool) -> None:
    first = recipe.stages[0]
    gaps = []
    if not mixture_stages and any(stage.mixture != first.mixture for stage in recipe.stages):
        gaps.append("the mixture changes between stages")
    if any(stage.batch_tokens != first.batch_tokens for stage in recipe.stages):
        gaps.append("batch_tokens changes between stages")
    if any(stage.seq_len != first.seq_len for stage in recipe.stages):
        gaps.append("seq_len changes between stages")
    if any(stage.rope != first.rope for stage in recipe.stages):
        gaps.append("RoPE changes between stages")
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
