from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from typer.testing import CliRunner

from decaylaws.cli import app
from decaylaws.cli.launch import SETTING_NAMES
from decaylaws.errors import DataError, DecaylawsError, InvalidValueError
from decaylaws.progress import Progress
from decaylaws.recipe import Recipe
from decaylaws.recipe.doctor import examine
from decaylaws.runs.config import ModelShape
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine.model import init_params
from proxy_runs.fsdp import torchrun
from proxy_runs.fsdp.__main__ import main
from proxy_runs.fsdp.identity import identity_of
from proxy_runs.fsdp.launch import (
    _alone_in,
    _failure,
    _said,
    default_ranks,
    launch,
    slurm_script,
    torchrun_command,
    write_slurm_job,
)
from proxy_runs.fsdp.metrics import last_step, read_metrics
from proxy_runs.fsdp.settings import TrainSettings
from proxy_runs.fsdp.torchrun import USER_ERROR
from proxy_runs.fsdp.trainer import Trainer
from proxy_runs.machine import visible_gpus
from proxy_runs.testing import make_tiny_store
from proxy_runs.weights.checkpoints import MemberState, load_checkpoint, save_checkpoint
from proxy_runs.weights.hf import save_hf
from tests.proxy_runs.fsdp_runs import train

pytestmark = pytest.mark.slow

SHAPE = ModelShape(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=64, vocab_size=257, seq_len=32)
STEPS = 60


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    root = tmp_path_factory.mktemp("launch")
    make_tiny_store(root / "corpus")
    params = init_params(SHAPE, seed=0)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
    state = MemberState(
        run_id="trunk",
        shape=SHAPE,
        step=0,
        run_step=0,
        tokens=0,
        params=params,
        exp_avg=zeros,
        exp_avg_sq={name: tensor.clone() for name, tensor in zeros.items()},
    )
    save_checkpoint(state, root / "trunk.safetensors")
    stage = {
        "lr": [{"tokens": STEPS * 8 * 32, "start_lr": 4e-3, "end_lr": 0.0, "shape": "linear"}],
        "mixture": {"general": 0.5, "code": 0.5},
        "batch_tokens": 8 * 32,
        "seq_len": 32,
    }
    values = {
        "schema": "decaylaws.recipe/2",
        "handover": {"checkpoint": "trunk", "lr": 4e-3},
        "stages": [stage],
        "sources": {"general": {}, "code": {}},
    }
    Recipe.from_dict(values).save(root / "recipe.yaml")
    return TrainSettings(
        compile=False,
        recipe=root / "recipe.yaml",
        corpus=root / "corpus",
        start=root / "trunk.safetensors",
        output=root / "disturbed",
        device="cpu",
        dtype="float32",
        checkpoint_interval=10,
        eval_tokens_per_domain=500,
    )


def _ranks_of(output: Path) -> list[int]:
    """Processes that torchrun started for this run."""
    marker = str(output / "settings.json")
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().decode().split("\0")
            environment = (folder / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if marker in arguments and "LOCAL_RANK=" in environment:
            found.append(int(folder.name))
    return found


def _kill_one(settings: TrainSettings, killed: list[int]) -> None:
    """kill -9 one rank once it is past its first checkpoint."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        steps = [line["step"] for line in read_metrics(settings.output / "metrics.jsonl")]
        if steps and steps[-1] >= 15:
            ranks = _ranks_of(settings.output)
            killed += ranks[-1:]
            for rank in ranks[-1:]:
                os.kill(rank, signal.SIGKILL)
            return
        time.sleep(0.02)


def _train_in_a_fork(settings: TrainSettings) -> dict[str, Any]:
    """The run on one rank, without torchrun's start-up."""
    settings.output.mkdir()
    file = settings.save(settings.output / "settings.json")
    process = multiprocessing.get_context("fork").Process(target=_one_rank, args=(str(file),))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    return json.loads((settings.output / "result.json").read_text())


def _one_rank(file: str) -> None:
    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os._exit(main([file]))


def test_a_killed_rank_changes_nothing(settings: TrainSettings) -> None:
    undisturbed = _train_in_a_fork(settings.model_copy(update={"output": settings.output.with_name("calm")}))
    killed: list[int] = []
    killer = threading.Thread(target=_kill_one, args=(settings, killed))
    killer.start()
    seen: list[float] = []
    result = launch(settings, ranks=2, progress=lambda _stage, done, _total, _note="": seen.append(done))
    killer.join()
    assert len(killed) == 1, "no rank was caught in the middle"
    assert result["losses"] == pytest.approx(undisturbed["losses"], abs=1e-4)
    lines = [line for line in read_metrics(settings.output / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert seen[-1] == STEPS
    assert "exitcode: -9" in (settings.output / "launch.log").read_text()
    # the same command again has nothing left to do, and says the same
    log_bytes = (settings.output / "launch.log").stat().st_size
    assert launch(settings, ranks=2) == result
    assert (settings.output / "launch.log").stat().st_size == log_bytes


def test_problems_are_found_before_anything_starts(settings: TrainSettings, tmp_path: Path) -> None:
    for change, message in (
        ({"start": tmp_path / "none"}, "no checkpoint"),
        ({"recipe": tmp_path / "none.yaml"}, "Cannot read"),
        ({"corpus": tmp_path}, "no prepared corpus"),
    ):
        broken = settings.model_copy(update={"output": tmp_path / "out", **change})
        with pytest.raises(DataError, match=message):
            launch(broken)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InvalidValueError, match=r"launch\.ranks"):
        torchrun_command(tmp_path / "s.json", ranks=0)


def test_a_users_error_ends_the_run_at_once_in_its_own_words(settings: TrainSettings, tmp_path: Path) -> None:
    # one flipped bit in the weights: only the ranks, which read all of them, can find it
    content = bytearray(settings.start.read_bytes())
    content[-1] ^= 1
    start = tmp_path / "flipped.safetensors"
    start.write_bytes(content)
    broken = settings.model_copy(update={"output": tmp_path / "out", "start": start})
    with pytest.raises(DecaylawsError, match=rf"The checkpoint {start} is damaged\. Delete it"):
        launch(broken, ranks=1)
    log = (tmp_path / "out" / "launch.log").read_text()
    assert log.count("error: ") == 1
    assert "Traceback" not in log


def test_what_died_of_something_else_tells_its_reason(
    settings: TrainSettings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def dies(_: Trainer) -> None:
        raise RuntimeError("CUDA error: an illegal memory access\nand a page of advice")

    own = settings.model_copy(update={"output": tmp_path / "out"})
    # not the exit code of a user's error: torchrun starts such ranks again
    train(own, ranks=1, prepare=lambda: setattr(Trainer, "train", dies), exit_code=1)
    log = tmp_path / "launch.log"
    log.write_text("of an earlier launch\n" + capfd.readouterr().err + "[torchrun's own page]\n" * 40)
    assert _failure(log, 0, 1) == (
        f"The launched run failed: RuntimeError: CUDA error: an illegal memory access. The whole log is {log}."
    )
    log.write_text("nothing that can be understood\n")
    assert _failure(log, 0, 7).startswith("The launched run ended with exit code 7.")
    assert "ended by signal 9 (short of memory?). Launch again" in _failure(log, 0, -9)
    log.write_text("", encoding="utf-8")
    assert "wrote nothing to" in _failure(log, 0, 1)
    assert "as on a full disk" in _failure(log, 0, 1)


def test_an_error_of_the_users_has_an_exit_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_with(code: int) -> Callable[[list[str]], None]:
        failure = ProcessFailure(local_rank=0, pid=1, exitcode=code, error_file="none")

        def run(_: list[str]) -> None:
            raise ChildFailedError("proxy_runs.fsdp", {0: failure})

        return run

    for code, wanted in ((USER_ERROR, USER_ERROR), (-9, 1), (1, 1)):
        monkeypatch.setattr(torchrun.run, "main", fails_with(code))
        assert torchrun.main([]) == wanted


def finished(settings: TrainSettings, output: Path) -> TrainSettings:
    """Settings of a launch that has ended, as far as a later one can see."""
    own = settings.model_copy(update={"output": output})
    output.mkdir()
    store = TokenStore.open(own.corpus)
    identity = identity_of(own, Recipe.load(own.recipe), store.fingerprint)
    (output / "result.json").write_text(json.dumps({"identity": identity, "losses": {"code": 1.0}}))
    return own


def test_a_result_is_returned_to_the_launch_that_made_it(settings: TrainSettings, tmp_path: Path) -> None:
    done = finished(settings, tmp_path / "done")
    assert launch(done)["losses"] == {"code": 1.0}
    # how the work is laid out moves no number
    layout = {"micro_batch_sequences": 2, "checkpoint_interval": 7, "log_interval": 3}
    assert launch(done.model_copy(update=layout))["losses"] == {"code": 1.0}
    start = tmp_path / "other.safetensors"
    state = load_checkpoint(settings.start)
    state.params["embed"][0, 0] += 1.0
    save_checkpoint(state, start)
    recipe = Recipe.load(settings.recipe).model_copy(update={"seed": 1}).save(tmp_path / "other.yaml")
    changes: dict[str, Any] = {
        "dtype": "bfloat16",
        "z_loss": 1e-4,
        "average_last_steps": 5,
        "eval_tokens_per_domain": 501,
        "max_loss_jump": None,
        "max_skipped_steps": 9,
        "compile": True,
        "router_aux_loss_coef": 0.0,
    }
    assert set(changes) == set(settings.deciding())
    for name, change in {"start": start, "recipe": recipe, **changes}.items():
        with pytest.raises(
            DataError, match=rf"result\.json belongs to a launch with another {name} \(there.*output="
        ):
            launch(done.model_copy(update={name: change}))
    with pytest.raises(DataError, match="another dtype"):
        write_slurm_job(done.model_copy(update={"dtype": "bfloat16"}), nodes=1, ranks_per_node=1, hours=1)
    result_file = tmp_path / "done" / "result.json"
    result_file.write_text('{"recipe_sha256": "0", "losses": {"code": 1.0}}')
    with pytest.raises(DataError, match="does not record what it started from"):
        launch(done)
    for wrong in ("[1]", '"x"', "{}", '{"losses": {"code": "low"}}', '{"losses": {}, "identity": 3}'):
        result_file.write_text(wrong)
        with pytest.raises(DataError, match=r"result\.json is damaged \(.*Delete it and launch again"):
            launch(done)


def test_a_run_goes_on_from_its_own_checkpoints_only(
    settings: TrainSettings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    short = Recipe.load(settings.recipe).to_dict()
    short["stages"][0]["lr"][0]["tokens"] = 2 * 8 * 32
    recipe = Recipe.from_dict(short).save(tmp_path / "short.yaml")
    own = settings.model_copy(update={"output": tmp_path / "run", "recipe": recipe})
    train(own, ranks=1)
    result = json.loads((own.output / "result.json").read_text())
    assert result["identity"] == identity_of(
        own, Recipe.load(recipe), TokenStore.open(own.corpus).fingerprint
    )
    assert result["start"] == str(settings.start)
    assert result["settings"]["dtype"] == "float32"
    train(own.model_copy(update={"micro_batch_sequences": 3}), ranks=1)
    train(own.model_copy(update={"dtype": "bfloat16"}), ranks=1, exit_code=USER_ERROR)
    error = capfd.readouterr().err
    assert "step-00000002 belongs to a launch with another dtype (there float32, now bfloat16)" in error


def test_the_checkpoints_and_the_folder_say_where_the_run_stands(
    settings: TrainSettings, tmp_path: Path
) -> None:
    values = Recipe.load(settings.recipe).to_dict()
    values["stages"][0]["lr"][0] |= {"tokens": 2 * 8 * 32, "end_lr": 4e-3, "shape": "constant"}
    values["handover"]["tokens"] = 10**9
    recipe = Recipe.from_dict(values).save(tmp_path / "later.yaml")
    output = train(settings.model_copy(update={"output": tmp_path / "run", "recipe": recipe}), ranks=1)
    values["handover"] |= {"checkpoint": "launch/hf", "tokens": 10**9 + 512, "optimizer_state": "fresh"}
    values["provenance"] = {"non_embedding_params": SHAPE.non_embedding_params}
    following = Recipe.from_dict(values)
    for place in ("hf", "checkpoints/step-00000002"):
        found = {item.check: item.verdict for item in examine(following, output / place)}
        assert {found[name] for name in ("lr", "tokens")} == {"ok"}
    assert {item.check: item.verdict for item in examine(following, output / "hf")}["size"] == "ok"
    config = json.loads((output / "hf" / "config.json").read_text())
    assert config["eos_token_id"] == TokenStore.open(settings.corpus).eos_id


def test_a_start_without_moments_or_of_another_text_is_refused_before_anything_starts(
    settings: TrainSettings, tmp_path: Path
) -> None:
    state = load_checkpoint(settings.start)
    start = tmp_path / "start"
    save_hf(state.params, SHAPE, start, tokenizer_path=settings.corpus / "tokenizer.json", eos_token_id=256)
    given = settings.model_copy(update={"start": start, "output": tmp_path / "out"})
    with pytest.raises(DataError, match=r"has no optimizer\.safetensors"):
        launch(given)
    tokenizer = json.loads((start / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (start / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(DataError, match="other ids than that of the corpus"):
        launch(given)
    assert not (tmp_path / "out").exists()


def test_a_recipe_is_launched_without_a_study(
    settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[TrainSettings, int]] = []

    def started(given: TrainSettings, *, ranks: int, progress: Progress) -> dict[str, Any]:
        seen.append((given, ranks))
        return {"losses": {"code": 1.25}, "notes": ["Dropout was off."]}

    monkeypatch.setattr("proxy_runs.fsdp.launch.launch", started)
    recipe = shutil.copy(settings.recipe, tmp_path / "recipe.yaml")
    command = ["launch", str(recipe), "--start", str(settings.start), "--corpus", str(settings.corpus)]
    result = CliRunner().invoke(app, [*command, "--set", "dtype=bfloat16", "--set", "max_loss_jump=null"])
    assert result.exit_code == 0, result.exception
    assert "1.25" in result.output
    assert "Dropout was off." in result.output
    ((given, ranks),) = seen
    assert (given.recipe, given.start, given.corpus) == (recipe, settings.start, settings.corpus)
    assert (given.output, given.dtype, given.max_loss_jump) == (tmp_path / "launch", "bfloat16", None)
    assert ranks == 2
    for missing in ("--start", "--corpus"):
        place = command.index(missing)
        error = CliRunner().invoke(app, command[:place] + command[place + 2 :]).exception
        assert isinstance(error, InvalidValueError)
        assert f"Give {missing}, the" in str(error)


def test_every_setting_is_named_in_the_help() -> None:
    assert set(SETTING_NAMES.split(", ")) == set(TrainSettings.model_fields)


def test_a_rank_needs_a_gpu_of_its_own(
    settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy_runs.machine.version", lambda _: "2.11.0+cu130")
    monkeypatch.setattr("proxy_runs.machine._gpus", lambda: ["nvidia0", "nvidia1", "nvidia2"])
    for visible, count in ((None, 3), ("0", 1), ("2,0", 2), ("", 0), ("-1", 0), ("1,-1,2", 1)):
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert visible_gpus("auto") == count
        assert default_ranks("auto") == (count or 2)
        assert visible_gpus("cpu") == 0
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    given = settings.model_copy(
        update={"device": "auto", "dtype": "auto", "compile": "auto", "output": tmp_path / "out"}
    )
    with pytest.raises(InvalidValueError, match=r"launch\.processes.*at most 3, the GPUs.*got 4"):
        launch(given, ranks=4)
    for on_gpu, dtype in ((True, "bfloat16"), (False, "float32")):
        resolved = given.resolved(on_gpu=on_gpu)
        assert (resolved.dtype, resolved.compile) == (dtype, on_gpu)
    kept = given.model_copy(update={"dtype": "float32", "compile": False}).resolved(on_gpu=True)
    assert (kept.dtype, kept.compile) == ("float32", False)
    assert _said(given.resolved(on_gpu=True), 3, 3).startswith(
        "Training in 3 processes, one for each GPU, in bfloat16, with compiled layers. --processes"
    )
    assert "1 process on the CPU, in float32, without compiling" in _said(kept, 1, 0)


def test_two_launches_do_not_share_a_folder(tmp_path: Path) -> None:
    refused = pytest.raises(DecaylawsError, match="Another launch is training")
    with _alone_in(tmp_path), refused, _alone_in(tmp_path, 0.0):
        pass
    with _alone_in(tmp_path, 0.0):
        pass


def test_torchrun_dies_with_its_launcher(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys; from proxy_runs.fsdp.launch import _end_with_parent\n"
        "child = subprocess.Popen(['sleep', '60'], preexec_fn=_end_with_parent)\n"
        "print(child.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 300
    while _is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_alive(child)


def _is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] not in "ZX"
    except OSError:
        return False


def test_a_slurm_job_is_written_beside_its_settings(settings: TrainSettings, tmp_path: Path) -> None:
    job = write_slurm_job(
        settings.model_copy(update={"output": tmp_path / "out"}), nodes=4, ranks_per_node=8, hours=24
    )
    assert job == tmp_path / "out" / "launch.sbatch"
    written = TrainSettings.load(tmp_path / "out" / "settings.json")
    assert str(tmp_path / "out" / "settings.json") in job.read_text()
    assert written.recipe.is_absolute()
    assert written.recipe.samefile(settings.recipe)
    with pytest.raises(DataError, match="no checkpoint"):
        write_slurm_job(
            settings.model_copy(update={"start": tmp_path / "none"}), nodes=1, ranks_per_node=1, hours=1
        )


def test_slurm_script_is_valid_shell(tmp_path: Path) -> None:
    script = slurm_script(
        Path("a folder/settings.json"), nodes=2, ranks_per_node=8, hours=1.5, partition="gpu"
    )
    assert "#SBATCH --time=90" in script
    assert "'a folder/settings.json'" in script
    (tmp_path / "job.sh").write_text(script)
    subprocess.run(["bash", "-n", tmp_path / "job.sh"], check=True)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"nodes": 0}, "nodes"),
        ({"ranks_per_node": 0}, "ranks_per_node"),
        ({"hours": 0.0}, "hours"),
        ({"hours": float("nan")}, "hours"),
    ],
)
def test_a_job_that_cannot_be_is_named(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidValueError, match=f"slurm.{field}"):
        slurm_script(Path("settings.json"), **{"nodes": 1, "ranks_per_node": 1, "hours": 1.0, **wrong})


@pytest.mark.parametrize(("code", "requeued"), [(2, True), (0, False)])
def test_a_job_whose_time_is_up_saves_and_comes_back(tmp_path: Path, code: int, requeued: bool) -> None:
    programs = {
        "srun": f"trap 'echo saved > saved; exit {code}' TERM; echo > started; for i in $(seq 200); do sleep 0.1; done",
        "scontrol": 'echo "$@" >> scontrol.log',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(slurm_script(Path("s.json"), nodes=1, ranks_per_node=1, hours=1))
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NODELIST": "node1",
    }
    job = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=environment)
    for _ in range(300):
        if (tmp_path / "started").exists():
            break
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == code
    assert (tmp_path / "saved").exists()
    assert ("requeue 17" in (tmp_path / "scontrol.log").read_text()) == requeued


def test_a_mean_over_more_steps_than_the_run_has_is_refused(settings: TrainSettings) -> None:
    with pytest.raises(InvalidValueError, match="average_last_steps"):
        launch(settings.model_copy(update={"average_last_steps": STEPS + 1}))


def test_the_last_step_is_found_at_the_end_of_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_step(path) is None
    lines = [json.dumps({"step": step, "loss": 1.0 / (step + 1)}) for step in range(20_000)]
    path.write_text(
        "\n".join([*lines, json.dumps({"step": 20_000, "heldout": {"a": 1.0}}), '{"step": 20001, "lo'])
    )
    assert last_step(path) == {"step": 19_999, "loss": 1.0 / 20_000}
