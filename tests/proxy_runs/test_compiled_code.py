"""Code is compiled once, by one process, however many start together and however often they are killed at it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy_runs import compiled_code
from proxy_runs.compiled_code import CACHE_VARIABLE, code_key, compiled_once, forget_compiled_code

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    return tmp_path


def compile_code(log: Path, *, seconds: float = 0.0, then: Callable[[], object] = lambda: None) -> None:
    """What Inductor does: take the library out of the folder, or write it in two halves."""
    library = Path(os.environ[CACHE_VARIABLE]) / "main.so"
    if library.exists():
        assert library.read_text() == "whole"
        return
    with log.open("a") as file:
        file.write("compiled\n")
    library.write_text("")
    time.sleep(seconds)
    then()
    library.write_text("whole")


def in_process(target: Callable[[], None]) -> multiprocessing.Process:
    process: multiprocessing.Process = FORK.Process(target=target)  # type: ignore[assignment]
    process.start()
    return process


def test_four_that_start_together_compile_once(folder: Path) -> None:
    log = folder / "log"

    def work() -> None:
        with compiled_once("shape"):
            compile_code(log, seconds=0.5)

    processes = [in_process(work) for _ in range(4)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert log.read_text() == "compiled\n"
    with compiled_once("another"):
        compile_code(log)
    assert log.read_text() == "compiled\n" * 2
    assert os.environ[CACHE_VARIABLE] == str(folder)


def test_killed_while_it_compiles_the_next_one_begins_anew(folder: Path) -> None:
    log = folder / "log"

    def die() -> None:
        with compiled_once("shape"):
            compile_code(log, then=lambda: os.kill(os.getpid(), signal.SIGKILL))

    for _ in range(10):
        process = in_process(die)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    for _ in range(2):
        with compiled_once("shape"):
            compile_code(log)
    assert log.read_text() == "compiled\n" * 11


def test_code_that_failed_or_was_forgotten_is_compiled_anew(folder: Path) -> None:
    log = folder / "log"

    def fail() -> None:
        raise RuntimeError("g++: internal compiler error")

    with pytest.raises(RuntimeError), compiled_once("shape"):
        compile_code(log, then=fail)
    with compiled_once("shape"):
        compile_code(log)
    assert forget_compiled_code() == 1
    with compiled_once("shape"):
        compile_code(log)
    assert log.read_text() == "compiled\n" * 3


def test_a_file_system_without_locks_still_compiles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("No locks available")

    monkeypatch.setattr(compiled_code.fcntl, "flock", refuse)
    for _ in range(2):
        with compiled_once("shape"):
            compile_code(folder / "log")
    assert (folder / "log").read_text() == "compiled\n"


def test_other_shapes_and_compilers_have_folders_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {code_key((64, 4), "float32"), code_key((64, 4), "bfloat16"), code_key((64, 8), "float32")}
    assert len(keys) == 3
    assert code_key((64, 4), "float32") in keys
    monkeypatch.setenv("CXX", "another-compiler")
    assert code_key((64, 4), "float32") not in keys


def test_the_folder_is_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compiled_code.cache_folder() == tmp_path / ".cache" / "decaylaws" / "compiled"
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    assert str(os.getuid()) in compiled_code.cache_folder().name
