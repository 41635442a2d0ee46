"""Trackers that fail: a sweep says it once and goes on. ``test_targets_trackers.py`` has the real ones."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from decaylaws.designs.design import CorpusFacts
from decaylaws.designs.planner import Planner
from decaylaws.errors import InvalidValueError, MissingExtraError
from decaylaws.settings.study import parse_settings
from decaylaws.study import Study
from decaylaws.study.run import train
from proxy_runs.sweep import tracking
from proxy_runs.sweep.tracking import Tracking
from proxy_runs.sweep.workspace import WorkerEvent
from proxy_runs.trackers import Forgiving, require_tracker
from tests.study.tiny import TINY_SETTINGS

EVENT = WorkerEvent(
    kind="training",
    run_id="r1",
    role="proxy",
    done_tokens=64,
    total_tokens=128,
    measured={"config": {"mix:web": 0.5}, "figures": {"loss:web": 3.0}},
)
END = WorkerEvent(
    kind="finished",
    run_id="r1",
    role="proxy",
    done_tokens=128,
    total_tokens=128,
    measured={"config": {"mix:web": 0.5}, "figures": {"loss:web": 2.5, "reached_target": 1.0}},
)


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.stages: list[str] = []

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        if total == 0 and note:
            self.messages.append(note)
        else:
            self.stages.append(stage)


@pytest.fixture
def trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a module ``trackio`` (or another) with this code where the tracker's process finds it."""

    def write(code: str, module: str = "trackio") -> None:
        (tmp_path / "modules").mkdir()
        (tmp_path / "modules" / f"{module}.py").write_text(textwrap.dedent(code))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))

    return write


def follow(folder: Path, *events: WorkerEvent, package: str = "trackio") -> Heard:
    """What is heard while these events are handed to a tracker."""
    heard = Heard()
    with Tracking(package, "project", "study", folder, heard) as tracking:
        for event in events:
            tracking.take(event)
    return heard


def test_figures_reach_the_tracker_and_none_waits_for_it(
    trackio: Callable[[str], None], tmp_path: Path
) -> None:
    trackio(f"""
        import json, time

        class Run:
            def log(self, values, step):
                with open({str(tmp_path / "seen.jsonl")!r}, "a") as file:
                    file.write(json.dumps([step, values]) + "\\n")

            def finish(self):
                self.log({{"finished": 1}}, step=-1)

        def init(project, **values):
            time.sleep(0.5)
            print("a banner of the tracker")
            Run().log({{**values, "project": project}}, step=0)
            return Run()
    """)
    heard = follow(tmp_path, WorkerEvent(kind="training", run_id="r1"), EVENT, END)
    assert heard.messages == []
    first, *lines = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    assert {key: first[1][key] for key in ("project", "name", "group", "resume", "config")} == {
        "project": "project",
        "name": "proxy-r1",
        "group": "study",
        "resume": "allow",
        "config": {"role": "proxy", "run_id": "r1", "mix:web": 0.5},
    }
    assert lines == [
        [64, {"tokens": 64, "loss/web": 3.0}],
        [128, {"tokens": 128, "loss/web": 2.5, "reached_target": 1.0}],
        [-1, {"finished": 1}],
    ]
    assert "a banner" in (tmp_path / "tracker.log").read_text()


FAILURES = {
    "it cannot begin": "def init(*_, **__): raise ConnectionError('no route to host')",
    "it fails on the way": """
        class Run:
            def log(self, values, step): raise OSError("disk full")
            def finish(self): raise OSError("disk full")
        def init(*_, **__): return Run()
    """,
    "it only warns": """
        import warnings
        class Run:
            def log(self, values, step): warnings.warn(f"step {step} is lost")
            def finish(self): warnings.warn("all is lost")
        def init(*_, **__): return Run()
    """,
    "it dies": "import os\ndef init(*_, **__): os._exit(7)",
}
WORDS = {
    "it cannot begin": "Trackio does not take the figures (no route to host). Training goes on without it.",
    "it fails on the way": "Trackio does not take the figures (disk full). Training goes on without it.",
    "it only warns": "Trackio: step 64 is lost.",
    "it dies": "Trackio stopped with exit code 7.",
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_tracker_that_fails_is_told_once(
    failure: str, trackio: Callable[[str], None], tmp_path: Path
) -> None:
    trackio(FAILURES[failure])
    # more than a pipe holds: nobody may wait for a process that is gone or does not read
    others = [WorkerEvent(**{**vars(EVENT), "run_id": f"r{k}"}) for k in range(2, 400)]
    heard = follow(tmp_path, EVENT, END, *others)
    assert heard.messages == [f"{WORDS[failure]} See {tmp_path / 'tracker.log'}."]


def test_without_its_server_wandb_keeps_every_run(trackio: Callable[..., None], tmp_path: Path) -> None:
    trackio(
        f"""
        import json, os, types
        errors = types.SimpleNamespace(Error=ConnectionError)
        begun = set()

        def Settings(**values):
            return values

        class Run:
            def __init__(self, name):
                self.name = name
            def log(self, values, step):
                with open({str(tmp_path / "seen.jsonl")!r}, "a") as file:
                    file.write(json.dumps([self.name, step]) + "\\n")
            def finish(self):
                pass

        def init(id, mode="online", **values):
            os.write(1, b"a word of a process of its own\\n")
            if mode == "online" or id in begun:
                begun.add(id)
                raise ConnectionError("no route" if mode == "online" else "in use")
            return Run(id)
        """,
        "wandb",
    )
    other = WorkerEvent(**{**vars(EVENT), "run_id": "r2"})
    heard = follow(tmp_path, EVENT, other, END, package="wandb")
    assert heard.messages == [
        f"Weights & Biases does not answer (no route). Runs are kept in {tmp_path / 'wandb'}; send them later with "
        f"'wandb sync'. See {tmp_path / 'tracker.log'}."
    ]
    seen = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    assert seen == [["r1-offline", 64], ["r2", 64], ["r1-offline", 128]]


def test_a_tracker_that_hangs_is_left_behind(
    trackio: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 0.5)
    trackio("import time\ndef init(*_, **__): time.sleep(1000)")
    others = [WorkerEvent(**{**vars(EVENT), "run_id": f"r{k}"}) for k in range(2, 400)]
    heard = follow(tmp_path, EVENT, *others)
    assert heard.messages == [
        f"Trackio has not taken all figures within 0 seconds. See {tmp_path / 'tracker.log'}."
    ]


def test_no_process_starts_before_there_are_figures(tmp_path: Path) -> None:
    assert follow(tmp_path, WorkerEvent(kind="waiting")).stages == []
    assert not (tmp_path / "tracker.log").exists()


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    study = Study(tmp_path, parse_settings({**TINY_SETTINGS, "tracker": "wandb"}))
    planner = Planner(study.settings, CorpusFacts("text", 300, dict.fromkeys(study.settings.sources, 60_000)))
    with pytest.raises(MissingExtraError, match=r"Weights & Biases needs .* 'decaylaws\[wandb\]'"):
        train(study, planner, [], serves="nothing")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(MissingExtraError):
        require_tracker("wandb")


def test_a_tracker_decides_nothing(tmp_path: Path) -> None:
    plain = Study(tmp_path, parse_settings(TINY_SETTINGS))
    for tracker in ("trackio", {"kind": "wandb", "project": "decays"}):
        tracked = Study(tmp_path, parse_settings({**TINY_SETTINGS, "tracker": tracker}))
        assert tracked.settings.tracker is not None
        assert tracked.decisive_settings() == plain.decisive_settings()


@pytest.mark.parametrize("tracker", ["mlflow", {"kind": "wandb", "entity": "team"}, ["wandb"], {}])
def test_other_trackers_are_refused_by_name(tracker: Any) -> None:
    with pytest.raises(InvalidValueError, match="'tracker"):
        parse_settings({**TINY_SETTINGS, "tracker": tracker})


def test_a_tracker_that_has_failed_gets_nothing_more() -> None:
    told: list[str] = []
    seen: list[int] = []

    class Once:
        def write(self, step: int, scalars: Any) -> None:
            seen.append(step)
            raise RuntimeError

        def close(self) -> None:
            seen.append(-1)

    tracker = Forgiving("tensorboard", Once, told.append)
    for step in (1, 2):
        tracker.write(step, {})
    tracker.close()
    assert seen == [1]
    assert told == ["TensorBoard does not take the figures (RuntimeError). Training goes on without it."]
