"""Which format a checkpoint has, and the readers of those formats that need no module of their own."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from decaylaws.errors import DataError
from decaylaws.recipe.checkpoints.dcp import METADATA, dcp_facts
from decaylaws.recipe.checkpoints.facts import (
    STEP_NAMES,
    TOKEN_NAMES,
    CheckpointFacts,
    embedding_rows,
    first_whole,
    number,
    read_json,
    whole,
)
from decaylaws.recipe.checkpoints.megatron import COMMON, TRACKER, latest_iteration, megatron_facts
from decaylaws.recipe.corpus_facts import tokenizer_fingerprint

OPTIMIZER_FILES = ("optimizer.pt", "optimizer.safetensors")
TORCH_SUFFIXES = (".pt", ".pth", ".bin")
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
        f"{path} is no checkpoint of a known format: a Hugging Face folder, a folder with state.json, a DCP folder "
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
    return CheckpointFacts(
        kind="safetensors",
        step=whole(header.get("step")),
        tokens=whole(header.get("tokens")),
        has_optimizer=any(name.startswith("exp_avg") for name in shapes),
        vocab_size=embedding_rows(shapes),
    )


def _sharded(path: Path) -> CheckpointFacts:
    state = read_json(path / "state.json")
    names = [name for file in sorted(path.glob("*.safetensors")) for name in _header(file)[1]]
    return CheckpointFacts(
        kind="sharded",
        step=whole(state.get("step")),
        tokens=whole(state.get("tokens")),
        lr=number(state.get("lr")),
        has_optimizer=any(name.startswith("exp_avg") for name in names),
    )


def _huggingface(path: Path) -> CheckpointFacts:
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    trainer = read_json(path / "trainer_state.json") if (path / "trainer_state.json").is_file() else {}
    tokenizer = path / "tokenizer.json"
    return CheckpointFacts(
        kind="huggingface",
        step=whole(trainer.get("global_step")),
        # the Trainer writes zero where it was not told to count
        tokens=whole(trainer.get("num_input_tokens_seen")) or None,
        lr=_trainer_lr(path, trainer),
        has_optimizer=any((path / name).is_file() for name in OPTIMIZER_FILES),
        vocab_size=whole(config.get("vocab_size")),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer) if tokenizer.is_file() else None,
    )


def _trainer_lr(path: Path, trainer: Mapping[str, Any]) -> float | None:
    """LR of the Trainer's scheduler; failing that, the last one that it logged."""
    if (path / "scheduler.pt").is_file():
        last = _load(path / "scheduler.pt").get("_last_lr")
        if isinstance(last, list) and last and number(last[0]) is not None:
            return number(last[0])
    history = trainer.get("log_history")
    entries = [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []
    logged = [entry["learning_rate"] for entry in entries if "learning_rate" in entry]
    return number(logged[-1]) if logged else None


def _load(path: Path) -> dict[Any, Any]:
    """The dictionary in a torch file, loaded with ``weights_only``."""
    torch = importlib.import_module("torch")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # what torch raises for a damaged or unsafe file is not documented
        raise DataError(f"{path} cannot be loaded without running code in it: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a dictionary.")
    return content


def _torch_file(path: Path) -> CheckpointFacts:
    content = _load(path)
    optimizer = content.get("optimizer", content if "param_groups" in content else None)
    groups = optimizer.get("param_groups") if isinstance(optimizer, dict) else None
    entries = [group for group in groups if isinstance(group, dict)] if isinstance(groups, list) else []
    lrs = [group["lr"] for group in entries if "lr" in group]
    return CheckpointFacts(
        kind="torch",
        step=first_whole(content, STEP_NAMES),
        tokens=first_whole(content, TOKEN_NAMES),
        lr=number(lrs[0]) if lrs else None,
        has_optimizer=bool(isinstance(optimizer, dict) and optimizer.get("state")),
    )


def _olmo_core(path: Path) -> CheckpointFacts:
    """OLMo-core: tensors as DCP, the trainer's counters in a torch file."""
    facts = dcp_facts(path / OLMO_TENSORS, kind="olmo-core")
    counters = _load(path / OLMO_TRAINER) if (path / OLMO_TRAINER).is_file() else {}
    step, tokens = first_whole(counters, STEP_NAMES), first_whole(counters, TOKEN_NAMES)
    return CheckpointFacts(
        kind=facts.kind,
        step=facts.step if step is None else step,
        tokens=facts.tokens if tokens is None else tokens,
        lr=facts.lr,
        has_optimizer=facts.has_optimizer,
        vocab_size=facts.vocab_size,
    )


# what marks a folder, the more telling first: Megatron's holds DCP metadata as well
_FOLDERS: dict[str, Callable[[Path], CheckpointFacts]] = {
    "state.json": _sharded,
    COMMON: megatron_facts,
    TRACKER: lambda path: megatron_facts(latest_iteration(path)),
    OLMO_TENSORS: _olmo_core,
    METADATA: dcp_facts,
    "trainer_state.json": _huggingface,
    "config.json": _huggingface,
}
