"""Megatron-LM / Megatron-Core 0.16: command-line flags."""

from __future__ import annotations

import shlex

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
from decaylaws.recipe import Recipe, Stage

TARGET, VERSION = "megatron", "0.16.1"
_WSD_STYLES = {
    "linear": "linear",
    "cosine": "cosine",
    "1-sqrt": "minus_sqrt",
    "megatron-exponential": "exponential",
}


def export_megatron(recipe: Recipe, options: ExportOptions | None = None) -> Export:
    """The recipe as ``midtrain_megatron.args``, one flag per line, for ``pretrain_gpt.py $(cat ...)``.

    Everything is counted in samples, as Megatron does itself, and the new LR settings override those of the
    checkpoint.

    Args:
        recipe: one mixture, one batch size, one sequence length; sources with prefixes of indexed data.
        options: ``data_parallel_ranks`` and ``local_batch_size`` become the micro-batch size.

    Raises:
        NotRepresentableError: the path is no warm-up, hold, decay of a shape that Megatron has, or a source's
            path holds a blank, which its data arguments cannot.
    """
    options = options or ExportOptions()
    stage = single_stage(recipe, TARGET)
    sequences = global_batch_sequences(stage, options, TARGET)
    path = WarmupHoldDecay.of(recipe)
    known = path is not None and path.peak_lr > 0 and path.decay_shape in (*_WSD_STYLES, "constant")
    native = None
    if path is not None and known:
        native = path.peak_lr * start_of_step_factors(path, warmup_start=path.warmup_start_lr / path.peak_lr)
    step_lrs = chosen_lrs(recipe, native, options, TARGET, table=False)
    assert path is not None  # chosen_lrs has refused every other path
    seen = _seen_samples(recipe, path)
    flags = {
        **_lr_flags(path, sequences, seen),
        **_run_flags(recipe, stage, options, sequences, seen),
        **_data_flags(recipe),
    }
    text = "".join(f"--{name}{f' {value}' if value else ''}\n" for name, value in flags.items())
    return Export(
        target=TARGET,
        target_version=VERSION,
        files={"midtrain_megatron.args": text},
        step_lrs=step_lrs,
        max_abs_lr_error=max_abs_error(step_lrs, recipe),
        realised_shares={name: share for name, share in stage.mixture.weights.items() if share > 0},
        notes=(
            "Megatron takes the LR at the start of each step: the first step has the hand-over LR itself.",
            "Versions before the fix of issue 1284 keep the checkpoint's LR in spite of the override flag: look "
            "at the first LR that is logged.",
            "Sources repeat without a word when they run out; the caps hold for the samples set here.",
            *mixing_note(recipe),
            *open_ends(recipe, "prefixes of indexed data"),
            *state_notes(recipe, "--load takes a Megatron checkpoint folder."),
        ),
    )


def _seen_samples(recipe: Recipe, path: WarmupHoldDecay) -> int:
    """Samples at which the run begins: with the optimiser's state Megatron takes its own counter over."""
    if not takes_optimizer(recipe):
        return 0
    if path.warmup_steps:
        raise NotRepresentableError(
            TARGET,
            ["it counts on from the checkpoint's samples, so a new warm-up needs optimizer_state: fresh"],
        )
    seen, rest = divmod(recipe.handover.tokens, recipe.stages[0].seq_len)
    if rest:
        raise NotRepresentableError(
            TARGET, [f"handover.tokens={recipe.handover.tokens} is no whole number of its sequences"]
        )
    return seen


def _lr_flags(path: WarmupHoldDecay, sequences: int, seen: int) -> dict[str, str]:
    flags = {
        "lr": repr(path.peak_lr),
        "min-lr": repr(path.end_lr),
        "lr-warmup-init": repr(path.warmup_start_lr if path.warmup_steps else 0.0),
        "lr-warmup-samples": str(path.warmup_steps * sequences),
        "lr-decay-samples": str(seen + path.num_steps * sequences),
    }
    if path.decay_steps == 0:
        return flags | {"lr-decay-style": "constant"}
    return flags | {
        "lr-decay-style": "WSD",
        "lr-wsd-decay-style": _WSD_STYLES[path.decay_shape],
        "lr-wsd-decay-samples": str(path.decay_steps * sequences),
    }


def _run_flags(
    recipe: Recipe, stage: Stage, options: ExportOptions, sequences: int, seen: int
) -> dict[str, str]:
    optimizer = recipe.optimizer
    flags = {
        "train-samples": str(seen + recipe.num_steps * sequences),
        "global-batch-size": str(sequences),
        "micro-batch-size": str(options.local_batch_size),
        "seq-length": str(stage.seq_len),
        "optimizer": "adam",
        "adam-beta1": repr(optimizer.beta1),
        "adam-beta2": repr(optimizer.beta2),
        "adam-eps": repr(optimizer.eps),
        "weight-decay": repr(optimizer.weight_decay),
        "clip-grad": repr(optimizer.clip_norm),
        # Megatron refuses seed 0
        "seed": str(recipe.seed + 1),
        "save": shlex.quote(options.output),
    }
    checkpoint = start_checkpoint(recipe)
    if checkpoint is None:
        return flags
    flags |= {"load": shlex.quote(checkpoint), "no-load-rng": ""}
    # --finetune starts the counters anew and leaves the moments behind
    return flags | ({"override-opt_param-scheduler": ""} if takes_optimizer(recipe) else {"finetune": ""})


def _data_flags(recipe: Recipe) -> dict[str, str]:
    paths, shares = source_paths(recipe), recipe.shares()
    blank = [name for name, path in paths.items() if path.split() != [path]]
    if blank:
        raise NotRepresentableError(TARGET, [f"sources.{blank[0]}.path holds a blank or is empty"])
    pairs = " ".join(f"{shares[name]!r} {shlex.quote(path)}" for name, path in paths.items())
    return {"data-path": pairs, "split": "99,1,0"}
