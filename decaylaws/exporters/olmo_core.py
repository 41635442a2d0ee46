"""OLMo-core 3.0.0: the source mixture as YAML, scheduler and trainer settings as a Python module."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from decaylaws.exporters.base import Export, ExportOptions, Floats
from decaylaws.exporters.chain import export_runs
from decaylaws.exporters.job import Job
from decaylaws.exporters.notes import open_ends, start_checkpoint, state_notes
from decaylaws.exporters.piecewise import knots
from decaylaws.exporters.templates import render
from decaylaws.recipe import Recipe
from decaylaws.recipe.files import to_yaml

TARGET, VERSION = "olmo-core", "3.0.0"
AUTO_TOLERANCE = 1e-3


def export_olmo_core(recipe: Recipe, options: ExportOptions | None = None) -> Export:
    """The recipe as ``source_mixture.yaml`` and ``midtrain_olmo_core.py``.

    ``ComposableScheduler`` joins straight lines over tokens, so any path can be told to within a tolerance.
    The trainer counts a step's tokens before it asks for the LR of the step; the lines run through the
    recipe's LR at these counts.

    Args:
        recipe: sources with paths to raw token arrays.
        options: ``lr_rule`` ``auto`` keeps within 0.1 % of the peak LR (or ``tolerance``, if smaller),
            ``native`` within ``tolerance``, ``exact`` draws as many lines as the path needs.

    Raises:
        NotRepresentableError: what one run of OLMo-core cannot hold.
    """
    return export_runs(recipe, options, _export_run)


def _export_run(recipe: Recipe, options: ExportOptions) -> Export:
    job = Job.of(recipe, options, TARGET, VERSION)
    batch_tokens = job.stage.batch_tokens
    stages = _stages(recipe, batch_tokens, _tolerance(job.options))
    step_lrs = composable_lrs(stages, batch_tokens, recipe.num_steps)
    text = render(
        "olmo_core.py.j2",
        name=recipe.name,
        version=VERSION,
        stages=stages,
        tokens=recipe.num_steps * batch_tokens,
        batch_tokens=batch_tokens,
        seq_len=job.stage.seq_len,
        seed=recipe.seed,
        optimizer=recipe.optimizer,
        lr=float(step_lrs[0]),
        checkpoint=start_checkpoint(recipe),
        load_optimizer=recipe.handover.optimizer_state == "load",
        output=options.output,
        rope_theta=job.rope_theta(),
    )
    mixture = {"sources": [_source(job, name, path) for name, path in job.paths.items()]}
    return job.export(
        {"source_mixture.yaml": to_yaml(mixture), "midtrain_olmo_core.py": text},
        step_lrs,
        (
            f"Straight lines in the LR path: {len(stages)}; they do not stretch with the trainer's duration.",
            "Sources are headerless arrays of token ids (uint16 or uint32), not files of numpy.save.",
            "Small runs are rounded up to whole batches, which can shift their shares by a few points.",
            *open_ends(recipe, "token arrays (*.npy)"),
            *state_notes(recipe, "The trainer's own state is left behind: its step count would end the run."),
        ),
        restart="Launch again with the same settings: the trainer looks for a checkpoint of the run itself in "
        "save_folder first, with its whole state, and passes load_path over where it finds one.",
        last_checkpoint=f"{options.output}/step{recipe.num_steps}",
        launch="PYTHONPATH={folder}${PYTHONPATH:+:$PYTHONPATH} "
        f'{job.torchrun} "${{OLMO_CORE_SCRIPT:?set it to your script that uses midtrain_olmo_core}}"',
        # whole sequences are dealt out by share, none are drawn
        realised_shares=job.shares,
    )


def _tolerance(options: ExportOptions) -> float:
    if options.lr_rule == "exact":
        return 1e-12
    return options.tolerance if options.lr_rule == "native" else min(options.tolerance, AUTO_TOLERANCE)


def _stages(recipe: Recipe, batch_tokens: int, tolerance: float) -> list[dict[str, float]]:
    """Straight lines through the recipe's LR at 1, 2, ... batches; the first begins half a step earlier."""
    lrs = recipe.step_lrs()
    before = max(0.0, 2 * lrs[0] - lrs[1]) if len(lrs) > 1 else lrs[0]
    values = np.concatenate([[before], lrs])
    corners = knots(values, tolerance * float(lrs.max()))
    return [
        {
            "duration": (last - first) * batch_tokens,
            "start_lr": float(values[first]),
            "end_lr": float(values[last]),
        }
        for first, last in pairwise(corners)
    ]


def composable_lrs(stages: list[dict[str, float]], batch_tokens: float, num_steps: int) -> Floats:
    """LR of ``ComposableScheduler`` with linear stages at 1, 2, ... ``num_steps`` batches, [num_steps].

    Args:
        stages: ``duration`` in tokens, ``start_lr`` and ``end_lr`` of each stage.
        batch_tokens: tokens of one step.
        num_steps: steps of the run.
    """
    ends = np.cumsum([0.0, *(stage["duration"] for stage in stages)])
    tokens = np.arange(1, num_steps + 1) * float(batch_tokens)
    number = np.searchsorted(ends, tokens, side="right") - 1
    # whatever comes after the last stage stays at its end
    last = stages[-1]["end_lr"]
    starts = np.array([*(stage["start_lr"] for stage in stages), last])
    rises = np.array([*(stage["end_lr"] - stage["start_lr"] for stage in stages), 0.0])
    durations = np.array([*(stage["duration"] for stage in stages), 1.0])
    return starts[number] + rises[number] * (tokens - ends[number]) / durations[number]


def _source(job: Job, name: str, path: str) -> dict[str, object]:
    source = job.recipe.sources[name]
    return {
        "source_name": name,
        "target_ratio": job.shares[name],
        "paths": [path if path.endswith(".npy") else f"{path.rstrip('/')}/*.npy"],
        # passes over the source that the run needs; OLMo-core refuses more than this
        "max_repetition_ratio": max(1.0, source.max_epochs or source.epochs or 1.0),
    }
