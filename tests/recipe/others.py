"""Checkpoints as other trainers write them, and a pickle that does harm."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch

# OLMo 2 7B where its anneal begins
LR, STEP, TOKENS = 6.1351e-5, 928_646, 928_646 * 4_194_304


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def _optimizer() -> tuple[Any, Any]:
    model = torch.nn.ModuleDict({"tok_embeddings": torch.nn.Embedding(12, 2)})
    adamw = torch.optim.AdamW(model.parameters(), lr=LR)
    model["tok_embeddings"](torch.tensor([1])).sum().backward()
    adamw.step()
    return model, adamw


def save_dcp(folder: Path, **more: Any) -> None:
    """As torchtitan does: flattened names, counters as tensors, settings as values."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model_state, optimizer_state = get_state_dict(*_optimizer())
        dcp.save(
            {"model": model_state, "optimizer": optimizer_state} | more,
            checkpoint_id=str(folder),
            no_dist=True,
        )
