"""What ``auto`` in ``train`` comes to: measured once, when a sweep is first planned, and kept in the study."""

from __future__ import annotations

import resource
import time
from dataclasses import asdict, replace

from decaylaws.designs.design import Design
from decaylaws.errors import InvalidValueError
from decaylaws.progress import Progress, silent
from decaylaws.runs.config import Arithmetic, ModelShape
from decaylaws.study.calibrate import calibrate, slots_to_try
from decaylaws.study.directory import Study, write_json

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
    train, proxy = study.settings.train, study.planner().shape(study.settings.proxy)
    if "auto" not in (train.precision, train.compile) or study.arithmetic_file.is_file():
        return False, ()
    planned, has_begun = study.arithmetic(), study.checkpoint_dir.is_dir()
    chosen, notes = planned, list[str]()
    if train.precision == "auto" and not has_begun and _is_on_a_bfloat16_gpu(study):
        chosen = replace(planned, precision="bfloat16")
        notes.append(f"{chosen}: the default on a GPU")
        write_json(study.arithmetic_file, {**asdict(chosen), "note": notes[0]})  # what follows measures by it
    elif not isinstance(proxy, ModelShape):
        return False, ()
    if isinstance(proxy, ModelShape):  # only the stacked trainer can be measured
        try:
            chosen = _fastest(study, design, progress, notes, has_begun)
        except BaseException:
            study.arithmetic_file.unlink(missing_ok=True)  # nothing is decided yet
            raise
        write_json(study.arithmetic_file, {**asdict(chosen), "note": "; ".join(notes)})
    return chosen != planned, (*notes, f"train: {chosen}") if notes else ()


def _is_on_a_bfloat16_gpu(study: Study) -> bool:
    """Whether the sweep trains on a GPU that multiplies bfloat16 several times faster than float32."""
    from proxy_runs.engine import has_bfloat16
    from proxy_runs.machine import visible_gpus

    device = study.settings.backend.device
    return visible_gpus(device) > 0 and has_bfloat16(device)


def _fastest(
    study: Study, design: Design, progress: Progress, notes: list[str], has_begun: bool
) -> Arithmetic:
    """What makes a long sweep faster than the arithmetic that the study has; ``notes`` gets what was tried."""
    seconds = 3600 * calibrate(study).plan_hours(design)
    if not has_begun:
        candidates = [
            each
            for each in _candidates(study)
            if seconds >= (WORTH_TRYING_SECONDS if each.compiled else EAGER_WORTH_TRYING_SECONDS)
        ]
        for number, candidate in enumerate(candidates):
            progress("measuring other arithmetic", number, len(candidates), str(candidate))
            gain, note = _gain(study, candidate, seconds)
            notes.append(f"{candidate}: {note}")
            if gain >= MIN_GAIN:
                return candidate
    return study.arithmetic()


def _candidates(study: Study) -> list[Arithmetic]:
    """What could make the sweep faster, the fastest on paper first."""
    from proxy_runs.engine import has_bfloat16

    train = study.settings.train
    has = has_bfloat16(study.settings.backend.device)
    precisions = [train.precision] if train.precision != "auto" else ["bfloat16", "float32"][not has :]
    if study.arithmetic().precision == "bfloat16":  # the default on a GPU: float32 is no candidate there
        precisions = ["bfloat16"]
    compiled = [train.compile] if train.compile != "auto" else [True, False]
    found = [Arithmetic(precision=name, compiled=bool(each)) for each in compiled for name in precisions]
    return [each for each in found if each != study.arithmetic()]


def _gain(study: Study, candidate: Arithmetic, seconds: float) -> tuple[float, str]:
    """How many times as fast a sweep of so many seconds would be, as the proxy's shape shows, and in words."""
    present = max(calibrate(study).speeds[study.planner().shape(study.settings.proxy)].values())
    started = _seconds(study)
    try:
        speed, tried = _speed(study, candidate)
    except (InvalidValueError, RuntimeError) as error:  # no compiler here, or one that fails
        return 0.0, str(error).strip().splitlines()[0][:200]
    # of each shape, and of one number of slots: that is what a worker compiles
    compilation = (
        (_seconds(study) - started) / tried * len(study.settings.starts) if candidate.compiled else 0.0
    )
    gain = seconds / (seconds * present / speed + compilation)
    with_it = " with its compilation" if candidate.compiled else ""
    return gain, f"the proxy trains {speed / present:.2f} times as fast, the sweep {gain:.2f} times{with_it}"


def _seconds(study: Study) -> float:
    """Seconds of the processor, of this process and the compilers that it has started; on a GPU of the clock.

    A busy machine would otherwise decide how a study computes, and the decision stays.
    """
    from proxy_runs.machine import visible_gpus

    if visible_gpus(study.settings.backend.device):
        return time.perf_counter()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _speed(study: Study, arithmetic: Arithmetic) -> tuple[float, int]:
    """Tokens per second of the proxy's shape, and how many numbers of slots were tried.

    What was compiled for it stays in the compiler's cache, where workers find it.
    """
    from proxy_runs.engine import Backend
    from proxy_runs.sweep.calibration import tokens_per_second

    settings = study.settings
    backend = Backend(device=settings.backend.device, **vars(arithmetic))
    shape, batch = study.planner().shape(settings.proxy), settings.batch_tokens
    assert isinstance(shape, ModelShape)
    speeds = tokens_per_second(shape, batch, backend, slots_to_try(study, backend))
    return max(speeds.values()), len(speeds)
