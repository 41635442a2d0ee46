"""Checkpoints of a sharded run: DCP in the safetensors format, so nothing in them can be executed.

``checkpoints/step-00000100`` holds safetensors files of every rank and ``state.json``. The folder appears under
its name when every rank has written, so what is there can be resumed, on any number of ranks.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from transformers import PreTrainedConfig

from decaylaws.errors import DataError
from decaylaws.io.files import write_text
from decaylaws.recipe.files import read_mapping, to_json
from proxy_runs.fsdp.parallel import World
from proxy_runs.weights.checkpoint_files import STATE_FILE

FILE_BYTES = 128 * 1024 * 1024
"""Of the tensors in a file of a checkpoint, all ranks together, unless a single one is larger."""
_NAME = re.compile(r"^step-(\d{8})$")


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: where they live.
        world: the ranks.
        keep_last: how many to keep.
        in_background: write while training goes on; a checkpoint counts once the next call finds it written.
    """

    def __init__(self, directory: Path, world: World, *, keep_last: int, in_background: bool = False) -> None:
        self.directory = directory
        self._world = world
        self._keep_last = keep_last
        # a group of its own: the writing thread talks to its peers while training does
        self._background_group = dist.new_group(backend="gloo") if in_background else None
        self._stager = _stager(world) if in_background else None
        self._pending: tuple[Future[Any], int] | None = None

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        steps = self._steps()
        return self._path(steps[-1]) if steps else None

    def save(
        self, step: int, tensors: dict[str, Tensor], state: dict[str, Any], config: PreTrainedConfig
    ) -> None:
        """Save sharded ``tensors``, the JSON values of ``state`` and the model's config; every rank calls it.

        Args:
            step: number of the step.
            tensors: sharded tensors by name.
            state: JSON values beside them.
            config: the model's config.
        """
        self.finish()
        folder = self._unfinished(step)
        if self._world.is_first:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_text(folder / STATE_FILE, to_json(state))
            config.save_pretrained(folder)
        dist.barrier()
        writer = dcp.HuggingFaceStorageWriter(
            str(folder), fqn_to_index_mapping=_files(tensors), save_distributed=True
        )
        if self._background_group is None:
            dcp.save(tensors, storage_writer=writer)
            self._publish(step)
        else:
            group = self._background_group
            future = dcp.async_save(
                tensors, storage_writer=writer, process_group=group, async_stager=self._stager
            )
            self._pending = future, step  # type: ignore[assignment]

    def finish(self) -> None:
        """Wait for a checkpoint that is still being written; every rank calls it."""
        if self._pending is not None:
            future, step = self._pending
            future.result()
            self._pending = None
            self._publish(step)

    def close(self) -> None:
        """Wait as :meth:`finish` does, and give up the memory in which checkpoints wait to be written."""
        self.finish()
        if self._stager is not None:
            self._stager.close()
            self._stager = None

    def _publish(self, step: int) -> None:
        dist.barrier()
        if self._world.is_first:
            shutil.rmtree(self._path(step), ignore_errors=True)
            self._unfinished(step).rename(self._path(step))
            for old in self._steps()[: -self._keep_last]:
                shutil.rmtree(self._path(old))
        dist.barrier()

    def _steps(self) -> list[int]:
        names = [_NAME.match(path.name) for path in self.directory.glob("step-*")]
        return sorted(int(match.group(1)) for match in names if match)

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    def _unfinished(self, step: int) -> Path:
        return self.directory / f".step-{step:08d}.unfinished"


def _files(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Number of the file that each tensor goes into, from 1: a writer copies a whole file into memory."""
    files, number, size = {}, 1, 0
    for name, tensor in tensors.items():
        own = tensor.numel() * tensor.element_size()
        if size and size + own > FILE_BYTES:
            number, size = number + 1, 0
        files[name] = number
        size += own
    return files


def _stager(world: World) -> DefaultStager:
    """What copies tensors to the host before they are written, at every save into the same memory."""
    on_gpu = world.device.type == "cuda"
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=on_gpu,
            use_shared_memory=False,
            use_async_staging=False,  # training changes the tensors as soon as the call returns
            use_non_blocking_copy=on_gpu,
        )
    )


def read_state(folder: Path) -> dict[str, Any]:
    """The JSON values of a checkpoint.

    Raises:
        DataError: they cannot be read.
    """
    return read_mapping(folder / STATE_FILE)


def read_checkpoint(folder: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Fill ``tensors``, sharded or whole, from a checkpoint, whatever number of ranks wrote it; returns its state.

    Raises:
        DataError: the checkpoint is damaged or of another model.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process may read it, too
            dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(folder)))
        return read_state(folder)
    except (dcp.CheckpointException, SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"The checkpoint {folder} cannot be resumed ({error}). Delete that folder to resume from the "
            "one before it."
        ) from error
