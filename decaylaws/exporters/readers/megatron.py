"""Megatron-LM: flags in a file or a shell script, read and not run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.exporters.megatron import WSD_STYLES
from decaylaws.exporters.readers.readback import (
    ConfigSchedule,
    Fields,
    seen_steps,
    shares_of_paths,
    warmup_hold_decay_lrs,
    whole_steps,
)
from decaylaws.recipe import Recipe
from decaylaws.recipe.files import read_text


def read_megatron(path: Path, recipe: Recipe) -> ConfigSchedule:
    """Flags in a file or in a shell script; iterations or samples."""
    flags = _flags(path)
    fields = Fields({name: values[0] if values else True for name, values in flags.items()}, path)
    batch = fields.count("global-batch-size")

    def in_steps(name: str, default: float | None = None) -> float:
        if f"{name}-samples" in flags:
            return fields.number(f"{name}-samples") / batch
        return fields.number(f"{name}-iters", default)

    for flag in ("rampup-batch-size", "use-checkpoint-opt_param-scheduler", "decoupled-lr"):
        if flag in flags:
            raise InvalidValueError(
                f"{path.name}: {flag}", flags[flag], "is a setting of the LR that is not read"
            )
    # with the checkpoint's counters, the run starts where the checkpoint stands
    counts_on = "load" in flags and "finetune" not in flags
    seen = seen_steps(recipe) if counts_on else 0
    total = in_steps("train")
    decay_end, warmup = in_steps("lr-decay", total), in_steps("lr-warmup", 0.0)
    if "lr-warmup-fraction" in flags:
        warmup = fields.number("lr-warmup-fraction") * decay_end
    style = fields.choice("lr-decay-style", ("constant", "linear", "cosine", "WSD"), "linear")
    wsd = in_steps("lr-wsd-decay") if style == "WSD" else decay_end - warmup
    our_shapes = {theirs: ours for ours, theirs in WSD_STYLES.items()} | {"constant": "constant"}
    shape = fields.choice("lr-wsd-decay-style", tuple(our_shapes), "exponential") if style == "WSD" else style
    return ConfigSchedule(
        warmup_hold_decay_lrs(
            whole_steps(path, total - seen),
            first=seen,
            peak_lr=fields.number("lr"),
            warmup=warmup,
            hold=max(0.0, decay_end - warmup - wsd),
            decay=0.0 if style == "constant" else wsd,
            decay_shape=our_shapes[shape],
            floor_lr=fields.number("min-lr", 0.0),
            warmup_start_lr=fields.number("lr-warmup-init", 0.0),
        ),
        _megatron_shares(path, flags.get("data-path", []), recipe),
        batch,
        (f"Read as going on after {seen:,} steps of the checkpoint.",) if seen else (),
    )


def _megatron_shares(path: Path, blend: list[str], recipe: Recipe) -> dict[str, float]:
    """Shares of a blend: weight, prefix, weight, prefix; prefixes alone are weighed by their size."""
    weighted = bool(blend) and re.fullmatch(r"[0-9.]+(e[-+]?[0-9]+)?", blend[0])
    return shares_of_paths(path, blend[1::2], blend[::2], recipe) if weighted else {}


def _flags(path: Path) -> dict[str, list[str]]:
    text = re.sub(r"\\\r?\n", " ", read_text(path))
    try:
        words = shlex.split(text, comments=True)
    except ValueError as error:
        raise DataError(f"{path} cannot be split into flags: {error}.") from error
    flags: dict[str, list[str]] = {}
    current: list[str] = []
    for word in words:
        if word.startswith("--"):
            name, given, value = word[2:].partition("=")
            current = flags[name] = [value] if given else []
        else:
            current.append(word.rstrip(")"))
    return flags
