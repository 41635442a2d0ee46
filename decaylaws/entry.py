"""The command ``decaylaws``: told to stop, it says so in one sentence, from its first second on.

Its own imports take seconds, so they stand inside :func:`main`, behind the handlers of signals.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from types import FrameType

from decaylaws.io.signals import STOP_SIGNALS


def main() -> None:
    """Run the command line."""
    # what is ignored stays so: nohup ignores SIGHUP, a shell SIGINT for what it starts in the background
    heard = [each for each in (signal.SIGINT, *STOP_SIGNALS) if signal.getsignal(each) != signal.SIG_IGN]
    for each in heard:
        signal.signal(each, _leave_at_once)

    from decaylaws.cli import main as run_command
    from decaylaws.cli.answers import EXIT_FAULT

    for each in heard:
        signal.signal(each, signal.default_int_handler if each == signal.SIGINT else _stop)
    try:
        run_command()
    except Exception:
        traceback.print_exc()
        sys.exit(EXIT_FAULT)


def _leave_at_once(number: int, frame: FrameType | None) -> None:
    """Nothing has begun: an exception would only end in a traceback out of the middle of an import."""
    sys.stderr.write("decaylaws: Interrupted before anything was begun.\n")
    sys.stderr.flush()
    os._exit(128 + number)


def _stop(number: int, frame: FrameType | None) -> None:
    """Unwind as Ctrl-C does, so that workers save what they have and give their runs back."""
    raise SystemExit(128 + number)
