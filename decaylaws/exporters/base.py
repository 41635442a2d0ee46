"""What every exporter returns, what it may be told, and what all of them work out first."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from decaylaws.errors import InvalidValueError, NotRepresentableError
from decaylaws.exporters.notes import mixing_note
from decaylaws.io.files import write_text
from decaylaws.io.values import AS_JSON
from decaylaws.recipe import Recipe, Stage

NOTES_FILE = "NOTES.md"
LrRule = Literal["auto", "native", "exact"]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PlannedData:
    """The very sequences of a run, in raw arrays of tokens: for a target whose loader can be given them.

    Attributes:
        shards: raw array of each source, in the order of the numbers in ``order_file``.
        dtype: of a token, as numpy writes it (``<u2``).
        order_file: name of a ``.npy`` beside the config, ``[sequences, 2]``: number of the source and first token.
        heldout: raw array of held-out tokens by domain; the run is evaluated on their first ``heldout_tokens``.
        heldout_tokens: tokens of each domain that an evaluation reads.
        evaluations: evaluations after the one at the start, evenly spaced; the last one is at the end.
    """

    shards: Mapping[str, str]
    dtype: str
    order_file: str
    heldout: Mapping[str, str]
    heldout_tokens: int
    evaluations: int


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What the recipe does not say and a target needs.

    Attributes:
        lr_rule: ``native`` uses the target's own scheduler and refuses a path that it leaves by more than
            ``tolerance``; ``exact`` ships the LR of every step; ``auto`` takes native where it is close
            enough, exact where the target allows it, and refuses otherwise.
        tolerance: how far a native scheduler may be off the LR path, as a fraction of the peak LR. A target that
            also takes the LR of every step is compared with the mean over the step; one that has its scheduler
            only, with what the path is within the step, since it reads its schedule at one end of each.
        on_inexpressible: ``refuse`` raises where the target has no means for an LR path or for a mixture that
            changes; ``approximate`` takes the nearest path that it has, and the mean mixture, and says in
            ``Export.approximations`` how far off they are.
        data_parallel_ranks: ranks among which the global batch is divided.
        local_batch_size: sequences of one rank in one forward pass.
        model: the target's own name of the model (a config function, a Hugging Face folder...).
        output: folder for the target's checkpoints.
        seen_steps: optimiser steps that the checkpoint's own counter stands at; read from the checkpoint where it
            lies here, else worked out from the tokens at the hand-over.
        seen_samples: sequences that it counts, likewise.
        run_name: name of the run in the target's own records; the target's default without it.
        tracker: tracker that the target is told to log to, where its configuration says so (Hugging Face); ``none``
            leaves the target's own choice.
        project: name under which a tracker gathers the runs.
        run_id: id by which a study knows the run, for what the target's script writes down.
        config_folder: folder of config and tokenizer of a run from random weights, for the target that builds the model
            from one (Hugging Face); ``start`` without it.
        saves: how many checkpoints a run writes; the last one is at its end.
        planned_data: the sequences that the run must read, for the one target that can be told them (Hugging Face).
    """

    lr_rule: LrRule = "auto"
    tolerance: float = 0.01
    on_inexpressible: Literal["refuse", "approximate"] = "refuse"
    data_parallel_ranks: int = 1
    local_batch_size: int = 1
    model: str | None = None
    output: str = "outputs"
    seen_steps: int | None = None
    seen_samples: int | None = None
    run_name: str | None = None
    tracker: Literal["none", "trackio", "wandb"] = "none"
    project: str | None = None
    run_id: str | None = None
    config_folder: str | None = None
    saves: int = 10
    planned_data: PlannedData | None = None

    def __post_init__(self) -> None:
        if self.lr_rule not in ("auto", "native", "exact"):
            raise InvalidValueError("lr_rule", self.lr_rule, "must be auto, native or exact")
        if self.on_inexpressible not in ("refuse", "approximate"):
            raise InvalidValueError(
                "on_inexpressible", self.on_inexpressible, "must be refuse or approximate"
            )
        if not 0.0 <= self.tolerance <= 1.0:
            raise InvalidValueError("tolerance", self.tolerance, "must be between 0 and 1")
        for name in ("data_parallel_ranks", "local_batch_size", "saves"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InvalidValueError(name, value, "must be a whole number of at least 1")
        for name in ("seen_steps", "seen_samples"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 0):
                raise InvalidValueError(name, value, "must be a whole number, zero or above")


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
        assumptions: what was taken for granted of the checkpoint, and what follows if it is not so.
        notes: what a person must know before launching.
        restart: what to do when the run was interrupted, a sentence or more.
        last_checkpoint: where the target leaves its last checkpoint, with the optimiser's state.
        last_step: optimiser steps that the target's own counter stands at then.
        last_sample: sequences that it stands at then.
        launch: a shell command that starts the run, ``{folder}`` standing for the folder of the files.
    """

    target: str
    target_version: str
    files: Mapping[str, str] = field(metadata={AS_JSON: sorted})
    step_lrs: Floats = field(metadata={AS_JSON: None})
    max_abs_lr_error: float
    realised_shares: Mapping[str, float]
    approximations: tuple[str, ...]
    assumptions: tuple[str, ...]
    notes: tuple[str, ...]
    restart: str
    last_checkpoint: str
    last_step: int
    last_sample: int
    launch: str

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
            f"{self.max_abs_lr_error:.3g} off the recipe's mean over a step.\n"
        )
        told = [
            *(f"Approximated: {text}" for text in self.approximations),
            *(f"Assumed: {text}" for text in self.assumptions),
            *self.notes,
        ]
        listed = "".join(f"- {text}\n" for text in told)
        return f"{head}\n{listed}\n## To restart a run that was interrupted\n\n{self.restart}\n"


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
            notes=(*notes, *drawn),
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


def max_abs_error(step_lrs: Floats, recipe: Recipe) -> float:
    """Largest absolute difference from the LR that the recipe asks for, over all steps."""
    return float(np.abs(step_lrs - recipe.step_lrs()).max())


def errors_off_path(step_lrs: Floats, recipe: Recipe) -> Floats:
    """Distance of each step's LR from all LRs that the recipe's path has within that step, over the steps of both.

    Trainers read their schedule at the start or at the end of a step, the recipe takes the mean over it. An LR
    that the path has somewhere within the step is exact by the trainer's own reading of it.
    """
    ranges = [stage.lr.step_ranges(stage.batch_tokens) for stage in recipe.stages]
    lowest, highest = (np.concatenate(sides)[: len(step_lrs)] for sides in zip(*ranges))
    lrs = step_lrs[: len(lowest)]
    return np.maximum(lowest - lrs, lrs - highest).clip(min=0.0)


def max_error_off_path(step_lrs: Floats, recipe: Recipe) -> float:
    """The largest of :func:`errors_off_path`."""
    return float(errors_off_path(step_lrs, recipe).max())
