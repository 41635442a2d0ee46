"""Tokens per second of the proxy trainer against plain loops, in turns and as whole jobs on one machine.

    python analysis/throughput.py --json OUT            a CPU, under a quarter of an hour
    python analysis/throughput.py --json OUT --device cuda

Contestants are live processes of one thread each that take turns of half a second, so that a change of the
machine's load meets all of them. A step always contains: forward, backward, clip, AdamW, the LR of the step.

    loop             (a) one model after another: plain PyTorch modules, scaled_dot_product_attention, fused AdamW
    loop_compiled    (b) the same under torch.compile
    loop_pool        (c) as many processes of (a) as there are cores
    loop_graph       on a GPU: one model as a CUDA graph
    engine_K         the engine's stack of K members, float32, as a study runs it by default
    engine_K_bf16    matmuls in bfloat16
    engine_K_fast    bfloat16 and torch.compile
    engine_pool      as many processes as cores, with the slots that a study would pick (``best_slots``)
    engine_fast_pool the same, bfloat16 and torch.compile

``ratio`` is the median over rounds of the contestant's speed in a round over that of ``loop``, per CPU-second and,
for pools, per wall second over ``loop_pool``; ``spread`` is the interquartile range of these ratios. ``of peak``
is the fraction of a large float32 matmul on one thread, measured in the same turns.

Whole jobs train members from the start of the processes to their end: imports, first steps and compilation count.
``engine / best`` is the engine's best pool over the best of (a), (b), (c). A compiled job pays for its
compilation within the few seconds that it lasts here; ``--job-seconds`` makes it longer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from _common import run, write_json
from torch import Tensor, nn

from decaylaws.configs import ModelShape
from decaylaws.errors import InvalidValueError
from proxy_runs.allocator import environment
from proxy_runs.calibration import PEAK_WIDTH, best_slots, matmul_step, synthetic_step
from proxy_runs.engine import Backend

# name: d_model, layers, d_ff, heads, sequences of a member's step, vocabulary, tokens of a sequence
SHAPES = {
    "50k": (48, 2, 128, 3, 16, 256, 128),
    "200k": (64, 4, 192, 2, 8, 256, 128),
    "1M": (128, 5, 352, 4, 8, 256, 128),
    "5M": (256, 6, 704, 4, 4, 256, 128),
    "200k-4096": (64, 4, 192, 2, 4, 4096, 256),
}
GPU_SHAPES = {  # 4,096 tokens of a member's step
    "200k": (64, 4, 192, 2, 8, 4096, 512),
    "1M": (128, 5, 352, 4, 8, 8192, 512),
}
LR = 1e-3
TURN_SECONDS = 0.5
JOB_MEMBERS = 8


@dataclass(frozen=True)
class Task:
    """What one process does in its turns, or as its part of a job."""

    kind: str
    shape: str
    members: int = 1
    precision: str = "float32"
    compiled: bool = False
    device: str = "cpu"

    @property
    def _numbers(self) -> tuple[int, ...]:
        return (GPU_SHAPES if self.device == "cuda" else SHAPES)[self.shape]

    @property
    def model_shape(self) -> ModelShape:
        """The shape, in full."""
        d, layers, d_ff, heads, _, vocab, seq_len = self._numbers
        return ModelShape(
            d_model=d,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=heads,
            d_ff=d_ff,
            vocab_size=vocab,
            seq_len=seq_len,
        )

    @property
    def sequences(self) -> int:
        """Sequences of one member's step."""
        return self._numbers[4]

    @property
    def step_tokens(self) -> int:
        """Tokens of one step of all members."""
        return self.members * self.sequences * self.model_shape.seq_len


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
    model = PlainLlama(task.model_shape).to(task.device)
    loss_of = torch.compile(model, dynamic=False) if task.compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), fused=True)
    windows = random_windows(task).to(task.device)

    def step() -> None:
        loss_of(windows).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def graph_step(task: Task) -> Callable[[], None]:
    """A step of the plain loop on a GPU, captured once as a CUDA graph and replayed."""
    torch.manual_seed(0)
    model = PlainLlama(task.model_shape).to(task.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), fused=True, capturable=True)
    windows = random_windows(task).to(task.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        model(windows).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


# Steps -----------------------------------------------------------------------------------------------------


def engine_step(task: Task) -> Callable[[], object]:
    """A step of the engine's stack."""
    backend = Backend(
        device=task.device, slots=task.members, precision=task.precision, compiled=task.compiled
    )
    return synthetic_step(task.model_shape, task.sequences, backend)


def random_windows(task: Task, seed: int = 0) -> Tensor:
    """A batch of one member, ``[sequences, seq_len + 1]``."""
    generator = torch.Generator().manual_seed(seed)
    shape = task.model_shape
    return torch.randint(shape.vocab_size, (task.sequences, shape.seq_len + 1), generator=generator)


def step_of(task: Task) -> Callable[[], object]:
    """The step that a task repeats."""
    torch.set_num_threads(1)
    makers: dict[str, Callable[[Task], Callable[[], object]]] = {
        "loop": plain_step,
        "graph": graph_step,
        "engine": engine_step,
        "matmul": lambda task: matmul_step(task.device),
    }
    return makers[task.kind](task)


def wait_for_gpu(task: Task) -> None:
    """Return when the GPU has done what it was given; a CPU has."""
    if task.device == "cuda":
        torch.cuda.synchronize()


# Turns -----------------------------------------------------------------------------------------------------


def serve(task: Task) -> None:
    """Be a contestant: a line on standard input is a turn, a line on standard output its result."""
    step = step_of(task)
    for _ in range(3):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        steps, wall, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - wall < TURN_SECONDS:
            step()
            wait_for_gpu(task)
            steps += 1
        spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps({"steps": steps, **spent}), flush=True)


class Contestant:
    """One or several live processes that take a turn together."""

    def __init__(self, task: Task, processes: int = 1) -> None:
        self.task = task
        command = [sys.executable, __file__, "--serve", json.dumps(asdict(task))]
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


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def can_compile(device: str) -> bool:
    """Whether torch.compile has what it needs."""
    return device == "cuda" or shutil.which("g++") is not None


def tasks_of(shape: str, args: argparse.Namespace) -> dict[str, tuple[Task, int]]:
    """Contestants of one shape and how many processes each is."""
    plain = Task("loop", shape, device=args.device)
    engine, fast = replace(plain, kind="engine"), {"precision": "bfloat16", "compiled": True}
    tasks = {"matmul": (replace(plain, kind="matmul"), 1), "loop": (plain, 1)}
    if args.device == "cuda":
        tasks["loop_graph"] = (replace(plain, kind="graph"), 1)
    else:
        tasks["loop_pool"] = (plain, cores())
    for members in args.members:
        stack = replace(engine, members=members)
        tasks[f"engine_{members}"] = (stack, 1)
        tasks[f"engine_{members}_bf16"] = (replace(stack, precision="bfloat16"), 1)
    if args.compile:
        tasks["loop_compiled"] = (replace(plain, compiled=True), 1)
        for members in args.members[:2]:
            tasks[f"engine_{members}_fast"] = (replace(engine, members=members, **fast), 1)
    return tasks


def in_turns(tasks: dict[str, tuple[Task, int]], rounds: int) -> list[dict[str, dict[str, float]]]:
    """Speeds of all contestants, round by round."""
    contestants = {name: Contestant(*task) for name, task in tasks.items()}
    try:
        for contestant in contestants.values():
            contestant.wait_until_ready()
        return [{name: c.turn() for name, c in contestants.items()} for _ in range(rounds)]
    finally:
        for contestant in contestants.values():
            contestant.close()


def measure(shape: str, args: argparse.Namespace) -> dict[str, Any]:
    """Speeds of all contestants of one shape; ratios round by round; whole jobs."""
    tasks = tasks_of(shape, args)
    rounds = in_turns(tasks, args.rounds)
    peak = float(np.median([r["matmul"]["per_cpu"] for r in rounds])) * 2 * PEAK_WIDTH**3
    rows = {name: summary(name, task, rounds, peak) for name, (task, _) in tasks.items() if name != "matmul"}
    found = {
        "peak_gflops": peak / 1e9,
        "step_tokens_of_a_member": tasks["loop"][0].step_tokens,
        "contestants": rows,
    }
    if args.device == "cpu":
        found["jobs"] = whole_jobs(tasks["loop"][0], rows, args)
    return found


def summary(name: str, task: Task, rounds: list[dict[str, Any]], peak: float) -> dict[str, float]:
    """Speed, ratio to the plain loop and fraction of the matmul peak of one contestant."""
    on_the_clock = name.endswith("_pool") or task.device == "cuda"
    base = "loop_pool" if name.endswith("_pool") else "loop"
    clock = "per_wall" if on_the_clock else "per_cpu"
    ratios = [task.members * r[name][clock] / r[base][clock] for r in rounds]
    speed = float(np.median([r[name][clock] for r in rounds])) * task.step_tokens
    per_cpu = float(np.median([r[name]["per_cpu"] for r in rounds])) * task.step_tokens
    return {
        "ktok_per_s": speed / 1e3,
        "ratio": float(np.median(ratios)),
        "spread": float(np.subtract(*np.percentile(ratios, [75, 25]))),
        "peak_fraction": per_cpu * task.model_shape.train_flops_per_token / peak,
        "share_of_a_core": float(np.median([r[name]["load"] for r in rounds])),
    }


# Whole jobs ------------------------------------------------------------------------------------------------


def work(task: Task, steps: int) -> None:
    """Be a part of a job: so many steps, then leave."""
    step = step_of(task)
    for _ in range(steps):
        step()


def job_seconds(task: Task, processes: int, member_steps: int) -> float:
    """Seconds from start to end of ``JOB_MEMBERS`` members of ``member_steps`` each."""
    steps = max(1, round(JOB_MEMBERS * member_steps / task.members / processes))
    command = [sys.executable, __file__, "--work", str(steps), "--serve", json.dumps(asdict(task))]
    started = time.perf_counter()
    parts = [
        subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, **environment()})
        for _ in range(processes)
    ]
    if any(part.wait() for part in parts):
        raise InvalidValueError("job", task, "did not end", "Run it alone with --serve and --work.")
    return time.perf_counter() - started


def whole_jobs(plain: Task, rows: dict[str, dict[str, float]], args: argparse.Namespace) -> dict[str, Any]:
    """Jobs in turns: (a), (b), (c) and the engine as a study would run it."""
    member_steps = int(args.job_seconds * 1e3 * rows["loop"]["ktok_per_s"] / plain.step_tokens / JOB_MEMBERS)
    speeds = {k: rows[f"engine_{k}"]["ktok_per_s"] for k in args.members if k <= JOB_MEMBERS // cores()}
    engine = replace(plain, kind="engine", members=best_slots(speeds))
    jobs = {"loop": (plain, 1), "loop_pool": (plain, cores()), "engine_pool": (engine, cores())}
    if args.compile:
        jobs["loop_compiled"] = (replace(plain, compiled=True), 1)
        fast = replace(engine, precision="bfloat16", compiled=True)
        jobs["engine_fast_pool"] = (fast, cores())
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(args.job_rounds):
        for name, (task, processes) in jobs.items():
            seconds[name].append(job_seconds(task, processes, max(member_steps, 1)))
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    best = min(value for name, value in medians.items() if name.startswith("loop"))
    ours = min(value for name, value in medians.items() if name.startswith("engine"))
    return {
        "members": JOB_MEMBERS,
        "steps_of_a_member": member_steps,
        "slots": engine.members,
        "seconds": seconds,
        "engine_over_best": best / ours,
        "engine_over_pool": medians["loop_pool"] / ours,
    }


def show(shape: str, found: dict[str, Any]) -> None:
    """Print one shape's tables."""
    print(f"\n{shape}: {found['step_tokens_of_a_member']} tokens per member-step, "
          f"matmul peak {found['peak_gflops']:.0f} GFLOP/s")  # fmt: skip
    print(f"{'contestant':22}{'ktok/s':>9}{'ratio':>8}{'spread':>8}{'of peak':>9}{'core':>6}")
    for name, row in found["contestants"].items():
        print(
            f"{name:22}{row['ktok_per_s']:9.1f}{row['ratio']:8.2f}{row['spread']:8.2f}"
            f"{row['peak_fraction']:9.2f}{row['share_of_a_core']:6.2f}"
        )
    if "jobs" in found:
        jobs = found["jobs"]
        print(f"whole job, {jobs['members']} members of {jobs['steps_of_a_member']} steps, seconds by round:")
        for name, seconds in jobs["seconds"].items():
            print(f"  {name:20}" + "".join(f"{value:9.1f}" for value in seconds))
        print(
            f"  engine ({jobs['slots']} slots) / best: {jobs['engine_over_best']:.2f}; "
            f"/ eager pool: {jobs['engine_over_pool']:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="all by default")
    parser.add_argument("--members", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--job-seconds", type=float, default=6.0, help="steps of job (a), without its start")
    parser.add_argument("--job-rounds", type=int, default=2)
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled contestants out")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        task = Task(**json.loads(args.serve))
        serve(task) if args.work is None else work(task, args.work)
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InvalidValueError("--device", "cuda", "needs a GPU that torch can use", "Nothing was measured.")
    args.compile = can_compile(args.device) and not args.no_compile
    found = {}
    for shape in args.shapes or (GPU_SHAPES if args.device == "cuda" else SHAPES):
        found[shape] = measure(shape, args)
        show(shape, found[shape])
    if args.device == "cpu":
        print("\nGPU: not run (no GPU was asked for; --device cuda).")
    if args.json:
        device = torch.cuda.get_device_name() if args.device == "cuda" else f"{cores()} CPU cores"
        settings = {"device": device, "rounds": args.rounds, "command": " ".join(sys.argv)}
        gpu = {} if args.device == "cuda" else {"gpu": "not run"}
        write_json(args.json, {"torch": torch.__version__, **settings, **gpu, "shapes": found})


if __name__ == "__main__":
    run(main)
