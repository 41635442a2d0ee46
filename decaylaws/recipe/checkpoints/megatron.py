"""Facts of a checkpoint of Megatron-LM or Megatron-Bridge: the common file of the distributed format.

``common.pt`` holds the arguments, the counters, the LR scheduler and the optimiser's groups; tensors lie in DCP
files beside it. The file is a pickle of Megatron's own classes, so it is read inertly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from decaylaws.errors import DataError
from decaylaws.recipe.checkpoints.dcp import METADATA, read_dcp
from decaylaws.recipe.checkpoints.facts import CheckpointFacts, number, rates, whole
from decaylaws.recipe.checkpoints.inert_pickle import Record, load_torch_file

COMMON = "common.pt"
TRACKER = "latest_checkpointed_iteration.txt"
BRIDGE_TRACKER = "latest_train_state.pt"
BRIDGE_SETTINGS = "run_config.yaml"
_PACKAGES = ("megatron.", "torch.", "numpy.")
_NAMES = {
    ("argparse", "Namespace"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("signal", "Signals"),
    ("types", "SimpleNamespace"),
    ("torch", "Size"),
    ("torch", "device"),
}
_MAX_DEPTH = 6


def latest_iteration(folder: Path) -> Path:
    """The folder of the newest checkpoint below ``folder``, by Megatron's own tracker.

    Raises:
        DataError: the tracker names none.
    """
    tracker = folder / TRACKER
    try:
        text = tracker.read_bytes()[:64].decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{tracker} cannot be read: {error}") from error
    newest = folder / ("release" if text == "release" else f"iter_{text:0>7}")
    if not (text == "release" or text.isdigit()) or not newest.is_dir():
        raise DataError(f"{tracker} says {text!r}, and {folder} does not hold a checkpoint of that name.")
    return newest


def newest_iteration(folder: Path) -> Path:
    """The folder of the newest checkpoint below ``folder``, whose tracker holds tensors: Megatron-Bridge's.

    Raises:
        DataError: there is none.
    """
    found = {
        int(path.name.removeprefix("iter_")): path
        for path in folder.glob("iter_*")
        if path.name.removeprefix("iter_").isdecimal() and path.is_dir()
    }
    if not found:
        raise DataError(f"{folder} has {BRIDGE_TRACKER} and no checkpoint in a folder iter_NUMBER.")
    return found[max(found)]


def megatron_facts(folder: Path) -> CheckpointFacts:
    """What the folder of one iteration says of itself.

    Raises:
        DataError: the common file is damaged, or names what a Megatron checkpoint does not need.
    """
    common = load_torch_file(folder / COMMON, _is_megatron)
    if not isinstance(common, dict):
        raise DataError(f"{folder / COMMON} must hold a dictionary.")
    arguments = common.get("args")
    settings = arguments.fields if isinstance(arguments, Record) else {}
    entries = read_dcp(folder) if (folder / METADATA).is_file() else {}
    schedule = common.get("opt_param_scheduler")
    # Megatron-Bridge keeps no arguments there; the schedule counts samples
    counted = schedule.get("num_steps") if isinstance(schedule, dict) else None
    lrs = rates(group.get("lr") for group in _param_groups(common, set()))
    return CheckpointFacts(
        kind="megatron",
        step=whole(common.get("iteration", settings.get("iteration"))),
        tokens=_tokens(settings),
        samples=whole(settings.get("consumed_train_samples", counted)),
        lrs=lrs,
        has_optimizer=any("exp_avg" in name for name in entries) or _has_zarr_moments(folder),
        vocab_size=whole(settings.get("padded_vocab_size")),
    )


def optimizer_steps(folder: Path) -> int:
    """Steps behind the optimiser of one iteration: its groups' own count, or the iteration where they keep none.

    Raises:
        DataError: the common file is damaged, or says neither.
    """
    common = load_torch_file(folder / COMMON, _is_megatron)
    groups = _param_groups(common, set()) if isinstance(common, dict) else ()
    steps = [step for step in (number(group.get("step")) for group in groups) if step is not None]
    found = int(max(steps)) if steps else megatron_facts(folder).step
    if found is None:
        raise DataError(f"{folder / COMMON} says neither the steps of its optimiser nor its iteration.")
    return found


def interleaves_rotary(folder: Path) -> bool:
    """Whether rotary embeddings turn neighbouring rows of queries and keys, and not rows of two halves.

    Args:
        folder: of one iteration; Megatron-LM keeps its arguments in the common file, Megatron-Bridge in YAML beside it.
    """
    common = load_torch_file(folder / COMMON, _is_megatron)
    arguments = common.get("args") if isinstance(common, dict) else None
    if isinstance(arguments, Record):
        return arguments.fields.get("rotary_interleaved") is True
    settings = folder / BRIDGE_SETTINGS
    text = settings.read_text(encoding="utf-8", errors="replace") if settings.is_file() else ""
    return re.search(r"^\s*rotary_interleaved:\s*true\b", text, re.MULTILINE) is not None


def _is_megatron(module: str, name: str) -> bool:
    plain_torch = module in ("torch", "torch._utils") and not name.startswith("_import")
    return (module, name) in _NAMES or module.startswith(_PACKAGES) or module == "numpy" or plain_torch


def _tokens(settings: Mapping[str, Any]) -> int | None:
    samples, length = whole(settings.get("consumed_train_samples")), whole(settings.get("seq_length"))
    return None if samples is None or length is None else whole(samples * length)


def _param_groups(value: object, seen: set[int], depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Parameter groups, however deep: one optimiser, a chain of them, or one per model chunk.

    What was ``seen`` is passed by: references back and forth would be followed for ever.
    """
    if depth > _MAX_DEPTH or not isinstance(value, dict | list | tuple) or id(value) in seen:
        return
    seen.add(id(value))
    if not isinstance(value, dict):
        for item in value:
            yield from _param_groups(item, seen, depth + 1)
        return
    groups = value.get("param_groups")
    if isinstance(groups, list):
        yield from (group for group in groups if isinstance(group, dict))
    for key in value:
        if key not in ("param_groups", "args"):
            yield from _param_groups(value[key], seen, depth + 1)


def _has_zarr_moments(folder: Path) -> bool:
    return any("exp_avg" in path.name for path in folder.iterdir())
