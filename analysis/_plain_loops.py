"""The loops that the engine is measured against in ``throughput.py``; they import torch and nothing of ours.

Run as a program it is one process of one contestant: ``--task JSON`` says what it does, ``--work MODELS STEPS`` makes
it a part of a whole job (train the models one after another, then leave), without it the process takes turns: each
line on standard input is a turn, each line on standard output what it did.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

LR = 1e-3
WARM_UP_SECONDS = 1.0
PEAK_WIDTH = {"cpu": 1024, "cuda": 8192}
STEPS_AHEAD = 8
"""Steps that a host may launch before it waits for a GPU."""

Step = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one process repeats.

    Attributes:
        kind: ``loop``, ``graph`` (a GPU's), ``matmul``, or ``engine``, which ``_engine_contestants.py`` knows.
        d_model: width.
        num_layers: decoder blocks.
        num_heads: attention heads.
        d_ff: inner width of the SwiGLU block.
        vocab_size: entries of the tokenizer.
        seq_len: tokens of a sequence.
        sequences: of one model's step.
        members: models that step together; only the engine has more than one.
        precision: of the matmuls; a loop computes in bfloat16 under ``torch.autocast``.
        compiled: whether ``torch.compile`` is used.
        device: ``cpu`` or ``cuda``.
    """

    kind: str
    d_model: int
    num_layers: int
    num_heads: int
    d_ff: int
    vocab_size: int
    seq_len: int
    sequences: int
    members: int = 1
    precision: str = "float32"
    compiled: bool = False
    device: str = "cpu"

    @property
    def member_tokens(self) -> int:
        """Tokens of one model's step."""
        return self.sequences * self.seq_len


class Block(nn.Module):
    """A Llama block as one would write it for a single model."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        d = task.d_model
        self.heads = task.num_heads
        self.norm1, self.norm2 = nn.RMSNorm(d, eps=1e-5), nn.RMSNorm(d, eps=1e-5)
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.gate_up = nn.Linear(d, 2 * task.d_ff, bias=False)
        self.down = nn.Linear(task.d_ff, d, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Residual stream ``[B, T, D]`` in and out."""
        batch, length, d = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        turned = qkv[:2] * cos + torch.cat(qkv[:2].chunk(2, -1)[::-1], -1) * sin
        mixed = F.scaled_dot_product_attention(turned[0], turned[1], qkv[2], is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, d))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    """A tied Llama of plain modules."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.embed = nn.Embedding(task.vocab_size, task.d_model)
        nn.init.normal_(self.embed.weight, std=task.d_model**-0.5)
        self.blocks = nn.ModuleList(Block(task) for _ in range(task.num_layers))
        self.norm = nn.RMSNorm(task.d_model, eps=1e-5)
        width = task.d_model // task.num_heads
        frequencies = 10_000.0 ** -(torch.arange(0, width, 2) / width)
        angles = torch.outer(torch.arange(task.seq_len), frequencies)
        self.register_buffer("cos", angles.cos().repeat(1, 2))
        self.register_buffer("sin", torch.cat([-angles.sin(), angles.sin()], -1))

    def forward(self, windows: Tensor) -> Tensor:
        """Mean loss of ``windows [B, T + 1]``."""
        x = self.embed(windows[:, :-1])
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = self.norm(x) @ self.embed.weight.T
        return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def random_windows(task: Task) -> Tensor:
    """A batch of one model, ``[sequences, seq_len + 1]``."""
    generator = torch.Generator().manual_seed(0)
    size = (task.sequences, task.seq_len + 1)
    return torch.randint(task.vocab_size, size, generator=generator).to(task.device)


def loop_step(task: Task) -> Step:
    """A step of a fresh model: forward, backward, clip, the LR of the step, AdamW."""
    optimizer, loss_of, windows = _fresh(task, LR)

    def step() -> None:
        loss_of(windows).backward()
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.param_groups[0]["lr"] = LR
        optimizer.step()
        optimizer.zero_grad()

    return step


def graph_step(task: Task) -> Step:
    """The same on a GPU, captured once as a CUDA graph and replayed."""
    optimizer, loss_of, windows = _fresh(task, torch.tensor(LR, device=task.device), capturable=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        loss_of(windows).backward()
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0, foreach=True)
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

    def replay(kept: object = optimizer) -> None:  # the graph computes on the memory of these tensors
        graph.replay()

    return replay


def _fresh(
    task: Task, lr: float | Tensor, **options: bool
) -> tuple[torch.optim.Optimizer, Callable[[Tensor], Tensor], Tensor]:
    """A new model's optimiser, its loss and its batch."""
    torch.manual_seed(0)
    model = Llama(task).to(task.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), fused=True, **options)
    forward = torch.compile(model, dynamic=False) if task.compiled else model
    # a cast that autocast keeps would be recorded once and never be made again
    cast = torch.autocast(
        task.device, torch.bfloat16, enabled=task.precision == "bfloat16", cache_enabled=task.kind != "graph"
    )

    def loss_of(windows: Tensor) -> Tensor:
        with cast:
            loss: Tensor = forward(windows)
        return loss

    return optimizer, loss_of, random_windows(task)


def matmul_step(task: Task) -> Step:
    """A large matmul of ``matmul_flops`` FLOPs: bfloat16 on a GPU, float32 on a CPU."""
    width = PEAK_WIDTH[task.device]
    dtype = torch.bfloat16 if task.device == "cuda" else torch.float32
    a, b = (torch.randn(width, width, device=task.device, dtype=dtype) for _ in range(2))
    return lambda: torch.mm(a, b)


def matmul_flops(device: str) -> float:
    """FLOPs of a :func:`matmul_step`."""
    return 2.0 * PEAK_WIDTH[device] ** 3


MAKERS: dict[str, Callable[[Task], Step]] = {"loop": loop_step, "graph": graph_step, "matmul": matmul_step}


def take_turns(task: Task, step: Step) -> None:
    """Warm up, say so, then answer every line with a turn of the seconds that it names, one step at least."""
    warm = time.perf_counter()
    step()
    while time.perf_counter() - warm < WARM_UP_SECONDS:
        step()
    print("ready", flush=True)
    for line in sys.stdin:
        steps, wall, cpu = 0, time.perf_counter(), time.process_time()
        while steps == 0 or time.perf_counter() - wall < float(line):
            step()
            steps += 1
            if task.device == "cuda" and steps % STEPS_AHEAD == 0:
                torch.cuda.synchronize()
        if task.device == "cuda":
            torch.cuda.synchronize()
        spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps({"steps": steps, **spent}), flush=True)


def work(task: Task, models: int, steps: int) -> None:
    """Train so many models one after another."""
    for _ in range(models):
        step = MAKERS[task.kind](task)
        for _ in range(steps):
            step()


def main() -> None:
    """Be one process of a contestant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", required=True)
    parser.add_argument("--work", type=int, nargs=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    task = Task(**json.loads(args.task))
    if args.work:
        work(task, *args.work)
    else:
        take_turns(task, MAKERS[task.kind](task))


if __name__ == "__main__":
    main()
