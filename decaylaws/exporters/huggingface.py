"""Hugging Face Trainer (transformers 5.23) with datasets 5: training arguments and their script."""

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
from decaylaws.exporters.notes import (
    START_FOLDER,
    mixing_note,
    open_ends,
    start_checkpoint,
    state_notes,
    takes_optimizer,
)
from decaylaws.exporters.rules import transformers_wsd_factors
from decaylaws.exporters.templates import render
from decaylaws.exporters.wsd import WarmupHoldDecay
from decaylaws.recipe import Recipe
from decaylaws.recipe.files import to_json

TARGET, VERSION = "huggingface", "5.23.0"
_DECAY_TYPES = {"linear": "linear", "cosine": "cosine", "1-sqrt": "1-sqrt", "constant": "linear"}


def export_huggingface(recipe: Recipe, options: ExportOptions | None = None) -> Export:
    """The recipe as ``training_arguments.json`` and ``train.py``.

    The script packs every source before it mixes, and gives every rank its own part and its own seed; without
    that all ranks read the same source at the same moment. The LR is ``warmup_stable_decay`` or, where that
    misses the path, a table in the script, by ``options.lr_rule``.

    Args:
        recipe: one mixture, one batch size, one sequence length; every source with a path to JSON Lines.
        options: ``model`` is the Hugging Face folder to start from; when left out, the hand-over checkpoint,
            or ``start`` if the recipe names none.

    Raises:
        NotRepresentableError: the Trainer cannot express the recipe; the message says what.
    """
    options = options or ExportOptions()
    stage = single_stage(recipe, TARGET)
    paths = source_paths(recipe)
    model = options.model or start_checkpoint(recipe) or START_FOLDER
    sequences = global_batch_sequences(stage, options, TARGET)
    path = WarmupHoldDecay.of(recipe)
    schedule = _native_schedule(path)
    native_lrs = None
    if path is not None and schedule is not None:
        native_lrs = path.peak_lr * transformers_wsd_factors(recipe.num_steps, **schedule)
    step_lrs = chosen_lrs(recipe, native_lrs, options, TARGET)
    exact = step_lrs is not native_lrs
    peak_lr = float(step_lrs.max()) if path is None else path.peak_lr
    arguments = _arguments(recipe, options, sequences, peak_lr) | _scheduler(None if exact else schedule)
    script = render(
        "huggingface.py.j2",
        name=recipe.name,
        version=VERSION,
        ranks=options.data_parallel_ranks,
        model=model,
        optimizer_state=f"{model.rstrip('/')}/optimizer.pt" if takes_optimizer(recipe) else None,
        seq_len=stage.seq_len,
        sources=[(name, paths[name], stage.mixture.share(name)) for name in paths],
        factors=[lr / peak_lr for lr in step_lrs.tolist()] if exact else None,
    )
    return Export(
        target=TARGET,
        target_version=VERSION,
        files={"training_arguments.json": to_json(arguments), "train.py": script},
        step_lrs=step_lrs,
        max_abs_lr_error=max_abs_error(step_lrs, recipe),
        realised_shares=dict(stage.mixture.weights),
        notes=_notes(recipe, exact=exact),
    )


def _native_schedule(path: WarmupHoldDecay | None) -> dict[str, Any] | None:
    """Arguments of ``transformers_wsd_factors``, or ``None`` if the path has another form."""
    if path is None or path.decay_shape not in _DECAY_TYPES or path.peak_lr == 0.0:
        return None
    return {
        "warmup_steps": path.warmup_steps,
        "hold_steps": path.hold_steps,
        "decay_steps": path.decay_steps,
        "decay_shape": path.decay_shape,
        "min_lr_ratio": path.end_lr / path.peak_lr if path.decay_steps else 0.0,
    }


def _scheduler(schedule: dict[str, Any] | None) -> dict[str, Any]:
    """The scheduler's share of ``TrainingArguments``."""
    if schedule is None:
        # train.py replaces it by its table; alone, these arguments keep the LR constant
        return {"lr_scheduler_type": "constant", "warmup_steps": 0}
    return {
        "lr_scheduler_type": "warmup_stable_decay",
        "warmup_steps": schedule["warmup_steps"],
        "lr_scheduler_kwargs": {
            "num_stable_steps": schedule["hold_steps"],
            "num_decay_steps": schedule["decay_steps"],
            "warmup_type": "linear",
            "decay_type": _DECAY_TYPES[schedule["decay_shape"]],
            "min_lr_ratio": schedule["min_lr_ratio"],
        },
    }


def _arguments(recipe: Recipe, options: ExportOptions, sequences: int, peak_lr: float) -> dict[str, Any]:
    """``TrainingArguments`` without the scheduler."""
    optimizer = recipe.optimizer
    return {
        "output_dir": options.output,
        "max_steps": recipe.num_steps,
        "per_device_train_batch_size": options.local_batch_size,
        "gradient_accumulation_steps": sequences // (options.data_parallel_ranks * options.local_batch_size),
        "learning_rate": peak_lr,
        "optim": "adamw_torch",
        "adam_beta1": optimizer.beta1,
        "adam_beta2": optimizer.beta2,
        "adam_epsilon": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "max_grad_norm": optimizer.clip_norm,
        "seed": recipe.seed,
        "logging_steps": 10,
        "report_to": "none",
    }


def _notes(recipe: Recipe, *, exact: bool) -> tuple[str, ...]:
    lr = (
        "The LR of every step is a table in train.py; training_arguments.json alone keeps it constant."
        if exact
        else "The Trainer takes the LR at the start of each step: the first step has the hand-over LR itself."
    )
    return (
        lr,
        "The model shifts labels itself: a sequence of n tokens has n - 1 targets.",
        "Sources start again without a word when they run out: the token caps of the recipe hold only for "
        "the steps that max_steps sets.",
        *mixing_note(recipe),
        *open_ends(recipe),
        *state_notes(recipe, "Its optimizer.pt is read without running code in it."),
    )
