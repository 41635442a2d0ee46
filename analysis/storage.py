"""Which file holds up under many local workers: SQLite as the queue opens it, plain SQLite, Optuna's journal file.

    python analysis/storage.py [--workers 8] [--trials 120] [--json OUT]

Every worker claims waiting trials in order, stores a result of 2 kB with each and closes it, as fast as the storage
lets it. ``claims`` above the number of trials are runs that two workers would have trained.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
from _common import run, write_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from decaylaws.queue.storage import Patience, change_state, open_storage

KINDS = ("sqlite", "plain_sqlite", "journal")
RESULT = "x" * 2_000


def open_as(kind: str, folder: Path) -> BaseStorage:
    """The storage of that kind in ``folder``."""
    url = f"sqlite:///{folder / 'storage.sqlite3'}"
    if kind == "journal":
        return JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    if kind == "plain_sqlite":
        return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 120}})
    return open_storage(url)


def work(kind: str, folder: Path) -> None:
    """Be a worker: claim, record and close until nothing waits; print how many claims were granted."""
    patiently = Patience()
    storage = patiently(lambda: open_as(kind, folder))
    study = optuna.load_study(study_name="study", storage=storage)
    change = (
        change_state if kind == "sqlite" else lambda storage, *args: storage.set_trial_state_values(*args)
    )
    claims = 0
    print("ready", flush=True)
    sys.stdin.readline()
    while waiting := patiently(lambda: study.get_trials(deepcopy=False, states=(TrialState.WAITING,))):
        for trial in waiting:
            number = trial._trial_id
            try:
                if not patiently(lambda number=number: change(storage, number, TrialState.RUNNING)):
                    continue
                claims += 1
                patiently(lambda number=number: storage.set_trial_user_attr(number, "result", RESULT))
                patiently(lambda number=number: change(storage, number, TrialState.COMPLETE, [1.0]))
            except UpdateFinishedTrialError:
                continue
    print(claims)


def measure(kind: str, workers: int, trials: int) -> dict[str, float]:
    """Claims and seconds of ``workers`` on ``trials``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study = optuna.create_study(study_name="study", storage=open_as(kind, folder))
        for _ in range(trials):
            study.add_trial(create_trial(state=TrialState.WAITING))
        command = [sys.executable, __file__, "--serve", kind, name]
        pool = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(workers)
        ]
        for worker in pool:
            worker.stdout.readline()
        started = time.perf_counter()
        for worker in pool:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        claims = sum(int(worker.communicate()[0]) for worker in pool)
        seconds = time.perf_counter() - started
        done = len(study.get_trials(states=(TrialState.COMPLETE,)))
    return {"claims": claims, "complete": done, "seconds": seconds, "claims_per_second": claims / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--trials", type=int, default=120)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if args.serve:
        work(args.serve[0], Path(args.serve[1]))
        return
    print(f"{args.workers} workers, {args.trials} trials")
    found = {}
    for kind in KINDS:
        found[kind] = measure(kind, args.workers, args.trials)
        print(f"{kind:14}{json.dumps(found[kind])}", flush=True)
    if args.json:
        write_json(args.json, {"workers": args.workers, "trials": args.trials, "storages": found})


if __name__ == "__main__":
    run(main)
