"""A worker process: claims runs from the queue, trains them as stacks, records them, until none is left.

Started by ``proxy_runs.sweep.pool`` as ``python -m proxy_runs.sweep.worker WORKSPACE_JSON``. The
storage's URL is in its environment. It speaks JSON lines on its standard output and listens on its standard input,
whose end means that its parent is gone or wants it to stop: then it saves a checkpoint, gives its runs back and leaves.
"""

from __future__ import annotations

import functools
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from decaylaws.errors import DecaylawsError
from decaylaws.queue.queue import Claim
from decaylaws.runs.columns import (
    AVERAGED_LOSS,
    BPB,
    EVALUATION,
    EVALUATION_SETS,
    LOSS,
    READ_OUT,
    config_row,
)
from decaylaws.runs.config import RunConfig
from decaylaws.runs.objective import objective_value, weighed_columns
from proxy_runs.answers.prepared import PreparedSets
from proxy_runs.compiled_code import clear_unfinished, forget_compiled_code, is_unfinished_code
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine import Backend, RunResult, train
from proxy_runs.engine.averaging import averaged_losses, averaged_tokens
from proxy_runs.engine.backend import own_stream
from proxy_runs.engine.readouts import checkpoint_tokens, read_out
from proxy_runs.memory import device_bytes
from proxy_runs.sweep.engines import FSDP, engine_of, stack_slots
from proxy_runs.sweep.heart import Heart
from proxy_runs.sweep.workspace import (
    EXIT_DEVICE,
    EXIT_ERROR,
    STOP_PATIENCE_SECONDS,
    STORAGE_VARIABLE,
    WorkerEvent,
    Workspace,
    open_queue,
)
from proxy_runs.weights.checkpoint_files import final_checkpoint, forget_kept
from proxy_runs.weights.held import HeldCheckpoints

IDLE_SECONDS = 0.5
RECLAIM_SECONDS = 5.0

Say = Callable[[WorkerEvent], None]


class Worker:
    """Works a queue off.

    Args:
        workspace: data, queue and settings; who started the worker has verified the corpus.
        say: told what happens.
        stop: looked at between optimiser steps, and ends a pause at once.
    """

    def __init__(self, workspace: Workspace, say: Say, stop: threading.Event) -> None:
        self._workspace = workspace
        self._say = say
        self._stop = stop
        self._queue = open_queue(workspace, progress=self._storage_waits)
        self._store = TokenStore.open(workspace.corpus, verify=False)
        self._held = HeldCheckpoints(workspace.held)
        self._device = Backend(device=workspace.device).torch_device
        self._memory_bytes = device_bytes(self._device) / workspace.workers
        self._aside = ThreadPoolExecutor(max_workers=1, thread_name_prefix="averages")
        self._sets = PreparedSets.open(self._store).fingerprint
        self._last_reclaim = 0.0

    def run(self) -> None:
        """Claim and train until nothing is left that this worker could do."""
        while not self._stop.is_set():
            asked = time.monotonic()
            self._reclaim_now_and_then()
            claims = self._queue.claim(self._slots_for, self._is_ready)
            if claims:
                self._work(claims)
            elif self._nothing_to_wait_for():
                return
            else:
                self._say(WorkerEvent(kind="waiting"))
                # reading a long queue takes a second: who idles leaves the storage to the others most of the time
                self._stop.wait(max(IDLE_SECONDS, 9 * (time.monotonic() - asked)))

    def _slots_for(self, config: RunConfig) -> int:
        """Runs like ``config`` to train at once; one in the FSDP trainer."""
        if self._is_sharded(config):
            return 1
        return max(1, stack_slots(config, self._workspace.slots_for(config), self._memory_bytes))

    def _is_sharded(self, config: RunConfig) -> bool:
        return engine_of(config, self._workspace.engine, self._memory_bytes) == FSDP

    def _nothing_to_wait_for(self) -> bool:
        """True when no run is in flight: what still waits then waits for a trunk that failed."""
        counts = self._queue.counts()
        return counts.running == 0 and not self._queue.claimable(self._is_ready)

    def _reclaim_now_and_then(self) -> None:
        if time.monotonic() - self._last_reclaim > RECLAIM_SECONDS:
            self._queue.reclaim()
            self._last_reclaim = time.monotonic()

    def _is_ready(self, config: RunConfig) -> bool:
        start = config.start_run_id
        return (
            start is None
            or config.start is not None
            or final_checkpoint(self._workspace.checkpoints, start).is_file()
        )

    def _work(self, claims: list[Claim]) -> None:
        with Heart(self._queue, claims) as heart:
            try:
                self._train(heart)
            except (DecaylawsError, OSError):
                # a damaged shard or a full disk is not the run's fault: no other run would fare better
                self._return(heart)
                raise
            except torch.AcceleratorError:
                # every later call of this process would fail as well, and take the whole queue with it
                self._return(heart)
                raise
            except Exception as error:
                if (
                    is_unfinished_code(error)
                    and clear_unfinished(older_than_seconds=0) + forget_compiled_code()
                ):
                    self._return(heart)  # the code is built anew with the next claim
                else:
                    self._fail(heart, traceback.format_exc())
            self._return(heart)

    def _train(self, heart: Heart) -> None:
        if self._is_sharded(heart.held[0].config):
            for config in self._untrained(heart, heart.held):
                self._train_sharded(heart, config)
            return
        where = self._workspace
        is_alone = any(claim.is_retried for claim in heart.held)

        def more(like: RunConfig, count: int) -> list[RunConfig]:
            if is_alone or self._stop.is_set():
                return []
            self._reclaim_now_and_then()
            claims = self._queue.claim(count, self._is_ready, like=like)
            heart.hold(claims)
            return self._untrained(heart, claims)

        train(
            self._untrained(heart, heart.held),
            self._store,
            checkpoint_dir=where.checkpoints,
            held=self._held,
            slots=self._slots_for(heart.held[0].config),
            device=where.device,
            evaluation=where.evaluation,
            keep_at=lambda config: self._kept(heart.claim(config.run_id)),
            more=more,
            on_result=functools.partial(self._end, heart),
            should_prune=functools.partial(self._is_poor, heart),
            on_losses=functools.partial(self._tell_losses, heart),
            progress=functools.partial(self._tell, heart),
            should_stop=self._stop.is_set,
        )

    def _train_sharded(self, heart: Heart, config: RunConfig) -> None:
        from proxy_runs.fsdp.microanneal import train_run  # the stacked trainer does without transformers

        assert config.start is not None
        where = self._workspace
        keeps = where.keep_checkpoints and config.kind == "decay"
        output = where.checkpoints / f"{config.run_id}.fsdp"
        averages = config.kind == "average"
        train_run(
            config,
            self._store,
            start=self._held.mean_folder(config.start, output / "mean")
            if averages
            else self._held.folder(config.start),
            output=output,
            evaluation=where.evaluation,
            layout=replace(where.layout, device=where.device),
            keep_model=where.checkpoints / f"{config.run_id}-{config.tokens}" if keeps else None,
            on_result=functools.partial(self._finish, heart),
            should_prune=functools.partial(self._is_poor, heart),
            on_losses=functools.partial(self._tell_losses, heart),
            progress=functools.partial(self._tell, heart),
            should_stop=self._stop.is_set,
        )

    def _tell(self, heart: Heart, stage: str, done: float, total: float, note: str = "") -> None:
        self._say(self._event("training", heart.claim(stage), note, done_tokens=int(done)))

    def _untrained(self, heart: Heart, claims: list[Claim]) -> list[RunConfig]:
        """The runs of ``claims`` without a result; what a worker recorded before it died is closed."""
        for claim in claims:
            if claim.result is not None:
                self._record(heart.drop(claim.config.run_id), claim.result)
        return [claim.config for claim in claims if claim.result is None]

    def _is_poor(self, heart: Heart, config: RunConfig, tokens: int, row: Mapping[str, float]) -> bool:
        """Report where a run stands; whether it is a sampler's proposal that is not worth its end."""
        claim, where = heart.claim(config.run_id), self._workspace
        if not weighed_columns(where.objective, where.objective_unit) <= set(row):
            return False  # a question set of the objective is not asked on the way
        self._queue.report(claim, tokens, objective_value(row, where.objective, where.objective_unit))
        percentile = where.prune.get(claim.role)
        return percentile is not None and self._queue.is_poor(
            claim, percentile, where.objective, where.objective_unit
        )

    def _tell_losses(self, heart: Heart, config: RunConfig, tokens: int, losses: Mapping[str, float]) -> None:
        """Note an evaluation of a decay on its way, and tell a tracker."""
        if config.kind == "decay" and tokens < config.tokens:
            self._queue.note(heart.claim(config.run_id), tokens, losses)
        if self._workspace.tracked:
            figures = {"lr": float(config.schedule.lr(tokens))}
            figures |= {LOSS + domain: loss for domain, loss in losses.items()}
            self._say(
                self._event("training", heart.claim(config.run_id), "", done_tokens=tokens, figures=figures)
            )

    def _end(self, heart: Heart, result: RunResult) -> Future[None] | None:
        """Record a run that has ended; in a thread where averages of its checkpoints are to be measured first."""
        claim = heart.claim(result.run_id)
        if result.row["reached_target"] and (claim.role == READ_OUT or claim.config.kind == "trunk"):
            return self._aside.submit(self._finish, heart, result)
        self._finish(heart, result)
        return None

    def _finish(self, heart: Heart, result: RunResult) -> None:
        """Record a run with what its checkpoints tell, and delete those that nobody needs."""
        claim, where = heart.claim(result.run_id), self._workspace
        # what the run's config does not say and its numbers depend on
        measured: dict[str, Any] = {EVALUATION: where.evaluation.tokens_per_domain}
        if self._sets:  # a study without them keeps its tables
            measured[EVALUATION_SETS] = self._sets
        row = {**result.row, "role": claim.role}
        found: dict[str, Any] = {"curve": [{**point, **measured} for point in result.curve]}
        given = claim.config, self._store, where.checkpoints, where.evaluation, self._device
        with own_stream(self._device):
            if row["reached_target"] and claim.config.kind == "trunk":
                row |= averaged_losses(*given)  # of the mean of its last weights
            if row["reached_target"] and claim.role == READ_OUT:
                found["read_outs"] = [{**each, **measured} for each in read_out(*given)]
        self._record(heart.drop(result.run_id), {"row": {**row, **measured}, **found})
        staying = [claim.config.tokens] if where.keep_checkpoints else []
        forget_kept(where.checkpoints, result.run_id, set(self._kept(claim)).difference(staying))

    def _kept(self, claim: Claim) -> list[int]:
        """Own tokens at which a run keeps a checkpoint."""
        config = claim.config
        if claim.role == READ_OUT:
            return checkpoint_tokens(config)
        if config.kind == "trunk":
            return averaged_tokens(config)
        return [config.tokens] if self._workspace.keep_checkpoints and config.kind == "decay" else []

    def _record(self, claim: Claim, result: dict[str, Any]) -> None:
        row = result["row"]
        where = self._workspace
        value = objective_value(row, where.objective, where.objective_unit) if row["reached_target"] else None
        recorded = self._queue.finish(claim, result, value)
        kind = row["status"] if recorded else "returned"
        note = f"{value:.4f}" if value is not None else str(row["reason"])
        figures = {
            name: float(value)
            for name, value in row.items()
            if name.startswith((LOSS, AVERAGED_LOSS, BPB)) or name == "reached_target"
        }
        figures |= {"objective": value} if value is not None else {}
        done = claim.config.tokens if claim.config.is_trained else 0
        self._say(self._event(kind, claim, note, done_tokens=done, figures=figures))

    def _fail(self, heart: Heart, log: str) -> None:
        for claim in heart.held:
            heart.drop(claim.config.run_id)
            again = self._queue.fail(claim, log)
            last_line = log.strip().splitlines()[-1]
            self._say(self._event("returned" if again else "failed", claim, last_line))

    def _return(self, heart: Heart) -> None:
        for claim in heart.held:
            self._queue.give_back(heart.drop(claim.config.run_id))
            self._say(self._event("returned", claim, "interrupted"))

    def _event(
        self,
        kind: str,
        claim: Claim,
        note: str,
        *,
        done_tokens: int = 0,
        figures: Mapping[str, float] | None = None,
    ) -> WorkerEvent:
        is_shown = self._workspace.tracked and figures is not None
        return WorkerEvent(
            kind=kind,
            run_id=claim.config.run_id,
            role=claim.role,
            done_tokens=done_tokens,
            total_tokens=claim.config.tokens if claim.config.is_trained else 0,
            note=note,
            measured={"config": config_row(claim.config), "figures": figures} if is_shown else None,
        )

    def _storage_waits(self, stage: str, done: float, total: float, note: str = "") -> None:
        self._say(WorkerEvent(kind="waiting", note=f"{stage}: {note}"))


def _say(event: WorkerEvent) -> None:
    try:
        sys.stdout.write(event.to_line() + "\n")
        sys.stdout.flush()
    except (BrokenPipeError, ValueError):
        pass  # nobody listens any more; the end of standard input will stop us


def _watch_parent(stop: threading.Event) -> None:
    """Stop when standard input ends; leave at once if stopping takes too long."""
    while os.read(0, 4096):
        pass
    stop.set()
    time.sleep(STOP_PATIENCE_SECONDS)
    os._exit(1)


def main(arguments: Sequence[str]) -> int:
    """Entry point of the process; returns its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends our standard input
    stop = threading.Event()
    threading.Thread(target=_watch_parent, args=(stop,), daemon=True).start()
    clear_unfinished()
    try:
        workspace = Workspace.from_json(arguments[0], os.environ[STORAGE_VARIABLE])
        Worker(workspace, _say, stop).run()
    except torch.AcceleratorError:
        sys.stderr.write(traceback.format_exc())
        return EXIT_DEVICE
    except DecaylawsError as error:
        _say(WorkerEvent(kind="error", note=str(error)))
        return EXIT_ERROR
    except OSError as error:
        _say(WorkerEvent(kind="error", note=f"{error.strerror}: {error.filename or 'the study'}"))
        return EXIT_ERROR
    finally:
        gc.freeze()  # else the interpreter looks for garbage in all of torch before it ends: half a second
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
