"""Python processes that this one starts: what must be in their environment whatever they run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

# 'python -m' and 'python -c' put the current folder before the standard library: a queue.py that lies where a sweep
# is started would be imported by every worker
SAFE_PATH = {"PYTHONSAFEPATH": "1"}


@contextmanager
def safe_path() -> Iterator[None]:
    """Processes that start in this block, by whatever library, do not look for modules in the current folder."""
    before = {name: os.environ.get(name) for name in SAFE_PATH}
    os.environ.update(SAFE_PATH)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
