"""Tokens per second of the proxy trainer against plain loops, in turns and as whole jobs on one machine.

    python analysis/throughput.py --json OUT --shapes 200k      a CPU; some four minutes a shape
    python analysis/throughput.py --json OUT --device cuda

Contestants are live processes of one thread each that take turns of half a second, so that a change of the machine's
load meets all of them. The loops (``_plain_loops.py``) import torch and nothing else. A step always contains: forward,
backward, clip, AdamW, the LR of the step.

    loop              (a) one model after another: plain modules, scaled_dot_product_attention, fused AdamW
    loop_compiled     (b) the same under torch.compile
    loop_bf16, loop_fast  the loop in bfloat16, and compiled as well
    loop_pool         (c) as many processes of (a) as there are cores
    graph, graph_fast on a GPU: one model as a CUDA graph, and that in bfloat16 and compiled
    engine_K          the engine's stack of K members, float32, as a study runs it
    engine_K_compiled the same under torch.compile
    engine_K_bf16     matmuls in bfloat16; on a CPU only where it has instructions for them (or ``--bf16``)
    engine_K_fast     bfloat16 and torch.compile

``ratio`` is the median over rounds of the contestant's speed in a round over that of ``loop`` in the same round, per
CPU-second; for the pool and on a GPU per wall second. ``from`` and ``to`` are the least and the greatest. ``of peak``
is the fraction of a large float32 matmul on one thread, measured in the same turns.

Whole jobs train ``--job-members`` models from the start of the first process to the end of the last: imports, first
steps and compilation count. The engine's job is a study (``_engine_contestants.py``): a queue in SQLite, workers that
claim, exact mixing from shards, evaluation at the start and the end, checkpoints and records come on top, none of
which the loops do. Its slots are picked from the speeds above as ``decaylaws plan`` picks them. What takes over 1.25
times the best's seconds in the first round sits out the others. ``engine / best``: the seconds of the best of (a),
(b), (c) over those of the engine. ``--jobs`` names the jobs. ``engine_compiled`` is the study with ``train.compile``,
which comes on by itself in long sweeps, ``engine_fast`` the same in bfloat16: leave the slow loops out and give
``--job-seconds`` minutes then.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import run, write_json
from _engine_contestants import shape_of
from _plain_loops import Task, matmul_flops
from _processes import Turn, in_turns
from _whole_jobs import whole_jobs

from decaylaws.errors import InvalidValueError
from decaylaws.runs.config import ModelShape
from proxy_runs.engine import has_bfloat16
from proxy_runs.machine import default_workers


def shape(d: int, layers: int, d_ff: int, heads: int, sequences: int, vocab: int, seq_len: int) -> Task:
    """The plain loop on one model; ``sequences`` are those of a step."""
    return Task(
        kind="loop",
        d_model=d,
        num_layers=layers,
        num_heads=heads,
        d_ff=d_ff,
        vocab_size=vocab,
        seq_len=seq_len,
        sequences=sequences,
    )


SHAPES = {
    "50k": shape(48, 2, 128, 3, 16, 256, 128),
    "200k": shape(64, 4, 192, 2, 8, 256, 128),
    "1M": shape(128, 5, 352, 4, 8, 256, 128),
    "5M": shape(256, 6, 704, 4, 4, 256, 128),
    "200k-4096": shape(64, 4, 192, 2, 4, 4096, 256),
}
GPU_SHAPES = {  # 4,096 tokens of a member's step
    "200k": shape(64, 4, 192, 2, 8, 4096, 512),
    "1M": shape(128, 5, 352, 4, 8, 8192, 512),
}

JOBS = ("loop", "loop_compiled", "loop_pool", "engine", "engine_compiled", "engine_fast")
LONG_JOBS = ("engine_compiled", "engine_fast")
"""Compiling repays itself in minutes."""

# Turns -----------------------------------------------------------------------------------------------------


def can_compile(device: str) -> bool:
    """Whether torch.compile has what it needs."""
    return device == "cuda" or shutil.which("g++") is not None


def tasks_of(plain: Task, args: argparse.Namespace) -> dict[str, tuple[Task, int]]:
    """Contestants of one shape and how many processes each is."""
    tasks = {"matmul": (replace(plain, kind="matmul"), 1), "loop": (plain, 1)}
    fast = replace(plain, precision="bfloat16", compiled=True)
    if plain.device == "cuda":
        tasks["graph"] = (replace(plain, kind="graph"), 1)
        if args.compile and args.bf16:
            tasks["graph_fast"] = (replace(fast, kind="graph"), 1)
    elif args.workers > 1:
        tasks["loop_pool"] = (plain, args.workers)
    if args.compile:
        tasks["loop_compiled"] = (replace(plain, compiled=True), 1)
    if args.bf16:
        tasks["loop_bf16"] = (replace(plain, precision="bfloat16"), 1)
    if args.compile and args.bf16:
        tasks["loop_fast"] = (fast, 1)
    for members in args.members:
        for ending, changes in backends(members, args).items():
            tasks[f"engine_{members}{ending}"] = (
                replace(plain, kind="engine", members=members, **changes),
                1,
            )
    return tasks


def backends(members: int, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """How the engine computes with so many members, by the ending of the contestant's name."""
    bfloat16: dict[str, Any] = {"precision": "bfloat16"}
    found: dict[str, dict[str, Any]] = {"": {}}
    if args.bf16:
        found["_bf16"] = bfloat16
    # a new number of members is compiled anew, which on a CPU takes half a minute
    if args.compile and (args.device == "cuda" or members in args.members[:2]):
        found["_compiled"] = {"compiled": True}
        if args.bf16:
            found["_fast"] = bfloat16 | {"compiled": True}
    return found


def summary(name: str, task: Task, rounds: list[dict[str, Turn]], peak: float) -> dict[str, float]:
    """Speed, ratio to the plain loop and fraction of the matmul peak of one contestant."""
    clock = "per_wall" if name == "loop_pool" or task.device == "cuda" else "per_cpu"
    ratios = [task.members * getattr(r[name], clock) / getattr(r["loop"], clock) for r in rounds]
    tokens = task.members * task.member_tokens
    flops = tokens * ModelShape(**shape_of(task)).train_flops_per_token
    peak_clock = "per_wall" if task.device == "cuda" else "per_cpu"
    return {
        "ktok_per_s": float(np.median([getattr(r[name], clock) for r in rounds])) * tokens / 1e3,
        "ratio": float(np.median(ratios)),
        "from": min(ratios),
        "to": max(ratios),
        "peak_fraction": float(np.median([getattr(r[name], peak_clock) for r in rounds])) * flops / peak,
        "share_of_a_core": float(np.median([r[name].load for r in rounds])),
    }


def measure(plain: Task, args: argparse.Namespace) -> dict[str, Any]:
    """Speeds of all contestants of one shape, and its whole jobs."""
    tasks = tasks_of(plain, args)
    rounds, failed = in_turns(
        tasks,
        references=("matmul", "loop"),
        together=args.together,
        rounds=args.rounds,
        seconds=args.turn_seconds,
    )
    clock = "per_wall" if plain.device == "cuda" else "per_cpu"
    peak = float(np.median([getattr(r["matmul"], clock) for r in rounds["matmul"]]))
    peak *= matmul_flops(plain.device)
    rows = {
        name: summary(name, task, rounds[name], peak)
        for name, (task, _) in tasks.items()
        if name != "matmul" and name in rounds
    }
    found = {
        "peak_gflops": peak / 1e9,
        "member_tokens_of_a_step": plain.member_tokens,
        "contestants": rows,
        "failed": failed,
    }
    if plain.device == "cpu" and args.job_rounds:
        found["jobs"] = whole_jobs(plain, rows, args)
    return found


# Out ---------------------------------------------------------------------------------------------------------


def show(name: str, found: dict[str, Any]) -> None:
    """Print one shape's tables."""
    print(
        f"\n{name}: {found['member_tokens_of_a_step']} tokens per member-step, "
        f"matmul peak {found['peak_gflops']:.0f} GFLOP/s"
    )
    print(f"{'contestant':22}{'ktok/s':>9}{'ratio':>8}{'from':>7}{'to':>7}{'of peak':>9}{'core':>6}")
    for contestant, row in found["contestants"].items():
        print(
            f"{contestant:22}{row['ktok_per_s']:9.1f}{row['ratio']:8.2f}{row['from']:7.2f}{row['to']:7.2f}"
            f"{row['peak_fraction']:9.2f}{row['share_of_a_core']:6.2f}"
        )
    if "jobs" in found:
        jobs = found["jobs"]
        print(
            f"whole job, {jobs['members']} members of {jobs['steps_of_a_member']} steps, seconds (CPU) by round:"
        )
        for contestant, seconds in jobs["seconds"].items():
            both = zip(seconds, jobs["cpu_seconds"][contestant])
            print(f"  {contestant:20}" + "".join(f"{value:9.1f} ({cpu:.1f})" for value, cpu in both))
        for contestant, ratio in jobs["over_best"].items():
            print(
                f"  {contestant} / best ({jobs['best']}): {ratio['median']:.2f}, {ratio['from']:.2f} to "
                f"{ratio['to']:.2f}; per CPU-second {jobs['over_best_per_cpu'][contestant]['median']:.2f}",
                flush=True,
            )


def processor(device: str) -> str:
    """What the figures hold for."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{default_workers()} cores {(names or ['unknown'])[0]}, {torch.backends.cpu.get_cpu_capability()}"


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--shapes", nargs="+", choices=list({**SHAPES, **GPU_SHAPES}), help="all of the device by default"
    )
    parser.add_argument(
        "--together", type=int, help="contestants that are alive at a time; all on a CPU, 1 on a GPU"
    )
    parser.add_argument("--members", nargs="+", type=int, default=[1, 4, 16, 64], help="must hold 1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn-seconds", type=float, default=0.5)
    parser.add_argument("--workers", type=int, default=default_workers(), help="of (c) and of the study")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, help="all but compiled studies by default")
    parser.add_argument("--job-members", type=int, default=8)
    parser.add_argument("--job-seconds", type=float, default=40.0, help="steps of job (c), without its start")
    parser.add_argument("--job-rounds", type=int, default=3, help="0 leaves the jobs out")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled contestants out")
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, help="by default where the device has instructions"
    )
    parser.add_argument(
        "--quick", action="store_true", help="seconds instead of minutes: figures mean nothing"
    )
    args = parser.parse_args()
    if args.quick:
        args.shapes, args.members, args.workers, args.no_compile = ["50k"], [1], 1, True
        args.rounds, args.turn_seconds, args.job_members, args.job_seconds, args.job_rounds = (
            2,
            0.05,
            2,
            0.2,
            1,
        )
    args.together = args.together or (1 if args.device == "cuda" else 1000)
    args.compile = can_compile(args.device) and not args.no_compile
    args.jobs = args.jobs or [
        name
        for name in JOBS
        if name not in LONG_JOBS
        and (args.compile or name != "loop_compiled")
        and (args.workers > 1 or name != "loop_pool")
    ]
    if args.bf16 is None:
        args.bf16 = has_bfloat16(args.device)
    return args


def main() -> None:
    """Measure, print, write."""
    args = parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InvalidValueError("--device", "cuda", "needs a GPU that torch can use", "Nothing was measured.")
    shapes = GPU_SHAPES if args.device == "cuda" else SHAPES
    for name in args.shapes or ():
        if name not in shapes:
            names = ", ".join(shapes)
            raise InvalidValueError("--shapes", name, f"must be one of {names} on {args.device}")
    gpu = "this run" if args.device == "cuda" else "not run"
    settings = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "device": processor(args.device),
        "torch": torch.__version__,
        "gpu": gpu,
    }
    found: dict[str, Any] = {}
    for name in args.shapes or shapes:
        found[name] = measure(replace(shapes[name], device=args.device), args)
        show(name, found[name])
        if args.json:  # after every shape: nothing that was measured is lost
            write_json(args.json, {**settings, "shapes": found})
    print(f"\nGPU (graph and all others on 4,096 tokens a member-step): {gpu}.")


if __name__ == "__main__":
    run(main)
