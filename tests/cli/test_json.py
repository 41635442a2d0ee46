"""``--json``: one object on standard output, words elsewhere, and exit codes that mean one thing each."""

from __future__ import annotations

import inspect
import json
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from decaylaws import cli, entry
from decaylaws.cli import app
from decaylaws.cli.answers import EXIT_CODES, EXIT_FAULT, EXIT_NO, answering
from decaylaws.recipe import Recipe
from tests.exporters.recipes import RECIPES, SEQ_LEN

DECAY = "Constant(3e-4, 10B) -> Linear(3e-5, 1B)"


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command of the program with the words that call it."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from commands(inner, (*path, name))


def run(*arguments: str | Path) -> Result:
    """The program in this process."""
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def test_every_command_takes_the_option_and_main_help_says_what_codes_mean() -> None:
    found = dict(commands(typer.main.get_command(app)))
    assert len(found) > 25
    lacking = [
        " ".join(path)
        for path, command in found.items()
        if not any("--json" in parameter.opts for parameter in command.params)
    ]
    assert lacking == []
    # what a verb returns is what the option prints
    silent = [
        " ".join(path)
        for path, command in found.items()
        if inspect.signature(command.callback.__wrapped__.__wrapped__, eval_str=True).return_annotation
        is None
    ]
    assert silent == []
    page = re.sub(r"\s+|[^\w]", "", run("--help").output)
    for code, meaning in EXIT_CODES.items():
        assert re.sub(r"[^\w]", "", f"{code}: {meaning}") in page


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return RECIPES["linear above zero"].save(tmp_path / "recipe.yaml")


def test_results_are_objects_and_words_go_elsewhere(tmp_path: Path, recipe: Path) -> None:
    other = Recipe.load(recipe).save(tmp_path / "same.json")
    study = tmp_path / "study"
    assert json.loads(run("init", study, "--json").stdout) == {
        "settings_file": str(study / "study.yaml"),
        "is_new": True,
        "next_verb": "prepare",
    }
    calls: dict[tuple[str | Path, ...], Callable[[dict[str, Any]], bool]] = {
        ("schedule", "show", DECAY, "--at", "10.5B"): lambda found: (
            found["at"] == [{"tokens": 10_500_000_000, "lr": pytest.approx(1.65e-4)}]
            and found["summary"]["tokens"] == 11_000_000_000
        ),
        ("schedule", "compare", DECAY, "Constant(3e-4, 10B)"): lambda found: len(found["schedules"]) == 2,
        ("schedule", "lint", "Constant(3e-4, 10B) -> Linear(0, 1B)"): lambda found: found["findings"] == [],
        ("schedule", "library"): lambda found: len(found["schedules"]) > 5,
        ("context", "library"): lambda found: len(found["extensions"]) > 3,
        ("context", "rope", "--seq-len", "32768", "--original-seq-len", "4096"): lambda found: (
            {each["method"] for each in found["variants"]} >= {"abf", "yarn"}
        ),
        ("recipe", "show", recipe): lambda found: found["stages"][0]["seq_len"] == SEQ_LEN,
        ("recipe", "diff", recipe, other): lambda found: found["changes"] == [],
        ("recipe", "schema"): lambda found: "$defs" in found,
        ("benchmarks",): lambda found: len(found["benchmarks"]) > 5,
        ("export", recipe, "--target", "megatron", "--out", tmp_path / "out"): lambda found: (
            found["exports"]["megatron"]["max_abs_lr_error"] < 1e-5
            and all(
                (tmp_path / "out" / "megatron" / name).is_file()
                for name in found["exports"]["megatron"]["files"]
            )
        ),
        ("status", study): lambda found: (
            found["next_command"] == f"decaylaws prepare '{study}'" and found["counts"] is None
        ),
    }
    for arguments, holds in calls.items():
        said = run(*arguments)
        result = run(*arguments, "--json")
        assert (said.exit_code, result.exit_code) == (0, 0), said.output
        assert holds(json.loads(result.stdout)), arguments
        # the words are those without the option
        assert result.stderr == said.stdout


def test_a_no_is_an_object_with_exit_code_1(tmp_path: Path, recipe: Path) -> None:
    changed = {**Recipe.load(recipe).to_dict(), "name": "other"}
    other = Recipe.from_dict(changed).save(tmp_path / "other.yaml")
    found = run("recipe", "diff", recipe, other, "--json")
    assert found.exit_code == EXIT_NO
    assert json.loads(found.stdout)["changes"] == [{"path": "name", "before": "tried", "after": "other"}]
    assert run("recipe", "diff", recipe, other).exit_code == EXIT_NO

    found = run("schedule", "lint", "Constant(3e-4, 10B)", "--json")
    assert found.exit_code == EXIT_NO
    assert "no-decay" in [each["rule"] for each in json.loads(found.stdout)["findings"]]

    out = tmp_path / "out"
    run("export", recipe, "--target", "levanter", "--out", out)
    config = out / "levanter" / "midtrain_levanter.yaml"
    check = ("export", recipe, "--target", "levanter", "--check", config, "--json")
    assert json.loads(run(*check).stdout)["agrees"]
    config.write_text(config.read_text().replace("lr_schedule: linear", "lr_schedule: cosine"))
    found = run(*check)
    assert found.exit_code == EXIT_NO
    answer = json.loads(found.stdout)
    assert not answer["agrees"]
    assert any("at step" in line for line in answer["differences"])


def test_an_error_prints_no_object(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["decaylaws", "status", str(tmp_path / "none"), "--json"])
    with pytest.raises(SystemExit) as ending:
        cli.main()
    assert ending.value.code == cli.EXIT_ERROR
    said = capsys.readouterr()
    assert said.out == ""
    assert "study.yaml" in said.err


def test_a_fault_has_a_code_of_its_own(capsys: pytest.CaptureFixture, monkeypatch) -> None:
    def fail() -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(cli, "main", fail)
    kept = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit) as ending:
            entry.main()
    finally:
        for each, handler in kept.items():
            signal.signal(each, handler)
    assert ending.value.code == EXIT_FAULT
    assert "RuntimeError: a fault" in capsys.readouterr().err


def test_a_verb_must_return_an_object() -> None:
    with pytest.raises(TypeError, match="'verb' must return"):
        _called_with_json(lambda: None)


def _called_with_json(verb: Callable[[], object]) -> None:
    verb.__name__ = "verb"
    answering(verb)(as_json=True)


@dataclass(frozen=True, kw_only=True)
class Window:
    """Two options that are one value."""

    begin: Annotated[int, typer.Option(help="where it begins", min=0)]
    end: Annotated[int | None, typer.Option("--until", help="where it ends")] = None


def test_a_dataclass_is_a_group_of_options() -> None:
    def cut(name: str, *, window: Window, again: bool = False) -> dict[str, object]:
        assert isinstance(window, Window)
        return {"name": name, "window": window, "again": again}

    command = answering(cut)
    assert list(inspect.signature(command).parameters) == ["name", "begin", "end", "again", "as_json"]
    group = typer.Typer()
    group.command()(command)
    run = CliRunner().invoke
    found = run(group, ["text", "--until", "9", "--begin", "2", "--json"], catch_exceptions=False)
    assert json.loads(found.stdout) == {"name": "text", "window": {"begin": 2, "end": 9}, "again": False}
    assert run(group, ["text"]).exit_code == run(group, ["text", "--begin", "-1"]).exit_code == 2
