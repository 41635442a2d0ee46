"""Pickles read without running them: every name in them becomes an inert stand-in, or is refused.

Checkpoint formats of others keep small facts in pickles (DCP's ``.metadata``, Megatron's ``common.pt``). A
pickle is a program that calls what it names. Here a name is never looked up: names of an explicit list become
records of their arguments, every other name ends the reading. So nothing is imported, and nothing is called but
what stands in this module.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from decaylaws.errors import DataError

MAX_BYTES = 512 * 1024 * 1024
MAX_TORCH_BYTES = 64 * 1024 * 1024
"""Of the pickle in a file of torch.save: structure and settings, since tensors lie beside it."""
MAX_CONTAINERS = 20_000_000
MAX_PATH = 65_536
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class Record:
    """Stands for an object of a class that is not loaded: its arguments and its state."""

    # defaults of the class: most objects in a pickle are made without __init__
    arguments: tuple[object, ...] = ()
    state: object = None

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        self.state = state

    # a container of another class: what it holds is passed over
    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, value: object) -> None:
        """As of a list."""

    def extend(self, values: object) -> None:
        """As of a list."""

    def add(self, value: object) -> None:
        """As of a set."""

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
    return _load(io.BytesIO(data), what, allowed)


def _load(stream: io.BytesIO, what: str, allowed: Allowed) -> Any:
    try:
        return _Unpickler(stream, what, allowed).load()
    except DataError:
        raise
    except Exception as error:
        # a damaged pickle can fail in any instruction, with any exception
        raise DataError(f"{what} is damaged: {type(error).__name__}: {error}") from error


def load_torch_file(path: Path, allowed: Allowed) -> Any:
    """What a file of ``torch.save`` holds; tensors are records, and their numbers are not read.

    Raises:
        DataError: it is no such file, names what is not allowed, or is damaged.
    """
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                return _load_legacy(file.read(MAX_TORCH_BYTES), str(path), allowed)
        with path.open("rb") as file:
            return load_inert(torch_pickle(file, str(path)), str(path), allowed)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error


def torch_pickle(file: IO[bytes], what: str) -> bytes:
    """The pickle in a zip file of ``torch.save``.

    Raises:
        DataError: it is no such file. ``torch.save`` compresses nothing: small files that unpack to large ones are none
            of its own.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            names = [member.filename for member in members if member.filename.endswith("/data.pkl")]
            if len(names) != 1:
                raise DataError(f"{what} is not a file of torch.save: it holds {len(names)} data.pkl.")
            size = file.seek(0, os.SEEK_END)
            if any(member.compress_type != zipfile.ZIP_STORED for member in members) or size < sum(
                member.file_size for member in members
            ):
                raise DataError(f"{what} is not a file of torch.save: it unpacks to more bytes than it has.")
            if archive.getinfo(names[0]).file_size > MAX_TORCH_BYTES:
                raise DataError(f"{what} holds more than {MAX_TORCH_BYTES:,} bytes beside its tensors.")
            return archive.read(names[0])
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{what} is damaged or not a file of torch.save: {error}") from error


def _load_legacy(data: bytes, what: str, allowed: Allowed) -> Any:
    """Before torch 1.6 a file was a series of pickles: a magic number, a version, the machine, the content."""
    stream = io.BytesIO(data)
    magic = _load(stream, what, allowed)
    if magic != _LEGACY_MAGIC:
        raise DataError(f"{what} is not a file of torch.save.")
    _version, _machine, content = (_load(stream, what, allowed) for _ in range(3))
    return content


# pickle's own reader in Python, not the one in C: that one fills memory for a forged memo index
class _Unpickler(pickle._Unpickler):
    dispatch = pickle._Unpickler.dispatch.copy()

    def __init__(self, stream: io.BytesIO, what: str, allowed: Allowed) -> None:
        super().__init__(stream)
        self._what = what
        self._allowed = allowed
        self._containers = 0

    def find_class(self, module: str, name: str) -> Any:
        if not self._allowed(module, name):
            raise DataError(
                f"{self._what} names {module}.{name}, which a checkpoint of this format does not need, and cannot be "
                "read without running code in it. Save the checkpoint again with the trainer that made it, or "
                "convert it to safetensors."
            )
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        # a class of its own for every use: a pickle may set attributes of what it names
        return type(name, (Record,), {"__module__": __name__})

    def persistent_load(self, pid: object) -> Record:
        return Record(pid)


def _counted(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """A byte of a pickle can make a container of a hundred."""

    def load_container(unpickler: Any) -> None:
        unpickler._containers += 1
        if unpickler._containers > MAX_CONTAINERS:
            raise DataError(
                f"{unpickler._what} is damaged: it holds more than {MAX_CONTAINERS:,} containers."
            )
        load(unpickler)

    return load_container


def _with_plain_keys(load: Callable[[Any], None], keys: Callable[[list[Any]], Iterable[Any]]) -> Any:
    """A tuple of two references to a tuple of two references and so on takes for ever to hash: no key is one."""

    def load_items(unpickler: Any) -> None:
        for key in keys(unpickler.stack):
            _require_plain(key)
        load(unpickler)

    return load_items


def _require_plain(key: object) -> None:
    parts = key if isinstance(key, tuple) else (key,)
    if any(isinstance(part, tuple | frozenset) for part in parts):
        raise ValueError("a key is a nested tuple")


for _code in (pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.EMPTY_SET, pickle.MARK):
    _Unpickler.dispatch[_code[0]] = _counted(_Unpickler.dispatch[_code[0]])
for _code, _keys in (
    (pickle.SETITEM, lambda stack: stack[-2:-1]),
    (pickle.SETITEMS, lambda stack: stack[::2]),
    (pickle.DICT, lambda stack: stack[::2]),
    (pickle.ADDITEMS, lambda stack: stack),
    (pickle.FROZENSET, lambda stack: stack),
):
    _Unpickler.dispatch[_code[0]] = _with_plain_keys(_Unpickler.dispatch[_code[0]], _keys)


def _sequence(*arguments: Any) -> tuple[Any, ...]:
    return tuple(arguments[0]) if arguments else ()


def _mapping(*arguments: Any) -> dict[Any, Any]:
    first = arguments[0] if arguments else ()
    pairs = list(first.items()) if isinstance(first, dict) else list(first)
    for key, _ in pairs:
        _require_plain(key)
    return dict(pairs)


def _path(*arguments: Any) -> str:
    parts = [part for part in arguments if isinstance(part, str)]
    if sum(len(part) for part in parts) > MAX_PATH:
        raise ValueError(f"a path has more than {MAX_PATH:,} characters")
    return "/".join(parts)


_PLAIN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch", "Size"): _sequence,
    ("collections", "OrderedDict"): _mapping,
    ("pathlib", "PosixPath"): _path,
    ("pathlib", "PurePosixPath"): _path,
}
