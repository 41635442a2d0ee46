"""A checkpoint that exists, as the start of runs: which one it is, how far it got, and what model it holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from decaylaws.errors import InvalidValueError

OPTIMIZER_STATES = ("load", "fresh")


def require_positive_int(owner: str, name: str, value: object) -> None:
    """Refuse what is not a positive integer.

    Args:
        owner: what has the field, for the message.
        name: the field.
        value: its value.

    Raises:
        InvalidValueError: as said.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise InvalidValueError(f"{owner}.{name}", value, "must be a positive integer")


@dataclass(frozen=True, kw_only=True)
class CheckpointShape:
    """Size of a causal LM that is not a plain Llama, as far as costs and laws need it.

    It answers the same questions as :class:`~decaylaws.runs.config.ModelShape`; only the FSDP trainer can train it.

    Attributes:
        family: ``model_type`` of its config.
        d_model: width of the residual stream.
        num_layers: decoder blocks.
        vocab_size: rows of the embedding.
        seq_len: tokens of a training sequence.
        non_embedding_params: parameters beside embeddings and output head that a token meets: of the experts of a
            mixture-of-experts model, those that a token is routed to. The N of a law.
        total_params: all parameters, idle experts and embeddings included.
    """

    family: str
    d_model: int
    num_layers: int
    vocab_size: int
    seq_len: int
    non_embedding_params: int
    total_params: int

    def __post_init__(self) -> None:
        names = ("d_model", "num_layers", "vocab_size", "seq_len", "non_embedding_params", "total_params")
        for name in names:
            require_positive_int("shape", name, getattr(self, name))

    @property
    def train_flops_per_token(self) -> int:
        """FLOPs of one training token, forward and backward, by the same count as ``ModelShape``'s."""
        matmul_params = self.non_embedding_params + self.vocab_size * self.d_model
        return 6 * matmul_params + 6 * self.num_layers * self.seq_len * self.d_model


@dataclass(frozen=True, kw_only=True)
class CheckpointStart:
    """A checkpoint from which runs start, known by its content. Where its folder lies is not part of it.

    Attributes:
        fingerprint: of config and weights, and of the optimiser's state where that is loaded.
        family: ``model_type`` of its config.
        tokens: tokens that it has seen.
        lr: LR of its last step, at which decays take over.
        optimizer_state: ``load`` takes the moments in the folder, ``fresh`` starts them from zero.
        averaged: fingerprints of earlier checkpoints of its run whose weights are averaged with its own, oldest first;
            empty for the checkpoint itself.
        averaged_tokens: tokens of the run from the oldest of them to the checkpoint.
    """

    fingerprint: str
    family: str
    tokens: int
    lr: float
    optimizer_state: str = "fresh"
    averaged: tuple[str, ...] = ()
    averaged_tokens: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "averaged", tuple(self.averaged))  # a list where it was read from JSON
        require_positive_int("start", "tokens", self.tokens)
        if not 0 <= self.averaged_tokens < self.tokens or bool(self.averaged) != bool(self.averaged_tokens):
            raise InvalidValueError(
                "start.averaged_tokens",
                self.averaged_tokens,
                "must be below the start's tokens, and 0 without an average",
            )
        if not self.lr > 0.0:
            raise InvalidValueError("start.lr", self.lr, "must be positive")
        if self.optimizer_state not in OPTIMIZER_STATES:
            raise InvalidValueError(
                "start.optimizer_state", self.optimizer_state, f"must be one of {', '.join(OPTIMIZER_STATES)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; an average is written where there is one, so that other starts keep their identity."""
        values = asdict(self)
        if not self.averaged:
            del values["averaged"], values["averaged_tokens"]
        return values
