"""Signals that tell a command to stop, and how it leaves."""

from __future__ import annotations

import signal

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
"""Signals that end a verb as Ctrl-C does: from a batch system, and from a terminal that is closed."""
EXIT_INTERRUPTED = 128 + signal.SIGINT
