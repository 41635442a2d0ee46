"""The training loop: a plan, a sharded model, checkpoints, metrics, and a Hugging Face folder at the end."""

from __future__ import annotations

import math
import signal
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from decaylaws.errors import DecaylawsError, InvalidValueError
from decaylaws.files import write_text
from decaylaws.recipe import Recipe
from decaylaws.recipe.files import to_json
from proxy_runs.evaluate import EvaluationSet
from proxy_runs.fsdp.average import TailAverage
from proxy_runs.fsdp.checkpoint import Checkpoints
from proxy_runs.fsdp.evaluate import heldout_losses
from proxy_runs.fsdp.export import export_hf
from proxy_runs.fsdp.metrics import MetricsFile
from proxy_runs.fsdp.model import exchange_gradients, named_parameters, shard_model
from proxy_runs.fsdp.optimizer import ShardedAdamW
from proxy_runs.fsdp.parallel import World
from proxy_runs.fsdp.plan import Step, TrainPlan
from proxy_runs.fsdp.settings import TrainSettings
from proxy_runs.fsdp.start import load_start
from proxy_runs.shards import TokenStore

METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"


class StoppedError(DecaylawsError):
    """The run was asked to stop (SIGTERM) and has saved what it had; launch again to go on."""


class Trainer:
    """One rank of a full-scale run.

    Args:
        settings: paths and policies.
        world: this rank among its peers.
    """

    def __init__(self, settings: TrainSettings, world: World) -> None:
        self.settings = settings
        self.world = world
        self.recipe = Recipe.load(settings.recipe)
        store = TokenStore.open(settings.corpus, verify=world.is_first)
        self.plan = TrainPlan(self.recipe, store)
        start = load_start(settings.start, with_optimizer=self.recipe.handover.optimizer_state == "load")
        _check_lengths(self.recipe, start.model.config.max_position_embeddings)
        self.module = shard_model(start.model, settings, world)
        parameters = named_parameters(self.module)
        self.average = (
            TailAverage(parameters, first_step=self.plan.num_steps - settings.average_last_steps + 1)
            if settings.average_last_steps
            else None
        )
        self.optimizer = ShardedAdamW(parameters, self.recipe.optimizer)
        self.optimizer.set_state(start.moments or {}, start.optimizer_step)
        self.optimizer_step = start.optimizer_step
        self.step = 0
        self.skipped = 0
        self.start_losses: dict[str, float] = {}
        self.evaluation = EvaluationSet.build(
            store,
            seq_len=self.recipe.stages[-1].seq_len,
            tokens_per_domain=settings.eval_tokens_per_domain,
            device=world.device,
        )
        self.store = store
        self.checkpoints = Checkpoints(
            settings.output / "checkpoints",
            world,
            keep_last=settings.keep_last,
            in_background=settings.async_checkpoints,
        )
        self._stop = False
        self._eval_steps = {
            math.ceil(self.plan.num_steps * k / settings.eval_points)
            for k in range(1, settings.eval_points + 1)
        }
        self._resume()
        self.metrics = self._open_metrics() if world.is_first else None

    def train(self) -> dict[str, float]:
        """Train to the end and export; returns the final held-out losses.

        Raises:
            StoppedError: after SIGTERM, with a checkpoint saved.
            DecaylawsError: too many steps in a row were not finite.
        """
        signal.signal(signal.SIGTERM, self._note_stop)
        if not self.start_losses:
            self.start_losses = self._evaluate()
        losses: dict[str, float] = {}
        while self.step < self.plan.num_steps:
            stop = self._train_step(self.plan.step(self.step))
            if self.step in self._eval_steps:
                losses = self._evaluate()
            if stop or self._checkpoint_is_due():
                self._save()
            if stop:
                self.checkpoints.finish()
                raise StoppedError(f"Stopped after step {self.step}; launch again to go on.")
        self.checkpoints.finish()
        losses = losses or self._evaluate()
        self._export(losses)
        return losses

    def _open_metrics(self) -> MetricsFile:
        output = self.settings.output
        events = output / "tensorboard" if self.settings.tensorboard else None
        return MetricsFile(output / METRICS_FILE, from_step=self.step, tensorboard=events)

    def _note_stop(self, *_: object) -> None:
        self._stop = True

    def _checkpoint_is_due(self) -> bool:
        interval = self.settings.checkpoint_interval
        return self.step == self.plan.num_steps or (interval > 0 and self.step % interval == 0)

    def _train_step(self, step: Step) -> bool:
        """One optimiser step; whether any rank was asked to stop."""
        began = time.perf_counter()
        loss = self._accumulate(step)
        norm = self.optimizer_update(step)
        loss, stop = self.world.sum(loss, float(self._stop))
        if math.isfinite(norm) and math.isfinite(loss):
            self.skipped = 0
        else:
            self._note_skip(step, loss, norm)
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        self._log(step, loss, norm, time.perf_counter() - began)
        return stop > 0

    def _accumulate(self, step: Step) -> float:
        """Gradients of the step's loss; returns this rank's part of the loss."""
        windows = self.plan.windows(step, rank=self.world.rank, world_size=self.world.size)
        micro = self.settings.micro_batch_sequences
        passes = math.ceil(math.ceil(step.sequences / self.world.size) / micro)
        total = 0.0
        for number in range(passes):
            batch, weights = _micro_batch(windows, number * micro, micro, step, self.plan.seq_len(step))
            # gradients are exchanged once, with the last pass
            exchange_gradients(self.module, number == passes - 1)
            loss = self.module(batch.to(self.world.device), weights.to(self.world.device))
            # the exchange averages over ranks, but their parts of the loss add up
            (loss * self.world.size).backward()
            total += float(loss.detach())
        return total

    def optimizer_update(self, step: Step) -> float:
        """Update the parameters; returns the norm of the gradient."""
        norm = self.optimizer.step(step.lr)
        self.optimizer_step += int(math.isfinite(norm))
        return norm

    def _note_skip(self, step: Step, loss: float, norm: float) -> None:
        self.skipped += 1
        if self.skipped > self.settings.max_skipped_steps:
            raise DecaylawsError(
                f"Loss {loss} and gradient norm {norm} at step {step.index}: {self.skipped} steps in a row "
                "were not finite, so training stops. Lower the LR, or start from an earlier checkpoint."
            )

    def _log(self, step: Step, loss: float, norm: float, seconds: float) -> None:
        if self.metrics is None or (
            self.step % self.settings.log_interval and self.step < self.plan.num_steps
        ):
            return
        self.metrics.write(
            step=self.step,
            tokens=step.tokens,
            lr=step.lr,
            loss=loss if math.isfinite(loss) else None,
            grad_norm=norm if math.isfinite(norm) else None,
            tokens_per_second=round(step.sequences * self.plan.seq_len(step) / seconds, 1),
            read_tokens=self.plan.read_tokens(self.step),
        )

    def _heldout_losses(self) -> dict[str, float]:
        return heldout_losses(
            self.module, self.evaluation, self.world, batch_sequences=self.settings.micro_batch_sequences
        )

    def _evaluate(self) -> dict[str, float]:
        losses = self._heldout_losses()
        if self.metrics is not None:
            self.metrics.write(step=self.step, heldout=losses)
        return losses

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs in tensors: weights and moments, sharded."""
        weights = {f"param.{name}": tensor.detach() for name, tensor in named_parameters(self.module).items()}
        averages = {} if self.average is None else self.average.tensors()
        return weights | self.optimizer.moments() | averages

    def _save(self) -> None:
        state = {
            "step": self.step,
            "optimizer_step": self.optimizer_step,
            "skipped": self.skipped,
            "lr": float(self.recipe.step_lrs()[self.step - 1]),
            "tokens": self.plan.step(self.step - 1).tokens,
            "recipe_sha256": self.recipe.sha256,
            "start_losses": self.start_losses,
        }
        self.checkpoints.save(self.step, self._tensors(), state)

    def _resume(self) -> None:
        latest = self.checkpoints.latest()
        if latest is None:
            return
        state = self.checkpoints.load(latest, self._tensors())
        if state["recipe_sha256"] != self.recipe.sha256:
            raise DecaylawsError(
                f"{latest} was written for another recipe. Choose another output folder, or delete it."
            )
        self.step, self.optimizer_step = state["step"], state["optimizer_step"]
        self.skipped, self.start_losses = state["skipped"], state["start_losses"]
        self.optimizer.set_step(self.optimizer_step)

    def _export(self, losses: dict[str, float]) -> None:
        """Write the Hugging Face folders and the result."""
        parameters = named_parameters(self.module)
        export_hf(self.module.lm, parameters, self.settings.output / "hf", self.store, self.world)
        result = self._result(losses)
        if self.average is not None:
            folder = self.settings.output / "hf-averaged"
            export_hf(self.module.lm, self.average.mean, folder, self.store, self.world)
            with self.average.in_place():
                result["averaged_losses"] = self._heldout_losses()
        if self.world.is_first:
            write_text(self.settings.output / RESULT_FILE, to_json(result))
        dist.barrier()

    def _result(self, losses: dict[str, float]) -> dict[str, Any]:
        read = self.plan.read_tokens(self.plan.num_steps)
        available = self.store.available_tokens
        return {
            "recipe_sha256": self.recipe.sha256,
            "steps": self.plan.num_steps,
            "tokens": self.recipe.tokens,
            "start_losses": self.start_losses,
            "losses": losses,
            "bits_per_byte": self.evaluation.bits_per_byte(losses),
            "read_tokens": read,
            "epochs": {name: tokens / available[name] for name, tokens in read.items() if name in available},
        }


def _check_lengths(recipe: Recipe, max_positions: int) -> None:
    for number, stage in enumerate(recipe.stages):
        if stage.seq_len > max_positions:
            raise InvalidValueError(
                f"stages.{number}.seq_len",
                stage.seq_len,
                f"must not exceed the model's max_position_embeddings={max_positions}",
                "Extend the rotary embedding in the checkpoint's config.json first.",
            )


def _micro_batch(
    windows: np.ndarray, first: int, count: int, step: Step, seq_len: int
) -> tuple[Tensor, Tensor]:
    """Windows of one forward pass and the weight of each token; an empty one weighs nothing.

    Weights sum to one over the global batch, so that the sum over passes and ranks is the mean loss.
    """
    part = windows[first : first + count]
    weight = 1.0 / (step.sequences * seq_len)
    if len(part) == 0:
        # this rank has read its slice; it still takes part in the collectives of the pass
        part, weight = np.zeros((1, seq_len + 1), dtype=np.int64), 0.0
    return torch.from_numpy(part), torch.full((len(part), seq_len), weight)
