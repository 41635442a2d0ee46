"""Work spread over processes that end with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from typing import Any, TypeVar

from decaylaws.io.children import safe_path

Work = TypeVar("Work")
Result = TypeVar("Result")


def in_processes(
    function: Callable[[Work], Result],
    work: Sequence[Work],
    *,
    workers: int,
    start: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
) -> Iterator[tuple[Work, Result]]:
    """Each piece of work with its result, as they are done.

    Args:
        function: of one piece of work; a name of a module, as are ``start`` and the types that travel.
        work: the pieces.
        workers: processes.
        start: called in each process before its first piece.
        arguments: of ``start``.
    """
    waiting = iter(work)
    running: dict[Future[Result], Work] = {}
    with (
        safe_path(),
        ProcessPoolExecutor(
            workers,
            # spawned: the caller may hold threads, which a fork would leave behind half-way
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(start, arguments),
        ) as pool,
    ):
        try:
            while True:
                for piece in islice(waiting, 2 * workers - len(running)):
                    running[pool.submit(function, piece)] = piece
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start(start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a traceback
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if start is not None:
        start(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
