"""levanter: its rule replayed from the written YAML, blocks, and the count that it takes over."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from decaylaws.errors import NotRepresentableError
from decaylaws.exporters import Export, ExportOptions, export
from decaylaws.exporters.levanter import block_counts
from decaylaws.io.yaml import load_yaml
from decaylaws.mixtures import Mixture

BATCH_TOKENS = 256 * 64
FRESH = {"lr": 0.0, "checkpoint": "/hf/model", "optimizer_state": "fresh"}


def _config(result: Export) -> dict[str, Any]:
    return load_yaml(result.files["midtrain_levanter.yaml"], "text")


def _whole(value: float, steps: int) -> int:
    """levanter: up to 1 is a share, cut down to whole steps; above, it is steps."""
    return int(value * steps) if value <= 1 else int(value)


def _replay(config: dict[str, Any]) -> np.ndarray:
    """optim/config.py of marin's main: cycles of warm-up, hold, decay; LR at the count before the step."""
    optimizer, total = config["optimizer"], config["trainer"]["num_train_steps"]
    peak, floor = optimizer["learning_rate"], optimizer["learning_rate"] * optimizer["min_lr_ratio"]
    edges = [0, *optimizer.get("cycles", [total])]
    lrs = []
    for cycle, (start, end) in enumerate(pairwise(edges)):
        length = end - start
        warmup = _whole(optimizer["warmup"] if cycle == 0 else optimizer["rewarmup"], length)
        decay = min(_whole(optimizer["decay"], length), length - warmup)
        for step in range(length):
            done = max(0, step - (length - decay)) / max(decay, 1)
            if step < warmup:
                lrs.append(peak * step / warmup)
            elif optimizer["lr_schedule"] == "cosine":
                lrs.append(floor + (peak - floor) * 0.5 * (1 + np.cos(np.pi * done)))
            elif optimizer["lr_schedule"] == "linear":
                lrs.append(peak + (floor - peak) * done)
            else:
                lrs.append(peak)
    return np.array(lrs)


@pytest.mark.parametrize("steps", [10, 1000, 24_000])
@pytest.mark.parametrize("form", ["linear", "cosine", "wsd-linear"])
@pytest.mark.parametrize("seen", [0, 500])
def test_the_yaml_gives_the_stated_lr(make_recipe, form: str, steps: int, seen: int) -> None:
    warmed = form == "wsd-linear"
    start = 0.0 if warmed else 6.1351e-5
    handover = {"lr": start, "checkpoint": "/c", "tokens": seen * BATCH_TOKENS}
    recipe = make_recipe(form, steps, handover=handover | (FRESH if warmed else {}))
    result = export(recipe, "levanter", ExportOptions(tolerance=0.35))
    config = _config(result)
    assert np.abs(_replay(config)[-steps:] - result.step_lrs).max() < 1e-12 * 6.2e-5
    assert result.max_abs_lr_error == np.abs(result.step_lrs - recipe.step_lrs()).max()
    assert config["trainer"]["num_train_steps"] == steps + (0 if warmed else seen)
    assert ("initialize_from_hf" in config) == warmed


def test_mixtures_may_change_at_the_edge_of_a_block(make_recipe) -> None:
    values = make_recipe("linear", 64).to_dict()
    first = values["stages"][0]
    second = first | {
        "name": "more math",
        "mixture": {"web": 0.4, "math": 0.6},
        "lr": [{"tokens": 64 * BATCH_TOKENS, "start_lr": 0.0, "end_lr": 0.0, "shape": "constant"}],
    }
    stages = [first, second]
    result = export(
        make_recipe(stages=stages), "levanter", ExportOptions(tolerance=1.0, on_inexpressible="approximate")
    )
    data = _config(result)["data"]
    assert data["train_weights"] == [[0, {"math": 0.3, "web": 0.7}], [64, {"math": 0.6, "web": 0.4}]]
    assert 64 * 256 % data["mixture_block_size"] == 0
    assert sum(result.realised_shares.values()) == pytest.approx(1.0)
    assert result.realised_shares["math"] == pytest.approx(0.45, abs=1e-3)
    assert len(result.approximations) == 1  # the LR; the mixture is expressed
    rare = [first | {"mixture": {"web": 0.999, "math": 0.001}}, second]
    rare[0]["lr"] = [{"tokens": BATCH_TOKENS, "start_lr": 6.1351e-5, "end_lr": 0.0, "shape": "linear"}]
    rare[1] = second | {
        "lr": [{"tokens": 64 * BATCH_TOKENS, "start_lr": 1e-6, "end_lr": 0.0, "shape": "linear"}]
    }
    # a block of the 256 sequences before the change would hold no sequence of the rare source: two runs then
    chained = export(make_recipe(stages=rare), "levanter")
    assert {"stage-1/midtrain_levanter.yaml", "stage-2/midtrain_levanter.yaml"} <= set(chained.files)
    assert chained.realised_shares["math"] == pytest.approx((0.001 + 64 * 0.6) / 65, abs=1e-3)


def test_shares_are_cut_down_to_whole_sequences() -> None:
    counts = block_counts(Mixture({"a": 0.3333, "b": 0.3333, "c": 0.3334}), 2048)
    assert counts == {"a": 684, "b": 682, "c": 682}
    assert sum(counts.values()) == 2048


@pytest.mark.parametrize(("rare", "block"), [(0.05, 2048), (0.0014, 8192), (0.0004, 32768), (4e-5, 32768)])
def test_a_small_share_gets_its_sequences_from_a_larger_block(make_recipe, rare: float, block: int) -> None:
    """Of 2,048 sequences a share of .0014 would get two, a third too few, and .0004 none."""
    stage = make_recipe("linear", 64).to_dict()["stages"][0] | {"mixture": {"web": 1 - rare, "math": rare}}
    result = export(make_recipe(stages=[stage]), "levanter")
    assert _config(result)["data"]["mixture_block_size"] == block
    assert result.realised_shares["math"] == pytest.approx(rare, rel=0.05 if rare > 1e-4 else 0.25)
    assert sum(result.realised_shares.values()) == pytest.approx(1.0)
    assert bool(result.approximations) == (rare == 4e-5)  # one sequence of 32,768 in place of 1.3


def test_a_share_below_a_sequence_of_any_block_is_told(make_recipe) -> None:
    stage = make_recipe("linear", 64).to_dict()["stages"][0] | {"mixture": {"web": 1 - 2e-5, "math": 2e-5}}
    result = export(make_recipe(stages=[stage]), "levanter")
    assert result.realised_shares["math"] == 0
    assert result.approximations == (
        "Shares are rounded to whole sequences of the largest block: math 0 in place of 2e-05.",
    )


def test_a_new_warmup_needs_a_fresh_optimizer(make_recipe) -> None:
    with pytest.raises(NotRepresentableError, match="optimizer_state: fresh"):
        export(make_recipe("wsd-linear"), "levanter", ExportOptions(tolerance=0.1))
    odd = {"lr": 6.1351e-5, "checkpoint": "/c", "tokens": BATCH_TOKENS + 1}
    with pytest.raises(NotRepresentableError, match=r"is not a whole number of steps.*--seen-steps"):
        export(make_recipe(handover=odd), "levanter")
