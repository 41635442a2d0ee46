"""Megatron-Bridge: the overrides of a recipe and the blend beside them, read as the arguments of Megatron-LM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decaylaws.errors import DataError
from decaylaws.exporters.megatron_bridge import BLEND_FILE
from decaylaws.exporters.readers.megatron import schedule_of_flags
from decaylaws.exporters.readers.python_files import Unread
from decaylaws.exporters.readers.settings import CheckpointCounters, ConfigSchedule
from decaylaws.exporters.readers.value_files import read_values
from decaylaws.recipe import Recipe

_OTHER_NAMES = {
    "override_opt_param_scheduler": "override-opt_param-scheduler",
    "use_checkpoint_opt_param_scheduler": "use-checkpoint-opt_param-scheduler",
    "sequence_length": "seq-length",
}
_READ = ("optimizer", "scheduler", "train", "checkpoint", "dataset", "model")
# what a recipe of Megatron-Bridge leaves open is that recipe's to say
_DEFAULTS: dict[str, tuple[str, float | None]] = {
    "weight_decay": ("weight-decay", None),
    "beta1": ("adam-beta1", None),
    "beta2": ("adam-beta2", None),
    "eps": ("adam-eps", None),
    "clip_norm": ("clip-grad", None),
}


def read_megatron_bridge(path: Path, recipe: Recipe, known: CheckpointCounters) -> ConfigSchedule:
    """A YAML file of overrides, and ``blend.json`` in the same folder.

    Args:
        path: the YAML file.
        recipe: the recipe that it is compared with.
        known: counters of the checkpoint that the run continues.

    Raises:
        DataError: it cannot be read, or says too little of the LR: the rest is a recipe of Megatron-Bridge.
    """
    values = read_values(path)
    flags: dict[str, list[str] | Unread] = {}
    for section in _READ:
        entries = values.get(section) or {}
        if not isinstance(entries, Mapping):
            raise DataError(f"{path}: '{section}' must hold a mapping.")
        for name, value in entries.items():
            flag = _OTHER_NAMES.get(str(name), str(name).replace("_", "-"))
            words = _words(value)
            if flag in flags and words is not None and flags[flag] != words:
                raise DataError(
                    f"{path} gives two values for {name}: {' '.join(map(str, _list(flags[flag])))} and {value}."
                )
            if words is not None:
                flags[flag] = words
    _weight_decay(values.get("scheduler") or {}, flags)
    if "load" not in flags and "pretrained-checkpoint" in flags:
        flags["finetune"] = []  # of such a checkpoint it takes the weights alone
    for name, flag in (("load_optim", "no-load-optim"), ("load_rng", "no-load-rng")):
        if (values.get("checkpoint") or {}).get(name) is False:
            flags[flag] = []
    if "lr-decay-style" not in flags:
        raise DataError(
            f"{path} states no scheduler.lr_decay_style, which is then that of the recipe it overrides."
        )
    blend = path.parent / BLEND_FILE
    train = read_values(blend).get("train") if blend.is_file() else None
    if isinstance(train, list | str):
        flags["data-path"] = train.split() if isinstance(train, str) else [str(word) for word in train]
    return schedule_of_flags(flags, _DEFAULTS, path, recipe, known)


def _weight_decay(scheduler: Mapping[str, Any], flags: dict[str, list[str] | Unread]) -> None:
    """The decay of weights that is used: the scheduler's, where it has one."""
    start, end = scheduler.get("start_weight_decay"), scheduler.get("end_weight_decay")
    if start is None and end is None:
        return
    if start == end:
        flags["weight-decay"] = [str(start)]
    else:
        flags["weight-decay-incr-style"] = ["linear"]


def _words(value: object) -> list[str] | None:
    """A value as words behind a flag; None where the flag is not given."""
    if value is None or value is False or isinstance(value, Mapping):
        return None
    if value is True:
        return []
    return [str(item) for item in _list(value)]


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else [value]
