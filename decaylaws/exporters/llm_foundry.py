"""LLM Foundry 0.22: the parts of its YAML that a recipe decides."""

from __future__ import annotations

from typing import Any

from decaylaws.exporters.base import (
    Export,
    ExportOptions,
    chosen_lrs,
    global_batch_sequences,
    max_abs_error,
    single_stage,
    source_paths,
)
from decaylaws.exporters.notes import mixing_note, open_ends, start_checkpoint, state_notes
from decaylaws.exporters.rules import start_of_step_factors
from decaylaws.exporters.wsd import WarmupHoldDecay
from decaylaws.recipe import Recipe, Stage
from decaylaws.recipe.files import to_yaml

TARGET, VERSION = "llm-foundry", "0.22.0"


def export_llm_foundry(recipe: Recipe, options: ExportOptions | None = None) -> Export:
    """The recipe as ``midtrain_llm_foundry.yaml``, to be merged into the model's own config.

    LLM Foundry has no warm-up, hold, linear decay, but its inverse square root with ``alpha_f_decay: 1`` is
    just that.

    Args:
        recipe: one mixture, one batch size, one sequence length; sources with paths of streaming data sets.
        options: ranks and local batch size become ``device_train_microbatch_size``.

    Raises:
        NotRepresentableError: the path is neither warm-up from zero, hold, linear decay nor a cosine.
    """
    options = options or ExportOptions()
    stage = single_stage(recipe, TARGET)
    sequences = global_batch_sequences(stage, options, TARGET)
    path = WarmupHoldDecay.of(recipe)
    known = path is not None and path.peak_lr > 0 and _has_scheduler(path)
    native = path.peak_lr * start_of_step_factors(path) if path is not None and known else None
    step_lrs = chosen_lrs(recipe, native, options, TARGET, table=False)
    assert path is not None  # chosen_lrs has refused every other path
    config = _config(recipe, options, path, sequences)
    return Export(
        target=TARGET,
        target_version=VERSION,
        files={"midtrain_llm_foundry.yaml": to_yaml(config)},
        step_lrs=step_lrs,
        max_abs_lr_error=max_abs_error(step_lrs, recipe),
        realised_shares={name: share for name, share in stage.mixture.weights.items() if share > 0},
        notes=(
            "LLM Foundry takes the LR at the start of each step: the first step has the hand-over LR itself.",
            "Its decoupled AdamW does not multiply weight decay by the peak LR; the value here already is.",
            "Check load_ignore_keys against the keys of the checkpoint before launching.",
            *mixing_note(recipe),
            *open_ends(recipe, "streaming data sets (MDS)"),
            *state_notes(recipe, "load_path takes a Composer checkpoint."),
        ),
    )


def _has_scheduler(path: WarmupHoldDecay) -> bool:
    return path.decay_shape in ("linear", "constant") or (
        path.decay_shape == "cosine" and path.hold_steps == 0
    )


def _scheduler(path: WarmupHoldDecay, batch_tokens: int) -> dict[str, Any]:
    warmup = {"t_warmup": f"{path.warmup_steps * batch_tokens}tok"}
    if path.decay_shape == "constant":
        return {"name": "constant_with_warmup", **warmup}
    floor = path.end_lr / path.peak_lr
    if path.decay_shape == "cosine":
        return {"name": "cosine_with_warmup", **warmup, "alpha_f": floor}
    return {
        "name": "inv_sqrt_with_warmup",
        **warmup,
        "t_scale": f"{batch_tokens}tok",
        "t_cooldown": f"{path.decay_steps * batch_tokens}tok",
        "alpha_f_decay": 1.0,
        "alpha_f_cooldown": floor,
    }


def _config(recipe: Recipe, options: ExportOptions, path: WarmupHoldDecay, sequences: int) -> dict[str, Any]:
    stage, optimizer = recipe.stages[0], recipe.optimizer
    config = {
        "max_duration": f"{path.num_steps * stage.batch_tokens}tok",
        "max_seq_len": stage.seq_len,
        "global_train_batch_size": sequences,
        "device_train_microbatch_size": options.local_batch_size,
        "seed": recipe.seed,
        "scheduler": _scheduler(path, stage.batch_tokens),
        "optimizer": {
            "name": "decoupled_adamw",
            "lr": path.peak_lr,
            "betas": [optimizer.beta1, optimizer.beta2],
            "eps": optimizer.eps,
            "weight_decay": optimizer.weight_decay * path.peak_lr,
        },
        "algorithms": {
            "gradient_clipping": {"clipping_type": "norm", "clipping_threshold": optimizer.clip_norm}
        },
        "train_loader": {"name": "text", "dataset": _dataset(recipe, stage), "drop_last": True},
        "save_folder": options.output,
    }
    checkpoint = start_checkpoint(recipe)
    if checkpoint is not None:
        config |= {
            "load_path": checkpoint,
            "load_weights_only": recipe.handover.optimizer_state == "fresh",
            "load_ignore_keys": ["state/schedulers/*", "state/timestamp/*", "state/dataset_state"],
        }
    return config


def _dataset(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    shares = recipe.shares()
    return {
        "max_seq_len": stage.seq_len,
        # without it the streams follow one another instead of mixing
        "shuffle": True,
        "batching_method": "stratified",
        "epoch_size": sum(part.tokens // part.seq_len for part in recipe.stages),
        "streams": {
            name: {"local": path, "split": "train", "proportion": shares[name]}
            for name, path in source_paths(recipe).items()
        },
    }
