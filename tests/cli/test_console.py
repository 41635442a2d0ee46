"""What the command line prints is read on a terminal and in a log."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from decaylaws import __version__
from decaylaws.cli import app
from decaylaws.cli.console import frame_table, make_console
from decaylaws.errors import InvalidValueError

CONFIRMATION = pd.DataFrame(
    {
        "candidate": ["recommended", "token_proportional"],
        "scale": ["proxy", "target"],
        "predicted": [5.28, 4.523],
        "90 % interval": ["5.164 to 5.396", "4.435 to 4.611"],
        "observed": [5.351, 4.502],
        "gain": ["+0.087", "+0.936"],
        "guards": ["hold", "broken"],
        "won": ["", "won"],
    }
)


def _printed(width: int) -> str:
    out = StringIO()
    Console(file=out, width=width).print(frame_table(CONFIRMATION, title="objective"))
    return out.getvalue()


def test_a_log_is_wide_enough_for_whole_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    rows = _printed(make_console().width).splitlines()
    assert any("token_proportional" in row and "4.435 to 4.611" in row and "won" in row for row in rows)


def test_a_narrow_terminal_cuts_nothing() -> None:
    narrow = _printed(80)
    assert "token_proportional" in narrow
    assert "\N{HORIZONTAL ELLIPSIS}" not in narrow
    assert max(map(len, narrow.splitlines())) <= 80


def test_a_title_longer_than_its_table_stays_whole() -> None:
    title = "a title far longer than the two narrow columns below it"
    out = StringIO()
    Console(file=out, width=160).print(frame_table(pd.DataFrame({"a": [1], "b": [2]}), title=title))
    assert out.getvalue().splitlines()[0].rstrip() == title


def test_an_error_that_could_not_be_measured_is_a_dash() -> None:
    out = StringIO()
    errors = pd.DataFrame({"law": ["inverse_sum"], "mae": [float("inf")], "bias": [float("nan")]})
    Console(file=out, width=160).print(frame_table(errors, title="errors"))
    assert out.getvalue().splitlines()[-1].split() == ["inverse_sum", "-", "-"]


def test_the_version_is_told() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"decaylaws {__version__}\n"


def test_existing_studies_are_not_begun_anew(tmp_path: Path) -> None:
    first, again = (CliRunner().invoke(app, ["init", str(tmp_path)]).output for _ in range(2))
    assert "written. Name your sources in it." in first
    assert "was not changed" in again
    assert first.splitlines()[-1] == again.splitlines()[-1] == f"Next: decaylaws prepare '{tmp_path}'"


def test_options_that_would_be_passed_over_are_refused() -> None:
    options = ("--out", "evaluation", "--domains", "text.jsonl", "--depth", "0.5")
    refused = CliRunner().invoke(app, ["evaluate", "checkpoint", *options]).exception
    assert isinstance(refused, InvalidValueError)
    assert "'depth'" in str(refused)


@pytest.mark.parametrize("verb", ["plan", "fit", "recommend", "report"])
def test_help_says_what_is_read_written_and_next(verb: str) -> None:
    page = CliRunner().invoke(app, [verb, "--help"]).output
    for word in ("Reads", "Writes", "Write it again" if verb == "report" else "Next: decaylaws"):
        assert word in page
