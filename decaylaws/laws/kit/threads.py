"""One BLAS thread for small problems.

The laws' matrices have tens to thousands of rows. Several BLAS threads bring nothing there, and on a machine that
others use they wait for each other: fits were up to forty times slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from threadpoolctl import ThreadpoolController


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Run the body, or as a decorator the function, with one BLAS thread; the old number comes back after it."""
    with _controller().limit(limits=1, user_api="blas"):
        yield


@lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    # finding the loaded BLAS libraries takes milliseconds, limiting them microseconds
    import scipy.linalg  # noqa: F401  (brings a BLAS of its own, which must be there to be found)

    return ThreadpoolController()
