"""LLM Foundry: its YAML, read and not run."""

from __future__ import annotations

import re
from pathlib import Path

from decaylaws.errors import InvalidValueError
from decaylaws.exporters.readers.paths_of_lr import warmup_hold_decay_lrs
from decaylaws.exporters.readers.settings import (
    CheckpointCounters,
    ConfigSchedule,
    Fields,
    Settings,
    normalised_shares,
    whole_steps,
)
from decaylaws.recipe import Recipe

_SCHEDULER_SETTINGS: dict[str, tuple[str, ...]] = {
    "constant_with_warmup": ("alpha",),
    "linear_decay_with_warmup": ("alpha_i", "alpha_f"),
    "cosine_with_warmup": ("alpha_f",),
    "inv_sqrt_with_warmup": ("t_scale", "t_cooldown", "alpha_f_decay", "alpha_f_cooldown"),
}


def read_llm_foundry(path: Path, recipe: Recipe, known: CheckpointCounters) -> ConfigSchedule:
    """Times in tokens (``tok``) or batches (``ba``).

    Args:
        path: the configuration.
        recipe: the recipe that it is compared with.
        known: counters of the checkpoint that the run continues.
    """
    fields = Fields.read(path)
    units = _Units(fields)
    steps = whole_steps(path, units.batches("max_duration", None))
    name = fields.choice("scheduler.name", tuple(_SCHEDULER_SETTINGS))
    fields.only("scheduler", ("name", "t_warmup", "t_max", *_SCHEDULER_SETTINGS[name]))
    peak, warmup = fields.number("optimizer.lr"), units.batches("scheduler.t_warmup", steps)
    end = float(steps)
    if fields.get("scheduler.t_max") is not None:
        end = units.batches("scheduler.t_max", steps)
    decay, floor = end - warmup, fields.number("scheduler.alpha_f", 0.0)
    after_warmup = fields.number("scheduler.alpha", fields.number("scheduler.alpha_i", 1.0))
    if name == "constant_with_warmup":
        decay = 0.0
    elif name == "inv_sqrt_with_warmup":
        if fields.number("scheduler.alpha_f_decay", 0.0) != 1.0:
            raise InvalidValueError(
                "scheduler.alpha_f_decay", fields.get("scheduler.alpha_f_decay"), "must be 1 to be read"
            )
        decay = units.batches("scheduler.t_cooldown", steps)
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
    settings, conflicts = _settings(fields, peak)
    outer, inner = fields.get("max_seq_len"), fields.get("train_loader.dataset.max_seq_len")
    if None not in (outer, inner) and outer != inner:
        conflicts = (*conflicts, f"max_seq_len is {outer}, and train_loader.dataset.max_seq_len {inner}.")
    if fields.get("callbacks.curriculum_learning") is not None:
        conflicts = (*conflicts, "callbacks.curriculum_learning changes the mixture on the way.")
    return ConfigSchedule(
        lrs, normalised_shares(path, weights if stated else ()), settings.stated, settings.unread, conflicts
    )


def _settings(fields: Fields, lr: float) -> tuple[Settings, tuple[str, ...]]:
    settings = Settings(fields.source)
    settings.number("seq_len", fields.get("train_loader.dataset.max_seq_len", "max_seq_len"))
    settings.number("batch_sequences", fields.get("global_train_batch_size"))
    settings.truth("shuffle", fields.get("train_loader.dataset.shuffle"))
    settings.optimizer(fields.get("optimizer.name", "optimizer.type"), ("decoupled_adamw", "adamw"))
    decoupled = str(fields.get("optimizer.name", "optimizer.type") or "").startswith("decoupled")
    decay = fields.get("optimizer.weight_decay")
    if decay is not None:
        # a decoupled optimiser multiplies weights by 1 - weight_decay at the peak LR, torch by 1 - LR * weight_decay
        settings.number("weight_decay", decay, factor=1.0 / lr if decoupled and lr else 1.0)
    settings.betas(fields.get("optimizer.betas"))
    settings.number("eps", fields.get("optimizer.eps"))
    kind = fields.get("algorithms.gradient_clipping.clipping_type")
    if kind in (None, "norm"):
        settings.number("clip_norm", fields.get("algorithms.gradient_clipping.clipping_threshold"))
    else:
        settings.unread["clip_norm"] = f"is of another kind (clipping_type: {kind})"
    start = fields.get("load_path")
    settings.text("start", start or "")
    if start is None:
        return settings, ()
    weights_only = fields.get("load_weights_only")
    settings.optimizer_state(weights_only is not True)
    ignored = fields.get("load_ignore_keys")
    ignored = [str(key) for key in ignored] if isinstance(ignored, list) else []
    kept = [
        name
        for name in ("schedulers", "timestamp")
        if weights_only is not True and not any(name in key for key in ignored)
    ]
    if kept:
        return settings, (f"it takes {' and '.join(kept)} over from the checkpoint (load_ignore_keys).",)
    return settings, ()


class _Units:
    """Turns times into batches; tokens need the file's own batch and sequence length."""

    def __init__(self, fields: Fields) -> None:
        self._fields = fields

    def batches(self, name: str, whole: int | None) -> float:
        """The time at ``name`` in batches; ``whole`` is a duration of 1 ``dur``."""
        text = str(self._fields.get(name))
        found = re.fullmatch(r"([0-9][0-9_]{0,18}(?:\.[0-9]{1,18})?)(tok|ba|dur|ep|sp)", text)
        if found is None or (found[2] == "dur" and whole is None):
            raise InvalidValueError(
                name, text[:80], "must be a time in tok, ba or dur, such as 50_000_000tok"
            )
        value = float(found[1].replace("_", ""))
        if found[2] == "ep":
            raise InvalidValueError(
                name,
                text,
                "counts epochs, whose length only the data say",
                "Give it in ba or tok to compare it.",
            )
        if found[2] == "ba":
            return value
        if found[2] == "dur":
            return value * (whole or 0)
        batch = self._fields.count("global_train_batch_size", at_least=1)
        if found[2] == "sp":
            return value / batch
        seq_len = self._fields.get("train_loader.dataset.max_seq_len", "max_seq_len")
        if seq_len is None:
            raise InvalidValueError(
                name, text, "counts tokens, and the file states no max_seq_len to turn them into batches"
            )
        return value / (
            batch * Fields({"max_seq_len": seq_len}, self._fields.source).count("max_seq_len", at_least=1)
        )
