"""Pickles read without running them: every name in them becomes an inert stand-in, or is refused.

Checkpoint formats of others keep small facts in pickles (DCP's ``.metadata``, Megatron's ``common.pt``). A
pickle is a program that calls what it names. Here a name is never looked up: names of an explicit list become
records of their arguments, every other name ends the reading. So nothing is imported, and nothing is called but
what stands in this module.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from decaylaws.errors import DataError

MAX_BYTES = 512 * 1024 * 1024


class Record:
    """Stands for an object of a class that is not loaded: its arguments and its state."""

    # defaults of the class: most objects in a pickle are made without __init__
    arguments: tuple[object, ...] = ()
    state: object = None

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        self.state = state

    @property
    def fields(self) -> dict[str, Any]:
        """State by attribute name; empty where it has another form."""
        return self.state if isinstance(self.state, dict) else {}


Allowed = Callable[[str, str], bool]


def load_inert(data: bytes, what: str, allowed: Allowed) -> Any:
    """What a pickle holds, with records in the place of objects.

    Args:
        data: the pickle.
        what: its name, for messages.
        allowed: whether a (module, name) may stand in the pickle at all.

    Raises:
        DataError: it names something else, or it is damaged.
    """
    try:
        return _Unpickler(data, what, allowed).load()
    except DataError:
        raise
    except Exception as error:
        # a damaged pickle can fail in any instruction, with any exception
        raise DataError(f"{what} is damaged: {type(error).__name__}: {error}") from error


def load_torch_file(path: Path, allowed: Allowed) -> Any:
    """What a file of ``torch.save`` holds, without its tensors.

    Raises:
        DataError: it is no such file, names what is not allowed, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(names) != 1:
                raise DataError(f"{path} is no file of torch.save: it holds {len(names)} data.pkl.")
            if archive.getinfo(names[0]).file_size > MAX_BYTES:
                raise DataError(f"{path} holds more than {MAX_BYTES:,} bytes beside its tensors.")
            data = archive.read(names[0])
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise DataError(f"{path} is no file of torch.save, or damaged: {error}") from error
    return load_inert(data, str(path), allowed)


# pickle's own reader in Python, not the one in C: that one fills memory for a forged memo index
class _Unpickler(pickle._Unpickler):
    def __init__(self, data: bytes, what: str, allowed: Allowed) -> None:
        super().__init__(io.BytesIO(data))
        self._what = what
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        if not self._allowed(module, name):
            raise DataError(
                f"{self._what} names {module}.{name}, which a checkpoint of this format does not need. It is not "
                "read, so that nothing in it can run. Save the checkpoint again with the trainer that made it, or "
                "convert it to safetensors."
            )
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        # a class of its own for every use: a pickle may set attributes of what it names
        return type(name, (Record,), {"__module__": __name__})

    def persistent_load(self, pid: object) -> Record:
        return Record(pid)


def _sequence(*arguments: Any) -> tuple[Any, ...]:
    return tuple(arguments[0]) if arguments else ()


def _mapping(*arguments: Any) -> dict[Any, Any]:
    return dict(*arguments)


def _path(*arguments: Any) -> str:
    return "/".join(part for part in arguments if isinstance(part, str))


_PLAIN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch", "Size"): _sequence,
    ("collections", "OrderedDict"): _mapping,
    ("pathlib", "PosixPath"): _path,
    ("pathlib", "PurePosixPath"): _path,
}
