"""One planned run, described so completely that its content is its identity.

``RunConfig.run_id`` is a hash of everything that can change the result: two equal configs are one run, so a
sweep never repeats what it has, whoever planned it and in whatever order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from decaylaws.errors import InvalidValueError
from decaylaws.mixtures import Mixture
from decaylaws.runs.declared import DeclaredModel
from decaylaws.runs.optimizer import OptimizerConfig
from decaylaws.runs.start import CheckpointShape, CheckpointStart, require_positive_int
from decaylaws.schedules import Schedule, Segment

RUN_KINDS = ("trunk", "checkpoint", "average", "stable", "decay")
FORKS = ("average", "stable", "decay")
"""Kinds that start from another run."""
TRAINED_STARTS = ("trunk", "stable")
"""Kinds that leave a checkpoint at their end, from which others start."""

NUMERICS_VERSION = 1
"""Goes up whenever the trainer gives other losses for the same config: such runs must not pass for one."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Shape of a Llama-style decoder: RMSNorm, RoPE, SwiGLU, grouped-query attention.

    Attributes:
        d_model: width of the residual stream.
        num_layers: decoder blocks.
        num_heads: query heads; ``d_model`` is divisible by it.
        num_kv_heads: key and value heads; divides ``num_heads``.
        d_ff: inner width of the SwiGLU block.
        vocab_size: entries of the tokenizer.
        seq_len: tokens of a training sequence.
        rope_theta: base of the rotary embedding.
        tie_embeddings: whether the output head is the embedding matrix.
        norm_eps: epsilon of RMSNorm.
    """

    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    d_ff: int
    vocab_size: int
    seq_len: int
    rope_theta: float = 10_000.0
    tie_embeddings: bool = True
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("d_model", "num_layers", "num_heads", "num_kv_heads", "d_ff", "vocab_size", "seq_len"):
            require_positive_int("shape", name, getattr(self, name))
        if self.d_model % self.num_heads or (self.d_model // self.num_heads) % 2:
            raise InvalidValueError(
                "shape.num_heads",
                self.num_heads,
                f"must divide d_model={self.d_model} into heads of even width",
            )
        if self.num_heads % self.num_kv_heads:
            raise InvalidValueError(
                "shape.num_kv_heads", self.num_kv_heads, f"must divide num_heads={self.num_heads}"
            )
        for name in ("rope_theta", "norm_eps"):
            if not getattr(self, name) > 0:
                raise InvalidValueError(f"shape.{name}", getattr(self, name), "must be positive")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.num_heads

    @property
    def non_embedding_params(self) -> int:
        """Parameters without embedding and output head: the N of a law unless the law says otherwise."""
        d, kv = self.d_model, self.num_kv_heads * self.head_dim
        attention = 2 * d * d + 2 * d * kv
        return self.num_layers * (attention + 3 * d * self.d_ff + 2 * d) + d

    @property
    def total_params(self) -> int:
        """All parameters; a tied embedding counts once."""
        copies = 1 if self.tie_embeddings else 2
        return self.non_embedding_params + copies * self.vocab_size * self.d_model

    @property
    def train_flops_per_token(self) -> int:
        """FLOPs of one training token, forward and backward.

        6 per matrix parameter (head included, embedding look-up not) plus attention scores and values,
        ``6 * num_layers * seq_len * d_model``: PaLM, appendix B, halved for the causal mask.
        """
        matmul_params = self.non_embedding_params + self.vocab_size * self.d_model
        return 6 * matmul_params + 6 * self.num_layers * self.seq_len * self.d_model


TRAINERS = ("built-in", "external")


Shape = ModelShape | CheckpointShape | DeclaredModel

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """How a proxy computes where that moves its last digits; equal configs must give equal losses.

    Attributes:
        precision: of the matmuls, ``float32`` or ``bfloat16``; weights and moments are float32.
        compiled: whether ``torch.compile`` fuses the decoder blocks, which rounds differently.
    """

    precision: str = "float32"
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InvalidValueError(
                "arithmetic.precision", self.precision, f"must be one of {', '.join(PRECISIONS)}"
            )

    def __str__(self) -> str:
        return f"{'compiled' if self.compiled else 'eager'} {self.precision}"


EXACT = Arithmetic()
"""Eager float32: the same bits however runs are grouped."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One planned run.

    Attributes:
        kind: ``trunk`` (stable phase from random weights), ``checkpoint`` (one that exists and is only measured),
            ``stable`` (a trunk's LR goes on over another mixture) or ``decay`` (forked from the checkpoint of one of
            these).
        shape: model shape; that of a run of an external trainer may only be declared.
        schedule: absolute LR over the run's own tokens, ``[0, schedule.tokens)``.
        mixture: share of tokens by source.
        batch_tokens: tokens of an optimiser step, a multiple of ``shape.seq_len``.
        optimizer: AdamW, or Muon with AdamW.
        seed: keys the initial weights (trunk) and the order of the data.
        data_fingerprint: fingerprint of the prepared corpus.
        start_run_id: the run from which a decay or a stable stage forks; ``None`` for trunks and checkpoints.
        start_tokens: tokens that it had seen at the fork.
        pool_tokens: the run sees only the first so many tokens of each source, so that a short proxy repeats
            its data as often as the long run that it stands for; ``None`` means all.
        arithmetic: number format and compiler.
        start: the checkpoint that a ``checkpoint`` is and from which its decays start; ``None`` beside a trunk.
        trainer: ``built-in``, or ``external`` for a run that another trainer does.
        stable: the stable stage from which a decay forks; ``None`` for one that forks from the end of a trunk or from
            a checkpoint.
    """

    kind: str
    shape: Shape
    schedule: Schedule
    mixture: Mixture
    batch_tokens: int
    seed: int
    data_fingerprint: str
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    start_run_id: str | None = None
    start_tokens: int = 0
    pool_tokens: Mapping[str, int] | None = None
    arithmetic: Arithmetic = EXACT
    start: CheckpointStart | None = None
    trainer: str = "built-in"
    stable: RunConfig | None = None

    def __post_init__(self) -> None:
        if self.trainer not in TRAINERS:
            raise InvalidValueError("run.trainer", self.trainer, f"must be one of {', '.join(TRAINERS)}")
        if self.kind not in RUN_KINDS:
            raise InvalidValueError("run.kind", self.kind, f"must be one of {', '.join(RUN_KINDS)}")
        require_positive_int("run", "batch_tokens", self.batch_tokens)
        if self.batch_tokens % self.shape.seq_len:
            raise InvalidValueError(
                "run.batch_tokens", self.batch_tokens, f"must be a multiple of seq_len={self.shape.seq_len}"
            )
        if self.seed < 0:
            raise InvalidValueError("run.seed", self.seed, "must not be negative")
        if (self.kind in FORKS) != (self.start_run_id is not None):
            raise InvalidValueError(
                "run.start_run_id",
                self.start_run_id,
                "must name a trunk or checkpoint for a decay or an average and be absent for these",
            )
        self._check_start()
        self._check_stable()
        if self.start_tokens < 0:
            raise InvalidValueError("run.start_tokens", self.start_tokens, "must not be negative")
        for source, tokens in (self.pool_tokens or {}).items():
            require_positive_int("run.pool_tokens", source, tokens)

    def _check_start(self) -> None:
        """A checkpoint has a start, a trunk has none, and what is not a plain Llama can only be held."""
        averages = self.start is not None and bool(self.start.averaged)
        allowed = {
            "trunk": self.start is None,
            "checkpoint": self.start is not None and not averages,
            "average": averages,
            "stable": self.start is None,
            "decay": not averages,
        }
        if not allowed[self.kind]:
            raise InvalidValueError(
                "run.start",
                self.start,
                "must be given for a checkpoint, be averaged for an average, and absent for a trunk",
            )
        if self.start is None and isinstance(self.shape, CheckpointShape):
            raise InvalidValueError("run.shape", self.shape.family, "cannot be trained from random weights")
        if (
            self.kind in ("decay", "average")
            and self.start is not None
            and self.start_tokens != self.start.tokens
        ):
            raise InvalidValueError(
                "run.start_tokens", self.start_tokens, f"must be those of its start, {self.start.tokens}"
            )

    def _check_stable(self) -> None:
        """A decay that names a stable stage starts where that one ends."""
        if self.stable is None:
            return
        begins = (self.stable.run_id, self.stable.start_tokens + self.stable.tokens)
        if self.kind != "decay" or self.stable.kind != "stable":
            raise InvalidValueError("run.stable", self.stable.kind, "must be the stable stage of a decay")
        if (self.start_run_id, self.start_tokens) != begins:
            raise InvalidValueError(
                "run.start_run_id", self.start_run_id, f"must be the end of its stable stage, {begins}"
            )

    @classmethod
    def held(
        cls,
        start: CheckpointStart,
        shape: Shape,
        *,
        mixture: Mixture,
        batch_tokens: int,
        data_fingerprint: str,
        arithmetic: Arithmetic = EXACT,
        trainer: str = "built-in",
    ) -> Self:
        """The run that measures a checkpoint: its own history as a constant LR, of which nothing is trained.

        Args:
            start: the checkpoint.
            shape: its model.
            mixture: which it was trained on.
            batch_tokens: tokens of an optimiser step of its decays.
            data_fingerprint: of the corpus whose held-out text measures it.
            arithmetic: of the decays.
            trainer: of the decays.
        """
        return cls(
            kind="checkpoint",
            shape=shape,
            schedule=Schedule((Segment(start.tokens, start.lr, start.lr),)),
            mixture=mixture,
            batch_tokens=batch_tokens,
            seed=0,
            data_fingerprint=data_fingerprint,
            arithmetic=arithmetic,
            trainer=trainer,
            start=start,
        )

    def average(self, start: CheckpointStart) -> Self:
        """The run that measures the mean of the weights of this checkpoint and of earlier ones of its run.

        Args:
            start: the checkpoint, with what is averaged.
        """
        own = {"kind": "average", "start": start, "start_run_id": self.run_id, "start_tokens": start.tokens}
        return self.with_changes(**own)

    @property
    def trunk_run_id(self) -> str | None:
        """The trunk or checkpoint from which a decay forks, or the stable stage before it; ``None`` for these."""
        return self.start_run_id if self.stable is None else self.stable.start_run_id

    @property
    def is_trained(self) -> bool:
        """Whether optimiser steps are taken; a checkpoint that exists, or a mean of several, is only measured."""
        return self.kind not in ("checkpoint", "average")

    @property
    def llama(self) -> ModelShape:
        """The shape, for the stacked trainer, which is never given another one."""
        if isinstance(self.shape, CheckpointShape):
            raise InvalidValueError("run.shape", self.shape.family, "is not a Llama that can be stacked")
        if isinstance(self.shape, DeclaredModel):
            raise InvalidValueError(
                "run.shape", self.shape.model, "is only declared: its own trainer builds it"
            )
        return self.shape

    @property
    def tokens(self) -> int:
        """Tokens that the run consumes; those of its history for a checkpoint."""
        return int(self.schedule.tokens)

    @property
    def num_steps(self) -> int:
        """Optimiser steps; the last one may be partial."""
        return -(-self.tokens // self.batch_tokens) if self.is_trained else 0

    @property
    def train_flops(self) -> int:
        """FLOPs of the run's own tokens (a fork does not pay for its trunk, nobody for a checkpoint that exists)."""
        return self.tokens * self.shape.train_flops_per_token if self.is_trained else 0

    @property
    def numerics(self) -> int:
        """Version of the numerics of the trainer; 0 for an external one, whose versions are not known here."""
        return NUMERICS_VERSION if self.trainer == "built-in" else 0

    @property
    def run_id(self) -> str:
        """First 16 hex digits of the SHA-256 of the run's canonical JSON and the trainer's numerics."""
        content = {**self.to_dict(), "numerics": self.numerics}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def with_changes(self, **changes: Any) -> Self:
        """A copy with some fields replaced, validated again."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``from_dict`` is its inverse."""
        values = {
            "kind": self.kind,
            "shape": asdict(self.shape),
            "schedule": self.schedule.to_dict(),
            "mixture": self.mixture.to_dict(),
            "batch_tokens": self.batch_tokens,
            "optimizer": self.optimizer.to_dict(),
            "seed": self.seed,
            "data_fingerprint": self.data_fingerprint,
            "start_run_id": self.start_run_id,
            "start_tokens": self.start_tokens,
            "pool_tokens": None if self.pool_tokens is None else dict(self.pool_tokens),
        }
        if self.arithmetic != EXACT:  # not written otherwise: runs of earlier versions keep their identity
            values["arithmetic"] = asdict(self.arithmetic)
        if self.start is not None:
            values["start"] = self.start.to_dict()
        if self.trainer != "built-in":
            values["trainer"] = self.trainer
        if self.stable is not None:
            values["stable"] = self.stable.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a config from ``to_dict``; every field is validated again."""
        content = dict(values)
        content["shape"] = shape_from_dict(content["shape"])
        content["schedule"] = Schedule.from_dict(content["schedule"])
        content["mixture"] = Mixture.from_dict(content["mixture"])
        content["optimizer"] = OptimizerConfig.from_dict(content["optimizer"])
        content["arithmetic"] = Arithmetic(**content.get("arithmetic", {}))
        content["start"] = CheckpointStart(**content["start"]) if content.get("start") else None
        content["stable"] = cls.from_dict(content["stable"]) if content.get("stable") else None
        return cls(**content)


def shape_from_dict(values: Mapping[str, Any]) -> Shape:
    """The shape whose fields ``values`` are."""
    if "model" in values:
        return DeclaredModel(**values)
    return CheckpointShape(**values) if "family" in values else ModelShape(**values)
