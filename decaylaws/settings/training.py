"""The models that a study trains in ``study.yaml``: their shapes, their stable phase, and how they compute."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from decaylaws.runs.config import ModelShape
from decaylaws.settings.external import BY_DIMENSIONS, BY_PARAMETERS, DeclaredShape, shape_type
from decaylaws.settings.numbers import (
    Count,
    LearningRate,
    NotNegative,
    Positive,
    Share,
    Tokens,
    check_mixture,
)
from decaylaws.settings.section import Section


class ShapeSettings(Section):
    """A model shape by its free dimensions; the vocabulary comes from the tokenizer."""

    d_model: Count = Field(description="width of the residual stream")
    num_layers: Count = Field(description="decoder layers")
    num_heads: Count = Field(description="attention heads; d_model must be a multiple")
    num_kv_heads: Count | None = Field(
        None, description="key and value heads (grouped-query attention); num_heads by default"
    )
    d_ff: Count = Field(description="width of the feed-forward layers")
    rope_theta: Positive = Field(10_000.0, description="base of the rotary embedding")
    tie_embeddings: bool = Field(True, description="whether input and output embeddings are one matrix")

    def shape(self, *, vocab_size: int, seq_len: int) -> ModelShape:
        """The full shape, validated."""
        return ModelShape(
            d_model=self.d_model,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads or self.num_heads,
            d_ff=self.d_ff,
            vocab_size=vocab_size,
            seq_len=seq_len,
            rope_theta=self.rope_theta,
            tie_embeddings=self.tie_embeddings,
        )


AnyShape = Annotated[
    Annotated[ShapeSettings, Tag(BY_DIMENSIONS)] | Annotated[DeclaredShape, Tag(BY_PARAMETERS)],
    Discriminator(shape_type),
]


class TrunkSettings(Section):
    """The stable phase of each model shape: warm-up, then constant LR on the general mixture."""

    tokens: Tokens = Field(
        description="length of the stable phase in tokens, warm-up included; a multiple of seq_len"
    )
    warmup_tokens: Tokens = Field(description="tokens over which the learning rate rises from 0")
    peak_lr: LearningRate = Field(description="learning rate of the constant phase, and so of the hand-over")
    scale_lr: Literal["none", "width", "mup"] | dict[str, Positive] = Field(
        "none",
        description="LR by shape: none gives all shapes peak_lr; width gives a shape peak_lr times the proxy's d_model "
        "over its own; mup does so for the matrices of the decoder blocks only, as muP does under Adam, and exports "
        "refuse such a recipe; a mapping gives factors on peak_lr by shape",
    )
    scale_weight_decay: bool = Field(
        False,
        description="with scale_lr: mup, divide the weight decay of these matrices by the factor of their LR, so that "
        "an update shrinks them equally at every width",
    )
    mixture: dict[str, Share] = Field(
        description="share of each source; decays on this mixture are the controls"
    )
    seed: NotNegative = Field(0, description="seed of the initial weights and of the order of the data")

    @model_validator(mode="after")
    def _sums(self) -> Self:
        check_mixture("trunk.mixture", self.mixture)
        if self.warmup_tokens > self.tokens:
            raise ValueError(f"warmup_tokens={self.warmup_tokens} must not exceed tokens={self.tokens}")
        if self.scale_weight_decay and self.scale_lr != "mup":
            raise ValueError("scale_weight_decay needs scale_lr: mup")
        return self


class TrainSettings(Section):
    """How proxies compute; part of the identity of every run, unlike ``backend``."""

    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="number format of the matmuls; bfloat16 is faster on processors with instructions for it and "
        "changes losses by up to 1e-3 nats per token; auto takes it on a GPU and measures on a CPU",
    )
    compile: Literal["auto"] | bool = Field(
        "auto",
        description="torch.compile for the decoder blocks; auto measures when a long sweep is first planned "
        "and keeps the answer",
    )
