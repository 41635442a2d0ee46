"""nanotron (main of April 2026): the parts of its YAML that a recipe decides."""

from __future__ import annotations

from typing import Any

from decaylaws.errors import NotRepresentableError
from decaylaws.exporters.base import (
    Export,
    ExportOptions,
    chosen_lrs,
    global_batch_sequences,
    max_abs_error,
    single_stage,
    source_paths,
)
from decaylaws.exporters.notes import mixing_note, open_ends, start_checkpoint, state_notes, takes_optimizer
from decaylaws.exporters.rules import start_of_step_factors
from decaylaws.exporters.wsd import WarmupHoldDecay
from decaylaws.recipe import Recipe
from decaylaws.recipe.files import to_yaml

TARGET, VERSION = "nanotron", "main of 2026-04"
_STYLES = {"linear": "linear", "cosine": "cosine", "1-sqrt": "1-sqrt", "constant": "linear"}


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
    options = options or ExportOptions()
    stage = single_stage(recipe, TARGET)
    sequences = global_batch_sequences(stage, options, TARGET)
    path = WarmupHoldDecay.of(recipe)
    known = path is not None and path.peak_lr > 0 and path.decay_shape in _STYLES
    native = path.peak_lr * start_of_step_factors(path) if path is not None and known else None
    step_lrs = chosen_lrs(recipe, native, options, TARGET, table=False)
    assert path is not None  # chosen_lrs has refused every other path
    seen_steps, rest = divmod(recipe.handover.tokens, stage.batch_tokens)
    if rest:
        raise NotRepresentableError(
            TARGET, [f"handover.tokens={recipe.handover.tokens} is no whole number of its batches"]
        )
    config = _config(recipe, options, path, seen_steps, sequences)
    return Export(
        target=TARGET,
        target_version=VERSION,
        files={"midtrain_nanotron.yaml": to_yaml(config)},
        step_lrs=step_lrs,
        max_abs_lr_error=max_abs_error(step_lrs, recipe),
        realised_shares={name: share for name, share in stage.mixture.weights.items() if share > 0},
        notes=(
            "nanotron takes the LR at the start of each step: the first step has the hand-over LR itself.",
            f"The run counts on from step {seen_steps:,} of the checkpoint; its schedule starts anew.",
            "The one on PyPI (0.4) has other keys.",
            *mixing_note(recipe),
            *open_ends(recipe, "tokenised folders"),
            *state_notes(recipe, "resume_checkpoint_path takes a nanotron checkpoint folder."),
        ),
    )


def _config(
    recipe: Recipe, options: ExportOptions, path: WarmupHoldDecay, seen_steps: int, sequences: int
) -> dict[str, Any]:
    stage, optimizer = recipe.stages[0], recipe.optimizer
    paths, shares = source_paths(recipe), recipe.shares()
    scheduler = {
        "learning_rate": path.peak_lr,
        "lr_warmup_steps": path.warmup_steps,
        # 'linear' without a warm-up would give the first step an LR of zero
        "lr_warmup_style": "linear" if path.warmup_steps else "constant",
        "lr_decay_style": _STYLES[path.decay_shape],
        "lr_decay_starting_step": path.warmup_steps + path.hold_steps,
        "lr_decay_steps": max(1, path.decay_steps),
        "min_decay_lr": path.end_lr,
    }
    dataset = {"dataset_folder": list(paths.values()), "dataset_weights": [shares[name] for name in paths]}
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
            "batch_accumulation_per_replica": sequences
            // (options.data_parallel_ranks * options.local_batch_size),
        },
    }
