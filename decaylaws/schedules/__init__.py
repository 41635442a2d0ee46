"""Learning-rate and batch-size schedules over tokens: algebra, notation, published schedules.

::

    from decaylaws.schedules import decay, warmup_stable_decay

    trunk = warmup_stable_decay(10_000_000, 3e-4, warmup_tokens=500_000, decay_tokens=0)
    run = trunk.fork(at=8_000_000, decay=decay(2_000_000, start_lr=3e-4, shape="1-sqrt"))
    run.lr(9_000_000), run.integral(), run.step_lrs(batch_tokens=65_536)
"""

from decaylaws.schedules.batch import BatchSchedule, BatchStage, batch_ramp, constant_batch
from decaylaws.schedules.constructors import (
    DecayTerms,
    constant,
    cosine,
    decay,
    drop_and_hold,
    from_points,
    from_steps,
    half_life,
    inverse_sqrt,
    linear_to_zero,
    multi_step,
    power,
    warmup,
    warmup_stable_decay,
    wsd_s,
)
from decaylaws.schedules.lint import Finding, lint
from decaylaws.schedules.notation import parse_schedule, parse_template
from decaylaws.schedules.published import PUBLISHED, PublishedSchedule, published_schedule
from decaylaws.schedules.schedule import Schedule
from decaylaws.schedules.segment import Segment
from decaylaws.schedules.shapes import SHAPES
from decaylaws.schedules.template import ScheduleTemplate

__all__ = [
    "PUBLISHED",
    "SHAPES",
    "BatchSchedule",
    "BatchStage",
    "DecayTerms",
    "Finding",
    "PublishedSchedule",
    "Schedule",
    "ScheduleTemplate",
    "Segment",
    "batch_ramp",
    "constant",
    "constant_batch",
    "cosine",
    "decay",
    "drop_and_hold",
    "from_points",
    "from_steps",
    "half_life",
    "inverse_sqrt",
    "linear_to_zero",
    "lint",
    "multi_step",
    "parse_schedule",
    "parse_template",
    "power",
    "published_schedule",
    "warmup",
    "warmup_stable_decay",
    "wsd_s",
]
