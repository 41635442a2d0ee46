"""What a token store of 10 GB costs: 20 million documents, uint32, planned and read in place.

::

    python analysis/token_store_scale.py --work DIR --json OUT

A store of random documents with a skewed vocabulary is generated once (``DIR/store/*.npy``, arrays without headers).
Then ``prepare`` and ``plan`` run in a process of their own, whose CPU seconds and memory are measured. After that a
whole small sweep is planned over the same store and trained: the share of its steps that went by until their batches
were there is the time waiting for data.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

VOCAB_SIZE = 50_000
FILES = 10
SEQ_LEN = 256
BATCH_SEQUENCES = 8


def write_tokenizer(path: Path) -> None:
    """A byte-level tokenizer of 50,000 entries: three-letter words, and an end of document at 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["\u0120" + a + b + c + d for a in letters for b in letters for c in letters for d in letters[:3]]
    names = ["<|endoftext|>", *alphabet, *words][:VOCAB_SIZE]
    tokenizer = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(path))


def write_store(folder: Path, documents: int, num_bytes: int) -> None:
    """Random documents of geometric lengths, in ten files."""
    folder.mkdir(parents=True, exist_ok=True)
    mean = num_bytes / 4 / documents
    for number in range(FILES):
        path = folder / f"part-{number:03}.npy"
        if path.is_file():
            continue
        rng = np.random.default_rng(number)
        with open(path.with_suffix(".tmp"), "wb") as handle:
            for _ in range(20):
                lengths = rng.geometric(1 / (mean - 9), documents // FILES // 20) + 8
                ends = np.cumsum(lengths + 1)
                tokens = (rng.random(ends[-1]) ** 3 * (VOCAB_SIZE - 258)).astype("<u4") + 257
                tokens[ends - 1] = 0
                handle.write(tokens.tobytes())
        path.with_suffix(".tmp").rename(path)


def write_study(root: Path) -> None:
    """A study of two sources in the store, one file and nine."""
    stores = {"format": "array", "token_type": "uint32"}
    shape = {"num_layers": 2, "num_heads": 2, "d_ff": 256}
    settings = {
        "name": "scale",
        "sources": {
            "web": {**stores, "path": "store/part-00[1-9].npy", "group": "general"},
            "books": {**stores, "path": "store/part-000.npy"},
        },
        "tokenizer": {"path": "tokenizer.json"},
        "seq_len": SEQ_LEN,
        "batch_tokens": SEQ_LEN * BATCH_SEQUENCES,
        "shapes": {
            name: {"d_model": width, **shape}
            for name, width in (("small", 64), ("large", 128), ("target", 192))
        },
        "proxy": "small",
        "trunk": {
            "tokens": 1 << 22,
            "warmup_tokens": 1 << 20,
            "peak_lr": 1e-2,
            "mixture": {"web": 0.9, "books": 0.1},
        },
        "design": {"num_mixtures": 12, "decay_tokens": [1 << 20]},
        "objective": {"weights": {"web": 1, "books": 1}},
        "target": {"shape": "target", "max_decay_tokens": 1 << 20},
        "evaluation": {"tokens_per_domain": 2048, "points": 1},
        "train": {"precision": "float32", "compile": False},
        "backend": {"workers": 1, "slots": 1, "device": "cpu"},
    }
    (root / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    write_tokenizer(root / "tokenizer.json")


def verb(root: Path, name: str) -> dict[str, Any]:
    """CPU seconds and memory of a verb in its own process."""
    code = (
        "import sys, resource, json; from decaylaws.study import Study, " + name + "\n"
        f"{name}(Study.open(sys.argv[1]))\n"
        "own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))\n"
        "print(json.dumps({'cpu_seconds': own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,"
        " 'max_memory_mb': own.ru_maxrss / 1024}))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def sweep(root: Path, trunk_steps: int, decay_steps: int) -> dict[str, Any]:
    """A whole small sweep over the store by the worker of a study, in this process: how long steps wait for data."""
    import threading

    import torch

    from decaylaws.study import Study, plan
    from decaylaws.study.calibrate import calibrate
    from decaylaws.study.run import workspace
    from proxy_runs.engine.stack import Stack
    from proxy_runs.sweep.worker import Worker
    from proxy_runs.sweep.workspace import WorkerEvent

    torch.set_num_threads(1)
    step_tokens = SEQ_LEN * BATCH_SEQUENCES
    settings = yaml.safe_load((root / "study.yaml").read_text())
    settings["trunk"] |= {"tokens": trunk_steps * step_tokens, "warmup_tokens": step_tokens}
    settings["design"] = {
        "num_mixtures": 4,
        "decay_tokens": [decay_steps * step_tokens],
        "num_replicates": 2,
        "runs_at_other_sizes": 2,
    }
    settings["target"]["max_decay_tokens"] = decay_steps * step_tokens
    (root / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    study = Study.open(root)
    plan(study)
    runs = [(item.role, item.config) for item in study.design()]
    storage = study.storage()
    storage.open_queue().enqueue(runs)
    figures = {"data_seconds": 0.0, "step_seconds": 0.0}
    ended: dict[str, int] = {}
    step = Stack.step

    def timed(self: Stack) -> Any:
        before = {name: getattr(self, name) for name in figures}
        outcomes = step(self)
        for name in figures:
            figures[name] += getattr(self, name) - before[name]
        return outcomes

    def listen(event: WorkerEvent) -> None:
        if event.kind not in ("training", "waiting"):
            ended[event.kind] = ended.get(event.kind, 0) + 1

    start = time.perf_counter()
    Stack.step = timed  # type: ignore[method-assign]
    try:
        speed = calibrate(study.planner(), study.calibration_file, {})
        space = workspace(study.settings, storage, study.corpus_dir, study.checkpoint_dir, {})
        Worker(replace(space, workers=speed.workers), listen, threading.Event()).run()
    finally:
        Stack.step = step  # type: ignore[method-assign]
    return {
        "runs": len(runs),
        "ended": ended,
        "trained_tokens": sum(config.tokens for _, config in runs if config.is_trained),
        "seconds": time.perf_counter() - start,
        **figures,
        "waiting_share": figures["data_seconds"] / figures["step_seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=20_000_000)
    parser.add_argument("--bytes", type=int, default=10_000_000_000)
    parser.add_argument("--trunk-steps", type=int, default=12)
    parser.add_argument("--decay-steps", type=int, default=6)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    write_store(args.work / "store", args.documents, args.bytes)
    write_study(args.work)
    result: dict[str, Any] = {
        "store_bytes": sum(path.stat().st_size for path in (args.work / "store").iterdir()),
        "documents": args.documents,
    }
    result |= {name: verb(args.work, name) for name in ("prepare", "plan")}
    corpus = [path for path in (args.work / "corpus").rglob("*") if path.is_file()]
    result["written_bytes"] = sum(path.stat().st_size for path in corpus)
    result["written_share"] = result["written_bytes"] / result["store_bytes"]
    result["sweep"] = sweep(args.work, args.trunk_steps, args.decay_steps)
    result["max_memory_mb_here"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
