"""Studies that a script makes for itself: one small proxy on text of installed packages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from decaylaws import study as verbs
from decaylaws.study import Study


def open_or_create(folder: Path, settings: Mapping[str, Any]) -> Study:
    """The study in a folder, made from these settings unless it holds a ``study.yaml`` already."""
    path = folder / "study.yaml"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(dict(settings), sort_keys=False), encoding="utf-8")
    return Study.open(folder)


def train(study: Study) -> None:
    """Prepare the text, plan the microanneals and run those that have not finished."""
    verbs.prepare(study)
    verbs.plan(study)
    verbs.run(study)


def sweep_settings(
    name: str, mixture: Mapping[str, float], sources: tuple[str, ...], **sections: Any
) -> dict[str, Any]:
    """``study.yaml`` of a sweep of one small proxy, whose target is never asked about.

    Args:
        name: of the study.
        mixture: of the trunk.
        sources: of the text, which weigh equally in the objective.
        sections: of the file, as they stand in it; ``trunk`` needs ``tokens``, the rest of it has defaults.
    """
    trunk = {"warmup_tokens": 16_384, "peak_lr": 6e-3, "mixture": dict(mixture), **sections.pop("trunk")}
    return {
        "name": name,
        "sources": {source: {"format": "embedded", "max_bytes": 800_000} for source in sources},
        "tokenizer": {"vocab_size": 1024},
        "seq_len": 64,
        "proxy": "small",
        "trunk": trunk,
        "objective": {"weights": dict.fromkeys(sources, 1)},
        "target": {"shape": "target", "max_decay_tokens": max(sections["design"]["decay_tokens"])},
        "train": {"precision": "float32", "compile": False},
        "backend": {"workers": 1, "device": "cpu"},
        **sections,
    }
