"""A model that is only declared: its size is known, and how its own trainer calls it."""

from __future__ import annotations

from dataclasses import dataclass

from decaylaws.errors import InvalidValueError
from decaylaws.runs.start import require_positive_int


@dataclass(frozen=True, kw_only=True)
class DeclaredModel:
    """A model of which only its size is known here: an external trainer builds it.

    Attributes:
        model: what that trainer calls it.
        non_embedding_params: parameters without embedding and output head.
        seq_len: tokens of a training sequence.
        embedding_params: parameters of embedding and output head.
    """

    model: str
    non_embedding_params: int
    seq_len: int
    embedding_params: int = 0

    def __post_init__(self) -> None:
        for name in ("non_embedding_params", "seq_len"):
            require_positive_int("shape", name, getattr(self, name))
        if self.embedding_params < 0:
            raise InvalidValueError("shape.embedding_params", self.embedding_params, "must not be negative")

    @property
    def total_params(self) -> int:
        """All parameters."""
        return self.non_embedding_params + self.embedding_params

    @property
    def train_flops_per_token(self) -> int:
        """FLOPs of one training token, forward and backward: 6 per parameter outside the embedding.

        Attention scores and the output head are left out, since the dimensions are not known here: ``6 N`` of Kaplan
        et al. (2020, arXiv:2001.08361).
        """
        return 6 * self.non_embedding_params
