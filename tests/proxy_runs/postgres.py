"""A PostgreSQL server of a test's own: Debian's binaries, a free loopback port, a folder that goes away."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

USER = "nobody"  # PostgreSQL refuses to run as root


def binary(name: str) -> str | None:
    """Path of a program of the server, where Debian or the user installed it; None where it is not."""
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(installed[-1]) if installed else shutil.which(name)


def is_installed() -> bool:
    """Whether a server can be started here."""
    return binary("postgres") is not None and binary("initdb") is not None


class Server:
    """A server with one database; use as a context manager."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"postgresql://decaylaws@127.0.0.1:{self.port}/postgres"
        self._directory = Path(tempfile.mkdtemp(prefix="decaylaws-postgres-"))
        self._as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            account = pwd.getpwnam(USER)
            os.chown(self._directory, account.pw_uid, account.pw_gid)
            self._as_user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        command = [str(binary("initdb")), "-D", str(self._data), "-U", "decaylaws", "--auth=trust", "-N"]
        subprocess.run(
            command, check=True, capture_output=True, cwd=self._directory, timeout=120, **self._as_user
        )
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._directory)

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    def start(self) -> None:
        """Start and wait until it answers."""
        options = ["-h", "127.0.0.1", "-k", "", "-p", str(self.port), "-F"]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(binary("postgres")), "-D", str(self._data), *options],
                stdout=log,
                stderr=log,
                cwd=self._directory,
                **self._as_user,
            )
        deadline = time.monotonic() + 60
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError((self._directory / "log").read_text())
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop at once, as a crash would: every connection breaks, nothing that was committed is lost."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(timeout=60)
            self._process = None

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True
