"""Runs of the sharded trainer on forked gloo ranks, and what they have written."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from decaylaws.recipe import Recipe
from proxy_runs.data.shards import TokenStore
from proxy_runs.fsdp.__main__ import main
from proxy_runs.fsdp.metrics import read_metrics
from proxy_runs.fsdp.settings import TrainSettings
from proxy_runs.fsdp.trainer import Trainer


def settings_for(root: Path, name: str, **changes: Any) -> TrainSettings:
    values = {
        "recipe": root / "recipe.yaml",
        "corpus": root / "corpus",
        "start": root / "trunk.safetensors",
        "output": root / name,
        "device": "cpu",
        "micro_batch_sequences": 4,
        "checkpoint_interval": 20,
        "eval_tokens_per_domain": 1000,
    }
    return TrainSettings.checked(**(values | changes))


def stage(steps: int, *, sequences: int, seq_len: int, **changes: Any) -> dict[str, Any]:
    """A stage of the tiny corpus, constant at 4e-3, as plain values."""
    batch = sequences * seq_len
    values = {
        "lr": [{"tokens": steps * batch, "start_lr": 4e-3, "end_lr": 4e-3, "shape": "constant"}],
        "mixture": {"general": 0.5, "code": 0.5},
        "batch_tokens": batch,
        "seq_len": seq_len,
    }
    return values | changes


def recipe_of(store: TokenStore, *stages: dict[str, Any]) -> Recipe:
    """A recipe with a fresh optimiser on the tiny corpus."""
    return Recipe(
        handover={"lr": 4e-3, "checkpoint": "start", "optimizer_state": "fresh"},
        stages=stages,
        sources={name: {} for name in store.names},
        provenance={"data_fingerprint": store.fingerprint},
    )


Prepare = Callable[[], None]


def _rank(rank: int, size: int, port: int, settings_file: str, prepare: Prepare | None) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if prepare is not None:
        prepare()
    os._exit(main([settings_file]))


def dies_after(steps: int) -> Prepare:
    """Lets the ranks die without a word, with exit code 9, once so many steps are done."""

    def prepare() -> None:
        log = Trainer._log

        def log_and_die(self: Trainer, *values: Any, **named: Any) -> None:
            log(self, *values, **named)
            if self.step == steps:
                os._exit(9)

        Trainer._log = log_and_die  # type: ignore[method-assign]

    return prepare


def train(settings: TrainSettings, ranks: int, *, prepare: Prepare | None = None, exit_code: int = 0) -> Path:
    """Train on forked gloo ranks, each of which calls ``prepare`` first; returns the output folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings.output.mkdir(parents=True, exist_ok=True)
    file = settings.save(settings.output / f"settings-{ranks}.json")
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_rank, args=(rank, ranks, port, str(file), prepare)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [exit_code] * ranks
    return settings.output


def losses(output: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(output / "metrics.jsonl") if "loss" in line]


def orders(output: Path) -> list[int]:
    """The figure for the sequences of each step and their places."""
    return [line["data_order"] for line in read_metrics(output / "metrics.jsonl") if "loss" in line]
