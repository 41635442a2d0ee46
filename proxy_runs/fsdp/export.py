"""The trained model as a Hugging Face folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch.distributed as dist
from tokenizers import Tokenizer
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from proxy_runs.data.shards import TokenStore
from proxy_runs.fsdp.parallel import World


def export_hf(
    model: PreTrainedModel, weights: Mapping[str, Tensor], folder: Path, store: TokenStore, world: World
) -> None:
    """Gather sharded ``weights`` and save them with config and tokenizer; every rank calls it.

    The folder appears under its name when it is complete. The first rank holds all weights in host memory.
    """
    gathered = {name: _gathered(tensor, keep=world.is_first) for name, tensor in weights.items()}
    if world.is_first:
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished, state_dict=gathered)
        _tokenizer(store, model).save_pretrained(unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    dist.barrier()


def _gathered(tensor: Tensor, *, keep: bool) -> Tensor:
    full = tensor.detach()
    full = full.full_tensor() if isinstance(full, DTensor) else full
    return full.cpu() if keep else full.new_empty(0)


def _tokenizer(store: TokenStore, model: PreTrainedModel) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer.from_file(str(store.tokenizer_path))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=tokenizer.id_to_token(store.eos_id),
        model_max_length=model.config.max_position_embeddings,
    )
