"""Where the compiler keeps its code, and what to do with code that was never finished.

A compiler that is killed while it links leaves an empty library behind. Inductor takes it for a finished one, and
every later process that needs it fails until somebody deletes the file.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
LINKING_SECONDS = 60.0
"""An empty library that is younger may be one that another process is just linking."""
_SIGNS = ("file too short", "invalid ELF header")


def cache_folder() -> Path:
    """The folder of compiled code: the user's choice, or one on this machine that only this package uses."""
    own = Path(tempfile.gettempdir()) / f"decaylaws-compiled-{os.getuid()}"
    return Path(os.environ.get(CACHE_VARIABLE) or own)


def use_own_cache() -> None:
    """Let this process keep its compiled code where workers look for it."""
    os.environ[CACHE_VARIABLE] = str(cache_folder())


def clear_unfinished(*, older_than_seconds: float = LINKING_SECONDS) -> int:
    """Delete empty libraries, so that they are built again; returns how many there were."""
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
