"""The training loop: a plan, a sharded model, checkpoints, metrics, and a Hugging Face folder at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from decaylaws.io.files import write_text
from decaylaws.recipe import Recipe
from decaylaws.recipe.files import to_json
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine.heldout import EvaluationSet, Measurement
from proxy_runs.fsdp.average import TailAverage
from proxy_runs.fsdp.checkpoint import Checkpoints, read_checkpoint, read_state
from proxy_runs.fsdp.checks import check_lengths, check_ropes, check_vocabulary
from proxy_runs.fsdp.evaluate import filled_up, measure
from proxy_runs.fsdp.experts import balance_of
from proxy_runs.fsdp.export import export_hf
from proxy_runs.fsdp.identity import identity_of, require_same
from proxy_runs.fsdp.listener import Listener, PrunedError, StoppedError
from proxy_runs.fsdp.metrics import MetricsFile, open_trackers
from proxy_runs.fsdp.model import (
    exchange_gradients,
    hidden_matrices,
    named_parameters,
    persistent_buffers,
    shard_model,
)
from proxy_runs.fsdp.optimizer import ShardedOptimizer
from proxy_runs.fsdp.parallel import World
from proxy_runs.fsdp.plan import Step, TrainPlan, check_tokenizer, order_checksum
from proxy_runs.fsdp.rope import set_rope
from proxy_runs.fsdp.settings import TrainSettings
from proxy_runs.fsdp.start import load_start, stored_config
from proxy_runs.fsdp.watch import LossWatch

MIN_TRAINED_BY_SAVED = 20
METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"


class Trainer:
    """One rank of a full-scale run.

    Args:
        settings: paths and policies.
        world: this rank among its peers.
        listener: told what happens and asked whether to go on.
        store: the corpus, where its content was verified already; else it is opened and verified.
    """

    def __init__(
        self,
        settings: TrainSettings,
        world: World,
        *,
        listener: Listener | None = None,
        store: TokenStore | None = None,
    ) -> None:
        settings = settings.resolved(on_gpu=world.device.type == "cuda")
        self.settings = settings
        self.world = world
        self.listener = listener or Listener()
        self.recipe = Recipe.load(settings.recipe)
        if store is None:
            store = TokenStore.open(settings.corpus, verify=world.is_first)
        # hashed and compared by one rank: its error ends all of them
        self.identity = (
            identity_of(settings, self.recipe, store.fingerprint) if world.is_first else dict[str, Any]()
        )
        self.plan = TrainPlan(self.recipe, store)
        start = load_start(
            settings.start,
            with_optimizer=self.recipe.handover.optimizer_state == "load",
            eos_token_id=store.eos_id,
            shard=self._shard,
        )
        self.module.train().to(world.device)  # buffers, and what transformers has switched to evaluation
        config = start.model.config.get_text_config()
        check_lengths(self.plan, getattr(config, "max_position_embeddings", None))
        check_vocabulary(store, config.vocab_size)
        check_tokenizer(settings.start, store)
        check_ropes(self.recipe, start.model)
        self.start = replace(start, moments=None)
        parameters = named_parameters(self.module)
        # a batch of another size would be compiled anew; rows that only fill up would count for the experts' balance
        self._same_sizes = settings.compile is True and self.balance.weight == 0
        self.average = (
            TailAverage(parameters, first_step=self.plan.first_averaged_step(settings.average_last_steps))
            if settings.average_last_steps
            else None
        )
        self.optimizer = ShardedOptimizer(parameters, self.recipe.optimizer, hidden_matrices(self.module.lm))
        self.optimizer.set_state(start.moments or {}, start.optimizer_step)
        self.optimizer_step = start.optimizer_step
        self.step = 0
        self.watch = LossWatch(max_skipped=settings.max_skipped_steps, max_jump=settings.max_loss_jump)
        self.start_losses: dict[str, float] = {}
        self.start_columns: dict[str, float] = {}
        self.evaluations: list[dict[str, Any]] = []  # those on the way and the last: step, losses, columns
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
        self._saved, self._saving_seconds = time.monotonic(), 0.0
        self._eval_steps = {
            math.ceil(self.plan.num_steps * k / settings.eval_points)
            for k in range(1, settings.eval_points + 1)
        }
        self._resume()
        self._stage: int | None = None
        self._enter_stage_of(self.step)
        self._trackers_trouble: list[str] = []
        self.metrics: MetricsFile | None = None
        if world.is_first:
            trackers = open_trackers(settings, self.recipe, self.step, self._trackers_trouble.append)
            self.metrics = MetricsFile(settings.output / METRICS_FILE, from_step=self.step, trackers=trackers)

    def _shard(self, lm: PreTrainedModel) -> None:
        """Shard the model before its weights are read."""
        self.balance = balance_of(lm, self.settings.router_aux_loss_coef)
        self.module = shard_model(lm, self.settings, self.world, balance_loss=self.balance.weight)

    def train(self) -> dict[str, float]:
        """Train to the end and export; returns the final held-out losses.

        Raises:
            StoppedError: the listener wanted to stop, and a checkpoint is saved.
            PrunedError: the listener wanted no more after an evaluation on the way.
            DivergedError: too many steps in a row were not finite.
        """
        self.measure_start()
        while self.step < self.plan.num_steps:
            stop, save = self.train_step()
            if self.step in self._eval_steps and self._note_evaluation() and self.step < self.plan.num_steps:
                raise PrunedError(f"Pruned after step {self.step}.")
            if stop or save or self._checkpoint_is_due():
                self._save()
            if stop and self.step < self.plan.num_steps:
                self.checkpoints.close()
                raise StoppedError(f"Stopped after step {self.step}; launch again to go on.")
        self.checkpoints.close()
        if not self.evaluations or self.evaluations[-1]["step"] != self.step:
            self._note_evaluation()
        losses: dict[str, float] = self.evaluations[-1]["losses"]
        self._export(losses)
        if self.metrics is not None:
            self.metrics.close()
        return losses

    def measure_start(self) -> dict[str, float]:
        """Held-out losses of the start, in nats per token; measured once."""
        if not self.start_losses:
            found = self._evaluate()
            self.start_losses, self.start_columns = found.losses, found.columns
        return self.start_losses

    def history(self) -> list[dict[str, Any]]:
        """Every evaluation so far, that of the start first: ``step``, ``losses`` by domain, further ``columns``."""
        start = {"step": 0, "losses": self.start_losses, "columns": self.start_columns}
        return [start, *self.evaluations]

    def _note_evaluation(self) -> bool:
        """Evaluate where the run stands; whether the listener wants it to end here."""
        found = self._evaluate()
        self.evaluations.append({"step": self.step, "losses": found.losses, "columns": found.columns})
        return self.listener.measured(self.step, found.losses, found.columns)

    def _enter_stage_of(self, step: int) -> None:
        """Give the model the rotary embedding of the stage that a step belongs to."""
        stage = self.plan.step(min(step, self.plan.num_steps - 1)).stage
        rope = self.plan.rope(stage)
        if stage != self._stage and rope is not None:
            set_rope(self.module.lm, rope, self.recipe.stages[stage].seq_len)
        self._stage = stage

    def _checkpoint_is_due(self) -> bool:
        interval = self.settings.checkpoint_interval
        is_last = self.step == self.plan.num_steps
        return (is_last and self.settings.save_model) or (interval > 0 and self.step % interval == 0)

    def _time_to_save(self) -> bool:
        """Whether this rank's clock asks for a checkpoint; saving takes a twentieth of the time at most."""
        seconds = self.settings.checkpoint_seconds
        if seconds is None:
            return False
        return time.monotonic() - self._saved > max(seconds, MIN_TRAINED_BY_SAVED * self._saving_seconds)

    def train_step(self) -> tuple[bool, bool]:
        """The next optimiser step; whether any rank was asked to stop, and whether the first one's clock says save."""
        began = time.perf_counter()
        step = self.plan.step(self.step)
        self._enter_stage_of(self.step)
        windows = self.plan.windows(step, rank=self.world.rank, world_size=self.world.size)
        ledger = self._ledger(step, windows)
        asked = (float(self.listener.wants_stop), float(self.world.is_first and self._time_to_save()))
        loss, balance, stop, save, *ledger_sums = self.world.sum(
            *self._accumulate(step, windows), *asked, *ledger.values()
        )
        wanted = not self.watch.refuses(loss, step.stage)
        norm = self.optimizer.step(step.lr, take=wanted)
        taken = wanted and math.isfinite(norm)
        self.optimizer_step += int(taken)
        self.watch.note(loss, norm, step=step.index, taken=taken)
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        read = {name: int(value) for name, value in zip(ledger, ledger_sums)}
        self._log(step, loss, balance, norm, read, time.perf_counter() - began)
        self.listener.stepped(step.tokens, loss)
        return stop > 0, save > 0

    def _ledger(self, step: Step, windows: np.ndarray) -> dict[str, int]:
        """What this rank reads: figures that add up over the ranks."""
        first = step.sequences * self.world.rank // self.world.size
        within_a_document = (windows[:, :-1] != self.store.eos_id).all(axis=1)
        return {
            "data_order": order_checksum(windows, first),
            "unbroken_sequences": int(within_a_document.sum()),
        }

    def _accumulate(self, step: Step, windows: np.ndarray) -> list[float]:
        """Gradients of the loss of this rank's windows; returns its parts of the step's loss and balance loss."""
        own, micro = (
            math.ceil(step.sequences / self.world.size),
            self._pass_sequences(self.plan.seq_len(step)),
        )
        passes = math.ceil(own / micro)
        if self._same_sizes:
            micro = math.ceil(own / passes)
        # stays on the device until the end: reading it in every pass would make a GPU wait
        total = torch.zeros(2, dtype=torch.float64, device=self.world.device)
        for number in range(passes):
            batch, weights = _micro_batch(windows[number * micro :][:micro], step, self.plan.seq_len(step))
            if self._same_sizes:
                batch, weights = filled_up(batch, weights, micro)
            # gradients are exchanged once, with the last pass
            exchange_gradients(self.module, number == passes - 1)
            losses = self.module(batch.to(self.world.device), weights.to(self.world.device))
            # the exchange averages over ranks, but their parts of the loss add up
            (losses.objective * self.world.size).backward()
            total += torch.stack([losses.tokens, losses.balance])
        return total.tolist()

    def _pass_sequences(self, seq_len: int) -> int:
        """Sequences of a forward pass: as many tokens as in the first stage, whatever their length."""
        tokens = self.settings.micro_batch_sequences * self.recipe.stages[0].seq_len
        return max(1, tokens // seq_len)

    def _log(
        self, step: Step, loss: float, balance: float, norm: float, ledger: dict[str, int], seconds: float
    ) -> None:
        if self.metrics is None or (
            self.step % self.settings.log_interval and self.step < self.plan.num_steps
        ):
            return
        self.metrics.write(
            step=self.step,
            tokens=step.tokens,
            lr=step.lr,
            loss=loss if math.isfinite(loss) else None,
            **({"balance_loss": balance if math.isfinite(balance) else None} if self.balance.weight else {}),
            grad_norm=norm if math.isfinite(norm) else None,
            skipped=self.watch.skipped,
            tokens_per_second=round(step.sequences * self.plan.seq_len(step) / seconds, 1),
            read_tokens=self.plan.read_tokens(self.step),
            sequences=step.sequences,
            **ledger,
        )

    def _measure(self) -> Measurement:
        on_the_way = 0 < self.step < self.plan.num_steps
        return measure(
            self.module,
            self.evaluation,
            self.world,
            batch_sequences=self._pass_sequences(self.recipe.stages[-1].seq_len),
            same_sizes=self.settings.compile is True,
            leave_out=self.settings.eval_at_ends if on_the_way else (),
        )

    def _evaluate(self) -> Measurement:
        found = self._measure()
        if self.metrics is not None:
            further = {"columns": found.columns} if found.columns else {}
            self.metrics.write(step=self.step, heldout=found.losses, **further)
        return found

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs in tensors: weights and moments, sharded."""
        weights = {f"param.{name}": tensor.detach() for name, tensor in named_parameters(self.module).items()}
        buffers = {f"buffer.{name}": tensor for name, tensor in persistent_buffers(self.module).items()}
        averages = {} if self.average is None else self.average.tensors()
        return weights | buffers | self.optimizer.moments() | averages

    def _standing(self) -> dict[str, Any]:
        """Where the run stands, as a recipe that begins here would put it."""
        return {
            "step": self.step,
            # of the whole history, as every checkpoint counts them
            "tokens": self.recipe.handover.tokens + self.plan.step(self.step - 1).tokens,
            "lr": float(self.recipe.step_lrs()[self.step - 1]),
        }

    def _save(self) -> None:
        state = {
            **self._standing(),
            "optimizer_step": self.optimizer_step,
            "watch": self.watch.state(),
            "identity": self.identity,
            "start_losses": self.start_losses,
            "start_columns": self.start_columns,
            "evaluations": self.evaluations,
        }
        began = time.monotonic()
        self.checkpoints.save(self.step, self._tensors(), state, stored_config(self.start))
        self._saved = time.monotonic()
        self._saving_seconds = self._saved - began

    def _resume(self) -> None:
        latest = self.checkpoints.latest()
        if latest is None:
            return
        if self.world.is_first:  # before the tensors are read: another model's would not fit
            require_same(read_state(latest).get("identity"), self.identity, latest)
        state = read_checkpoint(latest, self._tensors())
        self.step, self.optimizer_step = state["step"], state["optimizer_step"]
        self.start_losses = state["start_losses"]
        self.start_columns = state.get("start_columns", {})  # an earlier version had none
        self.evaluations = state.get("evaluations", [])  # an earlier version kept none
        self.watch.restore(**state["watch"])
        self.optimizer.set_step(self.optimizer_step)

    def _export(self, losses: dict[str, float]) -> None:
        """Write the Hugging Face folders and the result."""

        def save(weights: Mapping[str, Tensor], name: str) -> None:
            weights = {**weights, **persistent_buffers(self.module)}
            folder = self.settings.output / name
            export_hf(self.start, weights, folder, self.store, self.world, state=self._standing())

        if self.settings.save_model:
            save(named_parameters(self.module), "hf")
        result = self._result(losses)
        if self.average is not None:
            save(self.average.mean, "hf-averaged")
            with self.average.in_place():
                result["averaged_losses"] = self._measure().losses
        if self.world.is_first:
            write_text(self.settings.output / RESULT_FILE, to_json(result), recorded=True)
        dist.barrier()

    def _notes(self) -> list[str]:
        """What the trainer did that the recipe does not say."""
        notes = [self.balance.note] if self.balance.note else []
        if self.start.dropout:
            rates = ", ".join(f"{name} {rate:g}" for name, rate in self.start.dropout.items())
            notes.append(f"Dropout was off; the config of the start has {rates}.")
        return [*notes, *self._trackers_trouble]

    def _result(self, losses: dict[str, float]) -> dict[str, Any]:
        read = self.plan.read_tokens(self.plan.num_steps)
        available = self.store.available_tokens
        return {
            "identity": self.identity,
            "start": str(self.settings.start),
            "settings": self.settings.model_dump(mode="json"),
            "recipe_sha256": self.recipe.sha256,
            "notes": self._notes(),
            "steps": self.plan.num_steps,
            "tokens": self.recipe.tokens,
            "start_losses": self.start_losses,
            "start_columns": self.start_columns,
            "evaluations": self.evaluations,
            "losses": losses,
            "bits_per_byte": self.evaluation.bits_per_byte(losses),
            "read_tokens": read,
            "epochs": {name: tokens / available[name] for name, tokens in read.items() if name in available},
        }


def _micro_batch(windows: np.ndarray, step: Step, seq_len: int) -> tuple[Tensor, Tensor]:
    """Windows of one forward pass and the weight of each token; an empty one weighs nothing.

    Weights sum to one over the global batch, so that the sum over passes and ranks is the mean loss.
    """
    batch = torch.from_numpy(windows)
    weights = torch.full((len(batch), seq_len), 1.0 / (step.sequences * seq_len))
    # a rank that has read its slice still takes part in the collectives of the pass
    return filled_up(batch, weights, max(1, len(batch)))
