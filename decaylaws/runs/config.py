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
from decaylaws.schedules import Schedule

RUN_KINDS = ("trunk", "decay")

NUMERICS_VERSION = 1
"""Goes up whenever the trainer gives other losses for the same config: such runs must not pass for one."""


def _require_positive_int(owner: str, name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise InvalidValueError(f"{owner}.{name}", value, "must be a positive integer")


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
            _require_positive_int("shape", name, getattr(self, name))
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


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with decoupled weight decay on matrices (not norms), clipped by the global norm of one run."""

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InvalidValueError(f"optimizer.{name}", getattr(self, name), "must be in [0, 1)")
        for name in ("eps", "clip_norm"):
            if not getattr(self, name) > 0.0:
                raise InvalidValueError(f"optimizer.{name}", getattr(self, name), "must be positive")
        if not self.weight_decay >= 0.0:
            raise InvalidValueError("optimizer.weight_decay", self.weight_decay, "must not be negative")


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
        kind: ``trunk`` (stable phase from random weights) or ``decay`` (forked from a trunk's checkpoint).
        shape: model shape.
        schedule: absolute LR over the run's own tokens, ``[0, schedule.tokens)``.
        mixture: share of tokens by source.
        batch_tokens: tokens of an optimiser step, a multiple of ``shape.seq_len``.
        optimizer: AdamW settings.
        seed: keys the initial weights (trunk) and the order of the data.
        data_fingerprint: fingerprint of the prepared corpus.
        start_run_id: the trunk from which a decay forks; ``None`` for a trunk.
        start_tokens: tokens that the trunk had seen at the fork.
        pool_tokens: the run sees only the first so many tokens of each source, so that a short proxy repeats
            its data as often as the long run that it stands for; ``None`` means all.
        arithmetic: number format and compiler.
    """

    kind: str
    shape: ModelShape
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

    def __post_init__(self) -> None:
        if self.kind not in RUN_KINDS:
            raise InvalidValueError("run.kind", self.kind, f"must be one of {', '.join(RUN_KINDS)}")
        _require_positive_int("run", "batch_tokens", self.batch_tokens)
        if self.batch_tokens % self.shape.seq_len:
            raise InvalidValueError(
                "run.batch_tokens", self.batch_tokens, f"must be a multiple of seq_len={self.shape.seq_len}"
            )
        if self.seed < 0:
            raise InvalidValueError("run.seed", self.seed, "must not be negative")
        if (self.kind == "decay") != (self.start_run_id is not None):
            raise InvalidValueError(
                "run.start_run_id",
                self.start_run_id,
                "must name a trunk for a decay and be absent for a trunk",
            )
        if self.start_tokens < 0:
            raise InvalidValueError("run.start_tokens", self.start_tokens, "must not be negative")
        for source, tokens in (self.pool_tokens or {}).items():
            _require_positive_int("run.pool_tokens", source, tokens)

    @property
    def tokens(self) -> int:
        """Tokens that the run consumes."""
        return int(self.schedule.tokens)

    @property
    def num_steps(self) -> int:
        """Optimiser steps; the last one may be partial."""
        return -(-self.tokens // self.batch_tokens)

    @property
    def train_flops(self) -> int:
        """FLOPs of the run's own tokens (a fork does not pay for its trunk)."""
        return self.tokens * self.shape.train_flops_per_token

    @property
    def run_id(self) -> str:
        """First 16 hex digits of the SHA-256 of the run's canonical JSON and the trainer's numerics."""
        content = {**self.to_dict(), "numerics": NUMERICS_VERSION}
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
            "optimizer": asdict(self.optimizer),
            "seed": self.seed,
            "data_fingerprint": self.data_fingerprint,
            "start_run_id": self.start_run_id,
            "start_tokens": self.start_tokens,
            "pool_tokens": None if self.pool_tokens is None else dict(self.pool_tokens),
        }
        if self.arithmetic != EXACT:  # not written otherwise: runs of earlier versions keep their identity
            values["arithmetic"] = asdict(self.arithmetic)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a config from ``to_dict``; every field is validated again."""
        content = dict(values)
        content["shape"] = ModelShape(**content["shape"])
        content["schedule"] = Schedule.from_dict(content["schedule"])
        content["mixture"] = Mixture.from_dict(content["mixture"])
        content["optimizer"] = OptimizerConfig(**content["optimizer"])
        content["arithmetic"] = Arithmetic(**content.get("arithmetic", {}))
        return cls(**content)
