"""LLM Foundry 0.22: the parts of its YAML that a recipe decides."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from decaylaws.errors import InvalidValueError
from decaylaws.exporters.base import Export, ExportOptions, Floats, Job
from decaylaws.exporters.native import NativeScheduler, choose_native
from decaylaws.exporters.notes import open_ends, start_checkpoint, state_notes
from decaylaws.exporters.readback import (
    ConfigSchedule,
    Fields,
    normalised_shares,
    warmup_hold_decay_lrs,
    whole_steps,
)
from decaylaws.exporters.rules import start_of_step_factors
from decaylaws.exporters.wsd import WarmupHoldDecay
from decaylaws.recipe import Recipe
from decaylaws.recipe.files import to_yaml

TARGET, VERSION = "llm-foundry", "0.22.0"
_SCHEDULER_SETTINGS: dict[str, tuple[str, ...]] = {
    "constant_with_warmup": ("alpha",),
    "linear_decay_with_warmup": ("alpha_i", "alpha_f"),
    "cosine_with_warmup": ("alpha_f",),
    "inv_sqrt_with_warmup": ("t_scale", "t_cooldown", "alpha_f_decay", "alpha_f_cooldown"),
}


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
    job = Job.of(recipe, options, TARGET, VERSION)
    path, lr = choose_native(job, NativeScheduler(("linear", "cosine"), _replay, _has_scheduler))
    return job.export(
        {"midtrain_llm_foundry.yaml": to_yaml(_config(job, path))},
        lr.step_lrs,
        (
            "LLM Foundry takes the LR at the start of each step: the first step has the hand-over LR itself.",
            "Its decoupled AdamW does not multiply weight decay by the peak LR; the value here already is.",
            "Check load_ignore_keys against the keys of the checkpoint before launching.",
            *open_ends(recipe, "streaming data sets (MDS)"),
            *state_notes(recipe, "load_path takes a Composer checkpoint."),
        ),
        approximations=lr.approximations,
    )


def _replay(path: WarmupHoldDecay) -> Floats:
    return path.peak_lr * start_of_step_factors(path)


def _has_scheduler(path: WarmupHoldDecay) -> bool:
    return path.decay_shape != "cosine" or path.hold_steps == 0


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


def _config(job: Job, path: WarmupHoldDecay) -> dict[str, Any]:
    recipe, options, stage, optimizer = job.recipe, job.options, job.stage, job.recipe.optimizer
    config = {
        "max_duration": f"{path.num_steps * stage.batch_tokens}tok",
        "max_seq_len": stage.seq_len,
        "global_train_batch_size": job.sequences,
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
        "train_loader": {"name": "text", "dataset": _dataset(job), "drop_last": True},
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


def _dataset(job: Job) -> dict[str, Any]:
    return {
        "max_seq_len": job.stage.seq_len,
        # without it the streams follow one another instead of mixing
        "shuffle": True,
        "batching_method": "stratified",
        "epoch_size": job.recipe.num_steps * job.sequences,
        "streams": {
            name: {"local": path, "split": "train", "proportion": job.shares[name]}
            for name, path in job.paths.items()
        },
    }


def read_llm_foundry(path: Path, recipe: Recipe) -> ConfigSchedule:
    """LLM Foundry's YAML with times in tokens (``tok``) or batches (``ba``)."""
    fields = Fields.read(path)
    batch = fields.count("global_train_batch_size")
    batch_tokens = batch * fields.count("max_seq_len", recipe.stages[0].seq_len)
    steps = whole_steps(path, _batches(fields, "max_duration", batch_tokens, None))
    name = fields.choice("scheduler.name", tuple(_SCHEDULER_SETTINGS))
    fields.only("scheduler", ("name", "t_warmup", "t_max", *_SCHEDULER_SETTINGS[name]))
    peak, warmup = fields.number("optimizer.lr"), _batches(fields, "scheduler.t_warmup", batch_tokens, steps)
    end = float(steps)
    if fields.get("scheduler.t_max") is not None:
        end = _batches(fields, "scheduler.t_max", batch_tokens, steps)
    decay, floor = end - warmup, fields.number("scheduler.alpha_f", 0.0)
    after_warmup = fields.number("scheduler.alpha", fields.number("scheduler.alpha_i", 1.0))
    if name == "constant_with_warmup":
        decay = 0.0
    elif name == "inv_sqrt_with_warmup":
        if fields.number("scheduler.alpha_f_decay", 0.0) != 1.0:
            raise InvalidValueError(
                "scheduler.alpha_f_decay", fields.get("scheduler.alpha_f_decay"), "must be 1 to be read"
            )
        decay = _batches(fields, "scheduler.t_cooldown", batch_tokens, steps)
        floor = fields.number("scheduler.alpha_f_cooldown", 0.0)
    lrs = warmup_hold_decay_lrs(
        steps,
        peak_lr=peak * after_warmup,
        warmup=warmup,
        hold=max(0.0, end - warmup - decay),
        decay=decay,
        decay_shape="cosine" if name == "cosine_with_warmup" else "linear",
        floor_lr=peak * floor,
    )
    streams = fields.get("train_loader.dataset.streams")
    streams = streams if isinstance(streams, dict) else {}
    weights = [(key, value.get("proportion")) for key, value in streams.items() if isinstance(value, dict)]
    stated = any(weight is not None for _, weight in weights)  # streams may be weighed in other ways
    return ConfigSchedule(lrs, normalised_shares(path, weights if stated else ()), batch)


def _batches(fields: Fields, name: str, batch_tokens: int, whole: int | None) -> float:
    text = str(fields.get(name))
    found = re.fullmatch(r"([0-9][0-9_]{0,18}(?:\.[0-9]{1,18})?)(tok|ba|dur)", text)
    if found is None or (found[2] == "dur" and whole is None):
        raise InvalidValueError(name, text[:80], "must be a time in tok, ba or dur, such as 50_000_000tok")
    value = float(found[1].replace("_", ""))
    return {"tok": value / batch_tokens, "ba": value, "dur": value * (whole or 0)}[found[2]]
