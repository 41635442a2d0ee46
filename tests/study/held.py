"""Studies on tiny checkpoints: Hugging Face folders with a tokenizer, and the template filled in for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from proxy_runs.data.tokenizer import train_tokenizer
from tests.proxy_runs.held import held_folder
from tests.study.tiny import TINY_SETTINGS, WORDS, decaylaws, make_tiny_study

VOCAB_SIZE = 300


def make_held_study(
    root: Path, models: Mapping[str, Mapping[str, Any]], *, target: str, moments: bool = False, **changes: Any
) -> None:
    """``init`` with the template, filled in with the tiny study's text and a folder for each checkpoint.

    Args:
        root: of the study.
        models: by name, ``family``, ``tokens``, ``lr`` and changes of the model's config.
        target: the checkpoint that the recipe is for; the first one is the proxy.
        moments: give each folder moments, and load them.
        changes: of the settings.
    """
    make_tiny_study(root)
    (root / "study.yaml").unlink()
    decaylaws("init", str(root), "--template", "checkpoint")
    tokenizer = root / "tokenizer.json"
    texts = [text.read_text(encoding="utf-8") for text in sorted((root / "data" / "web").glob("*.txt"))]
    train_tokenizer([*texts, *WORDS.values()], vocab_size=VOCAB_SIZE, path=tokenizer)
    entries = {}
    for name, model in models.items():
        config = {key: value for key, value in model.items() if key not in ("family", "tokens", "lr")}
        folder = held_folder(root / "models" / name, model["family"], VOCAB_SIZE, moments=moments, **config)
        (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
        (folder / "README.md").write_text(f"# {name}\n", encoding="utf-8")
        entries[name] = {"path": f"models/{name}", "tokens": model["tokens"], "lr": model["lr"]}
    settings = yaml.safe_load((root / "study.yaml").read_text(encoding="utf-8"))
    settings |= {name: TINY_SETTINGS[name] for name in ("sources", "objective", "evaluation", "backend")}
    settings |= {"name": "held", "seq_len": 32, "batch_tokens": 256, "search_trials": 30}
    settings["checkpoints"] |= {"models": entries, "mixture": {"web": 1.0}, "warmup_tokens": 256}
    settings["checkpoints"]["optimizer_state"] = "load" if moments else "fresh"
    settings["proxy"], settings["target"] = next(iter(models)), {"shape": target, "max_decay_tokens": 2048}
    settings["design"] |= {
        "num_mixtures": 6, "decay_tokens": [1024, 2048], "start_lr_factors": [1.0], "shapes": ["linear"],
        "end_lr_factors": [0.1], "num_replicates": 2, "runs_at_other_sizes": 3,
    }  # fmt: skip
    settings |= changes
    (root / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
