"""Ten minutes on a GPU: does the recorded step work, does it agree, how fast is it, and where does its time go.

    python analysis/gpu_check.py --json OUT [--shapes 200k 1M 20M] [--members 1 4 16 32] [--only limits correctness ...]
    python analysis/gpu_check.py --json OUT --dry      the same code on a CPU, tiny and without recording

Everything runs in one process. A part, or a contestant within one, that fails prints its error and the others go on;
``--json`` is written after every part. Memory is given back in between, so that it never adds up.

    limits        large matmuls and a copy: what this device can do
    correctness   gradients of one step against float64 on the CPU, losses of some hundred steps against the CPU's,
                  whether two runs have the same bits, and whether a member's neighbours notice that it is NaN
    speed SHAPE   tokens per second of plain loops and of the engine, 4,096 tokens of a member's step
    kernels SHAPE kernels of a recorded step by time

Rivals of the engine train one model: ``loop`` eager, ``graph`` recorded as a CUDA graph, each plain, in bfloat16
(``_bf16``), and in bfloat16 and compiled (``_fast``). ``graph_fast`` is the honest one. ``engine_K`` is a stack of K
members, with the same endings. Of a recorded step the time of the graph alone stands beside that of the step; the
difference is the host's. ``mfu`` is the share of the bfloat16 matmul.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from _common import run, write_json
from _engine_contestants import GPU_SHAPES, STEP_TOKENS, shape_of
from _plain_loops import MAKERS, Task, matmul_flops, matmul_step
from torch import Tensor

from decaylaws.errors import InvalidValueError
from decaylaws.runs.config import ModelShape, OptimizerConfig
from proxy_runs.engine import Backend
from proxy_runs.engine.model import StackedLlama, init_params, stack_params
from proxy_runs.engine.optim import MemberStep
from proxy_runs.engine.step import StackwiseStep
from proxy_runs.sweep.calibration import synthetic_stack

SHAPES = {**GPU_SHAPES, "20M": replace(GPU_SHAPES["17M"], seq_len=1024)}
TINY = ModelShape(d_model=32, num_layers=2, num_heads=2, num_kv_heads=2, d_ff=64, vocab_size=256, seq_len=64)
MODES: dict[str, dict[str, Any]] = {
    "": {},
    "_bf16": {"precision": "bfloat16"},
    "_compiled": {"compiled": True},
    "_fast": {"precision": "bfloat16", "compiled": True},
}
LRS = (1e-3, 2e-3, 4e-3)
PARTS = ("limits", "correctness", "speed", "kernels")
LISTED_KERNELS = 20


@dataclass
class Check:
    """What is measured, and what came of it.

    Attributes:
        device: ``cuda`` or ``cpu``.
        dry: tiny shapes and a handful of steps, to see that the code runs.
        members: sizes of stacks.
        seconds: of each measurement.
        found: results by part.
    """

    device: str
    dry: bool
    members: list[int]
    seconds: float
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether steps are recorded and waited for."""
        return self.device == "cuda"

    def modes(self) -> dict[str, dict[str, Any]]:
        """How the engine computes; a dry run compiles nothing."""
        return {name: how for name, how in MODES.items() if not (self.dry and how.get("compiled"))}

    def wait(self) -> None:
        """Until the device is done."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def free(self) -> None:
        """Give memory back, graphs and their pools too."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def seconds_of(self, step: Callable[[], object]) -> float:
        """Median seconds of a call over three turns; nothing waits within a turn but what the step waits for itself."""
        for _ in range(3):
            step()
        turns = []
        for _ in range(3):
            self.wait()
            count, began = 0, time.perf_counter()
            while count == 0 or time.perf_counter() - began < self.seconds / 3:
                step()
                count += 1
            self.wait()
            turns.append((time.perf_counter() - began) / count)
        return sorted(turns)[1]

    def part(self, name: str, measure: Callable[[], Any], out: Path | None) -> None:
        """Run a part, keep what it returns or its error, and write everything so far."""
        print(f"\n== {name}", flush=True)
        began = time.perf_counter()
        try:
            self.found[name] = measure()
        except Exception as error:
            self.found[name] = {"error": repr(error)}
            print(traceback.format_exc(limit=-6), flush=True)
        self.free()
        print(f"   {name}: {time.perf_counter() - began:.1f} s", flush=True)
        if out is not None:
            write_json(out, self.found)


# Limits ------------------------------------------------------------------------------------------------------


def limits(check: Check) -> dict[str, float]:
    """FLOPs per second of a large matmul, bytes per second of a copy (read and written)."""
    task = Task(**asdict(plain_task(TINY, check.device)) | {"kind": "matmul"})
    flops = matmul_flops(check.device) / check.seconds_of(matmul_step(task))
    source = torch.randn(2**22 if check.dry else 2**30, device=check.device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / check.seconds_of(lambda: target.copy_(source))
    print(f"   matmul {flops / 1e12:.2f} TFLOP/s, copy {copied / 1e12:.3f} TB/s")
    return {"matmul_flops": flops, "copy_bytes": copied}


# Correctness -------------------------------------------------------------------------------------------------


def correctness(check: Check) -> dict[str, Any]:
    """Gradients and losses beside the CPU's."""
    shape = replace(SHAPES["200k"], vocab_size=256, seq_len=256) if not check.dry else TINY
    steps, generator = (6 if check.dry else 200), torch.Generator().manual_seed(1)
    batches = torch.randint(shape.vocab_size, (8, len(LRS), 8, shape.seq_len + 1), generator=generator)
    exact = gradients(shape, batches[0], "cpu", dtype=torch.float64)
    found: dict[str, Any] = {"gradients": {}, "losses": {}}
    print("   gradients of one step, relative to float64 on the CPU")
    for ending, how in check.modes().items():
        dtype = torch.bfloat16 if how.get("precision") else torch.float32
        ours = gradients(shape, batches[0], check.device, dtype=dtype, compiled=how.get("compiled", False))
        found["gradients"][f"engine{ending}"] = worst = max(
            float((ours[name].double() - exact[name]).norm() / exact[name].norm()) for name in exact
        )
        print(f"      engine{ending:10} {worst:.1e}", flush=True)
    plain = trajectory(shape, batches, "cpu", steps)
    print(f"   losses of {steps} steps beside the CPU's: greatest difference on the way, and at the end")
    for ending, how in check.modes().items():
        ours, again = (trajectory(shape, batches, check.device, steps, **how) for _ in range(2))
        broken = trajectory(shape, batches, check.device, steps, nan_member=1, **how)
        gap = (ours - plain).abs()
        found["losses"][f"engine{ending}"] = row = {
            "greatest": float(gap.max()),
            "last": float(gap[-1].max()),
            "same_bits_twice": bool((ours == again).all()),
            "neighbours_of_nan_same_bits": bool((ours[:, [0, 2]] == broken[:, [0, 2]]).all()),
        }
        print(
            f"      engine{ending:10} {row['greatest']:.1e} {row['last']:.1e}   the same bits twice: "
            f"{row['same_bits_twice']}, neighbours of a NaN member: {row['neighbours_of_nan_same_bits']}",
            flush=True,
        )
    return found


def gradients(
    shape: ModelShape, windows: Tensor, device: str, *, dtype: torch.dtype, compiled: bool = False
) -> dict[str, Tensor]:
    """Gradients of one step of a stack, on the host."""
    wide = dtype if dtype == torch.float64 else torch.float32
    members = stack_params([init_params(shape, seed) for seed in range(len(windows))])
    params = {name: tensor.to(device, wide).requires_grad_() for name, tensor in members.items()}
    model = StackedLlama(shape, device=device, dtype=dtype, compiled=compiled)
    weights = torch.full(windows.shape[:2], 1 / windows.shape[1], device=device)
    _, found = model.gradients(params, windows.to(device), weights)
    return {name: gradient.cpu() for name, gradient in found.items()}


def trajectory(
    shape: ModelShape,
    batches: Tensor,
    device: str,
    steps: int,
    *,
    nan_member: int | None = None,
    precision: str = "float32",
    compiled: bool = False,
) -> Tensor:
    """Losses ``[steps, K]`` of a stack that steps as one, on the batches in turn."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model = StackedLlama(shape, device=device, dtype=dtype, compiled=compiled)
    members = stack_params([init_params(shape, seed) for seed in range(len(LRS))])
    if nan_member is not None:
        members["embed"][nan_member] = math.nan
    params = {name: tensor.to(device).contiguous().requires_grad_() for name, tensor in members.items()}
    step = StackwiseStep(model, params, compiled=compiled)
    weights = torch.full(batches.shape[2:3], 1 / batches.shape[2]).numpy()
    losses = []
    for number in range(steps):
        due = [MemberStep(slot, lr, number + 1, OptimizerConfig()) for slot, lr in enumerate(LRS)]
        step.launch([(windows.numpy(), weights) for windows in batches[number % len(batches)]], due)
        losses.append([loss for loss, _ in step.results()])
    return torch.tensor(losses)


# Speed -------------------------------------------------------------------------------------------------------


def plain_task(shape: ModelShape, device: str, **changes: Any) -> Task:
    """The plain loop on one model, with the tokens of a member's step."""
    names = ("d_model", "num_layers", "num_heads", "d_ff", "vocab_size", "seq_len")
    sequences = max(1, (STEP_TOKENS if device == "cuda" else 256) // shape.seq_len)
    values = {name: getattr(shape, name) for name in names}
    return Task(**{"kind": "loop", "sequences": sequences, "device": device, **values, **changes})


def speed(check: Check, shape: ModelShape) -> dict[str, Any]:
    """Tokens per second of each contestant, one after the other."""
    kinds = ("loop", "graph") if check.on_gpu else ("loop",)
    modes = check.modes()
    tasks = {
        f"{kind}{ending}": plain_task(shape, check.device, kind=kind, **how)
        for kind in kinds
        for ending, how in modes.items()
        if ending != "_compiled"
    }
    tasks |= {
        f"engine_{members}{ending}": plain_task(shape, check.device, kind="engine", members=members, **how)
        for members in check.members
        for ending, how in modes.items()
        if ending != "_compiled" or members in (check.members[0], check.members[-1])
    }
    print(f"   {'contestant':20}{'Mtok/s':>10}{'mfu':>8}{'ms':>10}{'graph ms':>10}{'GB':>7}{'start s':>9}")
    rows = {}
    for name, task in tasks.items():
        try:
            rows[name] = row = contestant(check, task)
            graph = "" if row["graph_ms"] is None else f"{row['graph_ms']:.3f}"
            print(
                f"   {name:20}{row['tokens_per_second'] / 1e6:10.3f}{row['mfu']:8.1%}{row['ms']:10.3f}{graph:>10}"
                f"{row['gigabytes']:7.1f}{row['start_seconds']:9.1f}",
                flush=True,
            )
        except Exception as error:
            rows[name] = {"error": repr(error)}
            print(f"   {name:20}   failed: {repr(error)[:300]}", flush=True)
        check.free()
    return rows


def contestant(check: Check, task: Task) -> dict[str, Any]:
    """Speed of one contestant, which ends with the call."""
    began = time.perf_counter()
    graph = None
    if task.kind == "engine":
        stack, graph = engine(task)
        step: Callable[[], object] = stack.step
    else:
        step = MAKERS[task.kind](task)
    step()
    check.wait()
    start_seconds = time.perf_counter() - began
    seconds = check.seconds_of(step)
    tokens = task.members * task.member_tokens / seconds
    flops = ModelShape(**shape_of(task)).train_flops_per_token
    peak = check.found.get("limits", {}).get("matmul_flops", math.nan)
    return {
        "tokens_per_second": tokens,
        "mfu": tokens * flops / peak,
        "ms": seconds * 1e3,
        "graph_ms": None if graph is None else check.seconds_of(graph) * 1e3,
        "gigabytes": torch.cuda.max_memory_reserved() / 1e9 if check.on_gpu else 0.0,
        "start_seconds": start_seconds,
    }


def engine(task: Task) -> tuple[Any, Callable[[], object] | None]:
    """A stack after its first step, and the replay of its recorded step if it has one."""
    backend = Backend(
        device=task.device, slots=task.members, precision=task.precision, compiled=task.compiled
    )
    stack = synthetic_stack(ModelShape(**shape_of(task)), task.sequences, backend)
    stack.step()
    graph = getattr(stack._step, "_graph", None)
    return stack, None if graph is None else graph.replay


def kernels(check: Check, shape: ModelShape) -> list[dict[str, Any]]:
    """Kernels of a step by time, the slowest first."""
    task = plain_task(
        shape, check.device, kind="engine", members=check.members[-1], **check.modes().get("_fast", {})
    )
    stack, graph = engine(task)
    step = graph or stack.step
    step()
    check.wait()
    kind = torch.profiler.ProfilerActivity.CUDA if check.on_gpu else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as profile:
        step()
        check.wait()
    events = profile.key_averages()
    rows = [
        {
            "microseconds": each.self_device_time_total if check.on_gpu else each.self_cpu_time_total,
            "calls": each.count,
            "name": each.key[:160],
        }
        for each in events
    ]
    rows.sort(key=lambda row: -row["microseconds"])
    total = sum(row["microseconds"] for row in rows) or 1.0
    print(
        f"   {task.members} members: {sum(row['calls'] for row in rows)} kernels, {total / 1e3:.3f} ms of them"
    )
    for row in rows[:LISTED_KERNELS]:
        share = row["microseconds"] / total
        print(f"      {row['microseconds']:10.1f} us {share:6.1%} x{row['calls']:4} {row['name'][:100]}")
    return rows


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the numbers go, after every part")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["200k", "1M"])
    parser.add_argument("--members", nargs="+", type=int, default=[1, 4, 16, 32], help="sizes of stacks")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts; all by default")
    parser.add_argument("--seconds", type=float, default=0.6, help="of each measurement")
    parser.add_argument("--dry", action="store_true", help="tiny and on the CPU: figures mean nothing")
    args = parser.parse_args()
    if not args.dry and not torch.cuda.is_available():
        raise InvalidValueError(
            "device", "cuda", "needs a GPU that torch can use", "Give --dry to try the script."
        )
    return args


def main() -> None:
    """Check, print, write."""
    args = read_arguments()
    if args.dry:
        torch.set_num_threads(1)
    check = Check("cpu" if args.dry else "cuda", args.dry, args.members, args.seconds)
    check.found["device"] = {
        "name": "cpu, a dry run" if args.dry else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    print(json.dumps(check.found["device"]))
    shapes = {"tiny": TINY} if args.dry else {name: SHAPES[name] for name in args.shapes}
    parts: dict[str, Callable[[], Any]] = {
        "limits": lambda: limits(check),
        "correctness": lambda: correctness(check),
    }
    for name, shape in shapes.items():
        parts[f"speed {name}"] = lambda shape=shape: speed(check, shape)
        parts[f"kernels {name}"] = lambda shape=shape: kernels(check, shape)
    for name, measure in parts.items():
        if name.split()[0] in args.only:
            check.part(name, measure, args.json)


if __name__ == "__main__":
    run(main)
