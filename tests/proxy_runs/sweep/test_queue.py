"""The queue keeps its promises: each run is recorded once, whoever dies and whenever."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from decaylaws.errors import InvalidValueError, StudyError
from decaylaws.mixtures import Mixture
from decaylaws.queue import queue as queue_module
from decaylaws.queue.queue import RunQueue
from decaylaws.runs.columns import config_row
from decaylaws.runs.config import ModelShape, RunConfig
from decaylaws.schedules import decay, warmup_stable_decay

SHAPE = ModelShape(d_model=8, num_layers=1, num_heads=2, num_kv_heads=2, d_ff=8, vocab_size=16, seq_len=8)
OTHER = ModelShape(d_model=16, num_layers=1, num_heads=2, num_kv_heads=2, d_ff=8, vocab_size=16, seq_len=8)
MIXTURE = Mixture({"web": 0.5, "code": 0.5})


def trunk(shape: ModelShape = SHAPE) -> RunConfig:
    return RunConfig(
        kind="trunk",
        shape=shape,
        schedule=warmup_stable_decay(64, 1e-3, warmup_tokens=8, decay_tokens=0),
        mixture=MIXTURE,
        batch_tokens=16,
        seed=0,
        data_fingerprint="f",
    )


def fork(seed: int, shape: ModelShape = SHAPE) -> RunConfig:
    return trunk(shape).with_changes(
        kind="decay", schedule=decay(32, 1e-3), seed=seed, start_run_id=trunk(shape).run_id, start_tokens=64
    )


def result(config: RunConfig, loss: float = 2.0) -> dict[str, object]:
    return {"row": {"run_id": config.run_id, "loss:web": loss}, "curve": []}


def always(config: RunConfig) -> bool:
    return True


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'storage.sqlite3'}"


@pytest.fixture
def queue(url: str) -> RunQueue:
    return RunQueue(url, "study")


def test_a_run_is_queued_once(queue: RunQueue) -> None:
    runs = [("trunk", trunk()), ("simplex", fork(1))]
    assert queue.enqueue(runs) == 2
    assert queue.enqueue(runs) == 0
    assert queue.counts().waiting == 2


def test_a_run_that_two_machines_queue_at_once_is_trained_once(
    queue: RunQueue, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [("trunk", trunk()), ("a", fork(1))]
    other = RunQueue(url, "study")
    add = other._store.add
    monkeypatch.setattr(
        other._store, "add", lambda trial: (queue.counts().total or queue.enqueue(runs), add(trial))
    )
    monkeypatch.setattr(other, "_close_doubles", lambda: None)  # as if it had died then
    assert other.enqueue(runs) == 2
    monkeypatch.undo()
    states = [trial.state for trial in optuna.load_study(study_name="study", storage=url).trials]
    assert states == [TrialState.WAITING] * 4
    assert queue.counts().total == other.counts().waiting == 2
    claims = [*queue.claim(1, always), *other.claim(4, always)]
    assert [claim.config for claim in claims] == [trunk(), fork(1)]
    assert other.claim(4, always) == []
    queue.finish(claims[0], result(trunk()), 1.0)
    queue.fail(claims[1], "first")
    (again,) = other.claim(4, always)
    assert again.config == fork(1)
    assert other.enqueue(runs) == 0
    other.finish(again, result(fork(1)), 2.0)
    assert queue.counts().finished == queue.counts().total == 2
    assert queue.enqueue(runs) == 0
    states = [trial.state for trial in optuna.load_study(study_name="study", storage=url).trials]
    assert (states.count(TrialState.COMPLETE), states.count(TrialState.WAITING)) == (2, 0)
    assert [queue.repeat([trunk().run_id]), other.repeat([trunk().run_id])] == [1, 0]


def test_claims_are_ready_stackable_and_in_order(queue: RunQueue) -> None:
    queue.enqueue([("trunk", trunk()), ("a", fork(1)), ("b", fork(2, OTHER)), ("c", fork(3))])
    claims = queue.claim(3, ready=lambda config: config.kind == "decay")
    assert [claim.role for claim in claims] == ["a", "c"]
    assert claims[0].config == fork(1)
    assert [claim.role for claim in queue.claim(3, ready=always)] == ["trunk"]


def test_runs_that_join_a_stack_come_in_queue_order_or_not_at_all(queue: RunQueue) -> None:
    queue.enqueue([("a", fork(1)), ("b", fork(2)), ("c", fork(3, OTHER)), ("d", fork(4))])
    assert queue.claim(4, always, like=fork(9, OTHER)) == []
    assert [claim.role for claim in queue.claim(1, always, like=fork(9))] == ["a"]
    assert [claim.role for claim in queue.claim(4, always, like=fork(9))] == ["b"]
    assert queue.claim(4, always, like=fork(9)) == []
    assert [claim.role for claim in queue.claim(4, always)] == ["c"]


def test_a_run_that_raised_is_claimed_alone(queue: RunQueue) -> None:
    queue.enqueue([("a", fork(1)), ("b", fork(2))])
    for claim in queue.claim(2, always):
        assert queue.fail(claim, "first")
    queue.enqueue([("c", fork(3))])
    assert queue.claim(2, always, like=fork(9)) == []
    (alone,) = queue.claim(2, always)
    assert (alone.role, alone.is_retried) == ("a", True)
    (alone,) = queue.claim(2, always)
    assert (alone.role, alone.is_retried) == ("b", True)
    assert [claim.role for claim in queue.claim(2, always)] == ["c"]


def test_a_claimed_run_is_not_claimed_again(queue: RunQueue, url: str) -> None:
    queue.enqueue([("a", fork(1))])
    assert queue.claim(1, always)
    assert RunQueue(url, "study").claim(1, always) == []


def test_a_result_is_recorded_once(queue: RunQueue) -> None:
    queue.enqueue([("a", fork(1))])
    (claim,) = queue.claim(1, always)
    assert queue.finish(claim, result(claim.config), 2.0)
    assert not queue.finish(claim, result(claim.config, 3.0), 3.0)
    assert queue.results() == [{**result(claim.config), "role": "a"}]
    assert queue.counts().finished == 1
    assert queue.enqueue([("a", fork(1))]) == 0


def test_a_diverged_run_is_recorded_without_a_value(queue: RunQueue) -> None:
    queue.enqueue([("a", fork(1))])
    (claim,) = queue.claim(1, always)
    queue.finish(claim, result(claim.config), None)
    assert queue.counts().diverged == 1
    assert len(queue.results()) == 1


def test_a_run_that_raises_is_tried_twice(queue: RunQueue) -> None:
    queue.enqueue([("a", fork(1))])
    (claim,) = queue.claim(1, always)
    assert queue.fail(claim, "first")
    (claim,) = queue.claim(1, always)
    assert not queue.fail(claim, "second")
    assert queue.claim(1, always) == []
    assert queue.failures() == [(fork(1).run_id, "second")]
    assert queue.counts().failed == 1
    assert queue.enqueue([("a", fork(1))]) == 0
    assert queue.retry_failed() == 1
    assert queue.counts().waiting == 1


def test_an_interrupted_run_goes_back(queue: RunQueue) -> None:
    queue.enqueue([("a", fork(1))])
    (claim,) = queue.claim(1, always)
    queue.give_back(claim)
    assert queue.counts().waiting == 1
    assert queue.counts().total == 1
    (again,) = queue.claim(1, always)
    assert again.config == claim.config


def test_runs_of_a_process_that_died_here_go_back(queue: RunQueue, url: str) -> None:
    queue.enqueue([("a", fork(1))])
    code = (
        "import os, sys; from decaylaws.queue.queue import RunQueue; "
        "RunQueue(sys.argv[1], 'study').claim(1, lambda config: True); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, url], check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert queue.counts().running == 1
    assert queue.reclaim() == 1
    assert queue.counts().waiting == 1


def crash(*_: object) -> None:
    raise RuntimeError("killed")


def test_a_crash_between_recording_and_closing_loses_nothing(
    queue: RunQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.enqueue([("a", fork(1))])
    (claim,) = queue.claim(1, always)

    monkeypatch.setattr(queue._store, "close", crash)
    with pytest.raises(RuntimeError):
        queue.finish(claim, result(claim.config), 2.0)
    monkeypatch.undo()
    monkeypatch.setattr(queue_module, "is_dead_here", lambda worker: True)
    queue.reclaim()
    (again,) = queue.claim(1, always)
    assert again.result == result(claim.config)


def test_a_crash_while_giving_back_is_mended_by_the_next_enqueue(
    queue: RunQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.enqueue([("a", fork(1))])
    (claim,) = queue.claim(1, always)

    monkeypatch.setattr(queue._store, "add", crash)
    with pytest.raises(RuntimeError):
        queue.give_back(claim)
    monkeypatch.undo()
    assert queue.enqueue([("a", fork(1))]) == 1
    assert queue.counts().waiting == 1


def test_the_study_opens_in_plain_optuna(queue: RunQueue, url: str) -> None:
    queue.enqueue([("a", fork(1)), ("b", fork(2))])
    for claim in queue.claim(2, always):
        queue.finish(claim, result(claim.config), 1.0 + claim.config.seed)
    study = optuna.load_study(study_name="study", storage=url)
    assert study.best_value == 2.0
    assert study.best_trial.params["mix:code"] == 0.5
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("sqlite:///{folder}/none/storage.sqlite3", StudyError, r"unable to open database file\. The folder"),
        ("sqlite:///{folder}/text.sqlite3", StudyError, r"not a database\. It is damaged"),
        ("sqlite:///{folder}/foreign.sqlite3", StudyError, r"another version of Optuna"),
        ("sqlite:///:memory:", InvalidValueError, r"'storage' must not be in memory.*Name a file"),
        ("sqlite://", InvalidValueError, r"must not be in memory"),
        ("sqlite:///file:x?mode=memory&uri=true", InvalidValueError, r"must not be in memory"),
        ("nothing", InvalidValueError, r"'storage' is not a URL of a database.*Write postgresql://"),
        ("cobol://me:hunter2@host/runs", InvalidValueError, r"is not a URL of a database"),
        ("postgresql://me:hunter2@host:x/runs", InvalidValueError, r"is not a URL of a database"),
        (
            "mssql+pymssql://me:hunter2@host/runs",
            InvalidValueError,
            r"driver that is not installed \(pymssql\)",
        ),
    ],
)
def test_what_waiting_does_not_mend_is_said_at_once(
    tmp_path: Path, url: str, error: type[Exception], words: str
) -> None:
    (tmp_path / "text.sqlite3").write_text("no tables in here, but enough text\n" * 30, encoding="utf-8")
    foreign = sqlite3.connect(tmp_path / "foreign.sqlite3")
    foreign.execute(
        "CREATE TABLE version_info (version_info_id INTEGER, schema_version INTEGER, library_version TEXT)"
    )
    foreign.execute("INSERT INTO version_info VALUES (1, 3, '0.1')")
    foreign.commit()
    foreign.close()
    heard: list[str] = []
    with pytest.raises(error, match=words) as caught:
        RunQueue(url.format(folder=tmp_path), "study", progress=lambda *said: heard.append(said[-1]))
    assert heard == []
    assert "hunter2" not in str(caught.value)


def test_a_server_that_stays_away_is_one_error() -> None:
    pytest.importorskip("psycopg")
    with socket.socket() as unused:  # bound, and never listened to: nothing answers there
        unused.bind(("127.0.0.1", 0))
        url = f"postgresql://me:hunter2@127.0.0.1:{unused.getsockname()[1]}/runs"
        heard: list[str] = []
        with pytest.raises(
            StudyError, match=r"did not answer for 0 seconds.*Check the storage URL"
        ) as caught:
            RunQueue(url, "study", progress=lambda *said: heard.append(said[-1]), connect_seconds=0.2)
    assert "no answer" in heard[0]
    assert "hunter2" not in str(caught.value)


def test_a_short_outage_is_waited_for(queue: RunQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlalchemy.exc

    queue.enqueue([("a", fork(1))])
    calls = iter([sqlalchemy.exc.OperationalError("select", {}, OSError("gone")), None])
    original: Callable[..., object] = queue._store._study.get_trials

    def flaky(*args: object, **kwargs: object) -> object:
        error = next(calls, None)
        if error is not None:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(queue._store._study, "get_trials", flaky)
    assert queue.counts().waiting == 1


def test_machines_that_make_the_storage_at_once_all_find_it(tmp_path: Path) -> None:
    code = (
        "import sys; from decaylaws.queue.queue import RunQueue; print('ready', flush=True); sys.stdin.read(); "
        "RunQueue(sys.argv[1], 'study', progress=lambda *words: print(words))"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path / 'storage.sqlite3'}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    machines = [subprocess.Popen(command, text=True, **pipes) for _ in range(3)]
    for machine in machines:
        assert machine.stdout
        assert machine.stdout.readline() == "ready\n"
    for machine in machines:
        assert machine.stdin
        machine.stdin.close()
    for machine in machines:
        assert machine.stdout
        assert machine.stdout.read() == ""
        assert machine.wait() == 0


HAMMER = """
import sys
from decaylaws.queue.queue import RunQueue
queue, claimed = RunQueue(sys.argv[1], "study"), 0
while claims := queue.claim(1, lambda config: True):
    for claim in claims:
        claimed += queue.finish(claim, {"row": {"run_id": claim.config.run_id}, "curve": []}, 1.0)
print(claimed)
"""


@pytest.mark.slow
def test_workers_that_claim_at_once_never_share_a_run(queue: RunQueue, url: str) -> None:
    queue.enqueue([("a", fork(seed)) for seed in range(24)])
    workers = [
        subprocess.Popen([sys.executable, "-c", HAMMER, url], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    claimed = [int(worker.communicate()[0]) for worker in workers]
    assert sum(claimed) == 24
    study = optuna.load_study(study_name="study", storage=url)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 24


def test_a_result_or_a_config_that_changed_in_the_storage_is_refused(queue: RunQueue, url: str) -> None:
    queue.enqueue([("a", fork(1)), ("b", fork(2))])
    (claim,) = queue.claim(1, lambda config: config == fork(1))
    queue.finish(
        claim, {**result(claim.config), "row": {"run_id": claim.config.run_id, "loss:web": 2.5}}, 2.5
    )
    assert queue.results()[0]["row"]["loss:web"] == 2.5
    database = sqlite3.connect(url.removeprefix("sqlite:///"))
    rows = database.execute(
        "SELECT trial_user_attribute_id, key, value_json FROM trial_user_attributes"
    ).fetchall()
    for wanted, old, new, read in (
        ("result", "2.5", "2.4", lambda: RunQueue(url, "study").results()),
        ("config", '"seed": 2', '"seed": 3', lambda: RunQueue(url, "study").claim(1, always)),
    ):
        (found,) = (row for row in rows if row[1] == wanted and old in row[2])
        change = "UPDATE trial_user_attributes SET value_json = ? WHERE trial_user_attribute_id = ?"
        database.execute(change, (found[2].replace(old, new), found[0]))
        database.commit()
        with pytest.raises(
            StudyError, match=r"storage is damaged: trial \d, of run [0-9a-f]{16}, does not hold"
        ):
            read()
        database.execute(change, (found[2], found[0]))
        database.commit()
    database.execute("UPDATE trial_user_attributes SET value_json = '{' WHERE key = 'result'")
    database.commit()
    with pytest.raises(StudyError, match="holds a damaged value"):
        RunQueue(url, "study").results()
    database.close()


def test_a_queue_claims_what_it_serves_and_takes_over_what_both_plans_hold(url: str) -> None:
    old, new = (RunQueue(url, "study", serves=plan) for plan in ("old plan", "new plan"))
    assert old.enqueue([("trunk", trunk()), ("control", fork(1)), ("simplex", fork(2))]) == 3
    assert new.claim(9, always) == []
    assert new.open_runs() == []
    assert new.enqueue([("trunk", trunk()), ("read_out", fork(2)), ("simplex", fork(3))]) == 3
    (held,) = new.claim(9, always)
    claims = [held, *new.claim(9, always)]
    assert [(claim.role, claim.config) for claim in claims] == [
        ("trunk", trunk()), ("read_out", fork(2)), ("simplex", fork(3)),
    ]  # fmt: skip
    assert old.open_runs() == [fork(1)]
    new.give_back(claims[1])
    assert [claim.config for claim in new.claim(9, always)] == [
        fork(2)
    ]  # still of the plan that took it over
    assert new.counts({fork(1).run_id}).waiting == 1


def test_a_failed_run_that_a_new_plan_holds_is_told_and_can_be_retried(url: str) -> None:
    old, new = (RunQueue(url, "study", serves=plan) for plan in ("old plan", "new plan"))
    old.enqueue([("simplex", fork(1)), ("simplex", fork(2))])
    for _ in range(4):
        (claim,) = old.claim(1, always)
        old.fail(claim, "broken")
    assert new.enqueue([("simplex", fork(1))]) == 0
    assert [run_id for run_id, _ in new.failures({fork(1).run_id})] == [fork(1).run_id]
    assert new.retry_failed({fork(1).run_id}) == 1
    assert [claim.config for claim in new.claim(9, always)] == [fork(1)]


def test_a_run_measured_in_another_way_is_another_result(url: str) -> None:
    short, long = (RunQueue(url, "study", measure=tokens) for tokens in ("512 tokens", "4096 tokens"))
    for queue, loss in ((short, 2.0), (long, 3.0)):
        assert queue.enqueue([("simplex", fork(1))]) == 1
        (claim,) = queue.claim(1, always)
        queue.finish(claim, result(fork(1), loss), loss)
    assert [each["row"]["loss:web"] for each in short.results()] == [2.0]
    assert [each["row"]["loss:web"] for each in long.results()] == [3.0]
    assert len(short.every_result()) == 2


def whole(config: RunConfig, final: float) -> dict[str, object]:
    """A finished decay that falls straight from 3 to its final loss, evaluated after each of its two steps."""
    curve = [
        {"tokens": tokens, "domain": "web", "loss": 3 - (3 - final) * tokens / 32} for tokens in (0, 16, 32)
    ]
    return {"row": {**config_row(config), "loss:web": final}, "curve": curve}


def test_a_run_on_its_way_says_what_it_will_reach(queue: RunQueue) -> None:
    finals = [2.0, 2.2, 2.3, 2.5, 2.6, 2.8]
    runs = [fork(seed) for seed in range(len(finals))]
    queue.enqueue([("simplex", run) for run in [*runs, fork(99)]])
    for claim, final in zip(queue.claim(len(finals), always), finals):
        queue.finish(claim, whole(claim.config, final), final)
    (running,) = queue.claim(1, always)
    assert queue.on_the_way({"web": 1}) == []  # it has not been evaluated yet
    queue.report(running, 16, 2.7)
    (found,) = queue.on_the_way({"web": 1})
    assert (found.run_id, found.role, found.done) == (running.config.run_id, "simplex", 0.5)
    assert found.expected == pytest.approx(2.4, abs=0.02)
    assert found.lower is not None
    assert found.upper is not None
    assert found.lower < 2.4 < found.upper < found.lower + 0.2
    assert not queue.is_poor(running, 50, {"web": 1})  # the median is 2.4
    assert queue.is_poor(running, 5, {"web": 1})


def test_nothing_is_said_of_a_run_without_enough_others_of_its_kind(queue: RunQueue) -> None:
    queue.enqueue([("simplex", fork(seed, shape)) for seed in range(4) for shape in (SHAPE, OTHER)])
    for claim in queue.claim(4, always) + queue.claim(3, always):
        queue.finish(claim, whole(claim.config, 2.5), 2.5)
    (running,) = queue.claim(1, always)
    queue.report(running, 16, 2.9)
    (found,) = queue.on_the_way({"web": 1})
    assert (found.expected, found.lower, found.upper) == (None, None, None)
    queue.enqueue([("trunk", trunk())])
    (start,) = queue.claim(1, always)
    queue.report(start, 32, 4.0)
    assert [(each.role, each.done, each.expected) for each in queue.on_the_way({"web": 1})] == [
        ("simplex", 0.5, None),
        ("trunk", 0.5, None),
    ]
    assert not queue.is_poor(running, 5, {"web": 1})


def test_the_curve_of_a_run_stays_with_it_until_it_has_a_result(queue: RunQueue) -> None:
    queue.enqueue([("simplex", fork(1)), ("simplex", fork(2)), ("trunk", trunk())])
    first, second, start = queue.claim(1, always) + queue.claim(1, always) + queue.claim(1, always)
    for claim in (first, start):
        queue.note(claim, 0, {"web": 3.0, "code": 2.0})
    queue.note(first, 16, {"web": 2.5, "code": 1.5})
    (begun,) = queue.open_curves()
    assert (begun["role"], RunConfig.from_dict(begun["config"])) == ("simplex", fork(1))
    assert [(point["tokens"], point["domain"], point["loss"]) for point in begun["curve"]] == [
        (0, "web", 3.0), (0, "code", 2.0), (16, "web", 2.5), (16, "code", 1.5),
    ]  # fmt: skip
    queue.give_back(first)
    assert queue.open_curves() == [begun]
    (again,) = queue.claim(1, always)
    queue.note(again, 16, {"web": 2.4, "code": 1.5})  # it went on from an older checkpoint
    assert [point["loss"] for point in queue.open_curves()[0]["curve"]] == [3.0, 2.0, 2.4, 1.5]
    queue.finish(again, whole(fork(1), 2.0), 2.0)
    queue.note(again, 16, {"web": 9.0})  # it ended meanwhile
    assert queue.open_curves() == []
    assert second.config == fork(2)
