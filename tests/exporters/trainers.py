"""Modules of the real trainers, imported as far as configurations and schedules need them."""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest

# What a trainer imports on its way and neither its configuration nor its schedule calls: images, kernels, clients
# of a cluster or a cloud. They are replaced while the trainer is imported, and only where they are not installed.
_CLOUDS = ("brotli", "snappy", "zstd", "oci", "azure", "paramiko")
UNUSED = {
    "composer": ("torchvision", "mcli"),
    "llmfoundry": ("torchvision", "mcli", "mlflow", "pkg_resources", "streaming", *_CLOUDS),
    "streaming": ("torchvision", *_CLOUDS),
    "levanter": ("iris", "fray", "zephyr"),
    "nanotron": ("flash_attn", "grouped_gemm"),
    "megatron.bridge": ("transformer_engine",),
}
INSTALL = "'make test-targets' installs it."
REMEDIES = {
    "megatron.training": "Of Megatron-LM a package registry has only megatron.core; put a checkout on PYTHONPATH.",
    "nanotron": "Its main branch is in no package registry; put src of a checkout on PYTHONPATH.",
}


class _StandIns:
    """Finder and loader of empty modules whose every name is a mock. It comes last: what is installed wins."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.made: list[str] = []

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        is_unused = any(name == each or name.startswith(f"{each}.") for each in self.names)
        return ModuleSpec(name, self, is_package=True) if is_unused else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__path__ = []
        module.__version__ = "2.7.0"  # nanotron compares that of flash_attn
        module.__getattr__ = _mock  # type: ignore[method-assign]
        self.made.append(spec.name)
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def _mock(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    if name == "VisionDataset":  # of torchvision; streaming derives classes from it
        return type(name, (), {})
    return MagicMock()


@contextlib.contextmanager
def _standing_in(names: Sequence[str]) -> Iterator[None]:
    finder = _StandIns(names)
    sys.meta_path.append(finder)  # type: ignore[arg-type]
    try:
        yield
    finally:
        sys.meta_path.remove(finder)  # type: ignore[arg-type]
        for name in finder.made:  # transformers would take them for the real ones
            sys.modules.pop(name, None)


def unused_by(name: str) -> Sequence[str]:
    """What the module ``name`` of a trainer imports and is replaced, see :data:`UNUSED`."""
    found = [names for prefix, names in UNUSED.items() if f"{name}.".startswith(f"{prefix}.")]
    return found[0] if found else ()


def import_trainer(name: str) -> Any:
    """The module ``name`` of a trainer, such as ``levanter.optim``; skips the test and says what is missing.

    A trainer that is installed and fails for another reason than a missing module fails the test.
    """
    try:
        # transformers looks for torchvision when it is first imported: it must not find a stand-in
        importlib.import_module("transformers")
        with _standing_in(unused_by(name)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the trainers warn of is theirs to mend
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        pytest.skip(
            f"{name} needs the module {error.name!r}, which is not installed. {REMEDIES.get(str(error.name), INSTALL)}"
        )
