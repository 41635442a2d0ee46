"""Settings of a worker process that must be in its environment before Python starts."""

from __future__ import annotations

from decaylaws.io.children import SAFE_PATH
from proxy_runs.compiled_code import CACHE_VARIABLE, cache_folder

_NEVER_TRIM_BYTES = 2**35


def environment() -> dict[str, str]:
    """Environment variables for a long-lived CPU worker.

    One thread: two processes with a thread each beat one process with two, and a busy neighbour costs a
    many-threaded process far more than its share. glibc keeps freed blocks instead of handing them back to
    the kernel: otherwise each operation page-faults its output in anew.
    """
    return {
        **SAFE_PATH,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(_NEVER_TRIM_BYTES),
        "TOKENIZERS_PARALLELISM": "false",
        CACHE_VARIABLE: str(cache_folder()),
    }
