"""What a plan costs on this machine: a short measurement, kept in the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decaylaws.designs.design import Design
from decaylaws.designs.planner import Planner
from decaylaws.runs.config import EXACT, Arithmetic, ModelShape, RunConfig, Shape
from decaylaws.runs.start import CheckpointShape
from decaylaws.settings.backend import BackendSettings
from decaylaws.settings.study import StudySettings
from decaylaws.study.files import read_json, write_json
from decaylaws.study.hardware import Hardware
from decaylaws.study.question import content_hash
from decaylaws.study.stored import StoredCalibration

if TYPE_CHECKING:
    from proxy_runs.engine import Backend
    from proxy_runs.fsdp.layout import Layout

LARGE_PARAMS = 30_000_000
"""Models of more are stacked on no CPU: each fills a core alone, and several take the memory of several."""
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


def calibrate(
    planner: Planner, path: Path, folders: Mapping[str, Path], *, workers: int | None = None
) -> Calibration:
    """Speed of this machine for the shapes of a study; measured once, then read from ``calibration.json``.

    Loads torch only to measure.

    Args:
        planner: of the study.
        path: of ``calibration.json``, which need not exist.
        folders: of the checkpoints that study.yaml names, by their fingerprints.
        workers: processes; None takes the study's setting.
    """
    settings, arithmetic = planner.settings, planner.arithmetic
    batch, backend = settings.batch_tokens, settings.backend
    starts = {(config := planner.start(name).config).shape: config for name in settings.starts}
    count = workers or backend.workers or _default_workers(backend, list(starts.values()))
    sharded = _sharded(backend, arithmetic, list(starts.values()), folders, count)
    given = [{"slots": backend.slots}] if backend.slots else []
    # what else the speed of the FSDP trainer depends on
    layout = {"layout": asdict(layout_of(backend)), "optimizer": settings.optimizer.config().to_dict()}
    changes = [] if arithmetic == EXACT else [vars(arithmetic)]
    keys = {  # under which speeds are stored
        shape: content_hash(vars(shape), batch, *changes, *([layout] if shape in sharded else given))
        for shape in starts
    }
    stackable = [shape for shape in starts if isinstance(shape, ModelShape) and shape not in sharded]
    measurable: list[Shape] = [*_small_enough(stackable, batch, backend.device), *sharded]
    stored = _stored(path, backend.device)
    unknown = [shape for shape in measurable if keys[shape] not in stored["speeds"]]
    if unknown or "matmul_flops" not in stored:
        if "matmul_flops" not in stored:
            from proxy_runs.sweep.calibration import matmul_flops

            stored["matmul_flops"] = matmul_flops(_backend(backend, arithmetic))
        for shape in unknown:
            measured = (
                _measure_sharded(settings, arithmetic, starts[shape], sharded[shape])
                if shape in sharded
                else _measure(settings, arithmetic, starts[shape].llama, planner.shape(settings.proxy))
            )
            stored["speeds"] |= {keys[shape]: measured}
        write_json(path, stored)
    found: dict[Shape, dict[int, float]] = {
        shape: {int(slots): speed for slots, speed in stored["speeds"][keys[shape]].items()}
        for shape in measurable
    }
    found |= {shape: _scaled(shape, found, stored["matmul_flops"]) for shape in starts if shape not in found}
    return Calibration(stored["matmul_flops"], found, count)


def layout_of(backend: BackendSettings) -> Layout:
    """How the FSDP trainer lays the runs of a study out."""
    from proxy_runs.fsdp.layout import Layout

    return Layout(
        processes=backend.processes,
        device=backend.device,
        micro_batch_tokens=backend.micro_batch_tokens,
        activation_checkpointing=backend.activation_checkpointing,
    )


def _default_workers(backend: BackendSettings, starts: Sequence[RunConfig]) -> int:
    """A worker for every core or GPU, or for as many as a run has processes; fewer where checkpoints would not fit."""
    from proxy_runs.machine import default_workers, visible_gpus
    from proxy_runs.memory import host_bytes, sharded_bytes
    from proxy_runs.sweep.engines import MEMORY_SHARE

    count = default_workers(backend.device, backend.processes)
    held = [config.shape for config in starts if config.start is not None]
    if not held or visible_gpus(backend.device):
        return count
    largest = max(
        sharded_bytes(
            shape,
            micro_batch_tokens=backend.micro_batch_tokens,
            processes=backend.processes,
            recompute=backend.activation_checkpointing,
        )
        for shape in held
        if isinstance(shape, ModelShape | CheckpointShape)
    )
    return max(1, min(count // backend.processes, int(MEMORY_SHARE * host_bytes() / largest)))


def _sharded(
    backend: BackendSettings,
    arithmetic: Arithmetic,
    starts: Sequence[RunConfig],
    folders: Mapping[str, Path],
    workers: int,
) -> dict[Shape, Path]:
    """The shapes that the FSDP trainer takes, with the folder of each, where it is still there."""
    from proxy_runs.machine import visible_gpus, workers_per_device
    from proxy_runs.memory import device_bytes, host_bytes
    from proxy_runs.sweep.engines import FSDP, engine_of

    held = [config for config in starts if config.start is not None]
    if not held:
        return {}
    # only torch knows the memory of a GPU
    on_gpu = visible_gpus(backend.device)
    memory = device_bytes(_backend(backend, arithmetic).torch_device) if on_gpu else host_bytes()
    sharing = workers_per_device(workers, backend.device, backend.processes)
    found = {}
    for config in held:
        assert config.start is not None
        folder = folders[config.start.fingerprint]
        if engine_of(config, backend.engine, memory / sharing) == FSDP and folder.is_dir():
            found[config.shape] = folder
    return found


def _measure_sharded(
    settings: StudySettings, arithmetic: Arithmetic, config: RunConfig, folder: Path
) -> dict[str, float]:
    """Tokens per second of a run in the FSDP trainer, which takes one at a time."""
    from proxy_runs.fsdp.calibration import tokens_per_second

    layout, optimizer = layout_of(settings.backend), settings.optimizer.config()
    speed = tokens_per_second(folder, config.shape, settings.batch_tokens, layout, arithmetic, optimizer)
    return {"1": speed}


def _stored(path: Path, device: str) -> dict[str, Any]:
    """What was measured before on this machine."""
    from proxy_runs.machine import machine_key

    key = machine_key(device)
    stored = read_json(path, StoredCalibration) if path.is_file() else {}
    return stored if stored.get("machine") == key else {"machine": key, "speeds": {}}


def _measure(
    settings: StudySettings, arithmetic: Arithmetic, shape: ModelShape, proxy: Shape
) -> dict[str, float]:
    """Tokens per second by number of slots; on a CPU only the proxy, which runs most, is tried with several."""
    from proxy_runs.sweep.calibration import tokens_per_second

    backend, batch = _backend(settings.backend, arithmetic), settings.batch_tokens
    has_several = backend.is_stackwise or (shape == proxy and shape.total_params <= LARGE_PARAMS)
    slots = slots_to_try(settings, backend) if has_several else [1]
    speeds = tokens_per_second(shape, batch, backend, slots)
    return {str(count): speed for count, speed in speeds.items()}


def slots_to_try(settings: StudySettings, backend: Backend) -> list[int]:
    """Numbers of slots whose speed decides something: the one that study.yaml gives, or what could be the fastest."""
    from proxy_runs.sweep.calibration import candidate_slots

    given = settings.backend.slots
    if given:
        return [replace(backend, slots=given).slots_for(given)]
    return candidate_slots(settings.batch_tokens, backend)


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
        return {1: Hardware(matmul_flops / 1e12).tokens_per_second(shape)}
    largest = max(found, key=lambda each: each.train_flops_per_token)
    ratio = largest.train_flops_per_token / shape.train_flops_per_token
    return {1: max(found[largest].values()) * ratio}


def _backend(settings: BackendSettings, arithmetic: Arithmetic) -> Backend:
    from proxy_runs.engine import Backend

    return Backend(device=settings.device, **vars(arithmetic))
