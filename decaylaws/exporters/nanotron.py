"""nanotron (main of April 2026): the parts of its YAML that a recipe decides."""

from __future__ import annotations

from typing import Any

from decaylaws.exporters.base import Export, ExportOptions, Floats, Job
from decaylaws.exporters.native import NativeScheduler, choose_native
from decaylaws.exporters.notes import open_ends, start_checkpoint, state_notes, takes_optimizer
from decaylaws.exporters.rules import start_of_step_factors
from decaylaws.exporters.wsd import WarmupHoldDecay
from decaylaws.recipe import Recipe
from decaylaws.recipe.files import to_yaml

TARGET, VERSION = "nanotron", "main of 2026-04"
DECAY_SHAPES = ("linear", "cosine", "1-sqrt")  # nanotron has our names


def export_nanotron(recipe: Recipe, options: ExportOptions | None = None) -> Export:
    """The recipe as ``midtrain_nanotron.yaml``, to be merged into the model's own config.

    Steps of the decay and the LR at its end are always written: left out, nanotron stops the decay on the
    way, or does not decay at all.

    Args:
        recipe: one mixture, one batch size, one sequence length; sources with folders of tokenised data.
        options: ranks and local batch size become ``micro_batch_size`` and accumulation.

    Raises:
        NotRepresentableError: the path is no warm-up from zero, hold, decay of a shape that nanotron has.
    """
    job = Job.of(recipe, options, TARGET, VERSION)
    path, lr = choose_native(job, NativeScheduler(DECAY_SHAPES, _replay))
    taken_over = recipe.handover.tokens if start_checkpoint(recipe) is not None else 0
    seen, rest = divmod(taken_over, job.stage.batch_tokens)
    if rest:
        raise job.refuse(f"handover.tokens={recipe.handover.tokens} is no whole number of its batches")
    return job.export(
        {"midtrain_nanotron.yaml": to_yaml(_config(job, path, seen))},
        lr.step_lrs,
        (
            "nanotron takes the LR at the start of each step: the first step has the hand-over LR itself.",
            f"The run counts on from step {seen:,} of the checkpoint; its schedule starts anew.",
            "The one on PyPI (0.4) has other keys.",
            *open_ends(recipe, "tokenised folders"),
            *state_notes(recipe, "resume_checkpoint_path takes a nanotron checkpoint folder."),
        ),
        approximations=lr.approximations,
    )


def _replay(path: WarmupHoldDecay) -> Floats:
    return path.peak_lr * start_of_step_factors(path)


def _config(job: Job, path: WarmupHoldDecay, seen_steps: int) -> dict[str, Any]:
    recipe, options, stage, optimizer = job.recipe, job.options, job.stage, job.recipe.optimizer
    scheduler = {
        "learning_rate": path.peak_lr,
        "lr_warmup_steps": path.warmup_steps,
        # 'linear' without a warm-up would give the first step an LR of zero
        "lr_warmup_style": "linear" if path.warmup_steps else "constant",
        "lr_decay_style": path.decay_shape if path.decay_steps else "linear",
        "lr_decay_starting_step": path.warmup_steps + path.hold_steps,
        "lr_decay_steps": max(1, path.decay_steps),
        "min_decay_lr": path.end_lr,
    }
    dataset = {"dataset_folder": list(job.paths.values()), "dataset_weights": list(job.shares.values())}
    return {
        "optimizer": {
            "learning_rate_scheduler": scheduler,
            "optimizer_factory": {
                "name": "adamW",
                "adam_beta1": optimizer.beta1,
                "adam_beta2": optimizer.beta2,
                "adam_eps": optimizer.eps,
                "torch_adam_is_fused": True,
            },
            "weight_decay": optimizer.weight_decay,
            "clip_grad": optimizer.clip_norm,
        },
        "data_stages": [
            {
                "name": stage.name,
                "start_training_step": 1,
                "data": {"seed": recipe.seed, "num_loading_workers": 1, "dataset": dataset},
            }
        ],
        "checkpoints": {
            "checkpoints_path": options.output,
            "checkpoint_interval": max(1, recipe.num_steps // 10),
            "resume_checkpoint_path": start_checkpoint(recipe),
            "load_lr_scheduler": False,
            "load_optimizer": takes_optimizer(recipe),
        },
        "tokens": {
            "train_steps": seen_steps + recipe.num_steps,
            "sequence_length": stage.seq_len,
            "micro_batch_size": options.local_batch_size,
            "batch_accumulation_per_replica": job.accumulation,
        },
    }
