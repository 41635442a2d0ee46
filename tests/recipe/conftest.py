from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def recipe_values() -> dict[str, Any]:
    """A complete recipe as plain values."""
    return {
        "schema": "decaylaws.recipe/2",
        "name": "anneal-7b",
        "handover": {
            "checkpoint": "trunk/step928646",
            "tokens": 3_895_000_000_000,
            "lr": 6.1351e-5,
            "lr_source": "cosine 3e-4 to 3e-5 over 5T tokens",
            "optimizer_state": "load",
            "lr_jump": False,
        },
        "stages": [
            {
                "name": "anneal",
                "lr": [{"tokens": 50_000_000, "start_lr": 6.1351e-5, "end_lr": 0.0, "shape": "linear"}],
                "mixture": {"web": 0.5, "math": 0.3, "code": 0.2},
                "batch_tokens": 2_097_152,
                "seq_len": 8192,
            }
        ],
        "sources": {
            "web": {"available_tokens": 750_000_000, "fingerprint": "sha256:00"},
            "math": {"available_tokens": 5_000_000, "max_epochs": 4.0, "path": "/data/math"},
            "code": {"path": "/data/code"},
        },
        "optimizer": {"beta2": 0.95, "weight_decay": 0.1},
        "seed": 7,
        "predictions": {
            "web": {"mean": 2.5, "lower": 2.45, "upper": 2.55, "control": 2.49},
            "math": {"mean": 1.2, "lower": 1.1, "upper": 1.3, "control": 1.5},
        },
        "guards": {"web": {"limit": 0.02, "predicted": 0.01, "holds": True}},
        "provenance": {
            "created": "2026-11-23T12:00:00Z",
            "laws": [{"name": "DecayLaw", "parameters": {"alpha": 0.3}, "heldout_error": {"mae": 0.01}}],
            "evidence": {"run_ids": ["a1", "b2"]},
        },
    }
