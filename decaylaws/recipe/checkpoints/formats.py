"""Which format a checkpoint has, and the readers of those formats that need no module of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from decaylaws.errors import DataError
from decaylaws.recipe.checkpoints.dcp import METADATA, dcp_facts, is_torch
from decaylaws.recipe.checkpoints.facts import (
    STEP_NAMES,
    TOKEN_NAMES,
    CheckpointFacts,
    embedding_rows,
    first_whole,
    idle_params,
    non_embedding_params,
    rates,
    read_json,
    whole,
)
from decaylaws.recipe.checkpoints.inert_pickle import load_torch_file
from decaylaws.recipe.checkpoints.megatron import (
    BRIDGE_TRACKER,
    COMMON,
    TRACKER,
    latest_iteration,
    megatron_facts,
    newest_iteration,
)
from decaylaws.recipe.corpus_facts import tokenizer_fingerprint

# of the Trainer, of launch, a link to another trainer's checkpoint, of accelerate with FSDP, of DeepSpeed
OPTIMIZER_FILES = (
    "optimizer.pt", "optimizer.bin", "optimizer.safetensors", "optimizer", "optimizer_[0-9]*", "*_optim_states.pt",
    "global_step*/*_optim_states.pt",
)  # fmt: skip
OPTIMIZER_KEYS = ("optimizer", "optimizer_state_dict", "optimizer_states", "optim", "optimizer_state")
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
TRAINING_STATE = "training_state.json"
"""What a launched run says of itself beside its model."""
OLMO_TENSORS, OLMO_TRAINER = "model_and_optim", "train/rank0.pt"


def read_facts(path: str | Path) -> CheckpointFacts:
    """Read what the checkpoint at ``path`` says of itself.

    Raises:
        DataError: there is nothing, or nothing of a known format, or it is damaged.
    """
    path = Path(path)
    try:
        reader = _reader(path)
    except (OSError, ValueError) as error:  # a null byte in a path is a ValueError
        raise DataError(f"{path} cannot be read: {error}") from error
    return reader(path)


def _reader(path: Path) -> Callable[[Path], CheckpointFacts]:
    if not path.exists():
        raise DataError(f"There is no checkpoint at {path}.")
    if path.is_file():
        if path.suffix == ".safetensors":
            return _member
        if path.suffix in TORCH_SUFFIXES:
            return _torch_file
    for name, reader in _FOLDERS.items():
        if (path / name).exists():
            return reader
    raise DataError(
        f"{path} is not a checkpoint of a known format: a Hugging Face folder, a folder with state.json, a DCP folder "
        f"with {METADATA}, a Megatron folder with {COMMON}, a .safetensors file or one of "
        f"{', '.join(TORCH_SUFFIXES)}."
    )


def _header(path: Path) -> tuple[dict[str, str], dict[str, list[int]]]:
    """Metadata and shapes of a safetensors file; its tensors are not read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, shapes
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}") from error


def _member(path: Path) -> CheckpointFacts:
    metadata, shapes = _header(path)
    header: Any = {}
    if "header" in metadata:
        try:
            header = json.loads(metadata["header"])
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} has a damaged header: {error}") from error
    if not isinstance(header, dict):
        raise DataError(f"{path} has a damaged header: it must be a JSON object.")
    run_id = header.get("run_id")
    return CheckpointFacts(
        kind="safetensors",
        step=whole(header.get("step")),
        tokens=whole(header.get("tokens")),
        has_optimizer=any(name.startswith("exp_avg") for name in shapes),
        vocab_size=embedding_rows(shapes),
        run_id=run_id if isinstance(run_id, str) else None,
        non_embedding_params=non_embedding_params(shapes),
    )


def _sharded(path: Path) -> CheckpointFacts:
    state = read_json(path / "state.json")
    names = [name for file in sorted(path.glob("*.safetensors")) for name in _header(file)[1]]
    return CheckpointFacts(
        kind="sharded",
        step=whole(state.get("step")),
        tokens=whole(state.get("tokens")),
        lrs=rates([state.get("lr")]),
        has_optimizer=any(name.startswith("exp_avg") for name in names),
    )


def safetensors_shapes(file: Path) -> dict[str, list[int]]:
    """Shapes of the tensors of a safetensors file by name, out of its header.

    Raises:
        DataError: the file is damaged.
    """
    return _header(file)[1]


def tensor_shapes(folder: Path, *, pattern: str = "*.safetensors") -> dict[str, list[int]]:
    """Shapes of the model's tensors in a folder, by name, out of the headers of its safetensors files.

    Args:
        folder: the folder.
        pattern: of the files; the optimiser's are left out.

    Raises:
        DataError: a file is damaged.
    """
    return {
        name: shape
        for file in sorted(folder.glob(pattern))
        if file.name not in OPTIMIZER_FILES
        for name, shape in _header(file)[1].items()
    }


def _huggingface(path: Path) -> CheckpointFacts:
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    trainer = read_json(path / "trainer_state.json") if (path / "trainer_state.json").is_file() else {}
    launched = read_json(path / TRAINING_STATE) if (path / TRAINING_STATE).is_file() else {}
    tokenizer = path / "tokenizer.json"
    step = first_whole({**trainer, **launched}, STEP_NAMES)
    lrs, lr_step = _trainer_lrs(path, trainer) if trainer else (rates([launched.get("lr")]), None)
    text = config.get("text_config")
    shapes = tensor_shapes(path)
    beside = non_embedding_params(shapes)
    return CheckpointFacts(
        kind="huggingface",
        step=step,
        # the Trainer writes zero where it was not told to count
        tokens=first_whole({**trainer, **launched}, TOKEN_NAMES) or None,
        lrs=lrs,
        lr_step=lr_step if lr_step != step else None,
        has_optimizer=any(any(path.glob(name)) for name in OPTIMIZER_FILES),
        vocab_size=whole(
            config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
        ),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer) if tokenizer.is_file() else None,
        non_embedding_params=None if beside is None else beside - idle_params(shapes, config),
        config=config or None,
    )


def _trainer_lrs(path: Path, trainer: Mapping[str, Any]) -> tuple[tuple[float, ...], int | None]:
    """LRs of the Trainer's scheduler; failing that, the last one that it logged, with its step."""
    if (path / "scheduler.pt").is_file():
        last = _load(path / "scheduler.pt").get("_last_lr")
        if isinstance(last, list) and rates(last):
            return rates(last), None
    history = trainer.get("log_history")
    entries = [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []
    logged = [entry for entry in entries if "learning_rate" in entry]
    return (rates([logged[-1]["learning_rate"]]), whole(logged[-1].get("step"))) if logged else ((), None)


def _load(path: Path) -> dict[Any, Any]:
    """The dictionary in a torch file; tensors in it are not read, and nothing in it runs."""
    content = load_torch_file(path, is_torch)
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a dictionary.")
    return content


def _torch_file(path: Path) -> CheckpointFacts:
    content = _load(path)
    found = next((content[key] for key in OPTIMIZER_KEYS if key in content), None)
    found = content if found is None and "param_groups" in content else found
    optimizers = [each for each in (found if isinstance(found, list) else [found]) if isinstance(each, dict)]
    groups = [each["param_groups"] for each in optimizers if isinstance(each.get("param_groups"), list)]
    entries = [group for each in groups for group in each if isinstance(group, dict)]
    return CheckpointFacts(
        kind="torch",
        step=first_whole(content, STEP_NAMES),
        tokens=first_whole(content, TOKEN_NAMES),
        lrs=rates(group["lr"] for group in entries if "lr" in group),
        has_optimizer=any(each.get("state") for each in optimizers),
    )


def _olmo_core(path: Path) -> CheckpointFacts:
    """OLMo-core: tensors as DCP, the trainer's counters in a torch file."""
    facts = dcp_facts(path / OLMO_TENSORS, kind="olmo-core")
    counters = _load(path / OLMO_TRAINER) if (path / OLMO_TRAINER).is_file() else {}
    step, tokens = first_whole(counters, STEP_NAMES), first_whole(counters, TOKEN_NAMES)
    return replace(
        facts,
        step=facts.step if step is None else step,
        tokens=facts.tokens if tokens is None else tokens,
    )


# what marks a folder, the more telling first: Megatron's holds DCP metadata as well
_FOLDERS: dict[str, Callable[[Path], CheckpointFacts]] = {
    "state.json": _sharded,
    COMMON: megatron_facts,
    TRACKER: lambda path: megatron_facts(latest_iteration(path)),
    BRIDGE_TRACKER: lambda path: megatron_facts(newest_iteration(path)),
    OLMO_TENSORS: _olmo_core,
    METADATA: dcp_facts,
    "trainer_state.json": _huggingface,
    "config.json": _huggingface,
}
