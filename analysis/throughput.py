"""Tokens per second of the proxy trainer against plain loops, in turns on one machine.

    python analysis/throughput.py --json OUT [--shapes 50k 200k 1M 5M] [--members 1 4 16 64] [--vocab 256]

Contestants are live processes of one thread each that take turns of half a second, so that a change of the
machine's load meets all of them. A step always contains: forward, backward, clip, AdamW, the LR of the step.

    loop            one model, plain PyTorch modules, scaled_dot_product_attention, fused AdamW
    loop_compiled   the same under torch.compile
    engine_K        the engine's stack of K members, float32, as a study runs it by default
    engine_K_bf16   matmuls in bfloat16
    engine_K_fast   bfloat16 and torch.compile

``*_pool`` are as many processes as there are cores, all in the same turn: what a whole job gets. ``ratio`` is
the median over rounds of the contestant's speed in a round over that of ``loop``, per CPU-second and, for
pools, per wall second over ``loop_pool``; ``spread`` is the interquartile range of these ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from _common import run, write_json
from torch import Tensor, nn

from decaylaws.configs import ModelShape, OptimizerConfig
from decaylaws.errors import InvalidValueError
from proxy_runs.allocator import environment
from proxy_runs.checkpoints import MemberState
from proxy_runs.engine import Backend
from proxy_runs.engine.stack import Stack
from proxy_runs.model import init_params

# name: d_model, layers, d_ff, heads, sequences of a member's step
SHAPES = {
    "50k": (48, 2, 128, 3, 16),
    "200k": (64, 4, 192, 2, 8),
    "1M": (128, 5, 352, 4, 8),
    "5M": (256, 6, 704, 4, 4),
}
LR = 1e-3
TURN_SECONDS = 0.5
PEAK_WIDTH = 1024


@dataclass(frozen=True)
class Task:
    """What one process does in its turns."""

    kind: str
    shape: str
    vocab: int
    seq_len: int
    members: int = 1
    precision: str = "float32"
    compiled: bool = False

    @property
    def model_shape(self) -> ModelShape:
        """The shape, in full."""
        d, layers, d_ff, heads, _ = SHAPES[self.shape]
        return ModelShape(
            d_model=d,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=heads,
            d_ff=d_ff,
            vocab_size=self.vocab,
            seq_len=self.seq_len,
        )

    @property
    def sequences(self) -> int:
        """Sequences of one member's step."""
        return SHAPES[self.shape][-1]

    @property
    def step_tokens(self) -> int:
        """Tokens of one step of all members."""
        return self.members * self.sequences * self.seq_len


# The plain loop --------------------------------------------------------------------------------------------


class PlainBlock(nn.Module):
    """A Llama block as one would write it for a single model."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        d = shape.d_model
        self.heads = shape.num_heads
        self.norm1, self.norm2 = nn.RMSNorm(d, eps=shape.norm_eps), nn.RMSNorm(d, eps=shape.norm_eps)
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.gate_up = nn.Linear(d, 2 * shape.d_ff, bias=False)
        self.down = nn.Linear(shape.d_ff, d, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Residual stream ``[B, T, D]`` in and out."""
        batch, length, d = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        turned = qkv[:2] * cos + torch.cat(qkv[:2].chunk(2, -1)[::-1], -1) * sin
        mixed = F.scaled_dot_product_attention(turned[0], turned[1], qkv[2], is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, d))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class PlainLlama(nn.Module):
    """A tied Llama of plain modules."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.embed = nn.Embedding(shape.vocab_size, shape.d_model)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.blocks = nn.ModuleList(PlainBlock(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.d_model, eps=shape.norm_eps)
        frequencies = shape.rope_theta ** -(torch.arange(0, shape.head_dim, 2) / shape.head_dim)
        angles = torch.outer(torch.arange(shape.seq_len), frequencies)
        self.register_buffer("cos", angles.cos().repeat(1, 2))
        self.register_buffer("sin", torch.cat([-angles.sin(), angles.sin()], -1))

    def forward(self, windows: Tensor) -> Tensor:
        """Mean loss of ``windows [B, T + 1]``."""
        x = self.embed(windows[:, :-1])
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = self.norm(x) @ self.embed.weight.T
        return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def plain_step(task: Task) -> Callable[[], None]:
    """A step of the plain loop."""
    torch.manual_seed(0)
    model = PlainLlama(task.model_shape)
    loss_of = torch.compile(model, dynamic=False) if task.compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), fused=True)
    windows = random_windows(task)

    def step() -> None:
        loss_of(windows).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


# The engine ------------------------------------------------------------------------------------------------


class SyntheticRun:
    """A run that always has the same batch ready; what the engine asks of a run and no more."""

    lr = LR

    def __init__(self, task: Task, seed: int) -> None:
        self.config = type("Config", (), {"optimizer": OptimizerConfig()})
        self.history_step = 0
        self._windows = random_windows(task, seed).numpy()
        self._weights = np.full(task.sequences, 1.0 / task.sequences, dtype=np.float32)

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """The windows and the weight of each."""
        return self._windows, self._weights

    def advance(self) -> None:
        """Count the step."""
        self.history_step += 1


def engine_step(task: Task) -> Callable[[], None]:
    """A step of the engine's stack."""
    backend = Backend(slots=task.members, precision=task.precision, compiled=task.compiled)
    stack = Stack(task.model_shape, task.members, backend)
    for slot in range(task.members):
        params = init_params(task.model_shape, slot)
        zeros = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
        state = MemberState(
            run_id=str(slot), shape=task.model_shape, step=0, run_step=0, tokens=0,
            params=params, exp_avg=zeros, exp_avg_sq=zeros,
        )  # fmt: skip
        stack.load(slot, SyntheticRun(task, slot), state)
    return stack.step


def random_windows(task: Task, seed: int = 0) -> Tensor:
    """A batch of one member, ``[sequences, seq_len + 1]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(task.vocab, (task.sequences, task.seq_len + 1), generator=generator)


def matmul_step() -> Callable[[], None]:
    """A large float32 matmul: the speed of light of this machine."""
    a, b = torch.randn(PEAK_WIDTH, PEAK_WIDTH), torch.randn(PEAK_WIDTH, PEAK_WIDTH)
    return lambda: torch.mm(a, b)


# Turns -----------------------------------------------------------------------------------------------------


def serve(task: Task) -> None:
    """Be a contestant: a line on standard input is a turn, a line on standard output its result."""
    torch.set_num_threads(1)
    makers = {"loop": plain_step, "engine": engine_step, "matmul": lambda _: matmul_step()}
    step = makers[task.kind](task)
    for _ in range(3):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        steps, wall, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - wall < TURN_SECONDS:
            step()
            steps += 1
        spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps({"steps": steps, **spent}), flush=True)


class Contestant:
    """One or several live processes that take a turn together."""

    def __init__(self, task: Task, processes: int = 1) -> None:
        self.task = task
        command = [sys.executable, __file__, "--serve", json.dumps(task.__dict__)]
        self._processes = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, **environment()},
            )
            for _ in range(processes)
        ]

    def wait_until_ready(self) -> None:
        """Block until every process has warmed up."""
        for process in self._processes:
            if process.stdout.readline() != "ready\n":
                raise InvalidValueError(
                    "contestant", self.task, "did not start", "Run it alone with --serve."
                )

    def turn(self) -> dict[str, float]:
        """Steps per CPU-second and per wall second of all processes together."""
        for process in self._processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        results = [json.loads(process.stdout.readline()) for process in self._processes]
        steps = sum(result["steps"] for result in results)
        cpu = sum(result["cpu"] for result in results)
        wall = max(result["wall"] for result in results)
        return {"per_cpu": steps / cpu, "per_wall": steps / wall, "load": cpu / wall / len(results)}

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.stdin.close()
            process.wait()


def tasks_of(shape: str, args: argparse.Namespace) -> dict[str, tuple[Task, int]]:
    """Contestants of one shape and how many processes each is."""
    base = {"shape": shape, "vocab": args.vocab, "seq_len": args.seq_len}
    cores = len(os.sched_getaffinity(0))
    plain, engine = Task("loop", **base), Task("engine", **base)
    rough = Task("engine", **base, precision="bfloat16")
    tasks = {
        "matmul": (Task("matmul", **base), 1),
        "loop": (plain, 1),
        "loop_pool": (plain, cores),
        "engine_1_pool": (engine, cores),
        "engine_1_bf16_pool": (rough, cores),
    }
    for members in args.members:
        tasks[f"engine_{members}"] = (Task("engine", **base, members=members), 1)
        tasks[f"engine_{members}_bf16"] = (Task("engine", **base, members=members, precision="bfloat16"), 1)
    if args.compile:
        fast = {"precision": "bfloat16", "compiled": True}
        tasks["loop_compiled"] = (Task("loop", **base, compiled=True), 1)
        tasks |= {
            f"engine_{k}_fast": (Task("engine", **base, members=k, **fast), 1) for k in args.members[:2]
        }
    return tasks


def measure(shape: str, args: argparse.Namespace) -> dict[str, Any]:
    """Speeds of all contestants of one shape; ratios round by round."""
    tasks = tasks_of(shape, args)
    contestants = {name: Contestant(*task) for name, task in tasks.items()}
    try:
        for contestant in contestants.values():
            contestant.wait_until_ready()
        rounds = [{name: c.turn() for name, c in contestants.items()} for _ in range(args.rounds)]
    finally:
        for contestant in contestants.values():
            contestant.close()
    peak = np.median([r["matmul"]["per_cpu"] for r in rounds]) * 2 * PEAK_WIDTH**3
    names = [name for name in tasks if name != "matmul"]
    return {
        "peak_gflops": peak / 1e9,
        "step_tokens_of_a_member": tasks["loop"][0].step_tokens,
        "contestants": {name: summary(name, tasks[name][0], rounds, peak) for name in names},
    }


def summary(name: str, task: Task, rounds: list[dict[str, Any]], peak: float) -> dict[str, float]:
    """Speed, ratio to the plain loop and fraction of the matmul peak of one contestant."""
    pooled = name.endswith("_pool")
    clock, base = ("per_wall", "loop_pool") if pooled else ("per_cpu", "loop")
    scale = task.members
    ratios = [scale * r[name][clock] / r[base][clock] for r in rounds]
    speed = float(np.median([r[name][clock] for r in rounds])) * task.step_tokens
    per_cpu = float(np.median([r[name]["per_cpu"] for r in rounds])) * task.step_tokens
    return {
        "ktok_per_s": speed / 1e3,
        "ratio": float(np.median(ratios)),
        "spread": float(np.subtract(*np.percentile(ratios, [75, 25]))),
        "peak_fraction": per_cpu * task.model_shape.train_flops_per_token / peak,
        "share_of_a_core": float(np.median([r[name]["load"] for r in rounds])),
    }


def show(shape: str, found: dict[str, Any]) -> None:
    """Print one shape's table."""
    print(f"\n{shape}: {found['step_tokens_of_a_member']} tokens per member-step, "
          f"matmul peak {found['peak_gflops']:.0f} GFLOP/s")  # fmt: skip
    print(f"{'contestant':22}{'ktok/s':>9}{'ratio':>8}{'spread':>8}{'of peak':>9}{'core':>6}")
    for name, row in found["contestants"].items():
        print(
            f"{name:22}{row['ktok_per_s']:9.1f}{row['ratio']:8.2f}{row['spread']:8.2f}"
            f"{row['peak_fraction']:9.2f}{row['share_of_a_core']:6.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--members", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--vocab", type=int, default=256)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also the compiled contestants (minutes each)")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(Task(**json.loads(args.serve)))
        return
    found = {}
    for shape in args.shapes:
        found[shape] = measure(shape, args)
        show(shape, found[shape])
    if args.json:
        settings = {"vocab": args.vocab, "seq_len": args.seq_len, "rounds": args.rounds}
        write_json(args.json, {"torch": torch.__version__, **settings, "shapes": found})


if __name__ == "__main__":
    run(main)
