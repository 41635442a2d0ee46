"""What tests that train share: one thread, for the same bits everywhere, and a tiny corpus."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from decaylaws.runs.config import RunConfig
from proxy_runs.data.shards import TokenStore
from proxy_runs.testing import make_tiny_store
from tests.proxy_runs.tiny_runs import train_all


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    """Before the fixtures of a module, which train as well."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """A tiny corpus; a test that changes it makes one of its own."""
    return make_tiny_store(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def trunk_dir(tmp_path_factory: pytest.TempPathFactory, store: TokenStore, trunk: RunConfig) -> Path:
    """Checkpoints of the trunk that a module names."""
    directory = tmp_path_factory.mktemp("checkpoints")
    train_all(store, [trunk], directory)
    return directory
