"""Studies whose runs another trainer does, for tests: with declared text and models, and with text prepared here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from decaylaws import study as verbs
from decaylaws.designs.design import PlannedRun
from decaylaws.runs.config import RunConfig
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


CHECKPOINT_SETTINGS: dict[str, Any] = {
    **{key: value for key, value in DECLARED_SETTINGS.items() if key not in ("trunk", "shapes")},
    "checkpoints": {
        "models": {
            name: {
                "model": f"tiny_models.registry:{name}", "non_embedding_params": params, "path": f"s3://ours/{name}/step90",
                "tokens": 23_040, "lr": 0.01,
            }
            for name, params in MODELS.items()
        },
        "mixture": {"web": 1.0},
        "optimizer_state": "load",
    },
}  # fmt: skip
"""A study of declared text whose decays start from checkpoints that its trainer has."""


def losses_of(config: RunConfig, number: int = 0) -> dict[str, float]:
    """Losses that a run might have: lower with size, tokens and a domain's own share, with the noise of its seed.

    Args:
        config: the run.
        number: another run of the same config.
    """
    rng = np.random.default_rng([config.seed, number, config.tokens, config.shape.non_embedding_params])
    size = 3.0 * config.shape.non_embedding_params**-0.15
    seen = config.tokens / 4096 if config.kind == "decay" else 0.0
    return {
        domain: size
        + 2.0
        + level
        - 0.4 * (seen > 0) * (1 - np.exp(-3 * config.mixture.share(domain) * (0.5 + seen)))
        + 0.002 * float(rng.standard_normal())
        for domain, level in (("web", 0.0), ("maths", 0.6), ("code", 0.4))
    }


def log_rows(run: PlannedRun, **changes: Any) -> list[dict[str, Any]]:
    """What a careful trainer logs of a run: LR, tokens and mixture on the way, and the losses at both ends."""
    config, losses = run.config, losses_of(run.config)
    lrs, batch = config.schedule.step_lrs(config.batch_tokens), config.batch_tokens
    common = {
        "run_id": config.run_id,
        **{f"mix:{name}": share for name, share in config.mixture.weights.items()},
    }
    rows = [
        {**common, "step": step, "tokens": step * batch, "lr": lrs[min(step, config.num_steps) - 1]}
        for step in (1, config.num_steps // 2, config.num_steps)
    ]
    rows[-1] |= {f"loss:{domain}": loss for domain, loss in losses.items()}
    return [{**row, **changes} for row in rows]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rows as JSON Lines, NaN as trainers write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def declared_study(root: Path, base: Mapping[str, Any] = DECLARED_SETTINGS, **changes: Any) -> Study:
    """A planned study of declared text.

    Args:
        root: its folder.
        base: its settings.
        changes: sections that replace those of ``base``.
    """
    root.mkdir(parents=True, exist_ok=True)
    settings = {**base, **changes}
    (root / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    study = Study.open(root)
    verbs.plan(study)
    return study
