"""Moments of a start under the names of its weights, out of every kind of file that trainers leave them in."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from decaylaws.errors import DataError
from decaylaws.recipe.checkpoints import tensor_shapes
from decaylaws.recipe.checkpoints.dcp import read_dcp, read_scalar, read_tensor
from decaylaws.recipe.checkpoints.megatron import optimizer_steps
from decaylaws.recipe.checkpoints.moments import StoredMoments, megatron_state_of, optimizer_state, state_of
from decaylaws.recipe.checkpoints.parameter_names import (
    huggingface_name,
    interleaves_rope,
    numbered_names,
    pads_vocabulary,
    unfused_names,
)
from decaylaws.runs.folders import require_moments
from proxy_runs.weights.checkpoint_files import STATE_FILE
from proxy_runs.weights.stored import StoredTensor, stored_tensors

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW remembers of a parameter."""
MOMENTUM = "momentum_buffer"
"""What Muon remembers of a matrix."""

Moments = dict[str, Tensor]


def read_moments(folder: Path, model: nn.Module | None = None) -> tuple[int, Moments]:
    """The steps behind an optimiser's state in a Hugging Face folder, and its tensors.

    Args:
        folder: with weights, and moments where :mod:`decaylaws.recipe.checkpoints.moments` looks for them.
        model: of the folder, for the order of its parameters; built without weights where that is needed.

    Returns:
        Steps, and tensors by ``<kind>.<parameter>`` with Hugging Face's names and layouts.

    Raises:
        DataError: there are none, or they are damaged or belong to a model of other shapes or to another optimiser.
    """
    stored = require_moments(folder)
    try:
        if stored.layout == "safetensors":
            tensors = load_file(stored.path)
            return int(tensors.pop("step").item()), tensors
        if stored.layout == "sharded":
            return _from_sharded(stored)
        if stored.layout == "dcp":
            return _from_dcp(stored, folder)
        if stored.layout == "megatron":
            return _from_megatron(stored, folder)
        return _from_torch_file(stored, folder, model)
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise DataError(f"The optimiser's state in {folder} cannot be read: {error}") from error


def stored_moments(
    folder: Path, model: nn.Module | None = None
) -> tuple[int, Mapping[str, Tensor | StoredTensor]]:
    """As :func:`read_moments`, but of a safetensors file no tensor is read before it is indexed.

    Args:
        folder: see :func:`read_moments`.
        model: see there.
    """
    stored = require_moments(folder)
    if stored.layout != "safetensors":
        return read_moments(folder, model)
    try:
        tensors = dict(stored_tensors(stored.path))
        return int(tensors.pop("step")[...].item()), tensors
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise DataError(f"The optimiser's state in {folder} cannot be read: {error}") from error


def of_kind(moments: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The tensors ``<kind>.<parameter>`` by parameter."""
    prefix = f"{kind}."
    return {name.removeprefix(prefix): t for name, t in moments.items() if name.startswith(prefix)}


def _from_sharded(stored: StoredMoments) -> tuple[int, Moments]:
    """Of a checkpoint of a launched run: safetensors of its ranks, which torch puts together."""
    import torch.distributed.checkpoint as dcp

    tensors = {
        f"{kind}.{name}": torch.empty(shape)
        for kind, of in stored.shapes.items()
        for name, shape in of.items()
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process may read it, too
        try:
            dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(stored.path)), no_dist=True)
        except dcp.CheckpointException as error:
            raise DataError(f"The optimiser's state in {stored.path} cannot be read: {error}") from error
    state = json.loads((stored.path / STATE_FILE).read_text(encoding="utf-8"))
    return int(state["optimizer_step"]), tensors


def _from_dcp(stored: StoredMoments, folder: Path) -> tuple[int, Moments]:
    entries = read_dcp(stored.path)
    weights = tensor_shapes(folder, pattern="model*.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors: Moments = {}
    steps = [0]
    for entry_name, entry in entries.items():
        state = state_of(entry_name)
        if state is None:
            continue
        theirs, kind = state
        if kind == "step":
            steps.append(_whole(read_scalar(stored.path, entry)))
            continue
        tensor = read_tensor(stored.path, entry_name, entry).float()
        for part, rows in _unfused(theirs, tensor, config):
            if interleaves_rope(part, config):
                is_key = part.endswith("wk.weight")
                heads = _key_value_heads(config) if is_key else config["num_attention_heads"]
                rows = rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(rows.shape)
            # experts are joined under the names of the model's own parameters
            tensors[f"{kind}.{huggingface_name(part, weights) or part}"] = rows
    return max(steps), tensors


def _from_megatron(stored: StoredMoments, folder: Path) -> tuple[int, Moments]:
    weights = tensor_shapes(folder, pattern="model*.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors: Moments = {}
    for entry_name, entry in read_dcp(stored.path).items():
        state = megatron_state_of(entry_name)
        if state is None:
            continue
        theirs, kind = state
        tensor = read_tensor(stored.path, entry_name, entry).float()
        numbered = numbered_names(theirs, tensor.shape)
        layers = [(theirs, tensor)] if numbered is None else zip(numbered, tensor, strict=True)
        for name, of_layer in layers:
            for part, rows in _unfused(name, of_layer, config):
                ours = huggingface_name(part, weights) or part
                tensors[f"{kind}.{ours}"] = rows[: weights[ours][0]] if pads_vocabulary(part) else rows
    return optimizer_steps(stored.path), tensors


def _unfused(name: str, tensor: Tensor, config: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    """The matrices that a trainer keeps as one.

    Gate and up stand one after the other. Queries, keys and values stand together by head of keys: its heads of
    queries, itself, its values.
    """
    names = unfused_names(name)
    if len(names) == 1:
        return [(name, tensor)]
    if len(names) == 2:
        return list(zip(names, tensor.chunk(2), strict=True))
    groups = _key_value_heads(config)
    queries = config["num_attention_heads"] // groups
    heads = tensor.unflatten(0, (groups, queries + 2, -1))
    return [
        (part, rows.flatten(0, 2))
        for part, rows in zip(names, heads.split([queries, 1, 1], dim=1), strict=True)
    ]


def _key_value_heads(config: Mapping[str, Any]) -> int:
    """Heads of keys of the model, which has one for each head of queries where its config does not say."""
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def _from_torch_file(stored: StoredMoments, folder: Path, model: nn.Module | None) -> tuple[int, Moments]:
    content = optimizer_state(torch.load(stored.path, map_location="cpu", weights_only=True, mmap=True))
    groups, states = content["param_groups"], content["state"]
    if any(isinstance(key, int) for key in states):
        names = _names_of_numbers(stored, groups, model if model is not None else _without_weights(folder))
    else:
        weights = tensor_shapes(folder, pattern="model*.safetensors")
        names = {key: huggingface_name(key, weights) or key for key in states}
    tensors: Moments = {}
    steps = [0]
    for key, values in states.items():
        steps.append(_whole(values.get("step")))
        for kind in (*MOMENTS, MOMENTUM):
            if isinstance(values.get(kind), Tensor):
                tensors[f"{kind}.{names[key]}"] = values[kind].float()
    return max(steps), tensors


def _whole(value: object) -> int:
    """A count of steps, as a number or a tensor of one."""
    value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    return int(value) if isinstance(value, int | float) else 0


def _without_weights(folder: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM  # takes seconds to load

    from proxy_runs.weights.causal_lm import load_config

    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(load_config(folder))
    return model


def _names_of_numbers(
    stored: StoredMoments, groups: list[dict[str, Any]], model: nn.Module
) -> dict[int, str]:
    """Which parameter each number stands for: a file of an optimiser without names only has their order.

    An optimiser numbers the parameters of its groups one after the other. How a trainer divides them into groups is a
    rule of its own; the one that gives every moment the shape of its parameter is taken.

    Raises:
        DataError: none does, or several that differ.
    """
    numbers = [number for group in groups for number in group["params"]]
    if all(group.get("param_names") for group in groups):
        return dict(zip(numbers, [name for group in groups for name in group["param_names"]], strict=True))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    fitting = []
    for divided in _divisions(model):
        names = [name for group in divided for name in group]
        of_groups = [len(group["params"]) for group in groups if group["params"]]
        if of_groups != [len(group) for group in divided if group] or len(names) != len(numbers):
            continue
        found = dict(zip(numbers, names))
        if all(
            shape == shapes[found[int(number)]]
            for of in stored.shapes.values()
            for number, shape in of.items()
        ):
            fitting.append(found)
    if not fitting or any(found != fitting[0] for found in fitting):
        raise DataError(
            f"{stored.path} numbers its parameters, and which number stands for which parameter cannot be told: "
            f"{'no order' if not fitting else 'more than one order'} of the parameters that is known gives all moments "
            "their shapes. Save the state with names, such as optimizer.safetensors, or start the optimiser afresh."
        )
    return fitting[0]


def _divisions(model: nn.Module) -> Iterator[list[list[str]]]:
    """Names of parameters by group, as trainers divide them."""
    from transformers import Trainer

    parameters = dict(model.named_parameters())
    yield [list(parameters)]
    # the rule needs nothing of a trainer, and making one needs accelerate
    decays = set(Trainer.get_decay_parameter_names(None, model))
    yield [[n for n in parameters if n in decays], [n for n in parameters if n not in decays]]
    matrices = [name for name, parameter in parameters.items() if parameter.dim() >= 2]
    yield [matrices, [name for name in parameters if name not in set(matrices)]]
