"""Tensors in safetensors files, read when they are needed and only as far as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor


class StoredTensor:
    """A tensor in a file; indexing reads the part that is asked for.

    Attributes:
        shape: of the whole tensor.
    """

    def __init__(self, part: Any) -> None:
        self._slice = part
        self.shape = torch.Size(part.get_shape())

    def __getitem__(self, part: Any) -> Tensor:
        tensor: Tensor = self._slice[part]
        return tensor


class ReadOnDemand(Mapping[str, Tensor]):
    """Stored tensors by name, each of which is read when it is looked up and not kept."""

    def __init__(self, stored: Mapping[str, StoredTensor]) -> None:
        self._stored = stored

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[name][...]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def under(self, names: Mapping[str, str]) -> ReadOnDemand:
        """Some of them under other names.

        Args:
            names: new names and those that they stand for.
        """
        return ReadOnDemand({name: self._stored[known] for name, known in names.items()})


def stored_tensors(file: Path) -> Mapping[str, StoredTensor]:
    """The tensors of a safetensors file by name, none of them read.

    Args:
        file: the file.

    Raises:
        OSError, SafetensorError: it cannot be read.
    """
    return tensors_of(safe_open(file, framework="pt"))


def tensors_of(opened: Any) -> dict[str, StoredTensor]:
    """The tensors of an open safetensors file by name, none of them read."""
    return {name: StoredTensor(opened.get_slice(name)) for name in sorted(opened.keys())}
