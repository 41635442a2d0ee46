"""One run of a sweep in the FSDP trainer: how it ends, stops and goes on, and that a launch of its plan is the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from decaylaws.errors import DataError, DecaylawsError
from decaylaws.runs.config import RunConfig
from decaylaws.schedules import Schedule, Segment, decay
from decaylaws.settings.evaluation import EvaluationSettings
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine.run import RunResult
from proxy_runs.fsdp.layout import Layout
from proxy_runs.fsdp.microanneal import recipe_of, train_run
from tests.proxy_runs.fsdp_runs import settings_for, train
from tests.proxy_runs.held import held_folder, held_fork, held_run

STEPS = 12
THRICE = EvaluationSettings(tokens_per_domain=64, points=3)
LAYOUT = Layout(micro_batch_tokens=64)


@pytest.fixture(scope="module")
def folder(store: TokenStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return held_folder(tmp_path_factory.mktemp("start"), "olmo2", store.vocab_size, moments=True)


@pytest.fixture(scope="module")
def config(folder: Path, store: TokenStore) -> RunConfig:
    return held_fork(held_run(folder, store, optimizer_state="load"), maths=0.5, steps=STEPS)


def run(config: RunConfig, store: TokenStore, folder: Path, output: Path, **options: Any) -> RunResult | None:
    ended: list[RunResult] = []
    values: dict[str, Any] = {"evaluation": THRICE, "layout": LAYOUT, "on_result": ended.append}
    train_run(config, store, start=folder, output=output, **(values | options))
    return ended[0] if ended else None


@pytest.fixture(scope="module")
def undisturbed(
    config: RunConfig, store: TokenStore, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> RunResult:
    torch.set_num_threads(1)
    result = run(config, store, folder, tmp_path_factory.mktemp("undisturbed"))
    assert result is not None
    return result


def test_a_stopped_run_has_no_result_and_goes_on_bit_for_bit(
    tmp_path: Path, config: RunConfig, store: TokenStore, folder: Path, undisturbed: RunResult
) -> None:
    seen: list[float] = []
    output = tmp_path / "run"
    stopped = run(
        config, store, folder, output,
        progress=lambda stage, done, total, note="": seen.append(done),
        should_stop=lambda: len(seen) == 5,
    )  # fmt: skip
    assert stopped is None
    at_stop = len(seen)
    assert 5 <= at_stop < STEPS
    result = run(config, store, folder, output, progress=lambda stage, done, *_: seen.append(done))
    assert result == undisturbed
    assert len(seen) == STEPS  # no step was done twice
    assert not output.exists()


def test_a_poor_run_ends_on_its_way(
    tmp_path: Path, config: RunConfig, store: TokenStore, folder: Path, undisturbed: RunResult
) -> None:
    asked: list[int] = []

    def is_poor(_: RunConfig, tokens: int, row: Mapping[str, float]) -> bool:
        asked.append(tokens)
        return len(asked) == 2

    result = run(config, store, folder, tmp_path / "run", should_prune=is_poor)
    assert result is not None
    assert (result.status, result.reason) == ("pruned", "pruned at step 8")
    assert asked == [4 * config.batch_tokens, 8 * config.batch_tokens]
    assert not result.row["reached_target"]
    assert result.curve == undisturbed.curve[: len(result.curve)]


def test_a_run_that_diverges_says_where(
    tmp_path: Path, config: RunConfig, store: TokenStore, folder: Path
) -> None:
    tokens = config.batch_tokens * STEPS
    wild = config.with_changes(schedule=Schedule((Segment(tokens, 1e6, 1e6),)))
    result = run(wild, store, folder, tmp_path / "run")
    assert result is not None
    assert result.status == "diverged"
    assert result.reason.startswith("diverged at step ")
    assert "nan" in result.reason or "inf" in result.reason


def test_the_model_is_kept_where_it_is_wanted(
    tmp_path: Path, config: RunConfig, store: TokenStore, folder: Path, undisturbed: RunResult
) -> None:
    kept = tmp_path / "kept"
    assert run(config, store, folder, tmp_path / "run", keep_model=kept) == undisturbed
    again = held_run(kept, store)
    measured = run(again, store, kept, tmp_path / "again")
    assert measured is not None
    assert measured.row["loss:maths"] == pytest.approx(undisturbed.row["loss:maths"], abs=1e-6)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_launch_of_the_same_plan_ends_at_the_same_losses(
    tmp_path: Path, config: RunConfig, store: TokenStore, folder: Path, undisturbed: RunResult, ranks: int
) -> None:
    recipe = recipe_of(config, str(folder)).save(tmp_path / "recipe.yaml")
    settings = settings_for(
        tmp_path, "launch", recipe=recipe, corpus=store.directory, start=folder, eval_tokens_per_domain=64
    )
    result = json.loads((train(settings, ranks=ranks) / "result.json").read_text())
    found = {domain: undisturbed.row[f"loss:{domain}"] for domain in result["losses"]}
    assert result["losses"] == pytest.approx(found, abs=1e-4)


def test_under_torchrun_a_run_is_the_same(
    tmp_path: Path, config: RunConfig, store: TokenStore, folder: Path, undisturbed: RunResult
) -> None:
    layout = Layout(processes=2, device="cpu", micro_batch_tokens=64)
    told: list[str] = []
    result = run(
        config, store, folder, tmp_path / "run", layout=layout, progress=lambda *said: told.append(said[3])
    )
    assert result is not None
    assert result.row == pytest.approx(undisturbed.row, abs=1e-4)
    assert len(result.curve) == len(undisturbed.curve)
    assert any(note.startswith("loss ") for note in told)


def test_killed_under_torchrun_a_run_goes_on_and_can_be_pruned(
    tmp_path: Path, store: TokenStore, folder: Path, config: RunConfig
) -> None:
    # at a low LR, which does not blow up what two ranks round otherwise
    long = config.with_changes(schedule=decay(200 * config.batch_tokens, 0.03 * config.schedule.start_lr))
    layout = Layout(processes=2, device="cpu", micro_batch_tokens=64, save_seconds=1e-3)
    output = tmp_path / "run"

    def train_until_killed() -> None:
        run(
            long,
            store,
            folder,
            output,
            layout=layout,
            progress=lambda *_: os.kill(os.getpid(), signal.SIGKILL),
        )

    process = multiprocessing.get_context("fork").Process(target=train_until_killed)
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    result = run(long, store, folder, output, layout=layout, should_prune=lambda _, tokens, row: True)
    assert result is not None
    assert (result.status, result.row["reached_target"]) == ("pruned", False)
    first = -(-200 // THRICE.points)
    assert result.reason == f"pruned at step {first}"
    alone = run(long, store, folder, tmp_path / "alone", should_prune=lambda _, tokens, row: True)
    assert alone is not None
    for point, other in zip(result.curve, alone.curve, strict=True):
        assert point == pytest.approx(other, abs=1e-4)
    assert not output.exists()


def test_a_folder_whose_moments_are_of_another_model_is_refused_before_a_step(
    tmp_path: Path, store: TokenStore
) -> None:
    folder = held_folder(tmp_path / "start", "qwen3", store.vocab_size)
    other = held_folder(tmp_path / "other", "qwen3", store.vocab_size, moments=True, intermediate_size=32)
    (folder / "optimizer.safetensors").write_bytes((other / "optimizer.safetensors").read_bytes())
    config = held_fork(held_run(folder, store, optimizer_state="load"), maths=0.5, steps=4)
    with pytest.raises(DataError, match="belongs to another model"):
        run(config, store, folder, tmp_path / "run")
    (folder / "optimizer.safetensors").unlink()
    with pytest.raises(DecaylawsError, match=r"optimizer\.safetensors"):
        run(config, store, folder, tmp_path / "run")
