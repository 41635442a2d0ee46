"""What a checkpoint says of itself: step, tokens, LR, optimiser state, vocabulary. Nothing in it is executed.

Formats: a Hugging Face folder (with ``trainer_state.json`` if the Trainer wrote it), a sharded checkpoint of
``proxy_runs.fsdp`` (``state.json``), a member checkpoint of the proxies (``.safetensors`` with a header), and
a torch file (``.pt``, ``.pth``, ``.bin``), which is loaded with ``weights_only``.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decaylaws.errors import DataError

OPTIMIZER_FILES = ("optimizer.pt", "optimizer.safetensors")
TORCH_SUFFIXES = (".pt", ".pth", ".bin")


@dataclass(frozen=True)
class CheckpointFacts:
    """What was found; ``None`` where the checkpoint does not say.

    Attributes:
        kind: format of the checkpoint.
        step: optimiser steps behind it.
        tokens: tokens behind it.
        lr: LR of its last step.
        has_optimizer: whether it holds the optimiser's moments.
        vocab_size: rows of the embedding, or the config's figure.
    """

    kind: str
    step: int | None = None
    tokens: int | None = None
    lr: float | None = None
    has_optimizer: bool | None = None
    vocab_size: int | None = None


def read_facts(path: str | Path) -> CheckpointFacts:
    """Read what the checkpoint at ``path`` says of itself.

    Raises:
        DataError: there is nothing, or nothing of a known format, or it is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"There is no checkpoint at {path}.")
    if path.is_file():
        if path.suffix == ".safetensors":
            return _member(path)
        if path.suffix in TORCH_SUFFIXES:
            return _torch_file(path)
    elif (path / "state.json").is_file():
        return _sharded(path)
    elif (path / "config.json").is_file() or (path / "trainer_state.json").is_file():
        return _huggingface(path)
    raise DataError(
        f"{path} is no checkpoint of a known format: a Hugging Face folder, a folder with state.json, "
        f"a .safetensors file or one of {', '.join(TORCH_SUFFIXES)}."
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a JSON object.")
    return content


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
    header: Mapping[str, Any] = {}
    if "header" in metadata:
        try:
            header = json.loads(metadata["header"])
        except ValueError as error:
            raise DataError(f"{path} has a damaged header: {error}") from error
    return CheckpointFacts(
        kind="safetensors",
        step=_whole(header.get("step")),
        tokens=_whole(header.get("tokens")),
        has_optimizer=any(name.startswith("exp_avg") for name in shapes),
        vocab_size=_embedding_rows(shapes),
    )


def _sharded(path: Path) -> CheckpointFacts:
    state = _json(path / "state.json")
    names = [name for file in sorted(path.glob("*.safetensors")) for name in _header(file)[1]]
    return CheckpointFacts(
        kind="sharded",
        step=_whole(state.get("step")),
        tokens=_whole(state.get("tokens")),
        lr=_number(state.get("lr")),
        has_optimizer=any(name.startswith("exp_avg") for name in names),
    )


def _huggingface(path: Path) -> CheckpointFacts:
    config = _json(path / "config.json") if (path / "config.json").is_file() else {}
    trainer = _json(path / "trainer_state.json") if (path / "trainer_state.json").is_file() else {}
    history = trainer.get("log_history", [])
    logged = [
        entry["learning_rate"] for entry in history if isinstance(entry, dict) and "learning_rate" in entry
    ]
    return CheckpointFacts(
        kind="huggingface",
        step=_whole(trainer.get("global_step")),
        tokens=_whole(trainer.get("num_input_tokens_seen")) or None,
        lr=_number(logged[-1]) if logged else None,
        has_optimizer=any((path / name).is_file() for name in OPTIMIZER_FILES),
        vocab_size=_whole(config.get("vocab_size")),
    )


def _torch_file(path: Path) -> CheckpointFacts:
    torch = importlib.import_module("torch")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # what torch raises for a damaged or unsafe file is not documented
        raise DataError(f"{path} cannot be loaded without running code in it: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a dictionary.")
    optimizer = content.get("optimizer", content if "param_groups" in content else None)
    groups = optimizer.get("param_groups", []) if isinstance(optimizer, dict) else []
    lrs = [group["lr"] for group in groups if isinstance(group, dict) and "lr" in group]
    step = next((content[key] for key in ("step", "global_step", "iteration") if key in content), None)
    return CheckpointFacts(
        kind="torch",
        step=_whole(step),
        tokens=_whole(content.get("tokens")),
        lr=_number(lrs[0]) if lrs else None,
        has_optimizer=bool(isinstance(optimizer, dict) and optimizer.get("state")),
    )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _embedding_rows(shapes: Mapping[str, list[int]]) -> int | None:
    rows = [shape[0] for name, shape in shapes.items() if "embed" in name and "exp_avg" not in name and shape]
    return rows[0] if rows else None
