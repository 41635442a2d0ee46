"""What ``auto`` in ``train`` comes to: measured once, when a sweep is first planned, and kept in the study."""

from __future__ import annotations

import resource
import time
from dataclasses import asdict, replace

from decaylaws.designs.design import Design
from decaylaws.designs.planner import Planner
from decaylaws.errors import InvalidValueError
from decaylaws.progress import Progress, silent
from decaylaws.runs.config import Arithmetic, ModelShape
from decaylaws.settings.study import StudySettings
from decaylaws.study.calibrate import Calibration, calibrate, slots_to_try
from decaylaws.study.directory import Study
from decaylaws.study.files import write_json

WORTH_TRYING_SECONDS = 1200.0
"""Sweeps that take less stay as they are: a shape costs half a minute of a core to compile, and so does finding out."""
EAGER_WORTH_TRYING_SECONDS = 120.0
"""Another number format without the compiler takes two seconds to try, and stacks of it keep their bits."""
MIN_GAIN = 1.05
"""Another arithmetic must make the sweep faster by so much, with the compilation of all its shapes."""


def settle_arithmetic(
    study: Study, design: Design, progress: Progress = silent
) -> tuple[bool, tuple[str, ...]]:
    """Decide how the sweep computes, where study.yaml leaves it open and nothing was decided before.

    The answer belongs to the study, not to a machine: it changes the last digits of every loss and so the identity of
    every run. A sweep that has begun goes on as it began.

    Args:
        study: the study.
        design: its planned runs, whose length decides whether a trial is worth it.
        progress: told what is measured.

    Returns:
        Whether the design has to be made anew, and what was tried and decided now, in words.
    """
    planner, path = study.planner(), study.arithmetic_file
    train, proxy = planner.settings.train, planner.shape(planner.settings.proxy)
    if "auto" not in (train.precision, train.compile) or path.is_file():
        return False, ()
    planned, has_begun = planner.arithmetic, study.checkpoint_dir.is_dir()
    chosen, notes = planned, list[str]()
    device = planner.settings.backend.device
    if train.precision == "auto" and not has_begun and _is_on_a_bfloat16_gpu(device):
        chosen = replace(planned, precision="bfloat16")
        notes.append(f"{chosen}: the default on a GPU")
    elif not isinstance(proxy, ModelShape):
        return False, ()
    if isinstance(proxy, ModelShape) and not has_begun:  # only the stacked trainer can be measured
        present = Planner(planner.settings, planner.corpus, chosen, planner.held)
        speed = calibrate(present, study.calibration_file, study.held_folders())
        chosen = _fastest(present, speed, design, progress, notes)
    write_json(path, {**asdict(chosen), "note": "; ".join(notes)})
    return chosen != planned, (*notes, f"train: {chosen}") if notes else ()


def _is_on_a_bfloat16_gpu(device: str) -> bool:
    """Whether the sweep trains on a GPU that multiplies bfloat16 several times faster than float32."""
    from proxy_runs.engine import has_bfloat16
    from proxy_runs.machine import visible_gpus

    return visible_gpus(device) > 0 and has_bfloat16(device)


def _fastest(
    planner: Planner, speed: Calibration, design: Design, progress: Progress, notes: list[str]
) -> Arithmetic:
    """What makes a long sweep faster than the arithmetic that it has; ``notes`` gets what was tried."""
    seconds = 3600 * speed.plan_hours(design)
    candidates = [
        each
        for each in _candidates(planner.settings, planner.arithmetic)
        if seconds >= (WORTH_TRYING_SECONDS if each.compiled else EAGER_WORTH_TRYING_SECONDS)
    ]
    present = max(speed.speeds[planner.shape(planner.settings.proxy)].values())
    for number, candidate in enumerate(candidates):
        progress("measuring other arithmetic", number, len(candidates), str(candidate))
        gain, note = _gain(planner, candidate, seconds, present)
        notes.append(f"{candidate}: {note}")
        if gain >= MIN_GAIN:
            return candidate
    return planner.arithmetic


def _candidates(settings: StudySettings, present: Arithmetic) -> list[Arithmetic]:
    """What could make the sweep faster, the fastest on paper first."""
    from proxy_runs.engine import has_bfloat16

    train = settings.train
    has = has_bfloat16(settings.backend.device)
    precisions = [train.precision] if train.precision != "auto" else ["bfloat16", "float32"][not has :]
    if present.precision == "bfloat16":  # the default on a GPU: float32 is no candidate there
        precisions = ["bfloat16"]
    compiled = [train.compile] if train.compile != "auto" else [True, False]
    found = [Arithmetic(precision=name, compiled=bool(each)) for each in compiled for name in precisions]
    return [each for each in found if each != present]


def _gain(planner: Planner, candidate: Arithmetic, seconds: float, present: float) -> tuple[float, str]:
    """How many times as fast a sweep of so many seconds would be, as the proxy's shape shows, and in words.

    Args:
        planner: of the study.
        candidate: another arithmetic.
        seconds: of the whole sweep as it is.
        present: tokens per second of the proxy as it is.
    """
    device = planner.settings.backend.device
    started = _seconds(device)
    try:
        speed, tried = _speed(planner, candidate)
    except (InvalidValueError, RuntimeError) as error:  # no compiler here, or one that fails
        return 0.0, str(error).strip().splitlines()[0][:200]
    # of each shape, and of one number of slots: that is what a worker compiles
    compilation = (_seconds(device) - started) / tried * len(planner.settings.starts)
    gain = seconds / (seconds * present / speed + (compilation if candidate.compiled else 0.0))
    with_it = " with its compilation" if candidate.compiled else ""
    return gain, f"the proxy trains {speed / present:.2f} times as fast, the sweep {gain:.2f} times{with_it}"


def _seconds(device: str) -> float:
    """Seconds of the processor, of this process and the compilers that it has started; on a GPU of the clock.

    A busy machine would otherwise decide how a study computes, and the decision stays.
    """
    from proxy_runs.machine import visible_gpus

    if visible_gpus(device):
        return time.perf_counter()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _speed(planner: Planner, arithmetic: Arithmetic) -> tuple[float, int]:
    """Tokens per second of the proxy's shape, and how many numbers of slots were tried.

    What was compiled for it stays in the compiler's cache, where workers find it.
    """
    from proxy_runs.engine import Backend
    from proxy_runs.sweep.calibration import tokens_per_second

    settings = planner.settings
    backend = Backend(device=settings.backend.device, **vars(arithmetic))
    shape = planner.shape(settings.proxy)
    assert isinstance(shape, ModelShape)
    speeds = tokens_per_second(shape, settings.batch_tokens, backend, slots_to_try(settings, backend))
    return max(speeds.values()), len(speeds)
