"""Tokens per second and FLOP utilisation of the full-scale trainer beside a plain Hugging Face loop, in turns.

    python analysis/fsdp_throughput.py --json OUT [--shape 1B|tiny] [--device cuda|cpu] [--rounds 5] [--eager]

Both contestants train the same Llama on one device, in one process, in alternating turns, so that a change of the
device's clock or load meets both. A step contains forward, backward, clip and AdamW in either; the trainer's also
reads its windows, adds up its ledger and writes its metrics, as in a real launch.

    loop      LlamaForCausalLM, its own loss, torch.compile, autocast, fused AdamW
    trainer   proxy_runs.fsdp on one rank: compiled layers, head with its gradient in the forward pass

On a CPU both run on one thread with the allocator of ``decaylaws launch``, and speeds are per CPU-second, since other
programs may be at work.

``mfu`` is the share of ``--peak-tflops`` (of the data sheet) or, without it, of a large matmul measured in the same
turns, with 6 FLOPs per matmul parameter and token plus causal attention (PaLM, appendix B). Without a GPU the tiny
shape runs in float32 and the output says so: its figures say nothing about a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from _common import run, write_json
from torch import nn
from transformers import LlamaForCausalLM

from decaylaws.errors import InvalidValueError
from decaylaws.io.children import SAFE_PATH
from decaylaws.recipe import Recipe
from decaylaws.runs.config import ModelShape
from proxy_runs.environment import environment
from proxy_runs.fsdp.parallel import open_world
from proxy_runs.fsdp.settings import TrainSettings
from proxy_runs.fsdp.trainer import Trainer
from proxy_runs.testing import make_tiny_store
from proxy_runs.weights.hf import llama_config

SHAPES = {
    "1B": ModelShape(
        d_model=2048, num_layers=16, num_heads=32, num_kv_heads=8, d_ff=8192, vocab_size=128_256, seq_len=4096
    ),
    "tiny": ModelShape(
        d_model=128, num_layers=4, num_heads=4, num_kv_heads=2, d_ff=352, vocab_size=4096, seq_len=128
    ),
}
LR = 1e-4
MATMUL_WIDTH = {"cuda": 8192, "cpu": 1024}
WARM_UP_STEPS = 3


def make_loop(shape: ModelShape, args: argparse.Namespace, device: torch.device) -> Callable[[], object]:
    """One step of a plain loop."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(shape)).to(device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = model if args.eager else torch.compile(model)
    tokens = torch.randint(256, (args.sequences, shape.seq_len), device=device)

    def step() -> None:
        for part in tokens.split(args.micro_batch):
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = forward(input_ids=part, labels=part, use_cache=False).loss
            (loss * len(part) / len(tokens)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def make_trainer(
    shape: ModelShape, args: argparse.Namespace, device: torch.device, folder: Path
) -> Callable[[], object]:
    """One step of the launcher's trainer, on one rank."""
    torch.manual_seed(0)
    LlamaForCausalLM(llama_config(shape)).save_pretrained(folder / "start")
    store = make_tiny_store(folder / "corpus", train_tokens=200_000, heldout_tokens=2 * shape.seq_len)
    batch = args.sequences * shape.seq_len
    steps = 1_000_000
    recipe = Recipe.from_dict(
        {
            "schema": "decaylaws.recipe/2",
            "handover": {"checkpoint": "start", "lr": LR, "optimizer_state": "fresh"},
            "stages": [
                {
                    "lr": [{"tokens": steps * batch, "start_lr": LR, "end_lr": LR, "shape": "constant"}],
                    "mixture": {"general": 0.5, "code": 0.5},
                    "batch_tokens": batch,
                    "seq_len": shape.seq_len,
                }
            ],
            "sources": {name: {} for name in store.names},
        }
    )
    settings = TrainSettings(
        recipe=recipe.save(folder / "recipe.yaml"),
        corpus=folder / "corpus",
        start=folder / "start",
        output=folder / "run",
        device=device.type,
        dtype="bfloat16" if device.type == "cuda" else "float32",
        micro_batch_sequences=args.micro_batch,
        compile=not args.eager,
        max_loss_jump=None,
        eval_tokens_per_domain=shape.seq_len,
    )
    settings.output.mkdir()
    trainer = Trainer(settings, open_world(device.type, replicas=1))

    return trainer.train_step


def make_matmul(device: torch.device) -> tuple[Callable[[], object], float]:
    """A large matmul in the dtype of the contestants, and its FLOPs."""
    width = MATMUL_WIDTH[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    return lambda: torch.mm(a, b), 2.0 * width**3


def turn(step: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Steps per second over about ``seconds``."""
    on_gpu = device.type == "cuda"
    wait, now = (torch.cuda.synchronize, time.perf_counter) if on_gpu else (lambda: None, time.process_time)
    wait()
    began, steps = now(), 0
    while steps == 0 or now() - began < seconds:
        step()
        steps += 1
        wait()
    return steps / (now() - began)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Speeds in turns; medians over rounds, ratio round by round."""
    device = torch.device(args.device)
    shape = SHAPES[args.shape]
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(args.port)}
    with tempfile.TemporaryDirectory() as folder:
        matmul, matmul_flops = make_matmul(device)
        steps = {
            "loop": make_loop(shape, args, device),
            "trainer": make_trainer(shape, args, device, Path(folder)),
        }
        for step in steps.values():
            for _ in range(WARM_UP_STEPS):
                step()
        rounds = [
            {name: turn(step, args.seconds, device) for name, step in (*steps.items(), ("matmul", matmul))}
            for _ in range(args.rounds)
        ]
        dist.destroy_process_group()
    peak = (
        args.peak_tflops * 1e12
        if args.peak_tflops
        else matmul_flops * np.median([r["matmul"] for r in rounds])
    )
    step_tokens = args.sequences * shape.seq_len
    speeds = {name: float(np.median([r[name] for r in rounds])) * step_tokens for name in steps}
    ratios = [r["trainer"] / r["loop"] for r in rounds]
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "remark": "" if device.type == "cuda" else "no GPU: the tiny shape on a CPU says nothing about a GPU",
        "shape": args.shape,
        "parameters": shape.total_params,
        "step_tokens": step_tokens,
        "compiled": not args.eager,
        "peak_tflops": float(peak) / 1e12,
        "tokens_per_second": speeds,
        "mfu": {name: speed * shape.train_flops_per_token / float(peak) for name, speed in speeds.items()},
        "trainer_over_loop": float(np.median(ratios)),
        "spread": float(np.subtract(*np.percentile(ratios, [75, 25]))),
    }


def read_arguments() -> argparse.Namespace:
    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--device", choices=("cuda", "cpu"), default=found)
    parser.add_argument("--shape", choices=SHAPES, default="1B" if found == "cuda" else "tiny")
    parser.add_argument("--sequences", type=int, default=8, help="of a step")
    parser.add_argument("--micro-batch", type=int, default=2, help="sequences of a forward pass")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a turn")
    parser.add_argument("--peak-tflops", type=float, help="of the device's data sheet, dense")
    parser.add_argument("--eager", action="store_true", help="compile neither contestant")
    parser.add_argument("--port", type=int, default=29_511)
    args = parser.parse_args()
    if args.device == "cuda" and found == "cpu":
        raise InvalidValueError("device", "cuda", "is not there", "Leave --device out.")
    return args


def main() -> None:
    args = read_arguments()
    found = measure(args)
    write_json(args.json, {"torch": torch.__version__, **found})
    for name in ("loop", "trainer"):
        print(f"{name:8} {found['tokens_per_second'][name]:12,.0f} tokens/s  MFU {found['mfu'][name]:.1%}")
    print(
        f"trainer over loop {found['trainer_over_loop']:.3f} (spread {found['spread']:.3f}) {found['remark']}"
    )


def as_launched() -> None:
    """Begin anew with the environment of a launch on a CPU: its allocator and one thread."""
    settings = {name: value for name, value in environment().items() if name not in SAFE_PATH}
    if not torch.cuda.is_available() and not settings.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | settings)


if __name__ == "__main__":
    as_launched()
    run(main)
