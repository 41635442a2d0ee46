"""What an exporter may be told and what it returns, and how far the LRs of a target are from a recipe's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from decaylaws.errors import InvalidValueError
from decaylaws.io.files import write_text
from decaylaws.io.values import AS_JSON
from decaylaws.recipe import Recipe

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
