"""Optuna's storage as a queue needs it: patient when it does not answer, exact when two ask at once."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    IntegrityError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
)

from decaylaws.errors import DecaylawsError, InvalidValueError, StudyError
from decaylaws.progress import Progress, silent

HEARTBEAT_SECONDS = 5
GRACE_SECONDS = 90  # longer than a storage that is away for half a minute, with the pause before the next try
PATIENCE_SECONDS = 300.0
LONGEST_PAUSE_SECONDS = 5.0
CREATIONS, CREATION_SECONDS = 5, 0.5  # tries to make the tables, and how long another may take for it
CONNECT_SECONDS = 20.0
"""A server that a verb has not reached yet may be starting; longer than this it is another address that is wrong."""
# what waiting does not mend, in the words of the databases, and its remedy
HOPELESS = {
    "readonly database": "Give write access to the study, or copy it to a place that can be written.",
    "unable to open database file": "The folder of the file must exist and be writable.",
    "is not a database": "It is damaged, or another file; put it back from a copy, or delete it and run again.",
    "Could not decode": "The database is damaged: put it back from a copy, or delete it and run again.",
    "no such column": "It is damaged, or of another program; put it back from a copy, or delete it and run again.",
    "malformed": "The file is damaged: put it back from a copy, or delete it and run again.",
    "is full": "Free space on the disk, then repeat.",
    "disk I/O error": "The disk cannot be read or written; free space or move the study, then repeat.",
    "password authentication failed": "Correct the user and the password in the storage URL.",
    "no password supplied": "Give the password in the storage URL, or in a .pgpass file.",
    "does not exist": "Create the database, or correct its name in the storage URL.",
}

T = TypeVar("T")


def open_storage(url: str, on_stale: Callable[[optuna.Study, FrozenTrial], None] | None = None) -> RDBStorage:
    """Connect to the storage; SQLite waits for its lock instead of raising at once.

    Args:
        url: ``sqlite:///...``, ``postgresql://...`` or another that Optuna knows.
        on_stale: told of every trial that was closed because its worker's heart had stopped; without it no
            heartbeats are kept.

    Raises:
        InvalidValueError: the URL cannot be read, names an unknown or missing driver, or a database in memory.
        StudyError: a table of the database is of an Optuna that this one does not read.
    """
    _check_url(url)
    connect_args: dict[str, Any] = {"timeout": 120} if url.startswith("sqlite") else {}
    storage = _beside_others(
        lambda: RDBStorage(
            with_driver(url),
            engine_kwargs={"connect_args": connect_args, "pool_pre_ping": True},
            heartbeat_interval=HEARTBEAT_SECONDS if on_stale else None,
            grace_period=GRACE_SECONDS if on_stale else None,
            heartbeat_stale_trial_callback=on_stale,
        )
    )
    if url.startswith("sqlite"):
        sqlalchemy.event.listen(storage.engine, "begin", _lock_before_reading)
    return storage


def _check_url(url: str) -> None:
    """Refuse what no waiting can open; the message shows no password."""
    try:
        parsed = sqlalchemy.make_url(with_driver(url))
        shown = parsed.render_as_string(hide_password=True)
        dialect = parsed.get_dialect()
        dialect.import_dbapi()
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        shown = url.partition("://")[0] + "://..."
        raise InvalidValueError(
            "storage", shown, "is not a URL of a database", "Write postgresql://USER@HOST/DATABASE."
        ) from error
    except ImportError as error:
        driver = "pip install 'decaylaws[postgres]'" if "postgres" in parsed.drivername else "Install it"
        raise InvalidValueError(
            "storage", shown, f"needs a driver that is not installed ({error.name})", f"{driver}."
        ) from error
    if dialect.name == "sqlite" and (parsed.database in (None, "", ":memory:") or "mode=memory" in url):
        raise InvalidValueError(
            "storage",
            shown,
            "must not be in memory, which other processes cannot see",
            "Name a file, or leave storage out.",
        )


def _beside_others(connect: Callable[[], RDBStorage]) -> RDBStorage:
    """Connect while others may do so for the first time as well: all make the tables, and all but one fail at it."""
    for _ in range(CREATIONS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            try:
                return connect()
            except (IntegrityError, ProgrammingError, OperationalError) as error:
                if "exists" not in str(error) and not isinstance(error, IntegrityError):
                    raise
            except RuntimeError as error:  # Optuna's word for tables of another version
                raise StudyError(f"The storage belongs to another version of Optuna: {error}") from error
        time.sleep(CREATION_SECONDS)
    return connect()


def with_driver(url: str) -> str:
    """The URL with psycopg 3, the driver of the extra ``postgres``, where it names none."""
    for scheme in ("postgresql://", "postgres://"):
        if url.startswith(scheme):
            return "postgresql+psycopg://" + url.removeprefix(scheme)
    return url


_change_of_state = threading.local()


def _lock_before_reading(connection: sqlalchemy.Connection) -> None:
    """Let a change of state lock SQLite before it reads the state.

    Optuna reads and then writes, relying on SELECT ... FOR UPDATE, which SQLite ignores: eight workers were
    granted 144 claims for 120 runs.
    """
    if getattr(_change_of_state, "is_on", False):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def change_state(
    storage: RDBStorage, trial_id: int, state: TrialState, values: Sequence[float] | None = None
) -> bool:
    """Optuna's change of state as one step that no other worker can come between.

    Returns:
        False where the trial was to be claimed and somebody else had it.
    """
    _change_of_state.is_on = True
    try:
        return storage.set_trial_state_values(trial_id, state=state, values=values)
    finally:
        _change_of_state.is_on = False


class Patience:
    """Calls the storage; while it does not answer, waits and says so.

    A call is made again after an error, so it must bear to have been heard the first time.

    Args:
        progress: told why and that it waits.
        seconds: how long; ``PATIENCE_SECONDS`` where it is None.
    """

    def __init__(self, progress: Progress = silent, seconds: float | None = None) -> None:
        self._progress = progress
        self._seconds = PATIENCE_SECONDS if seconds is None else seconds

    def __call__(self, call: Callable[[], T]) -> T:
        """The result of ``call``.

        Raises:
            StudyError: the storage did not answer in time, or said what waiting does not mend.
        """
        deadline = time.monotonic() + self._seconds
        pause = 0.5
        while True:
            try:
                return call()
            except (StorageInternalError, DatabaseError, InterfaceError) as error:
                # Optuna wraps what the database said, and then the database's own words stand one deeper
                cause = (
                    error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
                )
                reason = " ".join(str(getattr(cause, "orig", cause)).split())[:200]
                _raise_if_hopeless(reason, error)
                if not isinstance(cause, OperationalError | InterfaceError):
                    raise StudyError(f"The storage cannot be read: {reason}.") from error
                self._progress("storage", 0, 1, f"no answer, trying again: {reason}")
                if time.monotonic() > deadline:
                    raise StudyError(
                        f"The storage did not answer for {self._seconds:.0f} seconds ({reason}). Nothing that was "
                        "recorded is lost. Check the storage URL, and run the verb again when the server is back."
                    ) from error
            except DecaylawsError:
                raise
            # a value that Optuna itself wrote and cannot read any more
            except (ValueError, LookupError, TypeError) as error:
                reason = " ".join(str(error).split())[:200]
                raise StudyError(
                    f"The storage holds a damaged value ({reason}). "
                    "Put it back from a copy, or delete it and run again."
                ) from error
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _raise_if_hopeless(reason: str, error: Exception) -> None:
    for words, remedy in HOPELESS.items():
        if words in reason:
            raise StudyError(f"The storage refused access: {reason}. {remedy}") from error
