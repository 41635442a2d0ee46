from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from decaylaws.recipe import Recipe

SEQ_LEN = 64
MAIN_FILES = {
    "torchtitan": "midtrain_torchtitan.py",
    "huggingface": "training_arguments.json",
    "olmo-core": "midtrain_olmo_core.py",
    "megatron": "midtrain_megatron.args",
    "megatron-bridge": "midtrain_megatron_bridge.yaml",
    "nanotron": "midtrain_nanotron.yaml",
    "llm-foundry": "midtrain_llm_foundry.yaml",
    "levanter": "midtrain_levanter.yaml",
}
BATCH_TOKENS = 256 * SEQ_LEN
PEAK = 6.1351e-5
CLEAN_SOURCES = {"web": {"path": "/data/web"}, "math": {"path": "/data/math"}, "unused": {}}


def _segments(form: str, tokens: int) -> list[dict[str, Any]]:
    def segment(share: float, start: float, end: float, shape: str) -> dict[str, Any]:
        return {"tokens": round(share * tokens), "start_lr": start, "end_lr": end, "shape": shape}

    forms = {
        "linear": [segment(1, PEAK, 0.0, "linear")],
        "cosine": [segment(1, PEAK, 0.1 * PEAK, "cosine")],
        "1-sqrt": [segment(1, PEAK, 0.0, "1-sqrt")],
        "exponential": [segment(1, PEAK, 0.01 * PEAK, "exponential")],
        "wsd": [
            segment(0.2, 0.0, PEAK, "linear"),
            segment(0.4, PEAK, PEAK, "constant"),
            segment(0.4, PEAK, 0.1 * PEAK, "1-sqrt"),
        ],
        "wsd-linear": [
            segment(0.2, 0.0, PEAK, "linear"),
            segment(0.4, PEAK, PEAK, "constant"),
            segment(0.4, PEAK, 0.1 * PEAK, "linear"),
        ],
        # hand-over LR, re-warm-up to a peak, and two decays one after the other
        "three-stage": [
            segment(0.3, 0.3 * PEAK, PEAK, "linear"),
            segment(0.3, PEAK, 0.5 * PEAK, "cosine"),
            segment(0.4, 0.5 * PEAK, 0.0, "linear"),
        ],
    }
    return forms[form]


def build_recipe(form: str = "linear", steps: int = 1000, **changes: Any) -> Recipe:
    """A recipe by the form of its LR path and its number of steps; ``changes`` replace top-level keys."""
    segments = _segments(form, steps * BATCH_TOKENS)
    values: dict[str, Any] = {
        "schema": "decaylaws.recipe/2",
        "name": f"{form} over {steps}",
        "handover": {"lr": segments[0]["start_lr"], "checkpoint": "/ckpt/step928646"},
        "stages": [
            {
                "lr": segments,
                "mixture": {"web": 0.7, "math": 0.3, "unused": 0.0},
                "batch_tokens": BATCH_TOKENS,
                "seq_len": SEQ_LEN,
            }
        ],
        "sources": {
            "web": {"path": "/data/web"},
            "math": {"path": '/data/it\'s "math"\n', "max_epochs": 4.0, "available_tokens": 10**12},
            "unused": {},
        },
        "seed": 11,
    }
    return Recipe.from_dict(values | changes)


@pytest.fixture
def make_recipe() -> Callable[..., Recipe]:
    """:func:`build_recipe`."""
    return build_recipe
