"""Files of a sharded run's checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from proxy_runs.fsdp import checkpoint
from proxy_runs.fsdp.checkpoint import Checkpoints, read_checkpoint
from proxy_runs.fsdp.parallel import alone


def test_a_checkpoint_is_written_in_files_that_fit_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "FILE_BYTES", 400)
    tensors = {f"param.{number}": torch.randn(30 * (1 + number % 2)) for number in range(7)}
    tensors["param.large"] = torch.randn(20, 10)
    with alone("cpu") as world:
        checkpoints = Checkpoints(tmp_path, world, keep_last=1)
        checkpoints.save(1, tensors, {"step": 1}, LlamaConfig())
        latest = checkpoints.latest()
    assert latest is not None
    files = sorted(latest.glob("*.safetensors"))
    assert len(files) == 5
    assert sum(file.stat().st_size > 2 * 400 for file in files) == 1  # a tensor that is larger alone
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    assert read_checkpoint(latest, found) == {"step": 1}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
