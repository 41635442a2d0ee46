"""What a plan costs on this machine: a short measurement, kept in the study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from decaylaws.designs.planner import Design
from decaylaws.runs.config import EXACT, Arithmetic, ModelShape, Shape
from decaylaws.study.directory import Study, read_json, write_json
from decaylaws.study.question import content_hash
from decaylaws.study.stored import StoredCalibration

if TYPE_CHECKING:
    from proxy_runs.engine import Backend

LARGE_PARAMS = 30_000_000
"""Models of more are stacked on no CPU: each fills a core alone, and several take the memory of several."""
UNMEASURED_SHARE = 0.4
"""Of the FLOPs of a large matmul that training reaches where no shape of a study can be measured."""
MAX_STEP_FLOPS = {"cpu": 2e11, "gpu": 2e13}
"""A step of more is not tried: it takes seconds. Its speed follows from the largest shape that was."""


@dataclass(frozen=True)
class Calibration:
    """Measured speed of one worker of this machine.

    Attributes:
        matmul_flops: FLOPs per second of a large float32 matmul on one thread, or on the GPU.
        speeds: tokens per second, all members of a stack together, by shape and number of slots.
        workers: worker processes that a run would start.
    """

    matmul_flops: float
    speeds: dict[Shape, dict[int, float]]
    workers: int

    def hours(self, shape: Shape, tokens: int) -> float:
        """Hours of training ``tokens`` with all workers, evaluation not counted."""
        return tokens / max(self.speeds[shape].values()) / self.workers / 3600.0

    def params_hours(self, non_embedding_params: int, tokens: int) -> float:
        """Hours of training ``tokens`` at the shape with so many parameters."""
        (shape, *_) = (each for each in self.speeds if each.non_embedding_params == non_embedding_params)
        return self.hours(shape, tokens)

    def plan_hours(self, design: Design) -> float:
        """Hours of a whole plan."""
        return sum(self.hours(run.config.shape, run.config.tokens) for run in design if run.config.is_trained)

    def slots(self, shape: Shape) -> int:
        """Members of a stack that train fastest."""
        from proxy_runs.machine import best_slots

        return best_slots(self.speeds[shape])


def calibrate(study: Study, *, workers: int | None = None) -> Calibration:
    """Speed of this machine for the shapes of a study; measured once, then read from ``calibration.json``.

    Loads torch only to measure.
    """
    from proxy_runs.machine import default_workers

    planner, batch = study.planner(), study.settings.batch_tokens
    shapes = [planner.shape(name) for name in study.settings.starts]
    arithmetic = study.arithmetic()
    keys = {shape: _key(shape, batch, arithmetic) for shape in shapes}
    stackable = [shape for shape in shapes if isinstance(shape, ModelShape)]
    small = _small_enough(stackable, batch, study.settings.backend.device)
    stored = _stored(study)
    unknown = [shape for shape in small if keys[shape] not in stored["speeds"]]
    if unknown or "matmul_flops" not in stored:
        stored |= _measure_matmul(study) if "matmul_flops" not in stored else {}
        stored["speeds"] |= {keys[shape]: _measure(study, shape) for shape in unknown}
        write_json(study.calibration_file, stored)
    found: dict[Shape, dict[int, float]] = {
        shape: {int(count): speed for count, speed in stored["speeds"][keys[shape]].items()}
        for shape in small
    }
    found |= {shape: _scaled(shape, found, stored["matmul_flops"]) for shape in shapes if shape not in found}
    count = workers or study.settings.backend.workers or default_workers(study.settings.backend.device)
    return Calibration(stored["matmul_flops"], found, count)


def _key(shape: Shape, batch_tokens: int, arithmetic: Arithmetic) -> str:
    """Under which a speed is stored."""
    changes = [] if arithmetic == EXACT else [vars(arithmetic)]
    return content_hash(vars(shape), batch_tokens, *changes)


def _stored(study: Study) -> dict[str, Any]:
    """What was measured before on this machine."""
    from proxy_runs.machine import machine_key

    key = machine_key(study.settings.backend.device)
    stored = read_json(study.calibration_file, StoredCalibration) if study.calibration_file.is_file() else {}
    return stored if stored.get("machine") == key else {"machine": key, "speeds": {}}


def _measure_matmul(study: Study) -> dict[str, float]:
    from proxy_runs.sweep.calibration import matmul_flops

    return {"matmul_flops": matmul_flops(_backend(study))}


def _measure(study: Study, shape: ModelShape) -> dict[str, float]:
    """Tokens per second by number of slots; on a CPU only the proxy, which runs most, is tried with several."""
    from proxy_runs.sweep.calibration import candidate_slots, tokens_per_second

    backend, batch = _backend(study), study.settings.batch_tokens
    is_proxy = shape == study.planner().shape(study.settings.proxy)
    has_several = backend.is_stackwise or (is_proxy and shape.total_params <= LARGE_PARAMS)
    slots = candidate_slots(batch, backend) if has_several else [1]
    speeds = tokens_per_second(shape, batch, backend, slots)
    return {str(count): speed for count, speed in speeds.items()}


def _small_enough(shapes: list[ModelShape], batch_tokens: int, device: str) -> list[ModelShape]:
    """Shapes whose step takes a second or two at most, or the smallest one."""
    from proxy_runs.machine import visible_gpus

    limit = MAX_STEP_FLOPS["gpu" if visible_gpus(device) else "cpu"]
    ordered = sorted(shapes, key=lambda shape: shape.train_flops_per_token)
    return [
        shape
        for shape in ordered
        if batch_tokens * shape.train_flops_per_token <= limit or shape is ordered[0]
    ]


def _scaled(shape: Shape, found: dict[Shape, dict[int, float]], matmul_flops: float) -> dict[int, float]:
    """Speed of a shape that cannot be tried, from the FLOPs per second of the largest one that was, or of a matmul."""
    if not found:
        return {1: UNMEASURED_SHARE * matmul_flops / shape.train_flops_per_token}
    largest = max(found, key=lambda each: each.train_flops_per_token)
    ratio = largest.train_flops_per_token / shape.train_flops_per_token
    return {1: max(found[largest].values()) * ratio}


def _backend(study: Study) -> Backend:
    from proxy_runs.engine import Backend

    return Backend(device=study.settings.backend.device, **vars(study.arithmetic()))
