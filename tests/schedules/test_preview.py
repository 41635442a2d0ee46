"""What people look at: figures, text, PNG, the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.schedules import constant, constant_batch, cosine, decay, from_points, warmup_stable_decay
from decaylaws.schedules.preview import curve_data, save_png, stage_table, summarize, text_plot

WSD = warmup_stable_decay(1_000, 1e-3, warmup_tokens=100, decay_tokens=200)
WSD_TEXT = "Warmup(3e-4, 2B) -> Constant(3e-4, 10T) -> Decay(3e-5, 1T)"


def test_summary() -> None:
    summary = summarize(WSD, batch_tokens=64)
    assert (summary.tokens, summary.peak_lr, summary.end_lr, summary.num_steps) == (1_000, 1e-3, 0.0, 16)
    assert summary.integral == pytest.approx(0.85)
    assert summary.mean_lr == pytest.approx(8.5e-4)
    assert summary.falling_tokens == 200
    assert summarize(WSD).num_steps is None


def test_a_curve_through_points_falls_where_it_falls() -> None:
    for first_lr in (0.0, 6e-4):
        schedule = from_points([0, 10, 60, 100], [first_lr, 1e-3, 1e-3, 5e-4])
        assert summarize(schedule).falling_tokens == 40


def test_curve_shows_both_sides_of_a_jump() -> None:
    tokens, lrs = curve_data(constant(100, 2e-4) + constant(100, 1e-4), points=5)
    assert (np.diff(tokens) >= 0).all()
    assert lrs[tokens == 100].tolist() == [2e-4, 1e-4]
    assert (lrs[0], lrs[-1]) == (2e-4, 1e-4)


def test_text_plot_is_as_high_as_the_lr() -> None:
    lines = text_plot(WSD, width=20, height=4).splitlines()
    assert len(lines) == 6
    columns = [sum(line[6 + i : 7 + i] == "#" for line in lines[:4]) for i in range(20)]
    assert columns[0] < 4
    assert set(columns[2:16]) == {4}
    assert columns[-1] == 1
    assert lines[-1].endswith("1K")
    assert text_plot(constant(3, 0.0)).count("#") == 0


def test_text_plot_needs_room() -> None:
    with pytest.raises(InvalidValueError, match="width, height"):
        text_plot(WSD, width=5)


def test_stage_table_counts_steps_once() -> None:
    rows = stage_table(WSD, constant_batch(1_000, 64))
    assert [row["shape"] for row in rows] == ["linear", "constant", "linear"]
    assert sum(int(row["steps"]) for row in rows) == 16
    assert stage_table(decay(10, 1.0, 0.0, "polynomial", exponent=2.0).truncate(5))[0]["shape"] == (
        "polynomial ^2 (piece)"
    )


def test_png(tmp_path: Path) -> None:
    for share in (False, True):
        path = tmp_path / f"{share}.png"
        save_png({"wsd": WSD, "cosine": cosine(500, 1e-3)}, path, share_of_length=share)
        assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InvalidValueError):
        save_png({}, tmp_path / "none.png")


def run(*arguments: str) -> Result:
    from decaylaws.cli.schedule import app

    return CliRunner().invoke(app, list(arguments))


def test_show_prints_stages_lr_steps_and_integral(tmp_path: Path) -> None:
    png = tmp_path / "schedule.png"
    done = run("show", WSD_TEXT, "--at", "10.502T", "--batch-tokens", "4M", "--png", str(png))
    assert done.exit_code == 0, done.output
    assert "Warmup(3e-4, 2B) -> Constant(3e-4, 10T) -> Linear(3e-5, 1T)" in done.stdout
    assert "LR at 10.5T: 0.000165" in done.stdout
    assert "2,750,500 steps" in done.stdout
    assert "integral 3.1653e+09" in done.stdout
    assert "no shape is stated; drawn as linear" in done.stderr
    assert png.is_file()


def test_show_takes_names_and_values() -> None:
    done = run("show", "deepseek-v3", "--set", "warmup_tokens=8B")
    assert done.exit_code == 0, done.output
    assert "4K->32K" in done.stdout
    shaped = run("show", WSD_TEXT, "--set", "decay_shape=1-sqrt")
    assert "1-Sqrt(3e-5, 1T)" in shaped.stdout
    assert shaped.stderr == ""


def test_show_names_what_is_not_stated() -> None:
    error = run("show", "yi-lightning").exception
    assert isinstance(error, InvalidValueError)
    assert "'eta_max, warmup_tokens, decay_tokens, eta_min, decay_tokens_2'" in str(error)
    assert "--set eta_max=1e-5" in str(error)


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "Fade(1)"),
        ("show", WSD_TEXT, "--set", "decay_shape"),
        ("show", WSD_TEXT, "--set", "colour=red"),
        ("show", WSD_TEXT, "--at", "99T"),
        ("show", WSD_TEXT, "--at", "later"),
        ("show", WSD_TEXT, "--batch-tokens", "0"),
        ("compare", "olmo-2-7b", "olmo-2-7b"),
        ("lint", WSD_TEXT, "--floor", "nan"),
        ("show", "Warmup(nan, 2B)", "--set", "nan=1e-3"),
        ("show", "Warmup(1e-3, inf)", "--set", "inf=2B"),
        ("show", WSD_TEXT, "--png", "picture.txt"),
    ],
)
def test_bad_arguments_are_one_clear_error(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert isinstance(done.exception, InvalidValueError | SchemaError)


def test_a_name_that_is_not_published_is_told_where_names_are() -> None:
    assert "'decaylaws schedule library'" in str(run("show", "olmo-9").exception)


def test_compare_puts_schedules_side_by_side(tmp_path: Path) -> None:
    png = tmp_path / "both.png"
    done = run("compare", "olmo-2-7b", "deepseek-v3", "--set", "warmup_tokens=8B", "--png", str(png))
    assert done.exit_code == 0, done.output
    header, *rows = done.stdout.splitlines()
    assert header.split()[:2] == ["schedule", "tokens"]
    assert [row.split()[0] for row in rows[:2]] == ["olmo-2-7b", "deepseek-v3"]
    assert png.is_file()


def test_lint_exits_with_1_where_it_finds_something() -> None:
    clean = run("lint", WSD_TEXT)
    assert (clean.exit_code, clean.stdout) == (0, "clean\n")
    found = run("lint", "olmo-2-7b", "--floor", "0")
    assert found.exit_code == 1
    assert "[floor] at 3.895T: this cosine decay towards 3e-5 is left at 78% of its way" in found.stdout


def test_library_lists_every_published_schedule_with_its_source() -> None:
    done = run("library")
    assert done.stdout.count("arXiv:") >= 13
    assert "deepseek-v3\n" in done.stdout
