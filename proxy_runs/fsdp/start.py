"""What a run starts from: weights and, if the recipe says so, the optimiser's moments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from decaylaws.errors import DataError
from proxy_runs.weights.checkpoints import load_checkpoint
from proxy_runs.weights.hf import to_hf_model, to_hf_weights

OPTIMIZER_FILE = "optimizer.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Start:
    """A model and the state of its optimiser.

    Attributes:
        model: float32 weights, on the CPU.
        moments: by ``exp_avg.<parameter>`` and ``exp_avg_sq.<parameter>``, full tensors under Hugging Face's
            names; ``None`` for a fresh optimiser.
        optimizer_step: steps that the moments have seen: what the bias correction counts.
    """

    model: PreTrainedModel
    moments: Mapping[str, Tensor] | None
    optimizer_step: int


def load_start(path: Path, *, with_optimizer: bool) -> Start:
    """Read the checkpoint that a recipe starts from. Nothing in it is executed.

    Args:
        path: a member checkpoint (``.safetensors``), or a Hugging Face folder, where
            ``optimizer.safetensors`` holds the moments.
        with_optimizer: take the moments as well.

    Raises:
        DataError: the checkpoint is missing, damaged, or lacks the moments that the recipe asks for.
    """
    start = _from_member(path) if path.is_file() else _from_folder(path)
    if not with_optimizer:
        return Start(start.model, None, 0)
    if start.moments is None:
        raise DataError(
            f"The recipe takes the optimiser's state over, but {path} holds none. Start from a checkpoint "
            f"with {OPTIMIZER_FILE}, or set handover.optimizer_state: fresh."
        )
    return start


def _from_member(path: Path) -> Start:
    state = load_checkpoint(path)
    moments = {
        f"{kind}.{name}": tensor
        for kind, params in (("exp_avg", state.exp_avg), ("exp_avg_sq", state.exp_avg_sq))
        for name, tensor in to_hf_weights(params, state.shape).items()
    }
    return Start(to_hf_model(state.params, state.shape), moments, state.step)


def _from_folder(path: Path) -> Start:
    if not (path / "config.json").is_file():
        raise DataError(
            f"{path} is neither a member checkpoint nor a Hugging Face folder with a config.json."
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
        moments = load_file(path / OPTIMIZER_FILE) if (path / OPTIMIZER_FILE).is_file() else None
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise DataError(f"The checkpoint in {path} cannot be read: {error}") from error
    if moments and "step" not in moments:
        raise DataError(
            f"{path / OPTIMIZER_FILE} does not say its step. Save it again, with a tensor 'step'."
        )
    step = int(moments.pop("step").item()) if moments else 0
    return Start(model, moments, step)
