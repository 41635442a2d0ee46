"""Studies whose runs another trainer does, for tests: with declared text and models, and with text prepared here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from decaylaws import study as verbs
from decaylaws.study import Study
from tests.study.tiny import TINY_SETTINGS

MODELS = {"small": 2_608, "medium": 5_832, "target": 20_640}

DECLARED_SETTINGS: dict[str, Any] = {
    **{key: value for key, value in TINY_SETTINGS.items() if key not in ("backend", "tokenizer")},
    "trainer": "external",
    "external": {"flops_per_second": 1e9},
    "sources": {
        "web": {"format": "declared", "tokens": "1M", "path": "text/web", "group": "general"},
        "maths": {"format": "declared", "tokens": 80_000, "path": "text/maths", "max_epochs": 2},
        "code": {"format": "declared", "tokens": 80_000, "path": "text/code", "max_epochs": 2},
    },
    "shapes": {
        name: {"model": f"tiny_models.registry:{name}", "non_embedding_params": params}
        for name, params in MODELS.items()
    },
    "design": {
        "num_mixtures": 4,
        "decay_tokens": [2048, 4096],
        "start_lr_factors": [1.0],
        "shapes": ["linear"],
        "num_replicates": 2,
        "runs_at_other_sizes": 2,
    },
}


def declared_study(root: Path, **changes: Any) -> Study:
    """A planned study of declared text; ``changes`` replace sections of its settings."""
    root.mkdir(parents=True, exist_ok=True)
    settings = {**DECLARED_SETTINGS, **changes}
    (root / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    study = Study.open(root)
    verbs.plan(study)
    return study
