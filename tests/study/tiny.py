"""A study small enough for tests: the user's own text in three languages of a dozen words each."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from decaylaws.cli import app

VERBS = ("prepare", "plan", "run", "fit", "recommend", "confirm", "export", "report")

WORDS = {
    "web": "river stone morning quiet walk garden letter winter market bridge water harvest",
    "maths": "sum product equals root prime angle proof lemma divide circle vector seven",
    "code": "return import class yield lambda assert while raise tuple string index value",
}

TINY_SETTINGS: dict[str, Any] = {
    "name": "tiny",
    "sources": {
        "web": {"format": "text", "path": "data/web", "group": "general"},
        "maths": {"format": "jsonl", "path": "data/maths.jsonl", "max_epochs": 2},
        "code": {"format": "jsonl", "path": "data/code.jsonl", "max_epochs": 2},
    },
    "tokenizer": {"vocab_size": 300},
    "seq_len": 32,
    "batch_tokens": 256,
    "shapes": {
        "small": {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32},
        "medium": {"d_model": 24, "num_layers": 1, "num_heads": 2, "d_ff": 48},
        "target": {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 64},
    },
    "proxy": "small",
    "trunk": {"tokens": 16384, "warmup_tokens": 2048, "peak_lr": 1e-2, "mixture": {"web": 1.0}},
    "design": {
        "num_mixtures": 10,
        "decay_tokens": [2048, 4096],
        "start_lr_factors": [1.0, 0.5],
        "shapes": ["linear"],
        "batch_tokens": [256, 512],
        "num_replicates": 2,
        "runs_at_other_sizes": 3,
    },
    "objective": {"weights": {"web": 1, "maths": 1, "code": 1}, "guard_domains": ["web"], "guard_nats": 0.3},
    "target": {"shape": "target", "max_decay_tokens": 4096},
    "evaluation": {"tokens_per_domain": 512, "points": 1},
    "backend": {"workers": 1, "slots": 2, "device": "cpu"},
    "search_trials": 40,
}


def decaylaws(*arguments: str) -> str:
    """Run the command line in this process; what it printed."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def make_tiny_study(root: Path) -> None:
    """``study.yaml`` and three sources: plain text files, and JSON Lines twice."""
    data = root / "data"
    (data / "web").mkdir(parents=True)
    for name, vocabulary in WORDS.items():
        rng, words = random.Random(name), vocabulary.split()
        texts = [
            " ".join(rng.choice(words) + rng.choice(["", ",", "."]) for _ in range(120)) for _ in range(150)
        ]
        if name == "web":
            for index, text in enumerate(texts):
                (data / name / f"{index}.txt").write_text(text, encoding="utf-8")
        else:
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            (data / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (root / "study.yaml").write_text(yaml.safe_dump(TINY_SETTINGS, sort_keys=False), encoding="utf-8")


def copy_planned(root: Path, to: Path) -> None:
    """A copy of a study as ``plan`` left it: nothing is trained, and nothing has to be measured again."""
    for folder in ("data", "corpus"):
        shutil.copytree(root / folder, to / folder)
    for file in ("study.yaml", "plan.json", "calibration.json", "arithmetic.json"):
        shutil.copy(root / file, to)
