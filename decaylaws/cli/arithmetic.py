"""What ``train.compile: auto`` comes to: measured once, when a sweep is first planned, and kept in the study."""

from __future__ import annotations

import time

from rich.console import Console

from decaylaws.cli.calibrate import calibrate
from decaylaws.designs import Design
from decaylaws.errors import InvalidValueError
from decaylaws.study import Study
from decaylaws.study.layout import write_json

WORTH_TRYING_SECONDS = 1200.0
"""Sweeps that take less are not compiled: a shape costs half a minute of a core, and so does finding out."""
MIN_GAIN = 1.05
"""A compiled sweep must be faster by so much, with the compilation of all its shapes."""


def settle_arithmetic(study: Study, design: Design, console: Console) -> bool:
    """Decide whether the sweep is compiled, where study.yaml leaves it open and nothing was decided before.

    The answer belongs to the study, not to a machine: it changes the last digits of every loss and so the identity of
    every run. A sweep that has begun goes on as it began.

    Returns:
        Whether the design has to be made anew.
    """
    if study.settings.train.compile != "auto" or study.arithmetic_file.is_file():
        return False
    seconds = 3600 * calibrate(study).plan_hours(design)
    compiled, note = False, ""
    if seconds >= WORTH_TRYING_SECONDS and not study.checkpoint_dir.is_dir():
        compiled, note = _try(study, seconds)
        console.print(f"train.compile: {note}", highlight=False)
    write_json(study.arithmetic_file, {"compiled": compiled, "note": note})
    return compiled


def _try(study: Study, seconds: float) -> tuple[bool, str]:
    """Whether compiling would shorten a sweep of so many seconds, as the proxy's shape shows, and why."""
    eager = max(calibrate(study).speeds[study.planner().shape(study.settings.proxy)].values())
    started = time.perf_counter()
    try:
        compiled = _compiled_speed(study)
    except (InvalidValueError, RuntimeError) as error:  # no compiler here, or one that fails
        return False, f"off; {str(error).strip().splitlines()[0][:200]}"
    compilation = (time.perf_counter() - started) * len(study.settings.shapes)
    gain = seconds / (seconds * eager / compiled + compilation)
    is_on = gain >= MIN_GAIN
    return is_on, (
        f"{'on' if is_on else 'off'}; the proxy trains {compiled / eager:.2f} times as fast, "
        f"the sweep {gain:.2f} times with its compilation"
    )


def _compiled_speed(study: Study) -> float:
    """Tokens per second of the proxy's shape, compiled; what was compiled stays in the compiler's cache."""
    from proxy_runs.calibration import candidate_slots, tokens_per_second
    from proxy_runs.engine import Backend

    settings = study.settings
    backend = Backend(device=settings.backend.device, precision=settings.train.precision, compiled=True)
    shape, batch = study.planner().shape(settings.proxy), settings.batch_tokens
    return max(tokens_per_second(shape, batch, backend, candidate_slots(batch, backend)).values())
