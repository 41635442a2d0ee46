"""Ranks, their devices and their mesh."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from decaylaws.errors import InvalidValueError


@dataclass(frozen=True)
class World:
    """This process among its peers.

    Attributes:
        rank: its number.
        size: number of ranks.
        device: where it computes.
        mesh: one axis ``shard``, or ``replicate`` x ``shard`` (HSDP).
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Sums of ``values`` over all ranks, in float64."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]


def open_world(device: str, replicas: int) -> World:
    """Join the process group that torchrun describes; gloo on CPUs, nccl (and gloo for files) on GPUs.

    Raises:
        InvalidValueError: ``replicas`` does not divide the number of ranks.
    """
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if use_cuda else None
    if own is not None:
        torch.cuda.set_device(own)
    store, rank, size = next(iter(dist.rendezvous("env://")))
    # torchrun keeps one store over its restarts: without a prefix of their own, restarted ranks can read the
    # addresses of dead ones and wait for them for ever
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if use_cuda else "gloo",
        store=dist.PrefixStore(f"attempt-{attempt}", store),
        rank=rank,
        world_size=size,
        device_id=own,  # connects the GPUs now, and barriers know which one is meant
    )
    if size % replicas:
        raise InvalidValueError("launch.replicas", replicas, f"must divide the {size} ranks")
    return _world(rank, size, replicas, use_cuda=use_cuda)


@contextmanager
def alone(device: str) -> Iterator[World]:
    """The world of a single process, which need not be started by torchrun; closed with the block."""
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    backend = "cpu:gloo,cuda:nccl" if use_cuda else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield _world(0, 1, 1, use_cuda=use_cuda)
    finally:
        dist.destroy_process_group()


def _world(rank: int, size: int, replicas: int, *, use_cuda: bool) -> World:
    kind = "cuda" if use_cuda else "cpu"
    if replicas == 1:
        mesh = init_device_mesh(kind, (size,), mesh_dim_names=("shard",))
    else:
        mesh = init_device_mesh(kind, (replicas, size // replicas), mesh_dim_names=("replicate", "shard"))
    current = torch.device("cuda", torch.cuda.current_device()) if use_cuda else torch.device("cpu")
    return World(rank, size, current, mesh)
