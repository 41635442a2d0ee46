"""JavaScript for tests: a headless Chromium where there is one, else Node for what needs no page, else a skip."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NODE = shutil.which("node")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--disable-domain-reliability", "--disable-features=NetworkTimeServiceQuerying,OptimizationHints",
)  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """A page that was opened: what it became, what its console said, what it asked the network for."""

    dom: str
    console: tuple[str, ...]
    requests: tuple[str, ...]


def open_page(page: Path, workspace: Path) -> Opened:
    """Open a file from disk in headless Chromium; skips where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium to open the report in")
    log = workspace / "net.json"
    command = [
        CHROMIUM, *FLAGS, f"--user-data-dir={workspace / 'profile'}", f"--log-net-log={log}",
        "--enable-logging=stderr", "--timeout=60000", "--dump-dom", page.resolve().as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    console = tuple(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return Opened(done.stdout, console, _requests_of_pages(log))


def _requests_of_pages(log: Path) -> tuple[str, ...]:
    """Web addresses that a page asked for; what the browser asks on its own account has no origin."""
    asked = set()
    for event in log.read_text(encoding="utf-8").splitlines():
        url = re.search(r'"url":"((?:https?|wss?)://[^"]+)', event)
        if url and '"initiator"' in event and '"initiator":"not an origin"' not in event:
            asked.add(url[1])
    return tuple(sorted(asked))


def evaluate(library: str, expression: str, workspace: Path) -> Any:
    """The JSON value of an expression after a library has been loaded."""
    if CHROMIUM is None and NODE is None:
        pytest.skip("neither Chromium nor Node to run the explorer's JavaScript")
    if CHROMIUM is None:
        code = f"{library}\nconsole.log(JSON.stringify({expression}))"
        done = subprocess.run([str(NODE), "-e", code], capture_output=True, text=True, check=True)
        return json.loads(done.stdout)
    page = workspace / "evaluate.html"
    page.write_text(
        f"<body><script>{library}\ndocument.body.textContent = JSON.stringify({expression});</script></body>",
        encoding="utf-8",
    )
    dom = open_page(page, workspace).dom
    return json.loads(unescape(dom[dom.index("<body>") + 6 : dom.index("</body>")]))
