"""levanter (marin-levanter 0.2.20): the parts of its YAML that a recipe decides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from decaylaws.exporters.base import Export, ExportOptions
from decaylaws.exporters.chain import export_runs
from decaylaws.exporters.counters import counters_at_start
from decaylaws.exporters.job import Job
from decaylaws.exporters.native import NativeScheduler, choose_native
from decaylaws.exporters.notes import open_ends, start_checkpoint, state_notes, takes_optimizer
from decaylaws.exporters.rules import start_of_step_lrs
from decaylaws.exporters.wsd import WarmupHoldDecay
from decaylaws.mixtures import Mixture
from decaylaws.recipe import Recipe
from decaylaws.recipe.files import to_yaml

TARGET, VERSION = "levanter", "marin-levanter 0.2.20"
DECAY_SHAPES = ("linear", "cosine")
DEFAULT_BLOCK, LARGEST_BLOCK = 2048, 32768  # levanter refuses 65,536
_ROUNDING = 0.05  # of a share: a larger block is taken where whole sequences of a block are farther off


def export_levanter(recipe: Recipe, options: ExportOptions | None = None) -> Export:
    """The recipe as ``midtrain_levanter.yaml``, to be merged into the model's own config.

    The mixture may change between stages of a run. levanter deals sources out in blocks of whole sequences: shares
    are rounded down to whole sequences of a block, the largest takes the rest, and a change of mixture must fall on
    the edge of a block; the shares so realised are returned. A small share makes the block larger than levanter's
    own.

    With the optimiser's state its step count is taken over too, and the schedule is read at that count. The
    steps of the checkpoint then form a first cycle, which is never trained, and the decay is the second.
    ``restart_levanter.yaml`` is for a run that was interrupted.

    Args:
        recipe: sources with folders of levanter's caches.
        options: ``local_batch_size`` becomes ``per_device_parallelism``; ``seen_steps`` is where the checkpoint's
            counter stands.

    Raises:
        NotRepresentableError: the path is no warm-up from zero, hold, decay of a shape that levanter has, or a new
            warm-up from taken-over state.
    """
    return export_runs(recipe, options, _export_run)


def _export_run(recipe: Recipe, options: ExportOptions) -> Export:
    job = Job.of(recipe, options, TARGET, VERSION, mixture_stages=True)
    path, lr = choose_native(job, NativeScheduler(DECAY_SHAPES, start_of_step_lrs))
    seen, known, assumed = counters_at_start(job, path, "steps")
    block = _block_size(job, seen.steps)
    realised = _realised(job, block)
    config = _config(job, path, seen.steps, block)
    return job.export(
        {
            "midtrain_levanter.yaml": to_yaml(config | _start(job, config["trainer"])),
            "restart_levanter.yaml": to_yaml(
                config | {"trainer": config["trainer"] | {"load_checkpoint": True}}
            ),
        },
        lr.step_lrs,
        (
            "levanter takes the LR at the start of each step: the first step has the hand-over LR itself.",
            f"Sources are dealt out in blocks of {block:,} sequences and start again without a word when they run "
            "out; the caps hold for the steps set here.",
            "Versions before LmDataConfig call data.components data.configs.",
            *known,
            *open_ends(recipe, "levanter caches"),
            *state_notes(
                recipe, "initialize_from takes a levanter checkpoint, initialize_from_hf a Hugging Face one."
            ),
        ),
        restart="Launch with restart_levanter.yaml, which loads the last checkpoint of the run itself. The other file "
        "would start again from the hand-over.",
        last_checkpoint=f"{options.output}/step-{seen.steps + recipe.num_steps}",
        launch="python -m levanter.main.train_lm --config_path {folder}/midtrain_levanter.yaml",
        realised_shares=realised,
        approximations=(*lr.approximations, *_rounded(job, realised)),
        counts_from=seen,
        assumptions=assumed,
    )


def _stage_starts(job: Job) -> list[int]:
    """Optimiser step, counted from the hand-over, at which each stage starts."""
    return np.cumsum([0, *(stage.num_steps for stage in job.recipe.stages[:-1])]).tolist()


def _block_size(job: Job, seen_steps: int) -> int:
    """A block on whose edges every change of mixture falls: levanter's default or the largest one below it, or a
    larger one where a small share needs it.

    Raises:
        NotRepresentableError: a source would get no sequence of a block between two changes of the mixture.
    """
    edges = [(seen_steps + start) * job.sequences for start in _stage_starts(job)[1:]]
    common = math.gcd(*edges)
    sizes = [size for size in range(1, LARGEST_BLOCK + 1) if common % size == 0]
    if not edges:
        sizes = [DEFAULT_BLOCK << doubled for doubled in range((LARGEST_BLOCK // DEFAULT_BLOCK).bit_length())]
    usual = max(size for size in sizes if size <= DEFAULT_BLOCK)
    tried = [usual, *(size for size in sizes if size > DEFAULT_BLOCK)]
    block = next((size for size in tried if _rounding_error(job, size) <= _ROUNDING), tried[-1])
    smallest = min(
        share for stage in job.recipe.stages for share in stage.mixture.weights.values() if share > 0
    )
    if edges and block * smallest < 1:  # in runs of their own the stages have larger blocks
        raise job.refuse(
            f"the mixture changes after {edges[-1]:,} sequences, so that a block has {block} of them, too few for "
            f"a share of {smallest:.3g}"
        )
    return block


def _rounding_error(job: Job, block: int) -> float:
    """Largest error of a share in whole sequences of a block, as a fraction of the share."""
    return max(
        abs(count / block / stage.mixture.share(name) - 1)
        for stage in job.recipe.stages
        for name, count in block_counts(stage.mixture, block).items()
    )


def _rounded(job: Job, realised: Mapping[str, float]) -> tuple[str, ...]:
    """A sentence on the shares that whole sequences of a block miss by more than ``_ROUNDING``."""
    off = [
        f"{name} {realised.get(name, 0.0):.3g} in place of {share:.3g}"
        for name, share in job.shares.items()
        if abs(realised.get(name, 0.0) / share - 1) > _ROUNDING
    ]
    return (f"Shares are rounded to whole sequences of the largest block: {', '.join(off)}.",) if off else ()


def block_counts(mixture: Mixture, block: int) -> dict[str, int]:
    """Sequences of each source in a block, as levanter rounds: down, and the rest to the largest."""
    counts = {name: int(share * block) for name, share in sorted(mixture.weights.items()) if share > 0}
    largest = max(counts, key=lambda name: counts[name])
    counts[largest] += block - sum(counts.values())
    return counts


def _realised(job: Job, block: int) -> dict[str, float]:
    totals = dict.fromkeys(job.paths, 0.0)
    for stage in job.recipe.stages:
        for name, count in block_counts(stage.mixture, block).items():
            totals[name] += stage.num_steps * count / block
    return {name: total / job.recipe.num_steps for name, total in totals.items()}


def _optimizer(job: Job, path: WarmupHoldDecay, seen_steps: int) -> dict[str, Any]:
    optimizer = job.recipe.optimizer
    values = {
        "type": "adam",
        "learning_rate": path.peak_lr,
        "beta1": optimizer.beta1,
        "beta2": optimizer.beta2,
        "epsilon": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "max_grad_norm": optimizer.clip_norm,
        "lr_schedule": path.decay_shape if path.decay_steps else "constant",
        "warmup": _fraction(path.warmup_steps, path.num_steps),
        "decay": _fraction(path.decay_steps, path.num_steps),
        "min_lr_ratio": path.end_lr / path.peak_lr,  # 0.1 if left out
        "rewarmup": 0.0,
    }
    if seen_steps:
        values |= {"cycles": [seen_steps, seen_steps + path.num_steps]}
    return values


def _fraction(steps: int, num_steps: int) -> int | float:
    """Whole steps; a single one is read as "all of it", and has to be written as a fraction."""
    # levanter cuts fraction * steps down to a whole number: aim at its middle
    return 1.5 / num_steps if steps == 1 < num_steps else steps


def _config(job: Job, path: WarmupHoldDecay, seen_steps: int, block: int) -> dict[str, Any]:
    recipe, options = job.recipe, job.options
    weights = [
        [
            seen_steps + start if number else 0,
            {name: share for name, share in sorted(stage.mixture.weights.items()) if share > 0},
        ]
        for number, (start, stage) in enumerate(zip(_stage_starts(job), recipe.stages))
    ]
    theta = job.rope_theta()
    return {
        **({} if theta is None else {"model": {"rope": {"type": "default", "theta": theta}}}),
        "data": {
            "components": {name: {"cache_dir": path} for name, path in job.paths.items()},
            "train_weights": weights,
            "mixture_block_size": block,
            "stop_strategy": "restart",
        },
        "trainer": {
            "seed": recipe.seed,
            "num_train_steps": seen_steps + recipe.num_steps,
            "train_batch_size": job.sequences,
            "per_device_parallelism": options.local_batch_size,
            # a restart finds them whatever the run's id is by then
            "checkpointer": {"base_path": options.output, "append_run_id_to_base_path": False},
        },
        "train_seq_len": job.stage.seq_len,
        "optimizer": _optimizer(job, path, seen_steps),
    }


def _start(job: Job, trainer: dict[str, Any]) -> dict[str, Any]:
    checkpoint = start_checkpoint(job.recipe)
    if checkpoint is None:
        return {}
    if takes_optimizer(job.recipe):
        # initialize_from is passed over unless loading is forbidden
        return {"trainer": trainer | {"initialize_from": checkpoint, "load_checkpoint": False}}
    return {"initialize_from_hf": checkpoint}
