"""LLM Foundry: its YAML, read and not run."""

from __future__ import annotations

import re
from pathlib import Path

from decaylaws.errors import InvalidValueError
from decaylaws.exporters.readers.readback import (
    ConfigSchedule,
    Fields,
    normalised_shares,
    warmup_hold_decay_lrs,
    whole_steps,
)
from decaylaws.recipe import Recipe

_SCHEDULER_SETTINGS: dict[str, tuple[str, ...]] = {
    "constant_with_warmup": ("alpha",),
    "linear_decay_with_warmup": ("alpha_i", "alpha_f"),
    "cosine_with_warmup": ("alpha_f",),
    "inv_sqrt_with_warmup": ("t_scale", "t_cooldown", "alpha_f_decay", "alpha_f_cooldown"),
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
