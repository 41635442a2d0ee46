"""The trained model as a Hugging Face folder."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, PreTrainedTokenizerFast

from decaylaws.io.files import write_text
from decaylaws.recipe.checkpoints.formats import TRAINING_STATE
from decaylaws.recipe.files import to_json
from proxy_runs.data.shards import TokenStore
from proxy_runs.fsdp.parallel import World
from proxy_runs.fsdp.start import Start, stored_config
from proxy_runs.weights.stored import stored_tensors

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
GENERATION_FILE, MODEL_CARD, WEIGHTS_FILE = "generation_config.json", "README.md", "model.safetensors"
FILE_BYTES = 4 * 2**30
"""Of a file of the exported weights at most, unless a single layer has more."""


def export_hf(
    start: Start,
    weights: Mapping[str, Tensor],
    folder: Path,
    store: TokenStore,
    world: World,
    *,
    state: Mapping[str, Any],
) -> None:
    """Save sharded ``weights`` with what belongs to the model; every rank calls it.

    Config, number format, tokenizer, chat template, model card and settings of generation are those of the start. The
    folder appears under its name when it is complete. The first rank gathers the weights file by file, so that its
    host never holds more than ``FILE_BYTES`` of them and one decoder layer. ``state`` says where the model stands, for
    ``decaylaws doctor``.

    Args:
        start: what the run started from.
        weights: sharded weights by name.
        folder: folder to write.
        store: the corpus, for its tokenizer.
        world: the ranks.
        state: where the model stands, for ``decaylaws doctor``.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    if world.is_first:
        shutil.rmtree(unfinished, ignore_errors=True)
    parts = _parts(weights, start.dtype)
    parameters = dict(start.model.named_parameters())
    found: dict[str, str] = {}
    for number, names in enumerate(parts, start=1):
        gathered = {name: _gathered(weights[name], keep=world.is_first) for name in names}
        if not world.is_first:
            continue
        # buffers, such as the bias of a router, keep the format that they have
        stored = {name: t.to(start.dtype) if name in parameters else t for name, t in gathered.items()}
        if len(parts) == 1:
            _save(start, stored, unfinished)
            continue
        alone = unfinished / "part"  # transformers would take the other files for those of an earlier save
        _save(start, stored, alone)
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        (alone / WEIGHTS_FILE).rename(unfinished / file)
        shutil.rmtree(alone)
        found |= dict.fromkeys(stored_tensors(unfinished / file), file)
    if world.is_first:
        if found:
            size = sum((unfinished / file).stat().st_size for file in set(found.values()))
            index = {"metadata": {"total_size": size}, "weight_map": found}
            write_text(unfinished / f"{WEIGHTS_FILE}.index.json", to_json(index))
        _save_settings(start, unfinished)
        _keep_tokenizer(start, store, unfinished)
        write_text(unfinished / TRAINING_STATE, to_json(dict(state)))
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    dist.barrier()


def _parts(weights: Mapping[str, Tensor], dtype: torch.dtype) -> list[list[str]]:
    """Names of the weights of each file: whole layers, whose weights some formats join, in the model's order."""
    layers: dict[str, list[str]] = {}
    for name in weights:
        layer = re.match(r"\D*\.\d+\.", name)
        layers.setdefault(layer.group() if layer else "", []).append(name)
    parts: list[list[str]] = []
    room = 0
    for names in layers.values():
        size = sum(weights[name].numel() for name in names) * dtype.itemsize
        if not parts or size > room:
            parts.append([])
            room = FILE_BYTES
        parts[-1] += names
        room -= size
    return parts


def _save(start: Start, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Weights under the names and in the layout of the family's files."""
    model, own = start.model, start.model.generation_config
    if start.folder is not None:
        # transformers refuses to write settings of generation that it has read, such as a temperature without sampling
        model.generation_config = GenerationConfig()
    model.save_pretrained(folder, state_dict=dict(weights), max_shard_size=2**62)
    model.generation_config = own


def _save_settings(start: Start, folder: Path) -> None:
    """Config and generation settings, and what else belongs to the model."""
    if start.folder is not None:
        (folder / GENERATION_FILE).unlink(missing_ok=True)
        if (start.folder / GENERATION_FILE).is_file():
            shutil.copyfile(start.folder / GENERATION_FILE, folder / GENERATION_FILE)
        if (start.folder / MODEL_CARD).is_file():  # licence and origin still hold for the weights
            shutil.copyfile(start.folder / MODEL_CARD, folder / MODEL_CARD)
    elif start.model.generation_config is not None:
        start.model.generation_config.save_pretrained(folder)
    stored_config(start).save_pretrained(folder)


def _keep_tokenizer(start: Start, store: TokenStore, folder: Path) -> None:
    """The start's own files, or the corpus's tokenizer for a start that has none."""
    if start.folder is None or not (start.folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(store.tokenizer_path))
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            eos_token=tokenizer.id_to_token(store.eos_id),
            model_max_length=getattr(start.model.config.get_text_config(), "max_position_embeddings", None),
        ).save_pretrained(folder)
        return
    for name in TOKENIZER_FILES:
        if (start.folder / name).is_file():
            shutil.copyfile(start.folder / name, folder / name)
    if (start.folder / "additional_chat_templates").is_dir():
        shutil.copytree(start.folder / "additional_chat_templates", folder / "additional_chat_templates")


def _gathered(tensor: Tensor, *, keep: bool) -> Tensor:
    full = tensor.detach()
    full = full.full_tensor() if isinstance(full, DTensor) else full
    return full.cpu() if keep else full.new_empty(0)
