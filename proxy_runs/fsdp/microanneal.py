"""One run of a sweep in the FSDP trainer: the plan of a run as a recipe, its progress and its result as the queue's.

The recipe has one stage with the run's schedule, mixture, batch and pools, so that the trainer reads the sequences and
takes the LRs that the stacked trainer would, and that ``decaylaws launch`` of the same plan does.
"""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from decaylaws.errors import DecaylawsError
from decaylaws.progress import Progress, silent
from decaylaws.recipe import HandOver, OptimizerSettings, Recipe, Source, Stage
from decaylaws.recipe.files import read_mapping
from decaylaws.runs.columns import DIVERGED, FINISHED, PRUNED
from decaylaws.runs.config import RunConfig
from decaylaws.schedules import Schedule, Segment
from decaylaws.settings.evaluation import EvaluationSettings
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine.heldout import EvaluationSet
from proxy_runs.engine.run import Run, RunResult
from proxy_runs.fsdp.launch import DIVERGED_FILE, METRICS_FILE, launch
from proxy_runs.fsdp.layout import DEFAULT_LAYOUT, Layout
from proxy_runs.fsdp.listener import Listener, PrunedError, StoppedError
from proxy_runs.fsdp.metrics import last_step, read_metrics
from proxy_runs.fsdp.parallel import alone
from proxy_runs.fsdp.settings import TrainSettings
from proxy_runs.fsdp.trainer import Trainer
from proxy_runs.fsdp.watch import DivergedError

MODEL_FOLDER = "hf"


def train_run(
    config: RunConfig,
    store: TokenStore,
    *,
    start: Path,
    output: Path,
    evaluation: EvaluationSettings,
    on_result: Callable[[RunResult], None],
    layout: Layout = DEFAULT_LAYOUT,
    keep_model: Path | None = None,
    progress: Progress = silent,
    should_stop: Callable[[], bool] = lambda: False,
    should_prune: Callable[[RunConfig, int, Mapping[str, float]], bool] = lambda *_: False,
    on_losses: Callable[[RunConfig, int, Mapping[str, float]], None] = lambda *_: None,
) -> None:
    """Train, or only measure, one run that starts from a Hugging Face folder; see ``proxy_runs.engine.train``.

    Args:
        config: the plan.
        store: the prepared corpus.
        start: folder of the checkpoint, whose content was compared with the plan's.
        output: where checkpoints and metrics go on the way; it is deleted once ``on_result`` has returned.
        evaluation: held-out tokens per domain, and how often a run is evaluated.
        on_result: told how the run ended.
        layout: processes and memory.
        keep_model: where the trained model is left as a Hugging Face folder; ``None`` leaves none.
        progress: told ``(run_id, own tokens done, own tokens planned, note)``.
        should_stop: asked between steps; when true, the state is saved and the call returns without a result.
        should_prune: asked after an evaluation on the way with (plan, own tokens, loss: and bpb: columns); true ends
            the run.
        on_losses: told of every evaluation, that at the start too, with (plan, own tokens, losses).

    Raises:
        InvalidValueError, InfeasibleError: the plan cannot be run on this corpus.
        DataError: the checkpoint is damaged or does not fit.
    """
    run = Run(config, store, points=evaluation.points)
    windows = EvaluationSet.build(
        store, seq_len=config.shape.seq_len, tokens_per_domain=evaluation.tokens_per_domain
    )
    listener = _SweepListener(run, windows, progress, should_stop, should_prune, on_losses)
    output.mkdir(parents=True, exist_ok=True)
    recipe_file = recipe_of(config, str(start)).save(output / "recipe.json")
    settings = TrainSettings.checked(
        recipe=recipe_file,
        corpus=store.directory,
        start=start,
        output=output,
        device=layout.device,
        dtype=config.arithmetic.precision,
        compile=config.arithmetic.compiled,
        micro_batch_sequences=max(1, layout.micro_batch_tokens // config.shape.seq_len),
        activation_checkpointing=layout.activation_checkpointing,
        checkpoint_interval=0,
        checkpoint_seconds=layout.save_seconds,
        save_model=keep_model is not None,
        keep_last=1,
        eval_points=evaluation.points,
        eval_tokens_per_domain=evaluation.tokens_per_domain,
        eval_at_ends=evaluation.asked_at_ends,
        # a run of a sweep is judged by what its plan does, so that nothing is skipped
        max_skipped_steps=0,
        max_loss_jump=None,
    )
    status, reason = FINISHED, ""
    try:
        if config.is_trained and layout.processes > 1:
            _under_torchrun(settings, listener, layout.processes)
        else:
            _in_this_process(settings, listener, store)
    except StoppedError:
        return
    except PrunedError:
        status, reason = PRUNED, f"pruned at step {run.step}"
    except DivergedError as error:
        what = f"loss {error.loss}, gradient norm {error.norm}"
        status, reason = DIVERGED, f"diverged at step {run.step + 1}: {what}"
    if keep_model is not None and status == FINISHED:
        shutil.rmtree(keep_model, ignore_errors=True)
        (output / MODEL_FOLDER).rename(keep_model)
    on_result(run.result(status, reason, windows))
    shutil.rmtree(output, ignore_errors=True)


def recipe_of(config: RunConfig, checkpoint: str) -> Recipe:
    """The plan of a run from a checkpoint as a recipe of one stage; for a checkpoint itself, one step of it.

    Args:
        config: the plan.
        checkpoint: where the checkpoint lies.
    """
    assert config.start is not None
    # of a checkpoint itself nothing is trained: the trainer measures before its first step
    one_step = Schedule((Segment(config.batch_tokens, config.start.lr, config.start.lr),))
    pools = config.pool_tokens or {}
    return Recipe(
        name=config.run_id,
        handover=HandOver(
            checkpoint=checkpoint,
            run_id=config.start_run_id,
            tokens=config.start.tokens,
            lr=config.start.lr,
            optimizer_state=config.start.optimizer_state,
            lr_jump=True,  # a design asks for other start LRs on purpose
        ),
        stages=(
            Stage(
                lr=config.schedule if config.is_trained else one_step,
                mixture=config.mixture,
                batch_tokens=config.batch_tokens,
                seq_len=config.shape.seq_len,
            ),
        ),
        sources={name: Source(available_tokens=pools.get(name)) for name in config.mixture.names},
        optimizer=OptimizerSettings.of(config.optimizer.to_dict()),
        seed=config.seed,
        provenance={"data_fingerprint": config.data_fingerprint},
    )


def _in_this_process(settings: TrainSettings, listener: _SweepListener, store: TokenStore) -> None:
    gc.freeze()  # torch and transformers make hundreds of thousands of objects, which the collection below passes by
    try:
        with alone(settings.device) as world:
            trainer = Trainer(settings, world, listener=listener, store=store)
            trainer.measure_start()
            for point in trainer.history():
                listener.note(point["step"], point["losses"], point.get("columns", {}))
            if listener.trains:
                trainer.train()
            del trainer
    finally:
        gc.collect()  # a sharded model has cycles, and the next run needs its memory
        gc.unfreeze()


def _under_torchrun(settings: TrainSettings, listener: _SweepListener, processes: int) -> None:
    """Train on ranks of their own; what they write into the metrics is told as it comes."""
    metrics, diverged = settings.output / METRICS_FILE, settings.output / DIVERGED_FILE
    diverged.unlink(missing_ok=True)

    def follow(stage: str, done: float, total: float, note: str = "") -> None:
        if listener.wants_stop:
            raise StoppedError("The run was asked to stop.")
        last = last_step(metrics)
        if last is None or last["step"] == listener.step:
            return
        for line in read_metrics(metrics):
            is_new = "heldout" in line and line["step"] > listener.measured_step
            if is_new and listener.measured(line["step"], line["heldout"], line.get("columns", {})):
                raise PrunedError(f"Pruned after step {line['step']}.")
        listener.stepped(last["tokens"], math.nan if last["loss"] is None else last["loss"])

    try:
        result = launch(settings, ranks=processes, progress=follow)
    except DecaylawsError:
        if diverged.is_file():
            said = read_mapping(diverged)
            raise DivergedError(said["message"], loss=float(said["loss"]), norm=float(said["norm"])) from None
        raise
    for point in [
        {"step": 0, "losses": result["start_losses"], "columns": result["start_columns"]},
        *result["evaluations"],
    ]:
        if point["step"] > listener.measured_step:
            listener.note(point["step"], point["losses"], point.get("columns", {}))


class _SweepListener(Listener):
    """Passes on what a trainer says to those who wait for the run, in their terms."""

    def __init__(
        self,
        run: Run,
        windows: EvaluationSet,
        progress: Progress,
        should_stop: Callable[[], bool],
        should_prune: Callable[[RunConfig, int, Mapping[str, float]], bool],
        on_losses: Callable[[RunConfig, int, Mapping[str, float]], None],
    ) -> None:
        self._run = run
        self._windows = windows
        self._progress = progress
        self._should_prune = should_prune
        self._on_losses = on_losses
        self._should_stop = should_stop
        self.measured_step = -1
        """Steps behind the run when it was last evaluated."""

    @property
    def trains(self) -> bool:
        """Whether the run takes any steps."""
        return self._run.config.is_trained

    @property
    def step(self) -> int:
        """Steps behind the run."""
        return self._run.step

    @property
    def wants_stop(self) -> bool:  # type: ignore[override]
        return self._should_stop()

    def stepped(self, tokens: int, loss: float) -> None:
        config = self._run.config
        self._run.step = -(-tokens // config.batch_tokens)
        self._progress(config.run_id, tokens, config.tokens, f"loss {loss:.3f}")

    def note(self, step: int, losses: Mapping[str, float], columns: Mapping[str, float]) -> None:
        """Record an evaluation, of which nothing more is asked."""
        self._run.step = self.measured_step = step
        self._run.note_losses(losses, columns)
        self._on_losses(self._run.config, self._run.tokens, losses)

    def measured(self, step: int, losses: Mapping[str, float], columns: Mapping[str, float]) -> bool:
        run = self._run
        self.note(step, losses, columns)
        on_the_way = step > 0 and not run.is_done
        return on_the_way and self._should_prune(run.config, run.tokens, self._windows.row(losses))
