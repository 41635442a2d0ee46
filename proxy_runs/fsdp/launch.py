"""Start a full-scale run: torchrun on this machine, or a Slurm script for many."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from decaylaws.errors import DataError, DecaylawsError, InvalidValueError
from decaylaws.io.children import SAFE_PATH
from decaylaws.io.files import write_text
from decaylaws.io.json import read_json
from decaylaws.progress import Progress, silent
from decaylaws.recipe import Recipe
from decaylaws.recipe.doctor import examine
from decaylaws.runs.folders import require_moments
from proxy_runs.data.shards import TokenStore
from proxy_runs.environment import environment
from proxy_runs.fsdp.identity import identity_of, require_same
from proxy_runs.fsdp.metrics import last_step
from proxy_runs.fsdp.plan import TrainPlan, check_tokenizer
from proxy_runs.fsdp.settings import TrainSettings
from proxy_runs.machine import visible_gpus
from proxy_runs.trackers import require_tracker
from proxy_runs.weights.checkpoint_files import STATE_FILE

SETTINGS_FILE, LOG_FILE, METRICS_FILE, RESULT_FILE = (
    "settings.json",
    "launch.log",
    "metrics.jsonl",
    "result.json",
)
LOCK_FILE, JOB_FILE = "launch.lock", "launch.sbatch"
DIVERGED_FILE = "diverged.json"
"""Loss and gradient norm of the step at which a run gave up."""
POLL_SECONDS = 0.2
LOCK_SECONDS = 60.0
PR_SET_PDEATHSIG = 1
# a store of its own for every restart of the ranks: see proxy_runs.fsdp.parallel
FRESH_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
LOG_TAIL_LINES = 15


def default_ranks(device: str) -> int:
    """A rank for each GPU that torch may use; two where there is none."""
    return visible_gpus(device) or 2


def torchrun_command(settings_file: Path, *, ranks: int, max_restarts: int = 3) -> list[str]:
    """The command that trains on ``ranks`` processes of this machine and restarts them when one dies.

    Args:
        settings_file: JSON file of the settings.
        ranks: processes on this machine.
        max_restarts: how often a run is restarted.
    """
    if ranks < 1:
        raise InvalidValueError("launch.ranks", ranks, "must be at least 1")
    return [
        sys.executable,
        "-m",
        "proxy_runs.fsdp.torchrun",
        "--standalone",
        "--local-addr=127.0.0.1",
        f"--nproc-per-node={ranks}",
        f"--max-restarts={max_restarts}",
        "-m",
        "proxy_runs.fsdp",
        str(settings_file),
    ]


def launch(
    settings: TrainSettings, *, ranks: int = 2, max_restarts: int = 3, progress: Progress = silent
) -> dict[str, Any]:
    """Train a recipe with torchrun and wait for it; goes on where an earlier launch stopped.

    Args:
        settings: paths and policies; ``output`` gets metrics, checkpoints, log, ``hf`` and the result.
        ranks: processes on this machine.
        max_restarts: how often torchrun restarts the ranks after one died.
        progress: told the steps done and the last loss.

    Returns:
        The content of ``result.json``: start and final loss by domain, realised tokens and epochs by source.

    Raises:
        DataError, InvalidValueError: recipe, corpus or checkpoint do not fit, or the folder holds another run; found
            before anything starts.
        DecaylawsError: the run failed; the message holds its last lines.
    """
    gpus = visible_gpus(settings.device)
    if 0 < gpus < ranks:
        raise InvalidValueError(
            "launch.processes", ranks, f"must be at most {gpus}, the GPUs of this machine"
        )
    settings = settings.resolved(on_gpu=gpus > 0)
    plan = _check(settings)
    num_steps, result_file = plan.num_steps, settings.output / RESULT_FILE
    done = _finished(result_file, settings, plan)
    if done is not None:
        return done
    progress("launch", 0, 0, _said(settings, ranks, gpus))
    settings.output.mkdir(parents=True, exist_ok=True)
    settings_file = settings.save(settings.output / SETTINGS_FILE)
    command = torchrun_command(settings_file, ranks=ranks, max_restarts=max_restarts)
    with _alone_in(settings.output), open(settings.output / LOG_FILE, "ab") as log:
        start = log.tell()
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(settings),
            start_new_session=True,
            close_fds=False,
            preexec_fn=_end_with_parent,
        )
        code = _wait(process, settings.output / METRICS_FILE, num_steps, progress)
    if code != 0 or not result_file.is_file():
        raise DecaylawsError(_failure(settings.output / LOG_FILE, start, code))
    return _result(result_file)


def _said(settings: TrainSettings, ranks: int, gpus: int) -> str:
    """How the run is laid out, as far as it follows from the machine, and what changes it."""
    processes = f"{ranks} {'process' if ranks == 1 else 'processes'}"
    if gpus == ranks:
        where = f"{processes}, one for each GPU"
    else:
        where = f"{processes} on {gpus} GPUs" if gpus else f"{processes} on the CPU"
    code = "with compiled layers" if settings.compile else "without compiling"
    change = "--processes, --set dtype=... and --set compile=... change it."
    return f"Training in {where}, in {settings.dtype}, {code}. {change}"


def _check(settings: TrainSettings) -> TrainPlan:
    """Find what cannot work before processes start; returns the steps."""
    for package in settings.trackers:
        require_tracker(package)
    recipe = Recipe.load(settings.recipe)
    store = TokenStore.open(settings.corpus, verify=False)
    plan = TrainPlan(recipe, store)
    plan.first_averaged_step(settings.average_last_steps)
    if not settings.start.exists():
        raise DataError(f"There is no checkpoint at {settings.start}. Run its trunk first ('decaylaws run').")
    check_tokenizer(settings.start, store)
    for finding in examine(recipe, settings.start):
        if finding.verdict == "wrong" and finding.check != "optimizer":
            raise DataError(f"The recipe does not fit its start {settings.start}: {finding.message}")
    wants_moments = recipe.handover.optimizer_state == "load" and settings.start.is_dir()
    if wants_moments and not (settings.start / STATE_FILE).is_file():
        require_moments(settings.start)
    return plan


@with_config(ConfigDict(extra="allow", allow_inf_nan=False))
class _Result(TypedDict):
    """``result.json``, as far as who launched it reads it."""

    identity: NotRequired[dict[str, Any]]
    losses: dict[str, float]
    notes: NotRequired[list[str]]


def _result(path: Path) -> dict[str, Any]:
    """What the trainer wrote at its end."""
    remedy = "Delete it and launch again. The run continues from its last checkpoint."
    return dict(read_json(path, _Result, remedy))


def _finished(result_file: Path, settings: TrainSettings, plan: TrainPlan) -> dict[str, Any] | None:
    """The result of an earlier launch, which must be the one that is asked for."""
    if not result_file.is_file():
        return None
    result = _result(result_file)
    require_same(
        result.get("identity"), identity_of(settings, plan.recipe, plan.corpus_fingerprint), result_file
    )
    return result


@contextmanager
def _alone_in(output: Path, patience_seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the folder's lock; ranks of a launch that was killed get some time to save and end."""
    deadline = time.monotonic() + patience_seconds
    with open(output / LOCK_FILE, "ab") as file:
        # torchrun inherits the lock, so that it is held for as long as anything trains here
        os.set_inheritable(file.fileno(), True)
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DecaylawsError(
                        f"Another launch is training in {output}. Wait for it, or choose another output folder."
                    ) from None
                time.sleep(POLL_SECONDS)
        yield


def _end_with_parent() -> None:
    """Ask the kernel to send torchrun SIGTERM when this process dies, however it dies (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _environment(settings: TrainSettings) -> dict[str, str]:
    own = environment() if visible_gpus(settings.device) == 0 else {"TOKENIZERS_PARALLELISM": "false"}
    return os.environ | SAFE_PATH | own | FRESH_STORE


def _wait(process: subprocess.Popen[bytes], metrics: Path, num_steps: int, progress: Progress) -> int:
    try:
        while process.poll() is None:
            _report(metrics, num_steps, progress)
            time.sleep(POLL_SECONDS)
    except BaseException:
        # Ctrl-C: the ranks save what they have before they end
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    _report(metrics, num_steps, progress)
    return process.returncode


def _report(metrics: Path, num_steps: int, progress: Progress) -> None:
    last = last_step(metrics)
    if last is not None:
        note = "" if last["loss"] is None else f"loss {last['loss']:.4f}"
        progress("launch", last["step"], num_steps, note)


def _failure(log: Path, start: int, code: int) -> str:
    with open(log, "rb") as file:
        file.seek(start)
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if reasons:
        return reasons[0]
    failures = [line.removeprefix("failed: ") for line in lines if line.startswith("failed: ")]
    if failures:
        return f"The launched run failed: {failures[0].rstrip('.')}. The whole log is {log}."
    if code < 0:
        memory = " (short of memory?)" if code == -signal.SIGKILL else ""
        return f"torchrun was ended by signal {-code}{memory}. Launch again to go on. The whole log is {log}."
    if not lines:  # as on a full disk, where its own message finds no place either
        free = shutil.disk_usage(log.parent).free
        return (
            f"The launched run ended with exit code {code} and wrote nothing to {log}, as on a full disk; {free:,} "
            "bytes are free there now. Free space if that is too little, then launch again to go on."
        )
    tail = "\n".join(lines[-LOG_TAIL_LINES:])
    return f"The launched run ended with exit code {code}. The whole log is {log}; its last lines:\n{tail}"


def write_slurm_job(settings: TrainSettings, **options: Any) -> Path:
    """Write settings and a batch script into ``settings.output``; the script's path, for ``sbatch``.

    Args:
        settings: paths as the nodes see them.
        options: of :func:`slurm_script`.

    Raises:
        DataError, InvalidValueError: recipe, corpus or checkpoint do not fit, or the folder holds another run.
    """
    plan = _check(settings)
    # a node of a cluster has GPUs; the trainer finds out for itself
    as_on_a_node = settings.resolved(on_gpu=settings.device != "cpu")
    _finished(settings.output / RESULT_FILE, as_on_a_node, plan)
    absolute = {name: getattr(settings, name).resolve() for name in ("recipe", "corpus", "start", "output")}
    settings = settings.model_copy(update=absolute)
    settings.output.mkdir(parents=True, exist_ok=True)
    script = slurm_script(settings.save(settings.output / SETTINGS_FILE), **options)
    write_text(settings.output / JOB_FILE, script)
    return settings.output / JOB_FILE


def slurm_script(
    settings_file: Path,
    *,
    nodes: int,
    ranks_per_node: int,
    hours: float,
    job_name: str = "decaylaws",
    partition: str | None = None,
    max_restarts: int = 3,
) -> str:
    """A batch script: torchrun on every node; two minutes before the time is up it saves and is queued again.

    ``--requeue`` alone brings a job back after a dead node or a preemption, not after its time limit: the script
    forwards the signal to the ranks, waits until they have saved, and asks for its own return.

    Args:
        settings_file: the trainer's settings, as the nodes see them.
        nodes: machines.
        ranks_per_node: GPUs, hence processes, of each.
        hours: time limit of one job, at least the five minutes in which a run can load and save.
        job_name: as the queue shows it.
        partition: of the cluster; its default without one.
        max_restarts: how often torchrun restarts ranks that died.

    Raises:
        InvalidValueError: no node, no rank, or too little time.
    """
    for name, value in (("nodes", nodes), ("ranks_per_node", ranks_per_node)):
        if value < 1:
            raise InvalidValueError(f"slurm.{name}", value, "must be at least 1")
    if not 1 / 12 <= hours < float("inf"):
        raise InvalidValueError("slurm.hours", hours, "must be at least 1/12 (five minutes)")
    minutes = round(hours * 60)
    python = shlex.quote(sys.executable)
    options = [
        f"--job-name={job_name}",
        f"--nodes={nodes}",
        "--ntasks-per-node=1",
        f"--gpus-per-node={ranks_per_node}",
        f"--time={minutes}",
        "--signal=B:TERM@120",
        "--requeue",
        *([f"--partition={partition}"] if partition else []),
    ]
    header = "\n".join(f"#SBATCH {shlex.quote(option)}" for option in options)
    return f"""#!/bin/bash
{header}
set -euo pipefail
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 PYTHONSAFEPATH=1
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun {python} -m proxy_runs.fsdp.torchrun \\
  --nnodes={nodes} --nproc-per-node={ranks_per_node} --max-restarts={max_restarts} \\
  --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$head_node:29500" \\
  -m proxy_runs.fsdp {shlex.quote(str(settings_file))} &
training=$! stopped=0 code=0
trap 'stopped=1; kill -TERM "$training"' TERM
wait "$training" || code=$?
if [ "$stopped" = 1 ]; then
  # the signal ended the first wait; the ranks are saving
  code=0
  wait "$training" || code=$?
  if [ "$code" != 0 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
fi
exit "$code"
"""
