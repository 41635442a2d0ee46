"""How fast this machine trains a checkpoint in the FSDP trainer: a few passes over random tokens."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from decaylaws.recipe import OptimizerSettings
from decaylaws.runs.config import Arithmetic, Shape
from decaylaws.runs.optimizer import OptimizerConfig
from proxy_runs.fsdp.experts import balance_of
from proxy_runs.fsdp.layout import Layout
from proxy_runs.fsdp.model import hidden_matrices, named_parameters, shard_model
from proxy_runs.fsdp.optimizer import ShardedOptimizer
from proxy_runs.fsdp.parallel import World, alone
from proxy_runs.fsdp.settings import TrainSettings
from proxy_runs.weights.causal_lm import load_config

PASS_FLOPS = {"cpu": 2e11, "cuda": 2e13}
"""Of a timed pass at most, so that it takes seconds: shorter and fewer sequences than training has."""
MIN_LENGTH = 32


def tokens_per_second(
    folder: Path,
    shape: Shape,
    batch_tokens: int,
    layout: Layout,
    arithmetic: Arithmetic,
    optimizer: OptimizerConfig,
) -> float:
    """Training tokens per second of one run with all its processes, which are taken to share nothing.

    A pass forward and backward and an update are timed apart, since a step has one update and as many passes as its
    batch needs. Weights are random.

    Args:
        folder: of the checkpoint.
        shape: its size.
        batch_tokens: tokens of a step.
        layout: processes and memory of a run.
        arithmetic: number format and compiler.
        optimizer: of the run.
    """
    with alone(layout.device) as world:
        pass_seconds, pass_tokens, update_seconds = _timed(
            folder, shape, layout, arithmetic, optimizer, world
        )
    gc.collect()
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
    own_tokens = batch_tokens / layout.processes
    return batch_tokens / (pass_seconds * own_tokens / pass_tokens + update_seconds / layout.processes)


def _timed(
    folder: Path,
    shape: Shape,
    layout: Layout,
    arithmetic: Arithmetic,
    optimizer_config: OptimizerConfig,
    world: World,
) -> tuple[float, int, float]:
    """Seconds and tokens of a pass, and seconds of an update."""
    settings = TrainSettings.checked(
        recipe=folder,
        corpus=folder,
        start=folder,
        output=folder,
        dtype=arithmetic.precision,
        compile=arithmetic.compiled,
        activation_checkpointing=layout.activation_checkpointing,
    )
    lm = AutoModelForCausalLM.from_config(load_config(folder), dtype=torch.float32)
    module = shard_model(lm, settings, world, balance_loss=balance_of(lm, None).weight)
    optimizer_settings = OptimizerSettings.of(optimizer_config.to_dict())
    optimizer = ShardedOptimizer(named_parameters(module), optimizer_settings, hidden_matrices(lm))
    budget = int(PASS_FLOPS[world.device.type] / shape.train_flops_per_token)
    length = min(shape.seq_len, max(MIN_LENGTH, budget))
    sequences = max(1, min(budget, layout.micro_batch_tokens) // length)
    windows = torch.randint(
        lm.config.get_text_config().vocab_size, (sequences, length + 1), device=world.device
    )
    weights = torch.full((sequences, length), 1.0 / (sequences * length), device=world.device)
    passes, updates = [], []
    for _ in range(3):  # the first one sets up what later ones have
        began = _now(world)
        module(windows, weights).objective.backward()
        middle = _now(world)
        optimizer.step(1e-6)
        passes.append(middle - began)
        updates.append(_now(world) - middle)
    return min(passes[1:]), sequences * length, min(updates[1:])


def _now(world: World) -> float:
    """Seconds: of this process on a CPU, where others would be counted in, of the clock where a GPU is waited for."""
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
        return time.perf_counter()
    return time.process_time()
