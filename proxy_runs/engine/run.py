"""One run on its way: what to read next, at which LR, when to evaluate, and what to record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.runs.columns import BPB, EPOCHS, FINISHED, LOSS, MIX, STABLE_MIX, START_LOSS, config_row
from decaylaws.runs.config import RunConfig
from decaylaws.runs.declared import DeclaredModel
from proxy_runs.data.sampler import BatchReader, MixtureSampler, available_sequences
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine.heldout import EvaluationSet
from proxy_runs.engine.model import init_params
from proxy_runs.weights.checkpoints import MemberState

Batch = tuple[NDArray[np.int64], NDArray[np.float32]]


@dataclass(frozen=True)
class RunResult:
    """What became of a run.

    Attributes:
        run_id: its identity.
        status: ``finished``, ``diverged`` or ``pruned``.
        reason: why it ended early; empty when it did not.
        row: its row of the runs table, all columns but ``role``.
        curve: its rows of the curves table; ``tokens`` and ``step`` count from the run's own start.
    """

    run_id: str
    status: str
    reason: str
    row: dict[str, Any]
    curve: list[dict[str, Any]]


class Run:
    """A run between two optimiser steps; knows nothing of tensors, slots or neighbours.

    Args:
        config: the plan.
        store: the prepared corpus.
        points: evaluations after the start, evenly spaced over the steps; the last one is at the end.

    Raises:
        InvalidValueError: the tokens are no whole number of sequences.
        DataError: the plan was made for another corpus.
        InfeasibleError: the mixture asks for a source that holds no whole sequence.
    """

    def __init__(self, config: RunConfig, store: TokenStore, *, points: int) -> None:
        _check(config, store)
        self.config = config
        self.sequences = config.batch_tokens // config.shape.seq_len
        self.step = 0
        self.history_step = 0
        self.start_losses: dict[str, float] = {}
        self.curve: list[dict[str, Any]] = []
        self.keep_at: frozenset[int] = frozenset()  # own tokens after which its checkpoint is kept
        self._ahead: tuple[int, Batch] | None = None
        self._sources = store.names
        self._lrs = config.schedule.step_lrs(config.batch_tokens) if config.is_trained else np.zeros(0)
        self._columns: dict[str, float] = {}  # of the last evaluation, beside its losses
        self._eval_steps = {math.ceil(config.num_steps * k / points) for k in range(1, points + 1)}
        self._available = available_sequences(store, config.shape.seq_len, config.pool_tokens)
        self._read_before = _read_by(config.stable, store) if config.stable is not None else {}
        sampler = MixtureSampler(
            config.mixture,
            self._available,
            seed=config.seed,
            batch_sequences=self.sequences,
            consumed_sequences=self._read_before,  # a stable stage and its decay are one pass over the sources
        )
        self._reader = BatchReader(store, sampler, config.shape.seq_len)

    @property
    def tokens(self) -> int:
        """Own tokens behind it."""
        return min(self.step * self.config.batch_tokens, self.config.tokens)

    @property
    def lr(self) -> float:
        """LR of the next step."""
        return float(self._lrs[self.step])

    @property
    def is_done(self) -> bool:
        """Whether every planned token is behind it."""
        return self.step >= self.config.num_steps

    @property
    def wants_evaluation(self) -> bool:
        """Whether the plan evaluates it where it stands."""
        return self.step in self._eval_steps

    def batch(self) -> Batch:
        """Windows ``[sequences, seq_len + 1]`` of the next step and the weight of each ``[sequences]``.

        A last partial step repeats its first window with weight zero in the places that it does not fill.
        """
        ahead, self._ahead = self._ahead, None
        return ahead[1] if ahead and ahead[0] == self.step else self._read(self.step)

    def read_ahead(self) -> None:
        """Read the next batch already, while something else computes."""
        if self.step < self.config.num_steps:
            self._ahead = self.step, self._read(self.step)

    def _read(self, step: int) -> Batch:
        length = self.config.shape.seq_len
        left = self.config.tokens - step * self.config.batch_tokens
        count = min(self.sequences, left // length)
        windows = self._reader.batch(step * self.sequences, count)
        weights = np.zeros(self.sequences, dtype=np.float32)
        weights[:count] = 1.0 / count
        if count < self.sequences:
            padding = np.repeat(windows[:1], self.sequences - count, axis=0)
            windows = np.concatenate([windows, padding])
        return windows, weights

    def advance(self) -> None:
        """Note that an optimiser step was launched."""
        self.step += 1
        self.history_step += 1

    def take_back(self, steps: int) -> None:
        """Note that the last steps, whose gradient was not finite, were not done."""
        self.step -= steps
        self.history_step -= steps

    def start_state(self) -> MemberState:
        """The state of a trunk before its first step: random weights, empty moments."""
        params = init_params(self.config.llama, self.config.seed)
        return MemberState(
            run_id=self.config.run_id,
            shape=self.config.llama,
            step=0,
            run_step=0,
            tokens=0,
            params=params,
            exp_avg={name: tensor.new_zeros(tensor.shape) for name, tensor in params.items()},
            exp_avg_sq={name: tensor.new_zeros(tensor.shape) for name, tensor in params.items()},
        )

    def note_losses(self, losses: Mapping[str, float], columns: Mapping[str, float] | None = None) -> None:
        """Record an evaluation at the present position.

        Args:
            losses: by domain, nats per token.
            columns: what else a row of the runs table holds if this is the last evaluation.
        """
        self._columns = dict(columns or {})
        if self.step == 0:
            self.start_losses = dict(losses)
        lr = float(self.config.schedule.lr(self.tokens))
        self.curve += [
            {
                "run_id": self.config.run_id,
                "tokens": self.tokens,
                "step": self.step,
                "lr": lr,
                "domain": domain,
                "loss": loss,
            }
            for domain, loss in losses.items()
        ]

    def last_losses(self) -> dict[str, float]:
        """Losses of the last evaluation."""
        last = self.curve[-1]["step"] if self.curve else -1
        return {entry["domain"]: entry["loss"] for entry in self.curve if entry["step"] == last}

    def result(self, status: str, reason: str, evaluation: EvaluationSet) -> RunResult:
        """Close the run: its row of the runs table, its part of the curves table.

        Args:
            status: how the run ended.
            reason: why, if it did not finish.
            evaluation: the held-out set that it was measured on.
        """
        config, reached = self.config, status == FINISHED
        epochs = self._reader.sampler.epochs(self.tokens // config.shape.seq_len)
        row: dict[str, Any] = {
            **config_row(config),
            "status": status,
            "reason": reason,
            "reached_target": reached,
            "train_flops": self.tokens * config.shape.train_flops_per_token,
        }
        row |= {MIX + name: config.mixture.share(name) for name in self._sources}
        if config.stable is not None:
            row |= {STABLE_MIX + name: config.stable.mixture.share(name) for name in self._sources}
        before = {name: count / self._available[name] for name, count in self._read_before.items()}
        row |= {EPOCHS + name: epochs.get(name, before.get(name, 0.0)) for name in self._sources}
        row |= {START_LOSS + domain: loss for domain, loss in self.start_losses.items()}
        if reached:
            losses = self.last_losses()
            row |= {LOSS + domain: loss for domain, loss in losses.items()}
            row |= {BPB + domain: value for domain, value in evaluation.bits_per_byte(losses).items()}
            row |= self._columns
        factors = evaluation.bits_per_nat_byte
        curve = [{**entry, "bits_per_byte": entry["loss"] * factors[entry["domain"]]} for entry in self.curve]
        return RunResult(config.run_id, status, reason, row, curve)


def _read_by(stable: RunConfig, store: TokenStore) -> dict[str, int]:
    """Sequences of each source that a stable stage reads."""
    sampler = MixtureSampler(
        stable.mixture,
        available_sequences(store, stable.shape.seq_len, stable.pool_tokens),
        seed=stable.seed,
        batch_sequences=stable.batch_tokens // stable.shape.seq_len,
    )
    return sampler.counts(stable.tokens // stable.shape.seq_len)


def _check(config: RunConfig, store: TokenStore) -> None:
    if isinstance(config.shape, DeclaredModel):
        raise InvalidValueError(
            "run.shape", config.shape.model, "is only declared: its own trainer builds it"
        )
    if config.tokens % config.shape.seq_len:
        raise InvalidValueError(
            "run.schedule.tokens",
            config.tokens,
            f"must be a multiple of seq_len={config.shape.seq_len}",
            "Round the decay to whole sequences.",
        )
    if config.data_fingerprint != store.fingerprint:
        raise DataError(
            f"The run {config.run_id} was planned for the corpus {config.data_fingerprint}, "
            f"the store holds {store.fingerprint}. Plan again, or restore the corpus."
        )
    if config.shape.vocab_size < store.vocab_size:
        raise InvalidValueError(
            "shape.vocab_size",
            config.shape.vocab_size,
            f"must hold the tokenizer's {store.vocab_size} entries",
        )
