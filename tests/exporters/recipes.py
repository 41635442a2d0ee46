"""Recipes of one and of several stages that every exporter is tried with."""

from __future__ import annotations

from typing import Any

from decaylaws.context import extend_tail
from decaylaws.mixtures import Mixture
from decaylaws.recipe import Recipe, RopeSettings
from decaylaws.schedules import Schedule, Segment

SEQ_LEN, SEQUENCES = 64, 32
BATCH = SEQ_LEN * SEQUENCES
PEAK = 6e-4
SEEN_STEPS = 640  # behind the checkpoint; a whole number of levanter's blocks
WEB = {"web": 0.7, "math": 0.3}
MATH = {"web": 0.25, "math": 0.5, "code": 0.25}


def _line(steps: float, start: float, end: float, shape: str = "linear") -> Segment:
    return Segment(round(steps * BATCH), start * PEAK, end * PEAK, shape)


def _stage(*path: Segment, mixture: dict[str, float] = WEB, **changes: Any) -> dict[str, Any]:
    stage = {
        "lr": [part.to_dict() for part in path],
        "mixture": mixture,
        "batch_tokens": BATCH,
        "seq_len": SEQ_LEN,
    }
    return stage | changes


def _recipe(*stages: dict[str, Any], fresh: bool = False, random_start: bool = False) -> Recipe:
    for number, stage in enumerate(stages, start=1):
        stage.setdefault("name", f"part {number}")
    handover: dict[str, Any] = {"lr": stages[0]["lr"][0]["start_lr"]}
    if not random_start:
        state = "fresh" if fresh else "load"
        handover |= {"checkpoint": "/ckpt/start", "tokens": SEEN_STEPS * BATCH, "optimizer_state": state}
    names = sorted({name for stage in stages for name in stage["mixture"]})
    return Recipe.from_dict(
        {
            "schema": "decaylaws.recipe/2",
            "name": "tried",
            "handover": handover,
            "stages": list(stages),
            "sources": {name: {"path": f"/data/{name}"} for name in names},
            "seed": 5,
        }
    )


def _halves(segment: Segment, at_step: int) -> list[list[Segment]]:
    whole, at = Schedule((segment,)), at_step * BATCH
    return [list(whole.truncate(at)), list(whole.after(at))]


def _extended(rope: RopeSettings, **changes: Any) -> Recipe:
    """What ``decaylaws context extend`` writes."""
    return extend_tail(
        _recipe(_stage(_line(200, 1, 0))), tokens=64 * BATCH, seq_len=4 * SEQ_LEN, rope=rope, **changes
    )


def _recipes() -> dict[str, Recipe]:
    hold, half = _line(64, 1, 1, "constant"), _line(128, 1, 0.5)
    cosine = _halves(_line(192, 1, 0.1, "cosine"), 64)
    return {
        "linear": _recipe(_stage(_line(200, 1, 0))),
        "linear to a tenth": _recipe(_stage(_line(200, 1, 0.1))),
        "cosine to a tenth": _recipe(_stage(_line(200, 1, 0.1, "cosine"))),
        "1-sqrt to a tenth": _recipe(_stage(_line(300, 1, 0.1, "1-sqrt"))),
        "linear above zero": _recipe(_stage(_line(200, 1, 0.12))),
        "cosine": _recipe(_stage(_line(200, 1, 0, "cosine"))),
        "1-sqrt": _recipe(_stage(_line(300, 1, 0, "1-sqrt"))),
        "exponential": _recipe(_stage(_line(200, 1, 0.01, "exponential"))),
        "megatron-exponential": _recipe(_stage(_line(200, 1, 0, "megatron-exponential"))),
        "hold, linear": _recipe(_stage(hold, _line(100, 1, 0))),
        "short warm-up, linear": _recipe(_stage(_line(20, 0, 1), hold, _line(60, 1, 0)), fresh=True),
        "short warm-up, 1-sqrt": _recipe(
            _stage(_line(20, 0, 1), hold, _line(60, 1, 0.1, "1-sqrt")), fresh=True
        ),
        "warm-up of one step, to a tenth": _recipe(_stage(_line(1, 0, 1), _line(60, 1, 0.1)), fresh=True),
        "warm-up of two steps, to a tenth": _recipe(_stage(_line(2, 0, 1), _line(60, 1, 0.1)), fresh=True),
        "warm-up of many steps, to a tenth": _recipe(_stage(_line(100, 0, 1), _line(60, 1, 0.1)), fresh=True),
        "warm-up from a third": _recipe(_stage(_line(50, 0.3, 1), _line(150, 1, 0)), fresh=True),
        "random weights": _recipe(_stage(_line(30, 0, 1), hold, _line(60, 1, 0.1)), random_start=True),
        "two decays in one stage": _recipe(_stage(half, _line(64, 0.5, 0, "cosine"))),
        "a last batch that is not full": _recipe(_stage(_line(100.5, 1, 0))),
        "the mixture changes as the decay begins": _recipe(
            _stage(hold), _stage(_line(128, 1, 0), mixture=MATH)
        ),
        "one line, cut where the mixture changes": _recipe(
            _stage(half), _stage(_line(128, 0.5, 0), mixture=MATH)
        ),
        "one cosine, cut where the mixture changes": _recipe(
            _stage(*cosine[0]), _stage(*cosine[1], mixture=MATH)
        ),
        "two decays of one mixture": _recipe(_stage(half), _stage(_line(64, 0.5, 0.05, "cosine"))),
        "the batch doubles": _recipe(_stage(hold), _stage(_line(128, 1, 0.1), batch_tokens=2 * BATCH)),
        "longer sequences, larger base": _extended(RopeSettings(method="abf", theta=500_000.0)),
        "longer sequences, yarn, more math": _extended(
            RopeSettings(method="yarn", theta=10_000.0, factor=8.0, original_seq_len=SEQ_LEN),
            mixture=Mixture({"web": 0.4, "math": 0.6}),
        ),
        "three stages": _recipe(
            _stage(hold),
            _stage(_line(64, 1, 0.5), mixture=MATH),
            _stage(_line(64, 0.5, 0), mixture={"code": 1.0}, batch_tokens=2 * BATCH, seq_len=2 * SEQ_LEN),
        ),
    }


RECIPES = _recipes()
