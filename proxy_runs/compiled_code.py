"""Compile once: every shape has a folder of compiled code, which one process fills and all others read.

Inductor keeps what it compiles in a folder of the user's. Processes that start together all miss it and all compile,
and a compiler that is killed leaves half-written libraries that every later process loads and fails on. So each stack's
code has a folder of its own, a lock beside it, and a mark that it is complete. The kernel gives a lock back when its
process dies, and a folder without its mark is emptied before it is filled.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
LINKING_SECONDS = 60.0
"""An empty library that is younger may be one that another process is just linking."""
_SIGNS = (
    "file too short",
    "invalid ELF header",
    "ELF load command past end of file",
    "cannot read file data",
)


def cache_folder() -> Path:
    """The folder of all compiled code: the user's choice, or one in the user's cache, or in /tmp without a home."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    home = Path("~").expanduser()
    if not os.access(home, os.W_OK):
        return Path(tempfile.gettempdir()) / f"decaylaws-compiled-{os.getuid()}"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "decaylaws" / "compiled"


def code_key(*parts: object) -> str:
    """Name of the folder for what ``parts`` describe, on a machine like this one and with the present sources.

    Args:
        parts: all that makes the compiler write other code: shapes, number formats, the device.
    """
    machine = (platform.python_version(), version("torch"), os.environ.get("CXX"), *_capabilities())
    return hashlib.sha256(repr((*machine, _sources(), *parts)).encode()).hexdigest()[:16]


@functools.cache
def _capabilities() -> tuple[object, ...]:
    import torch

    return tuple(sorted(torch.cpu.get_capabilities().items()))


@functools.cache
def _sources() -> str:
    """Hash of the code that is compiled."""
    files = sorted((Path(__file__).parent / "engine").glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@contextlib.contextmanager
def compiled_once(key: str) -> Iterator[None]:
    """What the block compiles comes from the folder of ``key``; the first process fills it while the others wait.

    Args:
        key: from ``code_key``.
    """
    folder = cache_folder() / key
    folder.mkdir(parents=True, exist_ok=True)
    code, mark = folder / "code", folder / "complete"
    with open(folder / "lock", "w") as lock:
        if not (_locked(lock.fileno(), fcntl.LOCK_SH) and mark.exists()):
            has_lock = _locked(lock.fileno(), fcntl.LOCK_EX)
            if has_lock and mark.exists():  # somebody else filled it while this process waited
                _locked(lock.fileno(), fcntl.LOCK_SH)
            elif has_lock:
                shutil.rmtree(code, ignore_errors=True)
        code.mkdir(exist_ok=True)
        with _compiling_into(code):
            yield
        if any(code.iterdir()):
            mark.touch()


@contextlib.contextmanager
def _compiling_into(folder: Path) -> Iterator[None]:
    """Let Inductor use a folder. Its own context managers for this differ between the releases that we support."""
    from torch._inductor.utils import (
        clear_inductor_caches,
    )  # of this process: they hold paths of another folder

    before = os.environ.get(CACHE_VARIABLE)
    os.environ[CACHE_VARIABLE] = str(folder)
    clear_inductor_caches()
    try:
        yield
    finally:
        clear_inductor_caches()
        if before is None:
            del os.environ[CACHE_VARIABLE]
        else:
            os.environ[CACHE_VARIABLE] = before


def forget_compiled_code() -> int:
    """Let all code be compiled anew; returns how many complete folders there were."""
    forgotten = 0
    for mark in cache_folder().glob("*/complete"):
        with contextlib.suppress(FileNotFoundError):  # another worker was faster
            mark.unlink()
            forgotten += 1
    return forgotten


def clear_unfinished(*, older_than_seconds: float = LINKING_SECONDS) -> int:
    """Delete empty libraries wherever they lie, so that they are built again; returns how many there were."""
    cleared = 0
    for file in cache_folder().rglob("*.so"):
        try:
            status = file.stat()
            if status.st_size == 0 and time.time() - status.st_mtime >= older_than_seconds:
                file.unlink()
                cleared += 1
        except FileNotFoundError:  # another worker was faster
            continue
    return cleared


def is_unfinished_code(error: BaseException) -> bool:
    """Whether an error, or what caused it, tells of a library that was not linked to its end."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        if any(sign in str(cause) for sign in _SIGNS):
            return True
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return False


def _locked(file: int, kind: int) -> bool:
    """Whether the lock was had, which takes as long as others hold it; a file system may have no locks at all."""
    try:
        fcntl.flock(file, kind)
    except OSError:
        return False
    return True
