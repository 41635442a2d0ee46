"""Told to stop, a command says so in one sentence, while it imports and while it works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# what was started in the background hands on that it ignores signals, and the command line would ignore them too
HEARS_ALL = """
import signal
for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
"""
WAITS = """
import sys, time
from decaylaws import cli, entry
def verb():
    try:
        print("begun", flush=True)  # inside: the signal may come before the next line runs
        time.sleep(60)
    finally:
        print("workers saved", flush=True)
cli.app = verb
sys.exit(entry.main())
"""


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGTERM, "Stopped by SIGTERM"), (signal.SIGHUP, "Stopped by SIGHUP")]
)
def test_a_signal_ends_a_verb_as_ctrl_c_does(number: signal.Signals, words: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HEARS_ALL + WAITS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert out == "workers saved\n"
    assert (
        error
        == f"decaylaws: {words}. Nothing finished is lost. The same command does what is still missing.\n"
    )
    assert process.returncode == 128 + number


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
@pytest.mark.parametrize(
    "words", [["schedule", "library"], ["schedule", "show", "Constant(1, 1B)", "--json"]]
)
def test_output_that_fills_the_disk_is_one_error(words: list[str]) -> None:
    command = f"import sys; sys.argv[1:] = {words}; from decaylaws.entry import main; main()"
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", command], stdout=full, stderr=subprocess.PIPE, text=True
        )
    told = "decaylaws: The output cannot be written: No space left on device. Free space, then repeat.\n"
    assert ended.stderr.endswith(told)
    assert "Traceback" not in ended.stderr
    assert ended.returncode == 2


def test_ctrl_c_during_imports_prints_no_traceback(tmp_path: Path) -> None:
    reached = tmp_path / "reached"
    # a module that the command line imports, and that takes its time
    (tmp_path / "typer.py").write_text(
        f"import time\nopen({str(reached)!r}, 'w').close()\ntime.sleep(60)\n", encoding="utf-8"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", HEARS_ALL + "from decaylaws.entry import main; main()"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not reached.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert (out, error) == ("", "decaylaws: Interrupted before anything was begun.\n")
    assert process.returncode == 130
