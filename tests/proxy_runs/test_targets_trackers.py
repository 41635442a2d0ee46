"""Real sweeps in the trackers themselves: what they hold is what the runs table says."""

from __future__ import annotations

import glob
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest

from decaylaws.queue.queue import RunQueue
from decaylaws.runs.columns import LOSS, MIX
from decaylaws.settings.evaluation import EvaluationSettings
from proxy_runs.sweep.pool import run_pool
from proxy_runs.sweep.tracking import Tracking
from proxy_runs.sweep.workspace import Workspace
from proxy_runs.testing import make_tiny_store
from tests.exporters.trainers import import_trainer
from tests.proxy_runs.tiny_runs import tiny_fork, tiny_trunk

ROLES = {"trunk": 1, "simplex": 2}
READ_TRACKIO = """
import json, sys
import trackio
from trackio.sqlite_storage import SQLiteStorage
found = {
    run.name: {"config": run.config, "points": SQLiteStorage.get_logs("decays", run.name)}
    for run in trackio.Api().runs("decays")
}
json.dump(found, sys.stdout)
"""


class Heard:
    """A listener that keeps messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        if total == 0:
            self.messages.append(note)


def sweep(folder: Path, package: str, heard: Heard) -> list[dict[str, Any]]:
    """A trunk and two forks, trained by a real pool beside a tracker; their results."""
    store = make_tiny_store(folder / "corpus")
    workspace = Workspace(
        corpus=store.directory,
        checkpoints=folder / "checkpoints",
        storage_url=f"sqlite:///{folder / 'storage.sqlite3'}",
        study_name="study",
        evaluation=EvaluationSettings(tokens_per_domain=64, points=2),
        objective={"maths": 1.0},
        slots=2,
        tracked=True,
    )
    trunk = tiny_trunk(store)
    queue = RunQueue(workspace.storage_url, "study")
    queue.enqueue([("trunk", trunk)])
    queue.enqueue([("simplex", tiny_fork(trunk, maths=0.5, steps=5, seed=seed)) for seed in (1, 2)])
    with Tracking(package, "decays", "my-study", folder / "logs", heard) as tracking:
        run_pool(workspace, workers=1, log_dir=folder / "logs", track=tracking.take)
    results = queue.results()
    assert sorted(result["row"]["role"] for result in results) == ["simplex", "simplex", "trunk"]
    return results


def assert_shown(result: Mapping[str, Any], config: Mapping[str, Any], points: list[dict[str, Any]]) -> None:
    """Configuration and figures of a run in a tracker are those of its row and its curve."""
    row = result["row"]
    for name in ("run_id", "role", "start_lr", "seed", "decay_tokens"):
        assert config[name] == row[name], name
    mixture = {name: share for name, share in config.items() if name.startswith(MIX)}
    assert mixture == {name: share for name, share in row.items() if name.startswith(MIX) and share > 0}
    shown = {
        (point["tokens"], name.removeprefix("loss/")): value
        for point in points
        for name, value in point.items()
        if name.startswith("loss/")
    }
    assert shown == {(each["tokens"], each["domain"]): each["loss"] for each in result["curve"]}
    assert {point["tokens"]: point["lr"] for point in points if "lr" in point} == {
        each["tokens"]: each["lr"] for each in result["curve"]
    }
    last = points[-1]
    assert last["reached_target"] == 1.0
    assert last["objective"] == row[f"{LOSS}maths"]


def test_trackio_holds_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_trainer("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    heard = Heard()
    results = sweep(tmp_path, "trackio", heard)
    assert heard.messages == []
    printed = subprocess.run(
        [sys.executable, "-c", READ_TRACKIO], capture_output=True, text=True, check=True
    ).stdout
    shown = json.loads(printed)
    assert len(shown) == len(results)
    for result in results:
        run = shown[f"{result['row']['role']}-{result['row']['run_id']}"]
        assert run["config"]["_Group"] == "my-study"
        points = [{**point, "tokens": point["step"]} for point in run["points"]]
        assert_shown(result, run["config"], points)


def test_optunas_dashboard_opens_a_sweep(tmp_path: Path) -> None:
    dashboard = import_trainer("optuna_dashboard")
    queue = RunQueue(f"sqlite:///{tmp_path / 'storage.sqlite3'}", "my-study/runs")
    trunk = tiny_trunk(make_tiny_store(tmp_path / "corpus"))
    queue.enqueue([("trunk", trunk), ("simplex", tiny_fork(trunk, maths=0.5, steps=5, seed=1))])
    ask = webtest(dashboard.wsgi(f"sqlite:///{tmp_path / 'storage.sqlite3'}"))
    (study,) = ask("/api/studies")["study_summaries"]
    assert study["study_name"] == "my-study/runs"
    trials = ask(f"/api/studies/{study['study_id']}")["trials"]
    assert len(trials) == 2
    assert any(attribute["key"] == "role" for attribute in trials[0]["user_attrs"])


def webtest(application: Any) -> Callable[[str], Any]:
    """Asks a WSGI application for the JSON under a path."""

    def ask(path: str) -> Any:
        environ: dict[str, Any] = {"PATH_INFO": path, "REQUEST_METHOD": "GET"}
        setup_testing_defaults(environ)
        states: list[str] = []
        content = b"".join(application(environ, lambda status, *_: states.append(status)))
        assert states[0].startswith("200"), content
        return json.loads(content)

    return ask


def test_wandb_holds_a_sweep_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_trainer("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    heard = Heard()
    results = sweep(tmp_path, "wandb", heard)
    assert heard.messages == []
    assert_in_wandb(results, tmp_path / "logs" / "wandb")


def test_without_an_account_wandb_keeps_the_runs_and_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_trainer("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # where a key would lie
    heard = Heard()
    results = sweep(tmp_path, "wandb", heard)
    (message,) = heard.messages
    assert message.startswith("Weights & Biases does not answer (")
    assert f"Runs are kept in {tmp_path / 'logs' / 'wandb'}; send them later with 'wandb sync'." in message
    assert_in_wandb(results, tmp_path / "logs" / "wandb")


CUT_OFF = """
import json, sys
from pathlib import Path
from proxy_runs import trackers
trackers.INIT_SECONDS = 2
told = []
runs = [
    trackers.WandbRun(trackers.TrackedRun(project="p", run_id=name, name=name), Path(sys.argv[1]), told.append)
    for name in ("first", "second")
]
for run in runs:
    run.write(1, {"loss": 2.5})
    run.close()
Path(sys.argv[1], "told.json").write_text(json.dumps(told))
"""


def test_where_its_server_cannot_be_reached_wandb_keeps_the_runs(tmp_path: Path) -> None:
    import_trainer("wandb")
    away = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": 40 * "a", "WANDB_MODE": "online"}
    command = [sys.executable, "-c", CUT_OFF, str(tmp_path)]
    subprocess.run(command, capture_output=True, check=True, env={**os.environ, **away})
    (told,) = json.loads((tmp_path / "told.json").read_text())
    assert told.startswith("Weights & Biases does not answer (")
    kept = [
        Path(name).parent.name for name in glob.glob(str(tmp_path / "wandb" / "offline-run-*" / "*.wandb"))
    ]
    assert sorted(name.split("-", 3)[3] for name in kept) == ["first-offline", "second"]


def assert_in_wandb(results: list[dict[str, Any]], folder: Path) -> None:
    """The files of Weights & Biases hold all results, a run each."""
    files = {Path(name).stem: Path(name) for name in glob.glob(str(folder / "*" / "*.wandb"))}
    assert len(files) == len(results)
    for result in results:
        run_id = result["row"]["run_id"]
        config, points = read_wandb(files[f"run-{run_id}"], run_id)
        assert_shown(result, config, points)


def read_wandb(path: Path, run_id: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Configuration and logged points of a run that Weights & Biases has written offline."""
    messages = import_trainer("wandb.proto.wandb_internal_pb2")
    config: dict[str, Any] = {}
    points: list[dict[str, Any]] = []
    for content in wandb_records(path.read_bytes()):
        record = messages.Record()
        record.ParseFromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            assert (run.run_id, run.run_group, run.project) == (run_id, "my-study", "decays")
            config |= {each.key: json.loads(each.value_json) for each in run.config.update}
            assert run.job_type == config["role"]
        if kind == "history":
            items = {
                each.key or each.nested_key[0]: json.loads(each.value_json) for each in record.history.item
            }
            assert items["_step"] == items["tokens"]
            points.append(items)
    return config, points


def wandb_records(content: bytes) -> Iterator[bytes]:
    """The records of a transaction log: LevelDB's format behind a header of seven bytes."""
    block, at, parts = 32768, 7, b""
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""
